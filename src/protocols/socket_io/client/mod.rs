//! The client bundles that pages load from `/socket.io/socket.io.js`, as Node's server serves them.
//!
//! The binary contains the bundles of npm's socket.io 4.8.1 (MIT), with their source maps and
//! compressed by `gzip -9n`: nearly every client accepts gzip, and the files are a quarter as
//! large. Bundles of another version can be loaded from the folder of its `dist`.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use actix_web::http::Method;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};

use crate::protocols::asset::Asset;
use crate::protocols::cors::{self, CorsOrigins};

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
    files: HashMap<&'static str, Asset>,
    origins: CorsOrigins,
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
        let kind = if name.ends_with(".map") { "json" } else { "javascript" };
        let content_type = format!("application/{kind}; charset=utf-8");
        let mut answer = bundle.respond(req, &content_type);
        let origin = req.headers().get(header::ORIGIN);
        cors::allow_origin(answer.headers_mut(), &self.origins, origin);
        Some(answer)
    }
}

fn embedded() -> HashMap<&'static str, Asset> {
    let tag = || HeaderValue::from_static(EMBEDDED_TAG);
    FILES.into_iter().map(|(name, gzip)| (name, Asset::compressed(gzip, tag()))).collect()
}

fn read(folder: &Path) -> io::Result<HashMap<&'static str, Asset>> {
    let mut files = HashMap::new();
    for (name, _) in FILES {
        let file = match std::fs::read(folder.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        files.insert(name, Asset::new(file));
    }
    if files.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the folder contains no socket.io.js"));
    }
    Ok(files)
}
