//! The checker: compares every transcript with the database, in the order of the change stream.
//!
//! The text of a deleted message may be missing: clients that come after the deletion do not get
//! it. A client gets the changes of a private room only while its user is a member, or after the
//! user was added again. Everything else must be there once, in order.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::END;
use crate::stored::{Place, Stored};
use crate::transcript::{Segment, Text, Transcript};
use crate::wire::{Change, Told};

/// How many examples of each problem are printed.
const EXAMPLES: usize = 5;

/// The result.
#[derive(Debug, Default)]
pub struct Verdict {
    sent: usize,
    acked: usize,
    stored: usize,
    edits: usize,
    deletions: usize,
    /// Edits and deletions that were refused: the message was deleted or edited before, or its
    /// sender was removed from the room.
    refused: usize,
    /// Messages and marks in private rooms that were refused because their user was not a member.
    refused_sends: usize,
    /// Messages that were stored after their sender was removed, and were refused then.
    taken_back: usize,
    /// Acknowledged edits that a later one replaced before they were stored.
    overtaken: usize,
    members_added: usize,
    members_removed: usize,
    marked: usize,
    revocations: usize,
    logins: usize,
    delivered: usize,
    lost: Vec<String>,
    doubled: Vec<String>,
    disordered: Vec<String>,
    /// Texts that were delivered after their deletion.
    revived: Vec<String>,
    /// Changes of a private room that a user saw without being a member.
    leaked: Vec<String>,
    /// Events that a socket got behind the revocation of its token.
    unrevoked: Vec<String>,
    /// Messages whose final text a client has wrong, and marks that are not where they were set.
    differing: Vec<String>,
    /// Other errors.
    broken: Vec<String>,
    /// How many events came again because a connection ended before their offset, which is allowed.
    repeated: usize,
    resyncs: usize,
    returns: usize,
    recoveries: Vec<Duration>,
    /// For each lost primary: the time until a message was acknowledged that was sent after it.
    writes_back: Vec<Duration>,
}

impl Verdict {
    /// Judges.
    pub fn of(transcripts: &[Transcript], stored: &Stored, primaries: &[Instant]) -> Self {
        let mut verdict = Self::default();
        verdict.judge_storing(transcripts, stored);
        let mut rooms: HashMap<&str, Vec<&Place>> = HashMap::new();
        for place in &stored.changes {
            rooms.entry(&place.told.room).or_default().push(place);
        }
        for transcript in transcripts {
            for (room, segments) in &transcript.rooms {
                let order = rooms.get(room.as_str()).map_or(&[][..], Vec::as_slice);
                let is_member = order
                    .last()
                    .is_none_or(|last| stored.is_member(room, &transcript.user, last.position));
                verdict.judge_delivery(transcript, segments, order, is_member);
                verdict.judge_visibility(transcript, segments, order, stored);
                verdict.judge_revocations(transcript, segments, order, stored);
                if is_member {
                    verdict.judge_texts(transcript, room, stored);
                }
            }
            verdict.judge_histories(transcript, stored);
            verdict.judge_marks(transcript, stored);
            verdict.marked += transcript.marked;
            verdict.revived.extend(transcript.revived.iter().cloned());
            verdict.repeated += transcript.repeated;
            verdict.logins += transcript.tokens.len() - 1;
            verdict.resyncs += transcript.resyncs;
            verdict.returns += transcript.returns;
            verdict.recoveries.extend(&transcript.recoveries);
            let broken = transcript.broken.iter();
            verdict.broken.extend(broken.map(|what| format!("{}: {what}", transcript.name)));
        }
        let acks = || transcripts.iter().flat_map(|transcript| &transcript.acks);
        for &died in primaries {
            let since = acks().filter(|(begun, _)| *begun > died).map(|(_, acked)| *acked - died);
            verdict.writes_back.extend(since.min());
        }
        verdict.broken.extend(stored.backward.iter().cloned());
        verdict.revocations = stored.revocations();
        verdict.recoveries.sort();
        verdict.writes_back.sort();
        verdict
    }

