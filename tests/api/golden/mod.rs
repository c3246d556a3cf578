//! Golden transcripts: what the Node original answered, replayed against a server.
//!
//! `tests/golden/` holds scenarios of requests and recorded answers. Those numbered below 90 come
//! with the contract; the others were recorded by us from the same original (Express 4.21.2,
//! Mongoose 8.9.4, Node 20), where the contract speaks of a behaviour that those do not show.
//! This module judges answers as the contract's format says, and knows nothing of how the server
//! under test is started; `transcript` is the format, `template` the comparison of texts.

mod template;
mod transcript;

use std::{net::SocketAddr, time::Duration};

use serde_json::value::RawValue;

use crate::helpers::TestServer;
use crate::helpers::wire::{self, Response};

use self::{
    template::{Fit, Variables},
    transcript::{BodyMode, Expectation, Request, Scenario, Step},
};

/// Which answers a server must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Our server with its defaults.
    Secure,
    /// Our server with `LEGACY_TRUST=true`.
    Legacy,
    /// The Node original itself: its answers are the recording.
    Original,
}

/// What a replay found. A failure names the scenario, the step and each difference.
#[derive(Debug, Default)]
pub struct Report {
    pub judged: usize,
    pub failures: Vec<String>,
}

impl Report {
    /// Panics with all failures, or when hardly anything was judged.
    pub fn assert_passed(&self, at_least: usize) {
        let Self { judged, failures } = self;
        assert!(
            failures.is_empty(),
            "{} of {judged} steps failed:\n{}",
            failures.len(),
            failures.join("\n")
        );
        assert!(*judged >= at_least, "only {judged} steps were judged, not {at_least}");
    }
}

/// Replays the scenarios in order, each step on its own connection.
///
/// The server must use `JWT_SECRET=golden-secret` and no rate limits. Its database may hold
/// anything, but nobody else may create rooms in it meanwhile.
pub async fn replay(address: SocketAddr, profile: Profile) -> Report {
    let mut report = Report::default();
    for scenario in transcript::load_all() {
        let skipped = profile == Profile::Secure && scenario.needs_legacy_trust();
        if !skipped {
            replay_scenario(address, profile, &scenario, &mut report).await;
        }
    }
    report
}

