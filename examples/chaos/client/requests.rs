//! What the client requests, and the answers.

use serde_json::Value;
use tokio::time::Instant;

use super::{Asked, Call, Client, IN_FLIGHT, OWN, Outgoing, Own, Phase, World, ask};
use crate::wire::{Change, Connection, Disconnected, Told};
use crate::wish::{Answer, Wish};

impl Client {
    /// Makes the next wish, and requests every wish whose time has come.
    pub(super) async fn ask_for_what_is_due(
        &mut self,
        server: &mut Connection,
        world: &World,
    ) -> Result<(), Disconnected> {
        let now = Instant::now();
        let talks = *world.phase.borrow() == Phase::Talk;
        if talks && now >= self.next_wish && self.outbox.len() < IN_FLIGHT {
            self.next_wish = now + self.random.millis(60..240);
            let wish = self.wish();
            self.want(wish);
        }
        if !talks && !self.has_marked {
            self.has_marked = true;
            let is_in = |room: &&super::Room| self.is_final_member(room, world);
            let mark = |room: &super::Room| {
                Some(Wish::Mark { room: room.id.clone(), message: room.newest.clone()? })
            };
            let marks: Vec<_> = self.rooms.iter().filter(is_in).filter_map(mark).collect();
            marks.into_iter().for_each(|mark| self.want(mark));
        }
        for outgoing in &mut self.outbox {
            if outgoing.asked.is_some() || now < outgoing.not_before {
                continue;
            }
            outgoing.asked = Some(if self.random.once_in(3) {
                let addr = *self.random.of(&world.instances);
                let request = outgoing.wish.request(&world.http, addr, &self.account);
                let call = Call::Wish(outgoing.number);
                self.calls.spawn(async move { (call, ask(request).await) });
                Asked::Rest
            } else {
                let (event, data) = outgoing.wish.event();
                Asked::Socket(server.request(event, &data).await?, now)
            });
        }
        Ok(())
    }

    fn want(&mut self, wish: Wish) {
        self.wishes += 1;
        let (number, now) = (self.wishes, Instant::now());
        let (asked, not_before) = (None, now);
        self.outbox.push_back(Outgoing { number, wish, begun: now, asked, not_before });
    }

    /// The next wish. It also sends to private rooms of which it is not a member, and marks
    /// messages that it has read before later ones.
    fn wish(&mut self) -> Wish {
        let (name, number) = (self.transcript.name.clone(), self.wishes + 1);
        let roll = self.random.below(24);
        if roll >= 20 {
            let room = &self.rooms[self.random.below(self.rooms.len())];
            if !room.recent.is_empty() {
                let message = room.recent[self.random.below(room.recent.len())].clone();
                return Wish::Mark { room: room.id.clone(), message };
            }
        }
        if roll < 10 || self.own.is_empty() {
            self.transcript.sent += 1;
            let room = self.random.below(self.rooms.len());
            return Wish::Send {
                room: self.rooms[room].id.clone(),
                content: format!("{name} {number}"),
            };
        }
        // Prefer the newest messages, so that several changes of one message are concurrent.
        let few = if self.random.once_in(2) { self.own.len() } else { self.own.len().min(2) };
        let Own { id, version } = &self.own[self.own.len() - 1 - self.random.below(few)];
        let message = id.clone();
        if roll < 17 {
            let version = self.random.once_in(4).then_some(*version);
            Wish::Edit { message, content: format!("{name} edit {number}"), version }
        } else {
            Wish::Delete { message }
        }
    }

    /// Takes an ack.
    pub(super) fn acked(&mut self, id: u64, data: &Value) {
        let named = |outgoing: &Outgoing| matches!(outgoing.asked, Some(Asked::Socket(asked, _)) if asked == id);
        match self.outbox.iter().position(named) {
            Some(at) => self.answered(at, data),
            None => self.transcript.broken.push(format!("an ack without a request: {id} {data}")),
        }
    }

    /// Takes the answer to a REST request; `None` if there was none in time.
    pub(super) fn called(&mut self, call: Call, answer: Option<Value>) {
        match call {
            Call::Wish(number) => {
                let at = self.outbox.iter().position(|outgoing| outgoing.number == number);
                self.answered(at.expect("one asks once"), &answer.unwrap_or_default());
            }
            Call::LogOut(token) => self.logged_out(token, &answer.unwrap_or_default()),
            Call::History(index) => self.read(index, answer.as_ref().and_then(Value::as_array)),
        }
    }

    fn answered(&mut self, at: usize, data: &Value) {
        let now = Instant::now();
        let answer = Answer::read(data);
        if let Answer::Again = answer {
            self.outbox[at].asked = None;
            self.outbox[at].not_before = now + self.random.millis(100..400);
            return;
        }
        let Some(Outgoing { wish, begun, .. }) = self.outbox.remove(at) else { return };
        match answer {
            Answer::Done(message) => self.done(wish, begun, &message),
            Answer::Never(code) => self.refused(wish, code),
            Answer::Again => {}
        }
    }

    fn refused(&mut self, wish: Wish, code: String) {
        match wish {
            Wish::Edit { message, .. } | Wish::Delete { message } => {
                self.transcript.refused.push((message, code));
            }
            Wish::Mark { room, message } => {
                let is_private = |known: &super::Room| known.id == room && known.is_private;
                if code == "room_not_found" && self.rooms.iter().any(is_private) {
                    self.transcript.refused_sends += 1;
                } else {
                    self.transcript.broken.push(format!("a mark at {message} was refused: {code}"));
                }
            }
            Wish::Send { room, content } => {
                let is_private = |known: &super::Room| known.id == room && known.is_private;
                if code == "room_not_found" && self.rooms.iter().any(is_private) {
                    self.transcript.refused_sends += 1;
                } else {
                    self.transcript.broken.push(format!("{content:?} was refused: {code}"));
                }
            }
        }
    }

    fn done(&mut self, wish: Wish, begun: Instant, message: &Value) {
        if !wish.is_done_by(message) {
            self.transcript.broken.push(format!("the answer to {wish:?} is {message}"));
        }
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        let (id, room) = (text("_id"), text("room"));
        let version = message["__v"].as_i64().unwrap_or(0);
        match wish {
            Wish::Send { content, .. } => {
                self.transcript.acked.insert(content, id.clone());
                self.transcript.acks.push((begun, Instant::now()));
                self.own.push_back(Own { id, version });
                self.own.drain(..self.own.len().saturating_sub(OWN));
            }
            Wish::Edit { content, .. } => {
                let own = self.own.iter_mut().find(|own| own.id == id);
                own.into_iter().for_each(|own| own.version = own.version.max(version));
                let change = Change::Edited;
                self.transcript.changed.push(Told { change, room, id, content, version });
            }
            Wish::Delete { .. } => {
                self.own.retain(|own| own.id != id);
                let (change, content) = (Change::Deleted, String::new());
                self.transcript.changed.push(Told { change, room, id, content, version: 0 });
            }
            Wish::Mark { room, message } => {
                self.transcript.marked += 1;
                let newest = self.transcript.marks.entry(room).or_default();
                *newest = std::mem::take(newest).max(message);
            }
        }
    }
}
