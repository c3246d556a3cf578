//! When a client logs its user out on all devices, and how it logs in again.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Call, Client, Phase, World, ask};
use crate::random::Random;

/// Where a client is between a login and the next logout.
pub(super) struct Logins {
    /// When to log out next; `None` for a client that never does, or has done so.
    log_out: Option<Instant>,
    logs_out: bool,
    /// A request to log out is in progress.
    is_asking: bool,
    /// The user is logged out, and the client has no other token yet.
    pub is_logged_out: bool,
}

impl Logins {
    pub fn new(logs_out: bool, random: &mut Random) -> Self {
        let log_out = logs_out.then(|| Self::next(random));
        Self { log_out, logs_out, is_asking: false, is_logged_out: false }
    }

    fn next(random: &mut Random) -> Instant {
        Instant::now() + random.millis(8_000..25_000)
    }
}

impl Client {
    /// Logs the user out on all devices when the time has come.
    pub(super) fn log_out_when_due(&mut self, world: &World) {
        let talks = *world.phase.borrow() == Phase::Talk;
        let is_due = self.logins.log_out.is_some_and(|at| at <= Instant::now());
        if talks && is_due && !self.logins.is_asking {
            self.logins.is_asking = true;
            let addr = *self.random.of(&world.instances);
            let request = self.account.log_out(&world.http, addr);
            let call = Call::LogOut(self.transcript.tokens.len());
            self.calls.spawn(async move { (call, ask(request).await) });
        }
    }

    /// Takes the answer to a logout of the token with this number. Without one, the client asks
    /// again.
    pub(super) fn logged_out(&mut self, token: usize, answer: &Value) {
        let logins = &mut self.logins;
        if token != self.transcript.tokens.len() {
            // It has logged in again before the answer came.
            return;
        }
        logins.is_asking = false;
        if answer["message"].is_string() || answer["code"] == "token_revoked" {
            (logins.log_out, logins.is_logged_out) = (None, true);
        } else {
            logins.log_out = Some(Instant::now() + Duration::from_millis(200));
        }
    }

    /// Logs in again if the connection has ended for want of a valid token.
    pub(super) async fn log_in_if_revoked(&mut self, why: &str, world: &World) {
        if !why.contains("token_revoked") {
            return;
        }
        while Instant::now() < world.until {
            let addr = *self.random.of(&world.instances);
            if self.account.log_in(&world.http, addr).await {
                break;
            }
            sleep(self.random.millis(100..400)).await;
        }
        self.transcript.tokens.push(self.account.issued());
        (self.logins.is_logged_out, self.logins.is_asking) = (false, false);
        self.logins.log_out = self.logins.logs_out.then(|| Logins::next(&mut self.random));
        log::debug!("{} has logged in again", self.transcript.name);
    }
}