    /// Adds errors that were found elsewhere.
    pub fn complain(&mut self, problems: impl IntoIterator<Item = String>) {
        self.broken.extend(problems);
    }

    /// Whether there is no error.
    pub fn is_good(&self) -> bool {
        self.problems().iter().all(|problems| problems.is_empty())
    }

    fn problems(&self) -> [&Vec<String>; 8] {
        let Self { lost, doubled, disordered, revived, .. } = self;
        let Self { leaked, unrevoked, differing, broken, .. } = self;
        [lost, doubled, disordered, revived, leaked, unrevoked, differing, broken]
    }

    fn judge_storing(&mut self, transcripts: &[Transcript], stored: &Stored) {
        let mut by_content: HashMap<&str, &Told> = HashMap::new();
        let mut messages: HashMap<&str, Vec<&Told>> = HashMap::new();
        for Place { told: change, .. } in &stored.changes {
            if !change.change.is_of_message() {
                continue;
            }
            let changes = messages.entry(&change.id).or_default();
            let Told { content, version, .. } = change;
            // An edit has the next version.
            let is_in_order = match change.change {
                Change::Sent => changes.is_empty() && *version == 0,
                Change::Edited => changes.last().is_some_and(|last| {
                    last.change != Change::Deleted && last.version + 1 == *version
                }),
                _ => changes.last().is_some_and(|last| last.change != Change::Deleted),
            };
            if !is_in_order {
                self.broken.push(format!("{change:?} is stored after {:?}", changes.last()));
            }
            changes.push(change);
            match change.change {
                Change::Sent => self.stored += 1,
                Change::Edited => self.edits += 1,
                _ => {
                    self.deletions += 1;
                    continue;
                }
            }
            if by_content.insert(content, change).is_some() && content != END {
                self.doubled.push(format!("{content:?} is stored twice"));
            }
        }
        let was_deleted = |id: &str| {
            messages
                .get(id)
                .and_then(|all| all.last())
                .is_some_and(|last| last.change == Change::Deleted)
        };
        self.judge_members(stored, &messages);
        for transcript in transcripts {
            self.sent += transcript.sent;
            self.refused_sends += transcript.refused_sends;
            self.acked += transcript.acked.len();
            for (content, id) in &transcript.acked {
                match by_content.get(content.as_str()) {
                    Some(message) if message.id == *id => {}
                    Some(_) => self.lost.push(format!("{content:?} is stored under another id")),
                    None => self.lost.push(format!("{content:?} was acknowledged, not stored")),
                }
            }
            for acked in &transcript.changed {
                let others = messages.get(acked.id.as_str()).map_or(&[][..], Vec::as_slice);
                if others.contains(&acked) {
                    continue;
                }
                let later = |other: &&&Told| other.version > acked.version;
                let is_overtaken =
                    acked.change == Change::Edited && others.iter().any(|other| later(&other));
                if is_overtaken {
                    self.overtaken += 1;
                } else {
                    self.lost.push(format!("{acked:?} was acknowledged, not stored: {others:?}"));
                }
            }
            self.refused += transcript.refused.len();
            for (id, code) in &transcript.refused {
                let is_right = match code.as_str() {
                    "message_deleted" => was_deleted(id),
                    "edit_conflict" => messages.get(id.as_str()).is_some_and(|all| all.len() > 1),
                    "message_not_found" => {
                        messages.get(id.as_str()).is_some_and(|all| stored.is_private(&all[0].room))
                    }
                    _ => false,
                };
                if !is_right {
                    self.broken.push(format!("{}: {code} of {id}", transcript.name));
                }
            }
        }
    }

