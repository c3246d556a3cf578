//! JavaScript's dates, in UTC: milliseconds since 1970, within 100 million days of it.
//!
//! [`parse`] reads a text as V8 does: in the format of ECMA-262, else in one of the many legacy
//! formats of `Date.parse` (V8's `src/date/dateparser-inl.h`). The only difference: a text without
//! a time zone is in UTC here, and in the local zone in V8.

use std::fmt::Write;

use super::value::is_js_space;

const DAY: i64 = 24 * 3_600_000;
/// The largest distance from 1970, in milliseconds.
const MAX_MILLIS: i64 = 100_000_000 * DAY;

/// The date of a number of milliseconds; `None` when JavaScript has no such date.
pub fn clip(millis: f64) -> Option<i64> {
    let millis = millis.trunc();
    (millis.abs() <= MAX_MILLIS as f64).then_some(millis as i64)
}

/// A date and time by the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    /// The year, which may be negative.
    pub year: i64,
    /// From 1 to 12.
    pub month: u32,
    /// From 1 to 31.
    pub day: u32,
    /// 0 is Sunday.
    pub weekday: u32,
    /// From 0 to 23.
    pub hour: u32,
    /// From 0 to 59.
    pub minute: u32,
    /// From 0 to 59.
    pub second: u32,
    /// From 0 to 999.
    pub millisecond: u32,
}

impl Civil {
    /// Splits a date into its parts.
    pub fn of(millis: i64) -> Self {
        let (days, in_day) = (millis.div_euclid(DAY), millis.rem_euclid(DAY) as u32);
        // https://howardhinnant.github.io/date_algorithms.html#civil_from_days
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u32,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32,
            weekday: (days + 4).rem_euclid(7) as u32,
            hour: in_day / 3_600_000,
            minute: in_day / 60_000 % 60,
            second: in_day / 1_000 % 60,
            millisecond: in_day % 1_000,
        }
    }
}

