//! The format of a transcript: scenarios of steps, each a request and the answers expected.
//!
//! `expect` is the original's answer. `ours` replaces it where we deviate on purpose, `secure`
//! where we deviate unless `LEGACY_TRUST=true`. A request says literally what is sent: only
//! `Host` and a length are added. `then`, our addition to the format, expects further answers on
//! the same connection, for a `raw` text of several requests.

use std::{io::Write as _, net::SocketAddr, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use serde::Deserialize;

use super::{Profile, template::Variables};

/// A story of steps that depend on each other, and on no other scenario.
#[derive(Debug, Deserialize)]
pub struct Scenario {
    pub name: String,
    needs: Option<String>,
    pub steps: Vec<Step>,
}

/// One request and its answer.
#[derive(Debug, Deserialize)]
pub struct Step {
    pub name: String,
    /// Sent for its effect; a server of another make may answer as it likes.
    #[serde(default)]
    pub free: bool,
    /// Milliseconds to wait before sending.
    pub sleep_ms: Option<u64>,
    pub request: Request,
    expect: Expectation,
    ours: Option<Expectation>,
    secure: Option<Expectation>,
}

/// What is sent, on a connection of its own.
#[derive(Debug, Deserialize)]
pub struct Request {
    method: Option<String>,
    path: Option<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    body: Option<String>,
    body_b64: Option<String>,
    charset: Option<String>,
    encode: Option<String>,
    #[serde(default)]
    chunked: bool,
    /// The whole request in Latin-1, instead of all above.
    raw: Option<String>,
}

/// What must come back. Texts are templates.
#[derive(Debug, Deserialize)]
pub struct Expectation {
    #[serde(default = "yes")]
    pub judge: bool,
    pub status: Option<u16>,
    #[serde(default)]
    pub body_mode: BodyMode,
    #[serde(default)]
    pub body: String,
    #[serde(default)]
    pub items: Vec<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    pub info: Info,
    #[serde(default)]
    pub then: Vec<Expectation>,
}

/// How much of a body is compared.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BodyMode {
    #[default]
    Exact,
    Prefix,
    ArrayContains,
}

/// What was recorded beside the answer.
#[derive(Debug, Default, Deserialize)]
pub struct Info {
    /// The page that the original sends in production, where there is no stack trace in it.
    pub production_body: Option<String>,
}

/// Reads all transcripts, ordered by their numbers.
pub fn load_all() -> Vec<Scenario> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("tests/golden is a folder")
        .map(|entry| entry.expect("the folder can be listed").path())
        .collect();
    files.sort();
    files.iter().map(|file| load(file)).collect()
}

fn load(file: &Path) -> Scenario {
    let text = std::fs::read_to_string(file).expect("a transcript can be read");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn yes() -> bool {
    true
}

impl Scenario {
    /// Whether the scenario makes sense only with `LEGACY_TRUST=true`.
    pub fn needs_legacy_trust(&self) -> bool {
        self.needs.as_deref() == Some("legacy")
    }
}

impl Step {
    /// The answer that a server of this profile must give.
    pub fn expectation(&self, profile: Profile) -> &Expectation {
        let ours = self.ours.as_ref().unwrap_or(&self.expect);
        match profile {
            Profile::Secure => self.secure.as_ref().unwrap_or(ours),
            Profile::Legacy => ours,
            Profile::Original => &self.expect,
        }
    }
}

impl Expectation {
    /// The names of the expected headers in lower case, each once.
    pub fn header_names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The expected values of a header, in the order of its lines.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let named = |(known, _): &&(String, String)| known.eq_ignore_ascii_case(name);
        self.headers.iter().filter(named).map(|(_, value)| value.as_str()).collect()
    }
}

impl Request {
    /// Whether the answer has no body whatever its headers say.
    pub fn is_head(&self) -> bool {
        self.method.as_deref() == Some("HEAD")
            || self.raw.as_ref().is_some_and(|raw| raw.starts_with("HEAD "))
    }

    /// The request's bytes as they go out.
    pub fn encode(&self, address: SocketAddr, variables: &Variables) -> Result<Vec<u8>, String> {
        if let Some(raw) = &self.raw {
            return latin1(&variables.fill(raw)?);
        }
        let (Some(method), Some(path)) = (&self.method, &self.path) else {
            return Err("a request has neither raw nor method and path".to_owned());
        };
        let body = self.encode_body(variables)?;
        let mut head = format!("{method} {} HTTP/1.1\r\n", variables.fill(path)?);
        if !self.has_header("host") {
            head += &format!("Host: {address}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {}\r\n", variables.fill(value)?);
        }
        match &body {
            _ if self.chunked => head += "Transfer-Encoding: chunked\r\n",
            Some(body) if !self.has_header("content-length") => {
                head += &format!("Content-Length: {}\r\n", body.len());
            }
            _ => {}
        }
        let mut bytes = (head + "\r\n").into_bytes();
        match body {
            Some(body) if self.chunked => append_in_chunks(&mut bytes, &body),
            Some(body) => bytes.extend(body),
            None => {}
        }
        Ok(bytes)
    }

    fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name))
    }

    fn encode_body(&self, variables: &Variables) -> Result<Option<Vec<u8>>, String> {
        let plain = match (&self.body_b64, &self.body) {
            (Some(base64), _) => STANDARD.decode(base64).map_err(|error| error.to_string())?,
            (None, Some(text)) => self.encode_text(&variables.fill(text)?)?,
            (None, None) => return Ok(None),
        };
        let packed = match self.encode.as_deref() {
            None => Ok(plain),
            Some("gzip") => gzip(&plain),
            Some("deflate") => deflate(&plain),
            Some(other) => return Err(format!("unknown encoding {other}")),
        };
        packed.map(Some).map_err(|error| error.to_string())
    }

    /// Encodes by the names that Python gives to character sets.
    fn encode_text(&self, text: &str) -> Result<Vec<u8>, String> {
        let little = || text.encode_utf16().flat_map(u16::to_le_bytes);
        match self.charset.as_deref().unwrap_or("utf-8") {
            "utf-8" => Ok(text.as_bytes().to_vec()),
            "utf-16" => Ok([0xff, 0xfe].into_iter().chain(little()).collect()),
            "utf-16-le" => Ok(little().collect()),
            "utf-16-be" => Ok(text.encode_utf16().flat_map(u16::to_be_bytes).collect()),
            other => Err(format!("unknown charset {other}")),
        }
    }
}

fn latin1(text: &str) -> Result<Vec<u8>, String> {
    let byte = |c: char| u8::try_from(u32::from(c)).map_err(|_| format!("{c:?} is not Latin-1"));
    text.chars().map(byte).collect()
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn deflate(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn append_in_chunks(bytes: &mut Vec<u8>, body: &[u8]) {
    for chunk in body.chunks(body.len().div_ceil(3).max(1)) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
}
