//! The offset of a client: up to where it has got the events of its rooms.
//!
//! If a session gets only live events, it has got everything up to the last of them, and its offset
//! is one position. While a room is replayed, or if a room was joined with a position ahead of this
//! instance, the session has got less or more of this room than of the others, and the offset names
//! the room. A client stores the text and sends it back; only this file knows the format.

use std::{fmt, str::FromStr};

use crate::feed::position::{InvalidPosition, Position, number};
use crate::models::RoomId;

/// Everything up to `base` was delivered, but in the rooms of `exceptions` everything up to their
/// own position. Written `<base>[#<joins>][;<position>=<room>,<room>…]…`, so an offset is usually
/// just a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offset {
    /// The position of every room without an exception.
    pub base: Position,
    /// Rooms with another position. Neighbours with equal positions are written as one group.
    pub exceptions: Vec<(Position, RoomId)>,
    /// How many joins the client had made, if `base` does not show which joins the offset includes.
    pub joins: Option<u32>,
}

/// How a session entered a room, as its recovery record stores it. Written
/// `<from>[@<known>]#<join>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The session gets everything after this.
    pub from: Position,
    /// Offsets from before the join reach up to here at most. A later offset reaches further, or
    /// contains the number of joins.
    pub known: Option<Position>,
    /// The number of this join among those of the client, counted from 1.
    pub join: u32,
}

/// A text with more rooms than this is not from this server.
const MOST_EXCEPTIONS: usize = 10_000;

impl Offset {
    /// The position up to which the client has got everything of `room`.
    pub fn of(&self, room: RoomId) -> Position {
        let exception = self.exceptions.iter().find(|(_, named)| *named == room);
        exception.map_or(self.base, |&(position, _)| position)
    }

    /// The position up to which the client has got everything of `room`. It entered the room with
    /// `entry`, before or after it got this offset.
    pub fn since(&self, room: RoomId, entry: Entry) -> Position {
        let is_later = match self.joins {
            Some(joins) => joins >= entry.join,
            None => Some(self.base) > entry.known,
        };
        if is_later { self.of(room).max(entry.from) } else { entry.from }
    }
}

impl From<Position> for Offset {
    fn from(base: Position) -> Self {
        Self { base, exceptions: Vec::new(), joins: None }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.base.fmt(f)?;
        if let Some(joins) = self.joins {
            write!(f, "#{joins}")?;
        }
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
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let mut groups = text.split(';');
        let (base, joins) = counted(groups.next().ok_or(InvalidPosition)?)?;
        let base = base.parse()?;
        let mut exceptions = Vec::new();
        for group in groups {
            let (position, rooms) = group.split_once('=').ok_or(InvalidPosition)?;
            let position = position.parse()?;
            for room in rooms.split(',') {
                if exceptions.len() == MOST_EXCEPTIONS {
                    return Err(InvalidPosition);
                }
                exceptions.push((position, room.parse().map_err(|_| InvalidPosition)?));
            }
        }
        Ok(Self { base, exceptions, joins })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.from.fmt(f)?;
        if let Some(known) = self.known {
            write!(f, "@{known}")?;
        }
        write!(f, "#{}", self.join)
    }
}

impl FromStr for Entry {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let (positions, join) = counted(text)?;
        let (from, known) = match positions.split_once('@') {
            Some((from, known)) => (from, Some(known.parse()?)),
            None => (positions, None),
        };
        Ok(Self { from: from.parse()?, known, join: join.ok_or(InvalidPosition)? })
    }
}

