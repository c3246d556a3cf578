//! The checker: compares every transcript with the collection, in the order of its change stream.
//!
//! The text of a message that was deleted may be missing: it is given to nobody who comes after the
//! deletion. Everything else that happened must be there once, in its order.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::{END, Text, Transcript};
use crate::wire::{Change, Told};

/// How many examples of each problem are printed.
const EXAMPLES: usize = 5;

/// What the database has.
pub struct Stored {
    /// Everything that happened, in the order of the change stream.
    pub changes: Vec<Told>,
    /// The messages of each room, as they are in the end.
    pub texts: HashMap<String, HashMap<String, Text>>,
}

/// What became of everything.
#[derive(Debug, Default)]
pub struct Verdict {
    sent: usize,
    acked: usize,
    stored: usize,
    edits: usize,
    deletions: usize,
    /// Edits and deletions that were refused, since the message was deleted or edited before.
    refused: usize,
    /// Edits that were acknowledged although a later one came first: as if they had been stored a
    /// moment before that.
    overtaken: usize,
    delivered: usize,
    lost: Vec<String>,
    doubled: Vec<String>,
    disordered: Vec<String>,
    /// Texts that were given behind their deletion.
    revived: Vec<String>,
    /// Messages that a member knows otherwise than the collection.
    differing: Vec<String>,
    /// What else must not be.
    broken: Vec<String>,
    /// How many messages came again because a cut came before their offset, which is allowed.
    repeated: usize,
    resyncs: usize,
    returns: usize,
    recoveries: Vec<Duration>,
    /// From the end of a primary to the first acknowledgement of a message sent since.
    writes_back: Vec<Duration>,
}

impl Verdict {
    /// Judges.
    pub fn of(transcripts: &[Transcript], stored: &Stored, primaries: &[Instant]) -> Self {
        let mut verdict = Self::default();
        verdict.judge_storing(transcripts, stored);
        let mut rooms: HashMap<&str, Vec<&Told>> = HashMap::new();
        for change in &stored.changes {
            rooms.entry(&change.room).or_default().push(change);
        }
        for transcript in transcripts {
            for (room, segments) in &transcript.rooms {
                let order = rooms.get(room.as_str()).map_or(&[][..], Vec::as_slice);
                verdict.judge_delivery(&transcript.name, segments, order);
                verdict.judge_texts(transcript, room, stored);
            }
            verdict.revived.extend(transcript.revived.iter().cloned());
            verdict.repeated += transcript.repeated;
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
        verdict.recoveries.sort();
        verdict.writes_back.sort();
        verdict
    }

    /// Adds what must not be and was found elsewhere.
    pub fn complain(&mut self, problems: impl IntoIterator<Item = String>) {
        self.broken.extend(problems);
    }

    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.problems().iter().all(|problems| problems.is_empty())
    }

    fn problems(&self) -> [&Vec<String>; 6] {
        let Self { lost, doubled, disordered, revived, differing, broken, .. } = self;
        [lost, doubled, disordered, revived, differing, broken]
    }

