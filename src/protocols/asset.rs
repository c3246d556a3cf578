//! Files that browsers load: plain or compressed, with an entity tag.

use std::io::{Read, Write};
use std::sync::OnceLock;

use actix_web::http::header::{self, ContentEncoding, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha1::{Digest, Sha1};

use crate::protocols::headers::reads_gzip;

/// One file, plain or compressed; the other form is created when it is first asked for.
#[derive(Debug)]
pub struct Asset {
    plain: OnceLock<Bytes>,
    gzip: OnceLock<Bytes>,
    tag: HeaderValue,
}

impl Asset {
    /// A file whose tag is made from its content.
    pub fn new(plain: impl Into<Bytes>) -> Self {
        let plain = plain.into();
        let tag = format!("\"{}\"", STANDARD_NO_PAD.encode(Sha1::digest(&plain)));
        let tag = HeaderValue::from_str(&tag).expect("base64 and quotes are visible ASCII");
        Self { plain: plain.into(), gzip: OnceLock::new(), tag }
    }

    /// A file of this binary that was compressed by `gzip`.
    pub fn compressed(gzip: &'static [u8], tag: HeaderValue) -> Self {
        Self { plain: OnceLock::new(), gzip: Bytes::from_static(gzip).into(), tag }
    }

    /// Answers a request for the file, which a cache may keep but has to ask about.
    pub fn respond(&self, req: &HttpRequest, content_type: &str) -> HttpResponse {
        if matches(req.headers(), &self.tag) {
            return HttpResponse::NotModified().finish();
        }
        let mut answer = HttpResponse::Ok();
        answer
            .content_type(content_type)
            .insert_header((header::CACHE_CONTROL, "public, max-age=0"))
            .insert_header((header::ETAG, self.tag.clone()));
        if reads_gzip(req) {
            // As in Node, an uncompressed response has no such headers, so a cache may give it to
            // all clients.
            answer
                .insert_header((header::CONTENT_ENCODING, ContentEncoding::Gzip))
                .insert_header((header::VARY, "Accept-Encoding"))
                .body(self.gzip())
        } else {
            answer.body(self.plain())
        }
    }

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
            let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
            gzip.write_all(plain).expect("writing into a vector cannot fail");
            gzip.finish().expect("writing into a vector cannot fail").into()
        };
        self.gzip.get_or_init(deflate).clone()
    }
}

fn matches(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let wanted = headers.get(header::IF_NONE_MATCH).map(HeaderValue::as_bytes);
    wanted.is_some_and(|wanted| wanted.strip_prefix(b"W/").unwrap_or(wanted) == tag.as_bytes())
}
