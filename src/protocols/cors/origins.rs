//! A list of allowed origins, which are compared like URLs.
//!
//! An origin is a scheme, a host and a port (RFC 6454). Scheme and host are case-insensitive, the
//! default port of the scheme may be omitted, and a non-ASCII host equals its Punycode form.

use url::{Host, Url};

/// A list of origins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginList {
    origins: Vec<AllowedOrigin>,
    /// Whether pages of these origins may send cookies.
    pub credentials: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum AllowedOrigin {
    /// `null`: the origin of files and of sandboxed pages.
    Null,
    /// One origin, as browsers write it.
    One(String),
    /// Every subdomain of a host.
    Subdomains(Origin),
}

/// The parts of an origin, in the form that browsers write.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    /// Empty for schemes without hosts, such as `file`.
    host: String,
    port: Option<u16>,
}

/// An entry that can match no page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadOrigin {
    /// The entry.
    pub origin: String,
    /// Why it matches nothing.
    pub reason: &'static str,
}

impl OriginList {
    /// Parses a comma-separated list.
    ///
    /// # Errors
    /// An entry that can match no page.
    pub fn parse(list: &str) -> Result<Self, BadOrigin> {
        let entry = |text: &str| {
            let text = text.trim();
            AllowedOrigin::parse(text)
                .map_err(|reason| BadOrigin { origin: text.to_owned(), reason })
        };
        let origins = list.split(',').map(entry).collect::<Result<_, _>>()?;
        Ok(Self { origins, credentials: false })
    }

    /// Whether the list contains `null`.
    pub fn has_null(&self) -> bool {
        self.origins.contains(&AllowedOrigin::Null)
    }

    /// Whether the list allows this origin, as a browser writes it.
    pub fn allows(&self, origin: &str) -> bool {
        // Browsers nearly always write an origin in exactly this form.
        let is_same = |allowed: &AllowedOrigin| match allowed {
            AllowedOrigin::Null => origin == NULL,
            AllowedOrigin::One(allowed) => allowed == origin,
            AllowedOrigin::Subdomains(_) => false,
        };
        if self.origins.iter().any(is_same) {
            return true;
        }
        let Ok(origin) = Origin::parse(origin) else { return false };
        let written = origin.to_string();
        self.origins.iter().any(|allowed| match allowed {
            AllowedOrigin::Null => false,
            AllowedOrigin::One(allowed) => *allowed == written,
            AllowedOrigin::Subdomains(parent) => origin.is_below(parent),
        })
    }
}

const NULL: &str = "null";

impl AllowedOrigin {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text == NULL {
            return Ok(Self::Null);
        }
        if text.is_empty() {
            return Err("there is nothing between two commas, or after the last one");
        }
        if text == "*" {
            return Err("* means all origins, so it must be the only entry");
        }
        if text.contains(['[', '"', '\'']) && !text.contains("://[") {
            return Err(
                "a list is written without brackets and quotes: https://a.example,https://b.example",
            );
        }
        if text.contains(char::is_whitespace) {
            return Err("origins are separated by commas");
        }
        match text.split_once("://*.") {
            Some((scheme, host)) => {
                let parent = Origin::parse(&format!("{scheme}://{host}"))?;
                if parent.host.is_empty()
                    || !matches!(Host::parse(&parent.host), Ok(Host::Domain(_)))
                {
                    return Err("only a name has subdomains");
                }
                Ok(Self::Subdomains(parent))
            }
            None => Origin::parse(text).map(|origin| Self::One(origin.to_string())),
        }
    }
}

impl Origin {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "an origin is scheme://host or scheme://host:port";