    fn judge_storing(&mut self, transcripts: &[Transcript], stored: &Stored) {
        let mut by_content: HashMap<&str, &Told> = HashMap::new();
        let mut messages: HashMap<&str, Vec<&Told>> = HashMap::new();
        for change in &stored.changes {
            let changes = messages.entry(&change.id).or_default();
            let Told { content, version, .. } = change;
            // An edit has the version behind that of the change before.
            let is_in_order = match change.change {
                Change::Sent => changes.is_empty() && *version == 0,
                Change::Edited => changes.last().is_some_and(|last| {
                    last.change != Change::Deleted && last.version + 1 == *version
                }),
                Change::Deleted => {
                    changes.last().is_some_and(|last| last.change != Change::Deleted)
                }
            };
            if !is_in_order {
                self.broken.push(format!("{change:?} is stored behind {:?}", changes.last()));
            }
            changes.push(change);
            match change.change {
                Change::Sent => self.stored += 1,
                Change::Edited => self.edits += 1,
                Change::Deleted => {
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
        for transcript in transcripts {
            self.sent += transcript.sent;
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
                    _ => false,
                };
                if !is_right {
                    self.broken.push(format!("{}: {code} of {id}", transcript.name));
                }
            }
        }
    }

    fn judge_delivery(&mut self, name: &str, segments: &[Vec<Told>], order: &[&Told]) {
        let places: HashMap<_, usize> =
            order.iter().enumerate().map(|(at, change)| (change.key(), at)).collect();
        let deletions: HashMap<&str, usize> = order
            .iter()
            .enumerate()
            .filter(|(_, change)| change.change == Change::Deleted)
            .map(|(at, change)| (change.id.as_str(), at))
            .collect();
        let what = |at: usize| {
            let Told { change, content, id, version, .. } = order[at];
            format!("{name}: {change:?} {content:?} of {id}, version {version} ({at})")
        };
        let last = segments.len().saturating_sub(1);
        for (number, segment) in segments.iter().enumerate() {
            self.delivered += segment.len();
            let mut heard_at = Vec::with_capacity(segment.len());
            for told in segment {
                match places.get(&told.key()) {
                    Some(&at) if order[at].content == told.content => heard_at.push(at),
                    _ => self.broken.push(format!("{name} heard {told:?}, which is not stored")),
                }
            }
            let mut heard = HashSet::new();
            let mut newest = None;
            for &at in &heard_at {
                let deletion =
                    deletions.get(order[at].id.as_str()).filter(|&&deletion| deletion != at);
                if deletion.is_some_and(|deletion| heard.contains(deletion)) {
                    self.revived.push(format!("{} was heard behind its deletion", what(at)));
                }
                if !heard.insert(at) {
                    self.doubled.push(format!("{} was heard twice", what(at)));
                } else if newest.is_some_and(|newest| at < newest) {
                    self.disordered.push(format!("{} came after later ones", what(at)));
                }
                newest = newest.max(Some(at));
            }
            // Everybody was there from the first message to the last.
            let first = if number == 0 { Some(0) } else { heard_at.iter().min().copied() };
            let end = order.iter().position(|change| change.content == END);
            let end = if number == last { newest.max(end) } else { newest };
            let (Some(first), Some(end)) = (first, end) else { continue };
            let may_be_missing = |at: usize| {
                deletions.get(order[at].id.as_str()).is_some_and(|&deletion| at < deletion)
            };
            let missing = (first..=end).filter(|&at| !heard.contains(&at) && !may_be_missing(at));
            self.lost.extend(missing.map(|at| format!("{} was not heard", what(at))));
        }
    }

    fn judge_texts(&mut self, transcript: &Transcript, room: &str, stored: &Stored) {
        let nothing = HashMap::new();
        let known = transcript.texts.get(room).unwrap_or(&nothing);
        let stored = stored.texts.get(room).unwrap_or(&nothing);
        let is_end = |text: &Text| text.content.as_deref() == Some(END);
        let name = &transcript.name;
        for (id, text) in stored.iter().filter(|(_, text)| !is_end(text)) {
            if known.get(id) != Some(text) {
                self.differing.push(format!("{name}: {id} is {text:?}, not {:?}", known.get(id)));
            }
        }
        for (id, text) in known.iter().filter(|(id, _)| !stored.contains_key(*id)) {
            self.differing.push(format!("{name}: {id} is not stored, and not {text:?}"));
        }
    }
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
            ("edits overtaken by later ones", self.overtaken),
            ("delivered", self.delivered),
            ("lost", self.lost.len()),
            ("doubled", self.doubled.len()),
            ("again after a cut, by default", self.repeated),
            ("out of order", self.disordered.len()),
            ("texts behind their deletion", self.revived.len()),
            ("texts that differ in the end", self.differing.len()),
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
