//! `Number(text)`: the numbers that JavaScript reads in a text (ECMA-262, StringToNumber).

use super::value::is_js_space;

/// The number that a text means; NaN if it is none. A blank text is 0.
pub(super) fn parse(text: &str) -> f64 {
    let text = text.trim_matches(is_js_space);
    match text {
        "" => 0.0,
        "Infinity" | "+Infinity" => f64::INFINITY,
        "-Infinity" => f64::NEG_INFINITY,
        _ => radix(text).unwrap_or_else(|| decimal(text)),
    }
}

/// `0x1f`, `0o17` or `0b101`, without a sign; `None` for a text without such a prefix.
fn radix(text: &str) -> Option<f64> {
    let (radix, digits) = match text.split_at_checked(2)? {
        ("0x" | "0X", digits) => (16, digits),
        ("0o" | "0O", digits) => (8, digits),
        ("0b" | "0B", digits) => (2, digits),
        _ => return None,
    };
    if digits.is_empty() {
        return Some(f64::NAN);
    }
    // `value` has as many digits as fit without loss. Of the remaining digits, only matters how
    // many they are, and whether one is not 0: then the value is not halfway between two doubles.
    let (mut value, mut scale, mut rest) = (0_u128, 1.0_f64, false);
    for digit in digits.chars() {
        let Some(digit) = digit.to_digit(radix) else { return Some(f64::NAN) };
        if value >> 120 == 0 {
            value = value * u128::from(radix) + u128::from(digit);
        } else {
            scale *= f64::from(radix);
            rest |= digit != 0;
        }
    }
    Some((value | u128::from(rest)) as f64 * scale)
}

/// A decimal number. Rust also reads `inf`, `nan` and others, which JavaScript does not.
fn decimal(text: &str) -> f64 {
    let is_number = text.bytes().any(|byte| byte.is_ascii_digit())
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if is_number { text.parse().unwrap_or(f64::NAN) } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn texts_are_the_numbers_that_javascript_reads() {
        for (text, number) in [
            ("", 0.0),
            (" \u{feff}\u{a0}5\n", 5.0),
            ("5.", 5.0),
            (".5", 0.5),
            ("-1e3", -1000.0),
            ("1E+3", 1000.0),
            ("0x1F", 31.0),
            ("0b101", 5.0),
            ("0o17", 15.0),
            ("010", 10.0),
            ("1e400", f64::INFINITY),
            ("0x20000000000001", 9_007_199_254_740_992.0),
            ("0x20000000000003", 9_007_199_254_740_996.0),
            ("0x1000000000000080000000000000000", 2_f64.powi(120)),
        ] {
            assert_eq!(parse(text), number, "{text:?}");
        }
        let beyond_half = format!("0x1{}8{}1", "0".repeat(13), "0".repeat(40));
        let half = format!("0x1{}8{}", "0".repeat(13), "0".repeat(41));
        assert!(parse(&beyond_half) > parse(&half));
        for text in
            ["x", ".", "+", "e5", "1_000", "0x", "-0x1", "inf", "NaN", "1e", "5\u{85}", "0xg"]
        {
            assert!(parse(text).is_nan(), "{text:?}");
        }
    }
}