/// Days from 1970 to a day, which may be after the end of its month.
fn days_to(year: i64, month: i64, day: i64) -> i64 {
    // https://howardhinnant.github.io/date_algorithms.html#days_from_civil
    let year = if month <= 2 { year - 1 } else { year };
    let shifted_month = (month + 9) % 12;
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Appends the result of `Date.prototype.toString`.
pub(super) fn print(out: &mut String, millis: i64) -> std::fmt::Result {
    const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    let Civil { year, month, day, weekday, hour, minute, second, .. } = Civil::of(millis);
    let weekday = DAYS.get(weekday as usize).unwrap_or(&"");
    let month = MONTHS.get(month as usize - 1).unwrap_or(&"");
    let (initial, rest) = month.split_at(1);
    let (sign, year) = (if year < 0 { "-" } else { "" }, year.abs());
    write!(out, "{weekday} {}{rest} {day:02} {sign}{year:04} ", initial.to_uppercase())?;
    write!(out, "{hour:02}:{minute:02}:{second:02} GMT+0000 (Coordinated Universal Time)")
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// The date that a text means; `None` if the text is no date.
pub fn parse(text: &str) -> Option<i64> {
    let mut tokens = Tokens::new(text);
    let mut date = Parts::default();
    let begun = date.read_iso(&mut tokens)?;
    date.read_legacy(begun, &mut tokens)?;
    date.finish()
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// Digits: the value of the first nine significant ones, and how many digits there are.
    Number(i64, usize),
    /// One of `:-+.)`.
    Symbol(char),
    /// A word, and its number of characters.
    Word(Word, usize),
    Space,
    /// Anything else, and text in parentheses.
    Other,
    End,
}

/// The meaning of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// From 1 to 12.
    Month(i64),
    /// The hours that `am` or `pm` adds.
    HalfDay(i64),
    /// Hours from UTC.
    Zone(i64),
    /// The `T` between date and time.
    T,
    Unknown,
}

impl Token {
    /// The number, if it has exactly this many digits.
    fn fixed(self, digits: usize) -> Option<i64> {
        match self {
            Self::Number(number, length) if length == digits => Some(number),
            _ => None,
        }
    }

    /// 1 for `+` and -1 for `-`.
    fn sign(self) -> Option<i64> {
        match self {
            Self::Symbol('+') => Some(1),
            Self::Symbol('-') => Some(-1),
            _ => None,
        }
    }

    fn is_z(self) -> bool {
        matches!(self, Self::Word(Word::Zone(_), 1))
    }
}

/// Whether V8 treats a character in a date as space. Of the line ends, only those of ASCII are.
fn is_space(char: char) -> bool {
    is_js_space(char) && !matches!(char, '\u{2028}' | '\u{2029}')
}

/// The tokens of a text, with a lookahead of one.
struct Tokens<'a> {
    rest: &'a str,
    next: Token,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        let mut tokens = Self { rest: text, next: Token::End };
        tokens.take();
        tokens
    }

    fn take(&mut self) -> Token {
        let next = self.scan();
        std::mem::replace(&mut self.next, next)
    }

    fn skip(&mut self, symbol: char) -> bool {
        let is_next = self.next == Token::Symbol(symbol);
        if is_next {
            self.take();
        }
        is_next
    }

    fn scan(&mut self) -> Token {
        let Some(first) = self.rest.chars().next() else { return Token::End };
        let token = match first {
            '0'..='9' => {
                let digits = self.split(|char| char.is_ascii_digit());
                let significant = digits.trim_start_matches('0');
                let significant = significant.get(..9).unwrap_or(significant);
                return Token::Number(significant.parse().unwrap_or(0), digits.len());
            }
            ':' | '-' | '+' | '.' | ')' => Token::Symbol(first),
            'A'.. if !is_space(first) => {
                let word = self.split(|char| char >= 'A' && !is_space(char));
                return Token::Word(Word::of(word), word.chars().count());
            }
            '(' => {
                self.skip_parentheses();
                return Token::Other;
            }
            _ if is_space(first) => {
                self.split(is_space);
                return Token::Space;
            }
            _ => Token::Other,
        };
        self.rest = self.rest.get(first.len_utf8()..).unwrap_or_default();
        token
    }

    /// Takes the leading characters that fit.
    fn split(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|char| !fits(char)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    /// Skips text in parentheses; the whole rest if they are never closed.
    fn skip_parentheses(&mut self) {
        let mut open = 0_usize;
        let end = self.rest.char_indices().find_map(|(at, char)| {
            match char {
                '(' => open += 1,
                ')' => open -= 1,
                _ => {}
            }
            (open == 0).then_some(at + 1)
        });
        self.rest = end.and_then(|end| self.rest.get(end..)).unwrap_or_default();
    }
}

impl Word {
    fn of(word: &str) -> Self {
        let mut prefix = ['\0'; 3];
        for (letter, char) in prefix.iter_mut().zip(word.chars()) {
            *letter = char.to_ascii_lowercase();
        }
        let prefix = String::from_iter(prefix);
        // Only names of months may have more than three letters.
        if let Some(month) = MONTHS.iter().position(|name| **name == prefix) {
            return Self::Month(month as i64 + 1);
        }
        if word.chars().count() > 3 {
            return Self::Unknown;
        }
        match prefix.trim_end_matches('\0') {
            "am" => Self::HalfDay(0),
            "pm" => Self::HalfDay(12),
            "ut" | "utc" | "z" | "gmt" => Self::Zone(0),
            "edt" => Self::Zone(-4),
            "cdt" | "est" => Self::Zone(-5),
            "mdt" | "cst" => Self::Zone(-6),
            "pdt" | "mst" => Self::Zone(-7),
            "pst" => Self::Zone(-8),
            "t" => Self::T,
            _ => Self::Unknown,
        }
    }
}

