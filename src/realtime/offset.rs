//! What a client has been given, when one position does not tell it.
//!
//! A session that gets only live events has had everything up to the last of them. While a room
//! is replayed, or was joined with a position ahead of this instance, it has had less or more of
//! that room than of the others; then its offset names those rooms. A client keeps the text and
//! sends it back; only this file knows its form.

use std::{fmt, str::FromStr};

use super::position::{NotAPosition, Position};
use crate::models::RoomId;

/// Everything up to `base`, but for the rooms in `exceptions`, of which everything up to their
/// own position. Written `<base>[;<position>=<room>,<room>…]…`, so that an offset without
/// exceptions is a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offset {
    /// Holds for every room without an exception.
    pub base: Position,
    /// Rooms that stand elsewhere; neighbours with equal positions are written as one group.
    pub exceptions: Vec<(Position, RoomId)>,
}

/// More rooms than this in a text are not ours.
const MOST_EXCEPTIONS: usize = 10_000;

impl Offset {
    /// The position up to which the client has had everything of `room`.
    pub fn of(&self, room: RoomId) -> Position {
        let exception = self.exceptions.iter().find(|(_, named)| *named == room);
        exception.map_or(self.base, |&(position, _)| position)
    }
}

impl From<Position> for Offset {
    fn from(base: Position) -> Self {
        Self { base, exceptions: Vec::new() }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.base.fmt(f)?;
        let mut group = None;
        for &(position, room) in &self.exceptions {
            if group == Some(position) {
                write!(f, ",{room}")?;
            } else {
                write!(f, ";{position}={room}")?;
                group = Some(position);
            }
        }
        Ok(())
    }
}

impl FromStr for Offset {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let mut groups = text.split(';');
        let base = groups.next().ok_or(NotAPosition)?.parse()?;
        let mut exceptions = Vec::new();
        for group in groups {
            let (position, rooms) = group.split_once('=').ok_or(NotAPosition)?;
            let position = position.parse()?;
            for room in rooms.split(',') {
                if exceptions.len() == MOST_EXCEPTIONS {
                    return Err(NotAPosition);
                }
                exceptions.push((position, room.parse().map_err(|_| NotAPosition)?));
            }
        }
        Ok(Self { base, exceptions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u32) -> Position {
        Position::first_of(seconds, 1)
    }

    #[test]
    fn an_offset_without_exceptions_is_a_position() {
        assert_eq!(Offset::from(at(7)).to_string(), "7.1");
        assert_eq!("7.1".parse(), Ok(Offset::from(at(7))));
    }

    #[test]
    fn exceptions_read_back_in_groups() {
        let [a, b, c] = [(); 3].map(|()| RoomId::new());
        let offset = Offset { base: at(9), exceptions: vec![(at(3), a), (at(3), b), (at(12), c)] };
        let text = offset.to_string();
        assert_eq!(text, format!("9.1;3.1={a},{b};12.1={c}"));
        assert_eq!(text.parse(), Ok(offset.clone()));
        assert_eq!([a, b, c, RoomId::new()].map(|room| offset.of(room)), [3, 3, 12, 9].map(at));
    }

    #[test]
    fn other_texts_are_no_offset() {
        let room = RoomId::new();
        let others = [
            String::new(),
            "7.1;".into(),
            ";7.1".into(),
            "7.1;3.1".into(),
            "7.1;3.1=".into(),
            format!("7.1;3.1={room},"),
            format!("7.1;={room}"),
            format!("7.1;3.1=;{room}"),
        ];
        for text in others {
            assert_eq!(text.parse::<Offset>(), Err(NotAPosition), "{text:?}");
        }
    }
}