    /// Judges the changes of members, and the messages that were stored after their sender was
    /// removed.
    fn judge_members(&mut self, stored: &Stored, messages: &HashMap<&str, Vec<&Told>>) {
        for Place { told, .. } in &stored.changes {
            self.members_added += usize::from(told.change == Change::MemberAdded);
            self.members_removed += usize::from(told.change == Change::MemberRemoved);
        }
        self.taken_back = stored.removed.len();
        for id in &stored.refused {
            if stored.texts.values().any(|texts| texts.contains_key(id)) {
                let problem = format!("{id} was stored after its sender was removed, and is kept");
                self.broken.push(problem);
            }
        }
        for id in stored.removed.iter().filter(|id| messages.contains_key(id.as_str())) {
            self.lost.push(format!("{id} was stored by a member, and removed"));
        }
    }

    fn judge_delivery(
        &mut self,
        Transcript { name, user, .. }: &Transcript,
        segments: &[Segment],
        order: &[&Place],
        is_member: bool,
    ) {
        let deletions: HashMap<&str, usize> = order
            .iter()
            .enumerate()
            .filter(|(_, place)| place.told.change == Change::Deleted)
            .map(|(at, place)| (place.told.id.as_str(), at))
            .collect();
        let what = |at: usize| describe(name, at, order[at]);
        let places = Places::of(order);
        let last = segments.len().saturating_sub(1);
        let all_heard = places.of_segments(segments).into_iter();
        for (number, (segment, (heard_at, strange))) in segments.iter().zip(all_heard).enumerate() {
            self.delivered += segment.heard.len();
            self.broken
                .extend(strange.into_iter().map(|told| format!("{name}: {told:?} is not stored")));
            let mut heard = HashSet::new();
            let mut newest = None;
            for &at in &heard_at {
                let deletion =
                    deletions.get(order[at].told.id.as_str()).filter(|&&deletion| deletion != at);
                if deletion.is_some_and(|deletion| heard.contains(deletion)) {
                    self.revived.push(format!("{} came after its deletion", what(at)));
                }
                if !heard.insert(at) {
                    self.doubled.push(format!("{} came twice", what(at)));
                } else if newest.is_some_and(|newest| at < newest) {
                    self.disordered.push(format!("{} came after later ones", what(at)));
                }
                newest = newest.max(Some(at));
            }
            let first = match segment.from {
                Some(from) => Some(order.partition_point(|place| place.position <= from)),
                None => heard_at.iter().min().copied(),
            };
            let end = order.iter().position(|place| place.told.content == END);
            let reaches_end = number == last && is_member;
            let end = if reaches_end { newest.max(end) } else { newest };
            let (Some(first), Some(end)) = (first, end) else { continue };
            let may_be_missing = |at: usize| {
                // Told by another event.
                let is_own_mark = order[at].told.mark_of(user).is_some();
                is_own_mark
                    || deletions
                        .get(order[at].told.id.as_str())
                        .is_some_and(|&deletion| at < deletion)
            };
            let missing = (first..=end).filter(|&at| !heard.contains(&at) && !may_be_missing(at));
            let lost = self.lost.len();
            self.lost.extend(missing.map(|at| format!("{} did not come", what(at))));
            if self.lost.len() > lost {
                log::debug!(
                    "{name} lost {} of segment {} of {}, after {:?}, in {first}..={end} of {}",
                    self.lost.len() - lost,
                    number + 1,
                    segments.len(),
                    segment.from,
                    order[first].told.room,
                );
            }
        }
    }

    /// Judges whether the user was a member of a private room whenever an event came.
    fn judge_visibility(
        &mut self,
        Transcript { name, user, .. }: &Transcript,
        segments: &[Segment],
        order: &[&Place],
        stored: &Stored,
    ) {
        let places = Places::of(order);
        for (segment, (heard_at, _)) in segments.iter().zip(places.of_segments(segments)) {
            let known = segment.heard.iter().filter(|heard| places.has(&heard.told));
            for (&at, heard) in heard_at.iter().zip(known) {
                let Place { told, position } = order[at];
                if stored.is_private(&told.room)
                    && !stored.may_see(&told.room, user, *position, heard.at)
                {
                    self.leaked.push(describe(name, at, order[at]));
                }
            }
        }
    }

