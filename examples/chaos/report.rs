//! Compares every transcript with the collection, in the order of its change stream.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::{END, Transcript};

/// How many problems of each kind are printed.
const EXAMPLES: usize = 5;

/// A stored message.
#[derive(Debug, Clone)]
pub struct Stored {
    pub id: String,
    pub room: String,
    pub content: String,
}

/// The result.
#[derive(Debug, Default)]
pub struct Report {
    sent: usize,
    acked: usize,
    stored: usize,
    delivered: usize,
    lost: Vec<String>,
    duplicated: Vec<String>,
    out_of_order: Vec<String>,
    /// Other problems.
    problems: Vec<String>,
    /// Messages that came again because a cut came before their offset. This is allowed.
    repeated: usize,
    resyncs: usize,
    resumed: usize,
    recoveries: Vec<Duration>,
    /// The times from the loss of a primary to the first ack of a later message.
    write_recoveries: Vec<Duration>,
}

impl Report {
    /// Compares. `stored` is the collection, in the order of its change stream.
    pub fn of(transcripts: &[Transcript], stored: &[Stored], primary_losses: &[Instant]) -> Self {
        let mut report = Self { stored: stored.len(), ..Self::default() };
        report.check_stored(transcripts, stored);
        let mut rooms: HashMap<&str, Vec<&Stored>> = HashMap::new();
        for message in stored {
            rooms.entry(&message.room).or_default().push(message);
        }
        for transcript in transcripts {
            for (room, segments) in &transcript.rooms {
                let order = rooms.get(room.as_str()).map_or(&[][..], Vec::as_slice);
                report.check_delivered(&transcript.name, segments, order);
            }
            report.repeated += transcript.repeated;
            report.resyncs += transcript.resyncs;
            report.resumed += transcript.resumed;
            report.recoveries.extend(&transcript.recoveries);
            let problems = transcript.problems.iter();
            report.problems.extend(problems.map(|what| format!("{}: {what}", transcript.name)));
        }
        let acks = || transcripts.iter().flat_map(|transcript| &transcript.acks);
        for &died in primary_losses {
            let since = acks().filter(|(begun, _)| *begun > died).map(|(_, acked)| *acked - died);
            report.write_recoveries.extend(since.min());
        }
        report.recoveries.sort();
        report.write_recoveries.sort();
        report
    }

    /// Adds problems that were found elsewhere.
    pub fn add_problems(&mut self, problems: impl IntoIterator<Item = String>) {
        self.problems.extend(problems);
    }

    /// Whether there is no problem.
    pub fn is_good(&self) -> bool {
        [&self.lost, &self.duplicated, &self.out_of_order, &self.problems]
            .iter()
            .all(|all| all.is_empty())
    }

    fn check_stored(&mut self, transcripts: &[Transcript], stored: &[Stored]) {
        let mut by_content: HashMap<&str, &Stored> = HashMap::new();
        for message in stored {
            let before = by_content.insert(&message.content, message);
            if before.is_some() && message.content != END {
                self.duplicated.push(format!("{:?} is stored twice", message.content));
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

    fn check_delivered(&mut self, name: &str, segments: &[Vec<String>], order: &[&Stored]) {
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
                    None => {
                        self.problems.push(format!("{name} received {id}, which is not stored"))
                    }
                }
            }
            let mut heard = HashSet::new();
            let mut newest = None;
            for &at in &places {
                if !heard.insert(at) {
                    self.duplicated.push(format!("{} was received twice", what(at)));
                } else if newest.is_some_and(|newest| at < newest) {
                    self.out_of_order.push(format!("{} came after later ones", what(at)));
                }
                newest = newest.max(Some(at));
            }
            // All clients are in their rooms from the first message to the last.
            let first = if number == 0 { Some(0) } else { places.iter().min().copied() };
            let end = order.iter().position(|message| message.content == END);
            let end = if number == last { newest.max(end) } else { newest };
            let (Some(first), Some(end)) = (first, end) else { continue };
            let missing = (first..=end).filter(|at| !heard.contains(at));
            self.lost.extend(missing.map(|at| format!("{} was not received", what(at))));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("sent", self.sent),
            ("acked", self.acked),
            ("stored", self.stored),
            ("delivered", self.delivered),
            ("lost", self.lost.len()),
            ("duplicated", self.duplicated.len()),
            ("repeated after a cut, by default", self.repeated),
            ("out of order", self.out_of_order.len()),
            ("other problems", self.problems.len()),
            ("connections lost and recovered", self.recoveries.len()),
            ("of these, Socket.IO recoveries", self.resumed),
            ("resyncs", self.resyncs),
        ];
        for (name, count) in counts {
            writeln!(f, "{name:34} {count:>9}")?;
        }
        for (name, times) in [
            ("time to recover", &self.recoveries),
            ("loss of primary to next ack", &self.write_recoveries),
        ] {
            match (times.get(times.len() / 2), times.last()) {
                (Some(median), Some(max)) => {
                    let (median, max) = (median.as_secs_f64(), max.as_secs_f64());
                    writeln!(f, "{name:34} {median:>7.2} s median, {max:.2} s at most")?;
                }
                _ => writeln!(f, "{name:34}         -")?,
            }
        }
        for problems in [&self.lost, &self.duplicated, &self.out_of_order, &self.problems] {
            for problem in problems.iter().take(EXAMPLES) {
                writeln!(f, "  {problem}")?;
            }
        }
        Ok(())
    }
}