/// The parts of a date that were read so far.
#[derive(Debug, Default)]
struct Parts {
    /// Up to three numbers, whose meaning is determined at the end.
    day: Vec<i64>,
    named_month: Option<i64>,
    is_iso: bool,
    /// Up to hour, minute, second and millisecond.
    time: Vec<i64>,
    half_day: Option<i64>,
    zone_sign: Option<i64>,
    zone_hour: Option<i64>,
    zone_minute: Option<i64>,
}

impl Parts {
    /// Reads the format of ECMA-262. Returns the first token that does not fit, and keeps the parts
    /// before it; `None` if the text is no date.
    fn read_iso(&mut self, tokens: &mut Tokens<'_>) -> Option<Token> {
        if let Some(sign) = tokens.next.sign() {
            let sign_token = tokens.take();
            let Some(year) = tokens.next.fixed(6) else { return Some(sign_token) };
            tokens.take();
            if sign < 0 && year == 0 {
                return Some(sign_token);
            }
            self.day.push(sign * year);
        } else if let Some(year) = tokens.next.fixed(4) {
            tokens.take();
            self.day.push(year);
        } else {
            return Some(tokens.take());
        }
        for last in [12, 31] {
            if !tokens.skip('-') {
                break;
            }
            let Some(number) = tokens.next.fixed(2).filter(|number| (1..=last).contains(number))
            else {
                return Some(tokens.take());
            };
            tokens.take();
            self.day.push(number);
        }
        if let Token::Word(Word::T, _) = tokens.next {
            tokens.take();
            self.read_iso_time(tokens)?;
        } else if tokens.next != Token::End {
            return Some(tokens.take());
        }
        if self.zone_hour.is_none() && self.time.is_empty() {
            self.set_zone(0);
        }
        self.is_iso = true;
        Some(Token::End)
    }