    /// Judges whether each event came before the token of its connection was revoked.
    fn judge_revocations(
        &mut self,
        Transcript { name, user, tokens, .. }: &Transcript,
        segments: &[Segment],
        order: &[&Place],
        stored: &Stored,
    ) {
        let ends: Vec<_> = tokens.iter().map(|&issued| stored.revoked(user, issued)).collect();
        let places = Places::of(order);
        for (segment, (heard_at, _)) in segments.iter().zip(places.of_segments(segments)) {
            let known = segment.heard.iter().filter(|heard| places.has(&heard.told));
            for (&at, heard) in heard_at.iter().zip(known) {
                if ends[heard.token].is_some_and(|end| order[at].position > end) {
                    self.unrevoked.push(describe(name, at, order[at]));
                }
            }
        }
    }

    /// Judges whether the user was a member of a private room whenever a history came.
    fn judge_histories(
        &mut self,
        Transcript { name, user, read, .. }: &Transcript,
        stored: &Stored,
    ) {
        for place in &stored.changes {
            let Told { change, room, id, version, .. } = &place.told;
            if !matches!(change, Change::Sent | Change::Edited) {
                continue;
            }
            let Some(&at) = read.get(&(room.clone(), id.clone(), *version)) else { continue };
            if !stored.may_see(room, user, place.position, at) {
                self.leaked.push(format!("{name} read {:?} at {}", place.told, place.position));
            }
        }
    }

    /// Judges whether the marks of the user are where they were set last. A mark that was set a
    /// second before an instance was killed may be lost, so all are set once more in the end.
    fn judge_marks(&mut self, Transcript { name, user, marks, .. }: &Transcript, stored: &Stored) {
        let Some(last) = stored.changes.last() else { return };
        for (room, message) in marks {
            let is_member = stored.is_member(room, user, last.position);
            let mark = stored.mark(room, user);
            if is_member && mark != Some(message) {
                let problem = format!("{name}: the mark of {room} is {mark:?}, not {message}");
                self.differing.push(problem);
            }
        }
    }

    fn judge_texts(&mut self, transcript: &Transcript, room: &str, stored: &Stored) {
        let nothing = HashMap::new();
        let known = transcript.texts.get(room).unwrap_or(&nothing);
        let removed = &stored.removed;
        let stored = stored.texts.get(room).unwrap_or(&nothing);
        let is_end = |text: &Text| text.content.as_deref() == Some(END);
        let name = &transcript.name;
        for (id, text) in stored.iter().filter(|(_, text)| !is_end(text)) {
            if known.get(id) != Some(text) {
                self.differing.push(format!("{name}: {id} is {text:?}, not {:?}", known.get(id)));
            }
        }
        // A history can show a message for a moment before it is taken back.
        let is_strange = |id: &String| !stored.contains_key(id) && !removed.contains(id);
        for (id, text) in known.iter().filter(|(id, _)| is_strange(id)) {
            self.differing.push(format!("{name}: {id} is not stored, and not {text:?}"));
        }
    }
}

/// Where the changes of a room are in its order.
struct Places<'a> {
    /// The changes of messages, and the marks.
    messages: HashMap<(Change, &'a str, i64), usize>,
    /// The changes of each member, in order.
    members: HashMap<(Change, &'a str), Vec<usize>>,
    order: &'a [&'a Place],
}

