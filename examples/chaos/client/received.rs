//! What the client does with events, offsets and histories.

use std::collections::HashSet;
use std::collections::hash_map::Entry;
use std::time::SystemTime;

use serde_json::Value;
use tokio::time::Instant;

use super::{Call, Client, END, RECENT, Uncovered, World, ask};
use crate::transcript::{Heard, Segment, Text};
use crate::wire::{Change, Kind, Told};

impl Client {
    /// Takes an event of a room. `may_be_in`: the server resumed a session which may have joined
    /// the room although the client never got the ack.
    pub(super) fn heard(
        &mut self,
        told: Told,
        position: Option<String>,
        may_be_in: bool,
        world: &World,
    ) {
        if position.is_some() != (self.kind != Kind::SocketIo) {
            let problem = format!("an event of {:?} with position {position:?}", self.kind);
            self.transcript.broken.push(problem);
        }
        self.look_for_deleted_text(&told, world);
        if let Some(message) = told.mark_of(&self.account.user) {
            return self.heard_own_mark(&told.room, message);
        }
        let try_again = Instant::now() + self.random.millis(0..1_500);
        let Some(known) = self.rooms.iter_mut().find(|known| known.id == told.room) else {
            return self.transcript.broken.push(format!("an event of a strange room: {told:?}"));
        };
        // A replay for a user who was added again also has the earlier removal, and goes on.
        let is_in = known.joined || may_be_in || known.outside.is_some();
        if !is_in {
            let problem = format!("an event before the ack of the join: {told:?}");
            self.transcript.broken.push(problem);
        }
        if !told.change.is_of_message() && told.id == self.account.user {
            log::debug!("{}: {told:?} at {position:?}", self.transcript.name);
        }
        if told.change == Change::MemberRemoved && told.id == self.account.user {
            known.leave(try_again);
        }
        if told.change.is_of_message() {
            known.ended |= told.content == END;
            if told.change == Change::Sent {
                known.recent.push_back(told.id.clone());
                known.recent.drain(..known.recent.len().saturating_sub(RECENT));
                known.newest = known.newest.take().max(Some(told.id.clone()));
            }
            if let Some(heard) = &mut known.heard {
                heard.insert(told.id.clone());
            }
            let own = self.own.iter_mut().find(|own| own.id == told.id);
            own.into_iter().for_each(|own| own.version = own.version.max(told.version));
            let content = (told.change != Change::Deleted).then(|| told.content.clone());
            let text = Text { version: told.version, content };
            let texts = self.transcript.texts.entry(told.room.clone()).or_default();
            texts.insert(told.id.clone(), text);
        }
        let key = (told.change, told.id.clone(), told.version);
        self.transcript.repeated += usize::from(self.forgotten.remove(&key));
        let room = told.room.clone();
        let segments = self.transcript.rooms.entry(room.clone()).or_default();
        if segments.is_empty() || std::mem::take(&mut known.was_left) {
            segments.push(Segment::default());
        }
        let last = segments.len() - 1;
        let token = self.transcript.tokens.len() - 1;
        segments[last].heard.push(Heard { told, at: now(), token });
        match position {
            Some(position) => known.since = Some(position),
            None => self.uncovered.push(Uncovered { room, segment: last }),
        }
    }

    /// The user has read a room, perhaps on another device. Every session is told, joined or not.
    fn heard_own_mark(&mut self, room: &str, message: &str) {
        let before = self.own_marks.insert(room.to_owned(), message.to_owned());
        if before.as_deref() >= Some(message) {
            let problem = format!("told of a mark at {message} after one at {before:?}");
            self.transcript.broken.push(problem);
        }
    }

    /// The user was added to a room or removed from it.
    pub(super) fn told_of_membership(&mut self, room: &str, added: bool) {
        let try_again = Instant::now() + self.random.millis(0..1_500);
        let known = self.rooms.iter_mut().find(|known| known.id == room && known.is_private);
        let Some(known) = known else {
            let problem = format!("added to or removed from a strange room: {room}");
            return self.transcript.broken.push(problem);
        };
        log::debug!("{} is told of {room}, added: {added}", self.transcript.name);
        match added {
            true => known.outside = known.outside.map(|_| Instant::now()),
            false => {
                known.leave(try_again);
                if self.kind != Kind::Plain {
                    // A session that was resumed without this room had offsets before this event.
                    // They do not hold for the room.
                    (known.since, known.was_left) = (None, true);
                }
            }
        }
    }