async fn replay_scenario(
    address: SocketAddr,
    profile: Profile,
    scenario: &Scenario,
    report: &mut Report,
) {
    let mut variables = Variables::new(address);
    for (number, step) in scenario.steps.iter().enumerate() {
        if let Some(pause) = step.sleep_ms {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        let expected = step.expectation(profile);
        let found = play(address, profile, step, expected, &mut variables).await;
        if !expected.judge || (step.free && profile != Profile::Original) {
            continue;
        }
        report.judged += 1;
        if !found.is_empty() {
            let name = format!("{} #{} {}", scenario.name, number + 1, step.name);
            report.failures.push(format!("{name}\n    {}", found.join("\n    ")));
        }
    }
}

/// Sends one request and compares the answer; what differs is returned as sentences.
async fn play(
    address: SocketAddr,
    profile: Profile,
    step: &Step,
    expected: &Expectation,
    variables: &mut Variables,
) -> Vec<String> {
    let answers = match send(address, &step.request, 1 + expected.then.len(), variables).await {
        Ok(answers) => answers,
        Err(error) => return vec![error],
    };
    let expectations = std::iter::once(expected).chain(&expected.then);
    expectations
        .zip(&answers)
        .filter(|(expected, _)| expected.judge)
        .flat_map(|(expected, answer)| differences(profile, expected, answer, variables))
        .collect()
}

async fn send(
    address: SocketAddr,
    request: &Request,
    answers: usize,
    variables: &Variables,
) -> Result<Vec<Response>, String> {
    let bytes = request.encode(address, variables)?;
    wire::exchange(address, request.is_head(), &bytes, answers)
        .await
        .map_err(|error| format!("no answer: {error}"))
}

fn differences(
    profile: Profile,
    expected: &Expectation,
    answer: &Response,
    variables: &mut Variables,
) -> Vec<String> {
    let mut found = Vec::new();
    if Some(answer.status) != expected.status {
        found.push(format!("status {}, not {:?}", answer.status, expected.status));
    }
    found.extend(compare_body(profile, expected, answer, variables).err());
    found.extend(compare_headers(profile, expected, answer, variables));
    found
}

fn compare_body(
    profile: Profile,
    expected: &Expectation,
    answer: &Response,
    variables: &mut Variables,
) -> Result<(), String> {
    let text = String::from_utf8_lossy(&answer.body);
    let template = &expected.body;
    let judged = match (expected.body_mode, &expected.info.production_body) {
        (BodyMode::Prefix, Some(page)) if profile != Profile::Original => {
            if text == *page {
                Ok(())
            } else {
                Err(format!("{text:?} is not {page:?}"))
            }
        }
        (BodyMode::Prefix, _) => variables.fit(template, &text, Fit::Prefix, &answer.body),
        (BodyMode::Exact, _) => variables.fit(template, &text, Fit::Whole, &answer.body),
        (BodyMode::ArrayContains, _) => contains(&expected.items, &text, answer, variables),
    };
    judged.map_err(|difference| format!("body: {difference}"))
}

/// A compact JSON array holds the items in their order; others may stand between them.
fn contains(
    items: &[String],
    text: &str,
    answer: &Response,
    variables: &mut Variables,
) -> Result<(), String> {
    let found: Vec<&RawValue> =
        serde_json::from_str(text).map_err(|error| format!("not an array: {error}"))?;
    let found: Vec<&str> = found.into_iter().map(RawValue::get).collect();
    if format!("[{}]", found.join(",")) != text {
        return Err("not a compact array".to_owned());
    }
    let mut rest = found.into_iter();
    for item in items {
        let fits = |text: &str, variables: &mut Variables| {
            variables.fit(item, text, Fit::Whole, &answer.body).is_ok()
        };
        if !rest.any(|text| fits(text, variables)) {
            return Err(format!("the array lacks, in this order, {item}"));
        }
    }
    Ok(())
}

/// Headers that must be absent when they were not recorded, besides all of CORS.
const WATCHED: [&str; 9] = [
    "etag",
    "vary",
    "allow",
    "location",
    "www-authenticate",
    "content-encoding",
    "set-cookie",
    "cache-control",
    "last-modified",
];

/// Headers that speak of one connection: only their meaning counts.
const HOP_BY_HOP: [&str; 3] = ["connection", "keep-alive", "transfer-encoding"];

/// Headers that our server need not have in common with the original.
const OUR_OWN: [&str; 3] = ["x-powered-by", "date", "access-control-expose-headers"];

fn compare_headers(
    profile: Profile,
    expected: &Expectation,
    answer: &Response,
    variables: &mut Variables,
) -> Vec<String> {
    let ignored = |name: &str| profile != Profile::Original && OUR_OWN.contains(&name);
    let mut found = Vec::new();
    for name in expected.header_names() {
        if !ignored(&name) {
            found.extend(compare_header(&name, expected, answer, variables).err());
        }
    }
    for (name, value) in &answer.headers {
        let watched = WATCHED.contains(&name.as_str()) || name.starts_with("access-control-");
        if watched && !ignored(name) && expected.header(name).is_empty() {
            found.push(format!("header {name}: {value:?} is not expected"));
        }
    }
    found
}

fn compare_header(
    name: &str,
    expected: &Expectation,
    answer: &Response,
    variables: &mut Variables,
) -> Result<(), String> {
    let (templates, values) = (expected.header(name), answer.header(name));
    if HOP_BY_HOP.contains(&name) {
        let must_close = name == "connection" && templates.contains(&"close");
        return match must_close && !answer.closes {
            true => Err("the connection must be closed".to_owned()),
            false => Ok(()),
        };
    }
    if name == "content-length" && answer.status == 204 && values.is_empty() {
        return Ok(());
    }
    if templates.len() != values.len() {
        return Err(format!("header {name}: {values:?}, not {templates:?}"));
    }
    templates.into_iter().zip(values).try_for_each(|(template, value)| {
        variables
            .fit(template, value, Fit::Whole, &answer.body)
            .map_err(|difference| format!("header {name}: {difference}"))
    })
}

/// The recordings against a running original, to see that they are still what it answers.
#[actix_web::test]
#[ignore = "needs the Node original: ORIGINAL=127.0.0.1:5000"]
async fn the_original_answers_what_was_recorded() {
    let address = std::env::var("ORIGINAL").expect("ORIGINAL is host:port of the Node original");
    let address = address.parse().expect("ORIGINAL is an IP address and a port");
    replay(address, Profile::Original).await.assert_passed(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_server_answers_what_the_original_answered() {
    let server = TestServer::start().await;
    replay(server.addr, Profile::Secure).await.assert_passed(350);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_server_with_legacy_trust_answers_what_the_original_answered() {
    let server = TestServer::start_with(&[("LEGACY_TRUST", "true")]).await;
    replay(server.addr, Profile::Legacy).await.assert_passed(350);
}