        if text.contains('*') {
            return Err("* can only stand for subdomains: https://*.example.com");
        }
        // `Url::parse` also accepts text that browsers never write.
        let (_, rest) = text.split_once("://").ok_or(FORM)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '\\', '?', '#']) {
            return Err("an origin has no path: scheme://host or scheme://host:port");
        }
        if rest.contains('@') {
            return Err("an origin has no user");
        }
        let url = Url::parse(text).map_err(|_| FORM)?;
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        if host.is_empty() && url.port().is_some() {
            return Err(FORM);
        }
        Ok(Self { scheme: url.scheme().to_owned(), host, port: url.port() })
    }

    /// Whether this is an origin of a subdomain of `parent`.
    fn is_below(&self, parent: &Self) -> bool {
        let label = self.host.strip_suffix(parent.host.as_str());
        let label = label.and_then(|rest| rest.strip_suffix('.'));
        self.scheme == parent.scheme
            && self.port == parent.port
            && label.is_some_and(|label| !label.is_empty())
    }
}

/// The origin as browsers write it.
impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> OriginList {
        OriginList::parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}"))
    }

    #[test]
    fn origins_are_compared_as_urls_are() {
        let list = list(
            "HTTPS://Chat.Example.COM:443/, http://localhost:3000,http://[0:0::1]:80,null,\
             https://b\u{fc}cher.example, capacitor://LocalHost,file://",
        );
        for origin in [
            "https://chat.example.com",
            "https://CHAT.example.com:443",
            "http://localhost:3000",
            "http://[::1]",
            "null",
            "https://xn--bcher-kva.example",
            "capacitor://localhost",
            "file://",
        ] {
            assert!(list.allows(origin), "{origin}");
        }
        for origin in [
            "http://chat.example.com",
            "https://chat.example.com:8443",
            "https://chat.example.com.evil.example",
            "https://evil.example/https://chat.example.com",
            "https://chat.example.com@evil.example",
            "https://evilchat.example.com",
            "http://localhost",
            "https://localhost:3000",
            "ionic://localhost",
            "NULL",
            "",
            "*",
            "chat.example.com",
        ] {
            assert!(!list.allows(origin), "{origin}");
        }
    }

    #[test]
    fn a_star_is_every_subdomain_and_nothing_else() {
        let list = list("https://*.Example.com,http://*.localhost:3000");
        for origin in [
            "https://a.example.com",
            "https://a.b.example.com",
            "https://A.EXAMPLE.com:443",
            "http://app.localhost:3000",
        ] {
            assert!(list.allows(origin), "{origin}");
        }
        for origin in [
            "https://example.com",
            "https://.example.com",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://evilexample.com",
            "https://a.example.com.evil.example",
            "https://evil.example/.example.com",
            "https://evil.example#.example.com",
            "https://evil.example\\.example.com",
            "https://a@b.example.com",
            "https://*.example.com",
            "http://app.localhost",
            "null",
        ] {
            assert!(!list.allows(origin), "{origin}");
        }
    }

    #[test]
    fn what_can_match_nobody_is_refused_with_the_reason() {
        for (text, reason) in [
            ("example.com", "scheme://host"),
            ("https://", "scheme://host"),
            ("https://a.example/chat", "no path"),
            ("https://a.example?x", "no path"),
            ("https://ann@a.example", "no user"),
            ("https://a.example:99999", "scheme://host"),
            ("http://a.example http://b.example", "commas"),
            (r#"["http://localhost:3000"]"#, "without brackets"),
            ("'http://localhost:3000'", "without brackets"),
            ("https://a.example,", "nothing"),
            ("*,https://a.example", "the only entry"),
            ("https://*", "subdomains"),
            ("http://*:3000", "subdomains"),
            ("https://api-*.example.com", "subdomains"),
            ("https://*.*.example.com", "subdomains"),
            ("*.example.com", "subdomains"),
            ("https://*.10.0.0.1", "only a name"),
            ("https://*.", "scheme://host"),
            ("https://a example", "commas"),
        ] {
            let error = OriginList::parse(text).unwrap_err();
            assert!(error.reason.contains(reason), "{text}: {}", error.reason);
        }
    }
}