    /// A process that delivered a deletion must not deliver the text to a connection that was
    /// opened later.
    fn look_for_deleted_text(&mut self, told: &Told, world: &World) {
        let Some((process, since)) = self.process else { return };
        if !told.change.is_of_message() {
            return;
        }
        let mut deletions = world.deletions.lock().unwrap();
        let deletion = deletions.entry((process, told.id.clone()));
        if told.change == Change::Deleted {
            deletion.or_insert_with(Instant::now);
        } else if let Entry::Occupied(known) = deletion
            && *known.get() < since
        {
            let problem = format!("{} received {told:?} after its deletion", self.transcript.name);
            self.transcript.revived.push(problem);
        }
    }

    /// Takes an offset, which includes everything before it.
    pub(super) fn cover(&mut self, offset: &str) {
        for room in &mut self.rooms {
            // The server may have joined the room although the client never got the ack.
            let is_in = room.joined || self.uncovered.iter().any(|heard| heard.room == room.id);
            if is_in {
                room.since = Some(offset.to_owned());
            }
        }
        self.uncovered.clear();
    }

    /// Forgets the events after the last offset: the next connection must deliver them again. So an
    /// event that comes again is doubled unless it was forgotten.
    pub(super) fn forget_what_is_uncovered(&mut self) {
        for Uncovered { room, segment } in self.uncovered.drain(..).rev() {
            let segments = self.transcript.rooms.get_mut(&room);
            let heard = segments.and_then(|segments| segments.get_mut(segment)?.heard.pop());
            let told = heard.map(|heard| heard.told);
            self.forgotten.extend(told.map(|told| (told.change, told.id, told.version)));
            // It may have been the last message.
            let known = self.rooms.iter_mut().filter(|known| known.id == room);
            known.for_each(|known| known.ended = false);
        }
    }

    /// Events of the room up to this position may have been missed.
    pub(super) fn resync(&mut self, room: &str, position: Option<String>) {
        self.transcript.resyncs += 1;
        log::debug!("{} is told to resync {room} at {position:?}", self.transcript.name);
        let from = position.as_ref().and_then(|position| position.parse().ok());
        let segments = self.transcript.rooms.entry(room.to_owned()).or_default();
        match segments.last_mut() {
            // The answer to a join has begun one already.
            Some(segment) if segment.heard.is_empty() => segment.from = from.or(segment.from),
            _ => segments.push(Segment { from, ..Segment::default() }),
        }
        if let Some(known) = self.rooms.iter_mut().find(|known| known.id == room) {
            known.stale = true;
            known.since = position.or(known.since.take());
        }
    }

    /// Requests the history of rooms of which events may have been missed.
    pub(super) fn read_what_is_stale(&mut self, world: &World) {
        for (index, room) in self.rooms.iter_mut().enumerate() {
            if room.stale && room.joined && room.heard.is_none() {
                (room.stale, room.heard) = (false, Some(HashSet::new()));
                let addr = self.random.of(&world.instances);
                let url = format!("http://{addr}/api/chat/messages/{}?deleted=true", room.id);
                let request = world.http.get(url).bearer_auth(self.account.token());
                self.calls.spawn(async move { (Call::History(index), ask(request).await) });
            }
        }
    }

    /// Takes a history, except for messages of which a newer event came meanwhile.
    pub(super) fn read(&mut self, index: usize, history: Option<&Vec<Value>>) {
        let room = &mut self.rooms[index];
        let heard = room.heard.take().unwrap_or_default();
        let Some(history) = history else {
            room.stale = true;
            return;
        };
        let texts = self.transcript.texts.entry(room.id.clone()).or_default();
        for message in history {
            let id = message["_id"].as_str().unwrap_or_default();
            let is_deleted = message["deletedAt"].is_string();
            let content = message["content"].as_str().unwrap_or_default();
            let version = message["__v"].as_i64().unwrap_or(0);
            if room.is_private && !is_deleted {
                let key = (room.id.clone(), id.to_owned(), version);
                self.transcript.read.entry(key).or_insert_with(now);
            }
            let text = Text { version, content: (!is_deleted).then(|| content.to_owned()) };
            let is_newer = |known: &Text| {
                !is_deleted && (known.content.is_none() || known.version > text.version)
            };
            if !(heard.contains(id) && texts.get(id).is_some_and(is_newer)) {
                texts.insert(id.to_owned(), text);
            }
            room.ended |= content == END;
        }
        log::debug!("{} has read {}, ended: {}", self.transcript.name, room.id, room.ended);
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
