//! The client bundles that pages load from `/socket.io/socket.io.js`, as Node's server has them.
//!
//! Two bundles of npm's socket.io-client 4.8.1 (MIT) are part of the binary, unchanged. Whoever
//! needs another version, or source maps, names the folder of its `dist`.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use sha1::{Digest, Sha1};

use crate::config::CorsOrigins;
use crate::middleware::cors;

/// The files that Node's server serves.
const NAMES: [&str; 8] = [
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
    files: HashMap<&'static str, (Bytes, HeaderValue)>,
    origins: CorsOrigins,
}

impl Bundles {
    /// Those of a folder, or the ones in this binary.
    ///
    /// # Errors
    /// The folder cannot be read, or has none of them.
    pub fn load(folder: Option<&Path>, origins: CorsOrigins) -> io::Result<Self> {
        let files = match folder {
            Some(folder) => read(folder)?,
            None => embedded(),
        };
        Ok(Self { files, origins })
    }

    /// Answers a request for a bundle; `None` is any other request.
    pub fn respond(&self, req: &HttpRequest) -> Option<HttpResponse> {
        if *req.method() != Method::GET && *req.method() != Method::HEAD {
            return None;
        }
        let name = req.match_info().query("tail");
        let (bundle, tag) = self.files.get(name)?;
        let mut answer = if matches(req.headers(), tag) {
            HttpResponse::NotModified().finish()
        } else {
            let kind = if name.ends_with(".map") { "json" } else { "javascript" };
            HttpResponse::Ok()
                .content_type(format!("application/{kind}; charset=utf-8"))
                .insert_header((header::CACHE_CONTROL, "public, max-age=0"))
                .insert_header((header::ETAG, tag.clone()))
                .body(bundle.clone())
        };
        let origin = req.headers().get(header::ORIGIN);
        cors::allow_origin(answer.headers_mut(), &self.origins, origin);
        Some(answer)
    }
}

fn embedded() -> HashMap<&'static str, (Bytes, HeaderValue)> {
    let script = include_bytes!("socket.io.min.js").as_slice();
    let module = include_bytes!("socket.io.esm.min.js").as_slice();
    // The long form differs for readers only.
    [("socket.io.js", script), ("socket.io.min.js", script), ("socket.io.esm.min.js", module)]
        .into_iter()
        .map(|(name, file)| {
            (name, (Bytes::from_static(file), HeaderValue::from_static(EMBEDDED_TAG)))
        })
        .collect()
}

fn read(folder: &Path) -> io::Result<HashMap<&'static str, (Bytes, HeaderValue)>> {
    let mut files = HashMap::new();
    for name in NAMES {
        let file = match std::fs::read(folder.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let tag = format!("\"{}\"", STANDARD_NO_PAD.encode(Sha1::digest(&file)));
        let tag = HeaderValue::from_str(&tag).map_err(io::Error::other)?;
        files.insert(name, (Bytes::from(file), tag));
    }
    if files.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no socket.io.js in it"));
    }
    Ok(files)
}

fn matches(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let wanted = headers.get(header::IF_NONE_MATCH).map(HeaderValue::as_bytes);
    wanted.is_some_and(|wanted| wanted.strip_prefix(b"W/").unwrap_or(wanted) == tag.as_bytes())
}
