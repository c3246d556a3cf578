//! The client bundles that pages load from `/socket.io/socket.io.js`, as Node's server serves them.
//!
//! The binary contains the bundles of npm's socket.io 4.8.1 (MIT), with their source maps and
//! compressed by `gzip -9n`: nearly every client accepts gzip, and the files are a quarter as
//! large. Bundles of another version can be loaded from the folder of its `dist`.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::OnceLock;

use actix_web::http::Method;
use actix_web::http::header::{self, ContentEncoding, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha1::{Digest, Sha1};

use crate::protocols::cors::{self, CorsOrigins};
use crate::protocols::headers::reads_gzip;

/// Name and content of the files that Node's server serves.
macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_bytes!(concat!($name, ".gz")).as_slice())),+]
    };
}

const FILES: [(&str, &[u8]); 8] = files![
    "socket.io.js",
    "socket.io.js.map",
    "socket.io.min.js",
    "socket.io.min.js.map",
    "socket.io.esm.min.js",
    "socket.io.esm.min.js.map",
    "socket.io.msgpack.min.js",
    "socket.io.msgpack.min.js.map",
];

/// Node's entity tag is the version of the package.
const EMBEDDED_TAG: &str = "\"4.8.1\"";

/// The bundles to serve.
#[derive(Debug)]
pub struct Bundles {
    files: HashMap<&'static str, Bundle>,
    origins: CorsOrigins,
}

/// One file, plain or compressed; the other form is created when it is first asked for.
#[derive(Debug)]
struct Bundle {
    plain: OnceLock<Bytes>,
    gzip: OnceLock<Bytes>,
    tag: HeaderValue,
}

impl Bundles {
    /// Loads the bundles of a folder, or those in this binary.
    ///
    /// # Errors
    /// The folder cannot be read, or contains no bundle.
    pub fn load(folder: Option<&Path>, origins: CorsOrigins) -> io::Result<Self> {
        let files = match folder {
            Some(folder) => read(folder)?,
            None => embedded(),
        };
        Ok(Self { files, origins })
    }

    /// Answers a request for a bundle; `None` for any other request.
    pub fn respond(&self, req: &HttpRequest) -> Option<HttpResponse> {
        if *req.method() != Method::GET && *req.method() != Method::HEAD {
            return None;
        }
        let name = req.match_info().query("tail");
        let bundle = self.files.get(name)?;
        let mut answer = if matches(req.headers(), &bundle.tag) {
            HttpResponse::NotModified().finish()
        } else {
            let kind = if name.ends_with(".map") { "json" } else { "javascript" };
            let mut answer = HttpResponse::Ok();
            answer
                .content_type(format!("application/{kind}; charset=utf-8"))
                .insert_header((header::CACHE_CONTROL, "public, max-age=0"))
                .insert_header((header::ETAG, bundle.tag.clone()));
            if reads_gzip(req) {
                // As in Node, an uncompressed response has no such headers, so a cache may give it
                // to all clients.
                answer
                    .insert_header((header::CONTENT_ENCODING, ContentEncoding::Gzip))
                    .insert_header((header::VARY, "Accept-Encoding"))
                    .body(bundle.gzip())
            } else {
                answer.body(bundle.plain())
            }
        };
        let origin = req.headers().get(header::ORIGIN);
        cors::allow_origin(answer.headers_mut(), &self.origins, origin);
        Some(answer)
    }
}

impl Bundle {
    fn plain(&self) -> Bytes {
        let inflate = || {
            let mut plain = Vec::new();
            let gzip = self.gzip.get().map(AsRef::as_ref).unwrap_or_default();
            GzDecoder::new(gzip).read_to_end(&mut plain).expect("our own files are whole");
            plain.into()
        };
        self.plain.get_or_init(inflate).clone()
    }

    fn gzip(&self) -> Bytes {
        let deflate = || {
            let plain = self.plain.get().map(AsRef::as_ref).unwrap_or_default();
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            gzip.write_all(plain).expect("writing into a vector cannot fail");
            gzip.finish().expect("writing into a vector cannot fail").into()
        };
        self.gzip.get_or_init(deflate).clone()
    }
}

fn embedded() -> HashMap<&'static str, Bundle> {
    let bundle = |gzip| Bundle {
        plain: OnceLock::new(),
        gzip: Bytes::from_static(gzip).into(),
        tag: HeaderValue::from_static(EMBEDDED_TAG),
    };
    FILES.into_iter().map(|(name, gzip)| (name, bundle(gzip))).collect()
}

fn read(folder: &Path) -> io::Result<HashMap<&'static str, Bundle>> {
    let mut files = HashMap::new();
    for (name, _) in FILES {
        let file = match std::fs::read(folder.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let tag = format!("\"{}\"", STANDARD_NO_PAD.encode(Sha1::digest(&file)));
        let tag = HeaderValue::from_str(&tag).map_err(io::Error::other)?;
        let plain = Bytes::from(file).into();
        files.insert(name, Bundle { plain, gzip: OnceLock::new(), tag });
    }
    if files.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the folder contains no socket.io.js"));
    }
    Ok(files)
}

fn matches(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let wanted = headers.get(header::IF_NONE_MATCH).map(HeaderValue::as_bytes);
    wanted.is_some_and(|wanted| wanted.strip_prefix(b"W/").unwrap_or(wanted) == tag.as_bytes())
}
