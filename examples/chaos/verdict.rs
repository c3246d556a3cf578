//! The checker: compares every transcript with the collection, in the order of its change stream.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::{END, Transcript};

/// How many examples of each problem are printed.
const EXAMPLES: usize = 5;

/// A message as it is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    pub id: String,
    pub room: String,
    pub content: String,
}

/// What became of everything.
#[derive(Debug, Default)]
pub struct Verdict {
    sent: usize,
    acked: usize,
    stored: usize,
    delivered: usize,
    lost: Vec<String>,
    doubled: Vec<String>,
    disordered: Vec<String>,
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
    /// Judges. `stored` is what the collection has, in the order of its change stream.
    pub fn of(transcripts: &[Transcript], stored: &[Stored], primaries: &[Instant]) -> Self {
        let mut verdict = Self { stored: stored.len(), ..Self::default() };
        verdict.judge_storing(transcripts, stored);
        let mut rooms: HashMap<&str, Vec<&Stored>> = HashMap::new();
        for message in stored {
            rooms.entry(&message.room).or_default().push(message);
        }
        for transcript in transcripts {
            for (room, segments) in &transcript.rooms {
                let order = rooms.get(room.as_str()).map_or(&[][..], Vec::as_slice);
                verdict.judge_delivery(&transcript.name, segments, order);
            }
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
        [&self.lost, &self.doubled, &self.disordered, &self.broken].iter().all(|all| all.is_empty())
    }

    fn judge_storing(&mut self, transcripts: &[Transcript], stored: &[Stored]) {
        let mut by_content: HashMap<&str, &Stored> = HashMap::new();
        for message in stored {
            let before = by_content.insert(&message.content, message);
            if before.is_some() && message.content != END {
                self.doubled.push(format!("{:?} is stored twice", message.content));
            }
        }
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
        }
    }

    fn judge_delivery(&mut self, name: &str, segments: &[Vec<String>], order: &[&Stored]) {
        let place: HashMap<&str, usize> =
            order.iter().enumerate().map(|(at, message)| (message.id.as_str(), at)).collect();
        let what = |at: usize| format!("{name}: {:?} ({at})", order[at].content);
        let last = segments.len().saturating_sub(1);
        for (number, segment) in segments.iter().enumerate() {
            self.delivered += segment.len();
            let mut places = Vec::with_capacity(segment.len());
            for id in segment {
                match place.get(id.as_str()) {
                    Some(&at) => places.push(at),
                    None => self.broken.push(format!("{name} heard {id}, which is not stored")),
                }
            }
            let mut heard = HashSet::new();
            let mut newest = None;
            for &at in &places {
                if !heard.insert(at) {
                    self.doubled.push(format!("{} was heard twice", what(at)));
                } else if newest.is_some_and(|newest| at < newest) {
                    self.disordered.push(format!("{} came after later ones", what(at)));
                }
                newest = newest.max(Some(at));
            }
            // Everybody was there from the first message to the last.
            let first = if number == 0 { Some(0) } else { places.iter().min().copied() };
            let end = order.iter().position(|message| message.content == END);
            let end = if number == last { newest.max(end) } else { newest };
            let (Some(first), Some(end)) = (first, end) else { continue };
            let missing = (first..=end).filter(|at| !heard.contains(at));
            self.lost.extend(missing.map(|at| format!("{} was not heard", what(at))));
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("sent", self.sent),
            ("acked", self.acked),
            ("stored", self.stored),
            ("delivered", self.delivered),
            ("lost", self.lost.len()),
            ("doubled", self.doubled.len()),
            ("again after a cut, by default", self.repeated),
            ("out of order", self.disordered.len()),
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
        for problems in [&self.lost, &self.doubled, &self.disordered, &self.broken] {
            for problem in problems.iter().take(EXAMPLES) {
                writeln!(f, "  {problem}")?;
            }
        }
        Ok(())
    }
}
