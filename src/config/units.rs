//! Sizes and durations as people write them: a number alone, or with a unit.

use std::time::Duration;

/// Reads a size in bytes: `67108864`, `64MiB`, `64 MB`, `1.5GiB`. `KB`, `MB` and `GB` count in
/// thousands, `KiB`, `MiB` and `GiB` in 1024s; the case of the letters does not matter.
pub fn bytes(text: &str) -> Option<usize> {
    let size: bytesize::ByteSize = text.trim().parse().ok()?;
    usize::try_from(size.as_u64()).ok()
}

/// Reads a duration: `120` are seconds; `120s`, `2m`, `1h 30m`, `500ms`.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("67108864", Some(64 << 20)),
            ("64MiB", Some(64 << 20)),
            ("64 mib", Some(64 << 20)),
            ("64MB", Some(64_000_000)),
            ("1.5GiB", Some(3 << 29)),
            ("0", Some(0)),
            ("64 apples", None),
            ("-1", None),
            ("", None),
            ("MiB", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_have_units() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (text, expected) in [
            ("120", seconds(120)),
            ("120s", seconds(120)),
            (" 2m ", seconds(120)),
            ("1h 30m", seconds(5400)),
            ("500ms", Some(Duration::from_millis(500))),
            ("0", seconds(0)),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
    }
}
