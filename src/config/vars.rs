//! Conversions of variables: those that several variables need, and long ones.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{ConfigError, Mongo, units};
use crate::protocols::cors::{CorsOrigins, OriginList};

/// The most that `RECOVERY_BYTES` may be.
const MAX_RECOVERY_BYTES: usize = 16 << 30;

/// The variables, and conversions of them.
pub(super) struct Vars<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Vars<'_> {
    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn optional<T: std::str::FromStr>(
        &self,
        name: &'static str,
        allowed: &'static str,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.trim().parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(ConfigError::Invalid { name, value, allowed }),
        }
    }

    pub(super) fn parse<T: std::str::FromStr>(
        &self,
        name: &'static str,
        default: T,
        allowed: &'static str,
    ) -> Result<T, ConfigError> {
        Ok(self.optional(name, allowed)?.unwrap_or(default))
    }

    pub(super) fn in_range(
        &self,
        name: &'static str,
        range: RangeInclusive<usize>,
        allowed: &'static str,
    ) -> Result<Option<usize>, ConfigError> {
        match self.optional::<usize>(name, allowed)? {
            Some(value) if !range.contains(&value) => {
                Err(ConfigError::Invalid { name, value: value.to_string(), allowed })
            }
            value => Ok(value),
        }
    }

    /// A duration; `default` and `most` are in seconds.
    pub(super) fn duration(
        &self,
        name: &'static str,
        default: u64,
        most: u64,
        allowed: &'static str,
    ) -> Result<Duration, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(Duration::from_secs(default)) };
        units::duration(&value)
            .filter(|duration| *duration <= Duration::from_secs(most))
            .ok_or(ConfigError::Invalid { name, value, allowed })
    }

    pub(super) fn bytes(&self, name: &'static str, default: usize) -> Result<usize, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let allowed = "a size of at most 16GiB, such as 67108864 or 64MiB";
        units::bytes(&value)
            .filter(|bytes| *bytes <= MAX_RECOVERY_BYTES)
            .ok_or(ConfigError::Invalid { name, value, allowed })
    }

    /// An address. Shells and conda export the name of the machine in `HOST` for another purpose:
    /// then it counts as not set.
    pub(super) fn host(&self, notices: &mut Vec<String>) -> Result<Option<IpAddr>, ConfigError> {
        let Some(value) = self.get("HOST") else { return Ok(None) };
        let host = value.trim();
        if let Ok(address) = host.parse() {
            return Ok(Some(address));
        }
        if host.eq_ignore_ascii_case("localhost") {
            return Ok(Some(Ipv4Addr::LOCALHOST.into()));
        }
        let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_name = host.chars().all(is_of_a_name) && host.contains(|c: char| c.is_alphabetic());
        if !is_name {
            let allowed = "an IP address, such as 127.0.0.1 or ::, or localhost";
            return Err(ConfigError::Invalid { name: "HOST", value, allowed });
        }
        notices.push(format!(
            "HOST={host} is a name and no address, so the server listens on all addresses. Set \
             HOST to an IP address to listen on one"
        ));
        Ok(None)
    }

    pub(super) fn choice<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&str, T)],
        allowed: &'static str,
    ) -> Result<T, ConfigError> {
        let value = self.get(name);
        let wanted = value.as_deref().map(str::trim);
        match choices.iter().find(|(text, _)| wanted.is_none_or(|wanted| wanted == *text)) {
            Some((_, choice)) => Ok(*choice),
            None => Err(ConfigError::Invalid { name, value: value.unwrap_or_default(), allowed }),
        }
    }

    pub(super) fn flag(&self, name: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.get(name).as_deref().map(str::trim) {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(value) => Err(ConfigError::Invalid {
                name,
                value: value.to_owned(),
                allowed: "true or false",
            }),
        }
    }

    /// A URI decides. With a secret alone, the `.env` file is the original's, so its database is
    /// used. Without both, the start decides.
    pub(super) fn mongo(&self, secret_is_set: bool) -> Result<Mongo, ConfigError> {
        for name in ["MONGO_URI", "MONGODB_URI"] {
            let Some(uri) = self.get(name) else { continue };
            let uri = uri.trim();
            if uri == "embedded" {
                return Ok(Mongo::Embedded);
            }
            if !uri.starts_with("mongodb://") && !uri.starts_with("mongodb+srv://") {
                return Err(ConfigError::Invalid {
                    name,
                    // A connection string may contain a password, so only its beginning is shown.
                    value: uri.chars().take_while(char::is_ascii_alphanumeric).take(16).collect(),
                    allowed: "mongodb://…, mongodb+srv://… or embedded",
                });
            }
            return Ok(Mongo::Uri { uri: uri.into() });
        }
        Ok(if secret_is_set { Mongo::original() } else { Mongo::Unset })
    }

    pub(super) fn cors(&self) -> Result<CorsOrigins, ConfigError> {
        let mut origins = self.cors_origins()?;
        let name = "CORS_CREDENTIALS";
        if self.flag(name, false)? {
            let refused = |allowed| {
                let value = self.get(name).unwrap_or_default();
                Err(ConfigError::Invalid { name, value, allowed })
            };
            match &mut origins {
                CorsOrigins::Any => {
                    return refused(
                        "it needs a list in CORS_ORIGINS, since browsers send no cookies where \
                         all origins are allowed",
                    );
                }
                CorsOrigins::List(list) if list.has_null() => {
                    return refused(
                        "not with null in CORS_ORIGINS, the origin of every sandboxed page",
                    );
                }
                CorsOrigins::List(list) => list.credentials = true,
            }
        }
        Ok(origins)
    }

    fn cors_origins(&self) -> Result<CorsOrigins, ConfigError> {
        let Some(value) = self.get("CORS_ORIGINS") else { return Ok(CorsOrigins::Any) };
        if value.trim() == "*" {
            return Ok(CorsOrigins::Any);
        }
        OriginList::parse(&value)
            .map(CorsOrigins::List)
            .map_err(|bad| ConfigError::Origin { value, bad })
    }
}