/// Splits a text into the part before `#` and the number after it.
fn counted(text: &str) -> Result<(&str, Option<u32>), InvalidPosition> {
    match text.split_once('#') {
        Some((text, count)) => Ok((text, Some(number(Some(count))?))),
        None => Ok((text, None)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        let offset = Offset {
            base: at(9),
            exceptions: vec![(at(3), a), (at(3), b), (at(12), c)],
            joins: None,
        };
        let text = offset.to_string();
        assert_eq!(text, format!("9.1;3.1={a},{b};12.1={c}"));
        assert_eq!(text.parse(), Ok(offset.clone()));
        let counted = Offset { joins: Some(5), ..offset.clone() };
        assert_eq!(counted.to_string(), text.replacen("9.1", "9.1#5", 1));
        assert_eq!(counted.to_string().parse(), Ok(counted));
        assert_eq!([a, b, c, RoomId::new()].map(|room| offset.of(room)), [3, 3, 12, 9].map(at));
    }

    #[test]
    fn an_offset_from_before_a_join_does_not_cover_the_room() {
        let room = RoomId::new();
        let read =
            |text: &str| text.parse::<Entry>().inspect(|entry| assert_eq!(entry.to_string(), text));
        let since = |entry: Entry, text: &str| text.parse::<Offset>().unwrap().since(room, entry);
        let entry = Entry { from: at(4), known: Some(at(7)), join: 3 };
        assert_eq!(read("4.1@7.1#3"), Ok(entry));
        for before in ["7.1", "6.1", "7.1#2", "9.1#2", &format!("7.1#2;6.1={room}")] {
            assert_eq!(since(entry, before), at(4), "{before}");
        }
        assert_eq!(since(entry, "8.1"), at(8));
        assert_eq!(since(entry, "7.1#3"), at(7));
        assert_eq!(since(entry, &format!("7.1#3;6.1={room}")), at(6));
        assert_eq!(since(entry, &format!("7.1#3;3.1={room}")), at(4));
        // The first room of a client that had no offset before.
        let first = Entry { from: at(4), known: None, join: 1 };
        assert_eq!(read("4.1#1"), Ok(first));
        assert_eq!(since(first, "7.1"), at(7));
        assert_eq!(since(first, "3.1"), at(4));
        for text in ["", "4.1", "4.1@#1", "4.1@7.1", "@7.1#1", "4.1@7.1@8.1#1", "4.1#", "4.1#01"] {
            assert_eq!(read(text), Err(InvalidPosition), "{text:?}");
        }
    }

    fn position() -> impl Strategy<Value = Position> {
        any::<[u8; 3]>().prop_map(|[seconds, increment, nth]| {
            let first = Position::first_of(seconds.into(), increment.into());
            (0..nth % 3).fold(first, |position, _| position.next_of_same_time())
        })
    }

    proptest! {
        #[test]
        fn offsets_and_entries_read_back(
            base in position(),
            exceptions in proptest::collection::vec((position(), any::<[u8; 12]>()), 0..6),
            joins in any::<Option<u32>>(),
            known in proptest::option::of(position()),
            join in any::<u32>(),
        ) {
            let entry = Entry { from: base, known, join };
            prop_assert_eq!(entry.to_string().parse(), Ok(entry));
            let room = |bytes| RoomId(bson::oid::ObjectId::from_bytes(bytes));
            let exceptions = exceptions.into_iter().map(|(at, bytes)| (at, room(bytes))).collect();
            let offset = Offset { base, exceptions, joins };
            prop_assert_eq!(offset.to_string().parse(), Ok(offset));
        }

        #[test]
        fn parsed_texts_are_written_alike(
            text in "[0-9]{1,3}\\.[0-9]{1,2}(@[0-9]\\.[0-9])?(#[0-9]{0,2})?([;=,.#@]?[0-9a-f.]{0,24}){0,4}"
        ) {
            if let Ok(offset) = text.parse::<Offset>() {
                prop_assert_eq!(offset.to_string().parse(), Ok(offset));
            }
            if let Ok(entry) = text.parse::<Entry>() {
                prop_assert_eq!(entry.to_string(), text);
            }
        }
    }

    #[test]
    fn other_texts_are_not_offsets() {
        let room = RoomId::new();
        let others = [
            String::new(),
            "7.1;".into(),
            ";7.1".into(),
            "7.1;3.1".into(),
            "7.1;3.1=".into(),
            "7.1#".into(),
            "7.1#+1".into(),
            "7.1#1#2".into(),
            format!("7.1;3.1={room},"),
            format!("7.1;={room}"),
            format!("7.1;3.1=;{room}"),
        ];
        for text in others {
            assert_eq!(text.parse::<Offset>(), Err(InvalidPosition), "{text:?}");
        }
    }
}