    /// Reads `hh:mm[:ss[.sss]][Z|±hh:mm|±hhmm]` up to the end.
    fn read_iso_time(&mut self, tokens: &mut Tokens<'_>) -> Option<()> {
        let two_digits = |tokens: &mut Tokens<'_>, last: i64| {
            let number = tokens.next.fixed(2).filter(|number| (0..=last).contains(number))?;
            tokens.take();
            Some(number)
        };
        let hour = two_digits(tokens, 24)?;
        // Midnight at the end of a day is the only time that begins with 24.
        let last = if hour == 24 { 0 } else { 59 };
        self.time.push(hour);
        if !tokens.skip(':') {
            return None;
        }
        self.time.push(two_digits(tokens, last)?);
        if tokens.skip(':') {
            self.time.push(two_digits(tokens, last)?);
            if tokens.skip('.') {
                let Token::Number(number, _) = tokens.next else { return None };
                if hour == 24 && number > 0 {
                    return None;
                }
                self.time.push(milliseconds(tokens.take())?);
            }
        }
        if tokens.next.is_z() {
            tokens.take();
            self.set_zone(0);
        } else if let Some(sign) = tokens.next.sign() {
            tokens.take();
            self.zone_sign = Some(sign);
            let (hour, minute) = match tokens.next.fixed(4) {
                Some(both) => {
                    tokens.take();
                    (both / 100, both % 100)
                }
                None => {
                    let hour = two_digits(tokens, 23)?;
                    if !tokens.skip(':') {
                        return None;
                    }
                    (hour, two_digits(tokens, 59)?)
                }
            };
            if hour > 23 || minute > 59 {
                return None;
            }
            (self.zone_hour, self.zone_minute) = (Some(hour), Some(minute));
        }
        (tokens.next == Token::End).then_some(())
    }

    /// Reads the rest in the legacy formats, from this token on.
    fn read_legacy(&mut self, mut token: Token, tokens: &mut Tokens<'_>) -> Option<()> {
        let mut has_number = !self.day.is_empty();
        while token != Token::End {
            match token {
                Token::Number(number, _) => {
                    has_number = true;
                    self.add_number(number, tokens)?;
                }
                Token::Word(Word::HalfDay(hours), _) if !self.time.is_empty() => {
                    self.half_day = Some(hours);
                }
                Token::Word(Word::Month(month), _) => {
                    self.named_month = Some(month);
                    tokens.skip('-');
                }
                Token::Word(Word::Zone(hours), _) if has_number => self.set_zone(hours),
                // Other words may come before the first number, but not directly before it.
                Token::Word(..) if has_number || matches!(tokens.next, Token::Number(..)) => {
                    return None;
                }
                Token::Symbol('+' | '-') if self.is_utc() || !self.time.is_empty() => {
                    self.zone_sign = token.sign();
                    self.add_offset(tokens)?;
                    has_number = true;
                }
                Token::Symbol('+' | '-' | ')') if has_number => return None,
                _ => {}
            }
            token = tokens.take();
        }
        Some(())
    }

    /// Determines the meaning of a number from what comes before and after it.
    fn add_number(&mut self, number: i64, tokens: &mut Tokens<'_>) -> Option<()> {
        if tokens.skip(':') {
            if tokens.skip(':') {
                // "12::" is an hour without minutes.
                if !self.time.is_empty() {
                    return None;
                }
                self.time.extend([number, 0]);
            } else {
                self.add_time(number)?;
                tokens.skip('.');
            }
            return Some(());
        }
        let is_before_point = tokens.skip('.');
        if is_before_point && self.expects_time(number) {
            self.time.push(number);
            let millisecond = milliseconds(tokens.take())?;
            self.finish_time(millisecond);
        } else if self.zone_hour.is_some()
            && self.zone_minute.is_none()
            && (0..60).contains(&number)
        {
            self.zone_minute = Some(number);
        } else if self.expects_time(number) {
            self.finish_time(number);
            let is_end = matches!(tokens.next, Token::End | Token::Space)
                || tokens.next.is_z()
                || tokens.next.sign().is_some();
            return is_end.then_some(());
        } else {
            if self.day.len() == 3 {
                return None;
            }
            self.day.push(number);
            tokens.skip('-');
        }
        Some(())
    }

    /// Reads an offset from UTC, after its sign: hours, hours and minutes, or hours and a colon
    /// that minutes follow.
    fn add_offset(&mut self, tokens: &mut Tokens<'_>) -> Option<()> {
        let (mut number, mut digits) = (0, 0);
        if let Token::Number(value, length) = tokens.next {
            (number, digits) = (value, length);
            tokens.take();
        }
        (self.zone_hour, self.zone_minute) = match digits {
            _ if tokens.next == Token::Symbol(':') => (Some(number), None),
            1 | 2 => (Some(number), Some(0)),
            3 | 4 => (Some(number / 100), Some(number % 100)),
            _ => return None,
        };
        Some(())
    }

    fn add_time(&mut self, number: i64) -> Option<()> {
        if self.time.len() == 4 {
            return None;
        }
        self.time.push(number);
        Some(())
    }

    /// Adds the last part of a time; missing parts are 0.
    fn finish_time(&mut self, number: i64) {
        self.time.push(number);
        self.time.resize(4, 0);
    }

    fn expects_time(&self, number: i64) -> bool {
        match self.time.len() {
            1 | 2 => (0..60).contains(&number),
            3 => (0..1_000).contains(&number),
            _ => false,
        }
    }

    fn set_zone(&mut self, hours: i64) {
        self.zone_sign = Some(if hours < 0 { -1 } else { 1 });
        (self.zone_hour, self.zone_minute) = (Some(hours.abs()), Some(0));
    }

    fn is_utc(&self) -> bool {
        (self.zone_hour, self.zone_minute) == (Some(0), Some(0))
    }

    fn finish(mut self) -> Option<i64> {
        let days = self.days()?;
        self.time.resize(4, 0);
        let [mut hour, minute, second, millisecond] = *self.time else { return None };
        if let Some(half_day) = self.half_day {
            if !(0..=12).contains(&hour) {
                return None;
            }
            hour = hour % 12 + half_day;
        }
        let is_time = (0..24).contains(&hour)
            && (0..60).contains(&minute)
            && (0..60).contains(&second)
            && (0..1_000).contains(&millisecond);
        if !is_time && (hour, minute, second, millisecond) != (24, 0, 0, 0) {
            return None;
        }
        let offset = match self.zone_sign {
            Some(sign) => {
                let minutes = self.zone_hour.unwrap_or(0) * 60 + self.zone_minute.unwrap_or(0);
                sign * minutes * 60_000
            }
            None => 0,
        };
        let millis =
            days * DAY + hour * 3_600_000 + minute * 60_000 + second * 1_000 + millisecond - offset;
        (millis.abs() <= MAX_MILLIS).then_some(millis)
    }

    /// Days from 1970. The meaning of the numbers depends on which of them can be a day.
    fn days(&mut self) -> Option<i64> {
        let is_day = |number: i64| (1..=31).contains(&number);
        if self.day.is_empty() {
            return None;
        }
        self.day.resize(3, 1);
        let [first, second, third] = *self.day.as_slice() else { return None };
        let (mut year, month, day) = match self.named_month {
            None if self.is_iso || !is_day(first) => (first, second, third),
            None => (third, first, second),
            Some(month) if !is_day(first) => (first, month, second),
            Some(month) => (second, month, first),
        };
        if !self.is_iso {
            year += match year {
                0..=49 => 2_000,
                50..=99 => 1_900,
                _ => 0,
            };
        }
        // The bound of the year is far beyond the calendar, and prevents overflows.
        let is_date = (1..=12).contains(&month) && is_day(day) && year.abs() < 1_000_000;
        is_date.then(|| days_to(year, month, day))
    }
}