impl<'a> Places<'a> {
    fn of(order: &'a [&'a Place]) -> Self {
        let mut places = Self { messages: HashMap::new(), members: HashMap::new(), order };
        for (at, Place { told, .. }) in order.iter().enumerate() {
            if !told.change.is_of_member() {
                places.messages.insert(told.key(), at);
            } else {
                places.members.entry((told.change, told.id.as_str())).or_default().push(at);
            }
        }
        places
    }

    fn has(&self, told: &Told) -> bool {
        match self.messages.get(&told.key()) {
            Some(&at) => self.order[at].told.content == told.content,
            None => self.members.contains_key(&(told.change, told.id.as_str())),
        }
    }

    /// For each segment the places of its events, and the events that have none. An event of a
    /// member does not tell which of the changes of this member it is: it is the next one.
    fn of_segments<'s>(&self, segments: &'s [Segment]) -> Vec<(Vec<usize>, Vec<&'s Told>)> {
        let mut newest = None;
        let mut all = Vec::with_capacity(segments.len());
        for segment in segments {
            let (mut found, mut strange) = (Vec::with_capacity(segment.heard.len()), Vec::new());
            let before = |from| self.order.partition_point(|place| place.position <= from);
            let begin = segment.from.map(before).max(newest.map(|newest: usize| newest + 1));
            for heard in &segment.heard {
                let told = &heard.told;
                if !self.has(told) {
                    strange.push(told);
                    continue;
                }
                let at = self.messages.get(&told.key()).copied().or_else(|| {
                    let changes = self.members.get(&(told.change, told.id.as_str()))?;
                    let next = |&&at: &&usize| match found.last() {
                        Some(&last) => at > last,
                        None => Some(at) >= begin,
                    };
                    changes.iter().find(next).or(changes.last()).copied()
                });
                found.extend(at);
            }
            newest = newest.max(found.iter().copied().max());
            all.push((found, strange));
        }
        all
    }
}

fn describe(name: &str, at: usize, place: &Place) -> String {
    let Told { change, content, id, version, .. } = &place.told;
    let position = place.position;
    format!("{name}: {change:?} {content:?} of {id}, version {version}, at {position} ({at})")
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("sent", self.sent),
            ("acked", self.acked),
            ("stored", self.stored),
            ("edits", self.edits),
            ("deletions", self.deletions),
            ("edits and deletions refused", self.refused),
            ("sends and marks of others", self.refused_sends),
            ("messages taken back", self.taken_back),
            ("edits overtaken by later ones", self.overtaken),
            ("members added", self.members_added),
            ("members removed", self.members_removed),
            ("marks acked", self.marked),
            ("revocations of all tokens", self.revocations),
            ("logins after them", self.logins),
            ("delivered", self.delivered),
            ("lost", self.lost.len()),
            ("doubled", self.doubled.len()),
            ("again after a cut, by default", self.repeated),
            ("out of order", self.disordered.len()),
            ("texts after their deletion", self.revived.len()),
            ("seen by others than members", self.leaked.len()),
            ("got behind a revocation", self.unrevoked.len()),
            ("texts or marks differ in the end", self.differing.len()),
            ("other problems", self.broken.len()),
            ("connections lost and recovered", self.recoveries.len()),
            ("of these by Socket.IO's recovery", self.returns),
            ("resyncs", self.resyncs),
        ];
        for (name, count) in counts {
            writeln!(f, "{name:34} {count:>9}")?;
        }
        for (name, times) in [
            ("time to recover", &self.recoveries),
            ("writes back after the primary", &self.writes_back),
        ] {
            match (times.get(times.len() / 2), times.last()) {
                (Some(median), Some(max)) => {
                    let (median, max) = (median.as_secs_f64(), max.as_secs_f64());
                    writeln!(f, "{name:34} {median:>7.2} s median, {max:.2} s at most")?;
                }
                _ => writeln!(f, "{name:34}         -")?,
            }
        }
        for problems in self.problems() {
            for problem in problems.iter().take(EXAMPLES) {
                writeln!(f, "  {problem}")?;
            }
        }
        Ok(())
    }
}
