//! The position of a message in the order that all instances share.
//!
//! The order is that of MongoDB's change stream. A position is the `clusterTime` of a change and
//! the number of earlier changes with the same `clusterTime`, because one transaction or one
//! `insertMany` gives several inserts one time. All instances count alike, so a position is valid
//! at every instance and after a restart. This file knows no clock and no database.

use std::{fmt, str::FromStr, time::Duration};

use bson::Timestamp;

/// A position in the stream of messages, written `<seconds>.<increment>`, or
/// `<seconds>.<increment>.<n>` from the second change of a cluster time on.
///
/// It also means "everything up to here".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    // The derived `Ord` compares the fields in this order, which is the order of the stream.
    seconds: u32,
    increment: u32,
    nth: u32,
}

impl Position {
    /// Before everything.
    pub const ZERO: Self = Self::first_of(0, 0);

    /// The first change of a cluster time: `seconds` since 1970, `increment` within that second.
    pub const fn first_of(seconds: u32, increment: u32) -> Self {
        Self { seconds, increment, nth: 0 }
    }

    /// The next change with the same cluster time.
    pub const fn next_of_same_time(self) -> Self {
        Self { nth: self.nth.saturating_add(1), ..self }
    }

    /// The seconds of the cluster time, since 1970.
    pub const fn seconds(self) -> u32 {
        self.seconds
    }

    /// The cluster time: seconds and increment.
    pub const fn time(self) -> (u32, u32) {
        (self.seconds, self.increment)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, increment, nth } = self;
        match nth {
            0 => write!(f, "{seconds}.{increment}"),
            _ => write!(f, "{seconds}.{increment}.{nth}"),
        }
    }
}

/// The time so far before `time`.
pub(super) fn back(time: Timestamp, window: Duration) -> Timestamp {
    let seconds = u32::try_from(window.as_secs()).unwrap_or(u32::MAX);
    if seconds == 0 {
        return time;
    }
    Timestamp { time: time.time.saturating_sub(seconds), increment: 1 }
}

/// The cluster time of a position, for a query that must not see an older state.
pub fn time(position: Option<Position>) -> Option<Timestamp> {
    let (time, increment) = position?.time();
    Some(Timestamp { time, increment })
}

/// The text is not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a position")]
pub struct InvalidPosition;

/// Reads only what [`Display`](fmt::Display) writes: each position has one text, so texts can be
/// compared, and a text that no server wrote is refused.
impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let mut parts = text.split('.');
        let seconds = number(parts.next())?;
        let increment = number(parts.next())?;
        let nth = match parts.next() {
            None => 0,
            part => match number(part)? {
                0 => return Err(InvalidPosition),
                nth => nth,
            },
        };
        match parts.next() {
            None => Ok(Self { seconds, increment, nth }),
            Some(_) => Err(InvalidPosition),
        }
    }
}

/// A decimal number without sign or leading zeros.
pub(crate) fn number(part: Option<&str>) -> Result<u32, InvalidPosition> {
    let part = part.ok_or(InvalidPosition)?;
    let canonical =
        part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
    if !canonical {
        return Err(InvalidPosition);
    }
    part.parse().map_err(|_| InvalidPosition)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_position_reads_back_from_its_text() {
        for text in ["0.0", "1790000000.1", "1790000000.1.1", "4294967295.4294967295.4294967295"] {
            assert_eq!(
                text.parse::<Position>().map(|position| position.to_string()),
                Ok(text.into())
            );
        }
    }

    #[test]
    fn only_the_canonical_text_is_a_position() {
        let others = [
            "",
            ".",
            "1",
            "1.",
            ".1",
            "1.2.",
            "1.2.0",
            "1.2.3.4",
            "01.2",
            "1.02",
            "1.2.03",
            "+1.2",
            "-1.2",
            "1. 2",
            " 1.2",
            "1.2 ",
            "1,2",
            "1.2.3.",
            "4294967296.1",
            "1.4294967296",
            "٣.٤",
            "1e3.1",
            "0x1.1",
            "1.2\n",
            "1.2\0",
        ];
        for text in others {
            assert_eq!(text.parse::<Position>(), Err(InvalidPosition), "{text:?}");
        }
    }

    #[test]
    fn inserts_of_one_cluster_time_follow_each_other() {
        let first = Position::first_of(7, 3);
        let second = first.next_of_same_time();
        assert!(first < second && second < second.next_of_same_time());
        assert!(second.next_of_same_time() < Position::first_of(7, 4));
        assert_eq!(second.to_string(), "7.3.1");
    }

    proptest! {
        #[test]
        fn text_and_order_agree(a in any::<[u32; 3]>(), b in any::<[u32; 3]>()) {
            let position = |[seconds, increment, nth]: [u32; 3]| Position { seconds, increment, nth };
            prop_assert_eq!(position(a).to_string().parse(), Ok(position(a)));
            prop_assert_eq!(position(a).cmp(&position(b)), a.cmp(&b));
        }

        #[test]
        fn a_text_that_parses_is_canonical(text in "[0-9.+ a]{0,16}") {
            if let Ok(position) = text.parse::<Position>() {
                prop_assert_eq!(position.to_string(), text);
            }
        }
    }
}