/// The milliseconds that the digits after a point mean.
fn milliseconds(token: Token) -> Option<i64> {
    let Token::Number(number, length) = token else { return None };
    Some(match length {
        1 => number * 100,
        2 => number * 10,
        3 => number,
        length => number / 10_i64.pow(length.min(9) as u32 - 3),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_split_up_and_put_together() {
        for (millis, text) in [
            (0, "Thu Jan 01 1970 00:00:00"),
            (-1, "Wed Dec 31 1969 23:59:59"),
            (951_782_400_000, "Tue Feb 29 2000 00:00:00"),
            (MAX_MILLIS, "Sat Sep 13 275760 00:00:00"),
            (-MAX_MILLIS, "Tue Apr 20 -271821 00:00:00"),
        ] {
            let mut out = String::new();
            print(&mut out, millis).unwrap();
            assert_eq!(out, format!("{text} GMT+0000 (Coordinated Universal Time)"));
        }
        for days in (-100_000_000..=100_000_000).step_by(9_973) {
            let Civil { year, month, day, .. } = Civil::of(days * DAY);
            assert_eq!(days_to(year, month.into(), day.into()), days);
        }
    }

    #[test]
    fn numbers_beyond_the_calendar_are_no_dates() {
        assert_eq!(clip(1.9), Some(1));
        assert_eq!(clip(-1.9), Some(-1));
        assert_eq!(clip(8.64e15), Some(MAX_MILLIS));
        for millis in [8.64e15 + 1.0, -8.64e15 - 1.0, f64::INFINITY, f64::NAN] {
            assert_eq!(clip(millis), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[0-9TZjanpmgtut:+\\-.,/() \u{a0}é]{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_printed_is_read(millis in -MAX_MILLIS / 1_000..=MAX_MILLIS / 1_000) {
            let mut out = String::new();
            print(&mut out, millis * 1_000).unwrap();
            // `parse` does not read printed years that have more or fewer than four digits.
            if (1_000..=9_999).contains(&Civil::of(millis * 1_000).year) {
                proptest::prop_assert_eq!(parse(&out), Some(millis * 1_000));
            }
        }
    }
}
