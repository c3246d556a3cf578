//! Rate limits per minute for each address, name or user, and counts of how often each limit was
//! reached, which are also logged.
//!
//! A window begins with the first request and lasts a minute. The windows are in bounded caches, so
//! an attacker with many addresses cannot use up the memory. If a window is evicted early, its
//! client gets a new one, so it is never refused too early.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::http::header::HeaderValue;
use moka::sync::Cache;

use crate::config::Config;
use crate::error::ApiError;
use crate::models::UserId;
use crate::refusals::{Tally, limit_reached};

/// How long a window lasts.
const WINDOW: Duration = Duration::from_secs(60);
/// How many windows of one kind are kept.
const MAX_WINDOWS: u64 = 100_000;

/// The address of a client: an IPv4 address, or the /64 network of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(IpAddr);

/// All limits of the process.
pub struct Limits {
    /// Logins, registrations, refreshes and changes of passwords (`RATE_LIMIT_LOGIN`).
    pub login: Limiter<Address>,
    /// Failed logins for a name (`RATE_LIMIT_LOGIN_NAME`), for each address, so that a stranger
    /// cannot lock a user out.
    pub login_name: Limiter<(Address, Box<str>)>,
    /// Messages (`RATE_LIMIT_SEND`).
    pub send: Limiter<UserId>,
    /// New rooms (`RATE_LIMIT_ROOM`).
    pub room: Limiter<UserId>,
    /// Questions about users (`RATE_LIMIT_USERS`).
    pub users: Limiter<UserId>,
    /// Read marks, and questions who is in a room (`RATE_LIMIT_SIGNALS`).
    pub signals: Limiter<UserId>,
    /// Handshakes of sockets (`RATE_LIMIT_CONNECT`).
    pub connect: Limiter<Address>,
    /// Events of a socket (`RATE_LIMIT_EVENTS`).
    pub events: EventLimiter,
    others: Others,
    max_rooms_per_session: usize,
    trusted_proxies: usize,
    /// Whether it was logged that the header is ignored.
    proxy_was_logged: AtomicBool,
}

/// Counts for limits that other parts check.
#[derive(Debug, Default)]
struct Others {
    body: AtomicU64,
    slow_body: AtomicU64,
    rooms_of_socket: Tally,
    passwords: Tally,
}

/// One limit.
pub struct Limiter<K> {
    rate: Rate,
    windows: Cache<K, Arc<Window>>,
    refused: Tally,
}

/// The limit of each socket's events. The window is in the session.
pub struct EventLimiter {
    rate: Rate,
    refused: Tally,
}

/// A rate.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// The variable that sets it.
    pub setting: &'static str,
    /// What was refused, for the log.
    pub what: &'static str,
    /// The maximum in a minute; 0 means no limit.
    pub per_minute: u32,
}

/// The window of one session.
#[derive(Debug, Default)]
pub struct SessionWindow {
    began: Option<Instant>,
    count: u32,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    count: AtomicU32,
}

/// The limit of a window was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests")]
pub struct LimitReached {
    /// When the next window begins.
    pub retry_after: Duration,
}

impl Limits {
    /// The limits of a configuration.
    pub fn new(config: &Config) -> Self {
        let rate = |setting, per_minute, what| Rate { setting, what, per_minute };
        Self {
            login: Limiter::new(rate(
                "RATE_LIMIT_LOGIN",
                config.rate_limit_login,
                "a login or registration was refused",
            )),
            login_name: Limiter::new(rate(
                "RATE_LIMIT_LOGIN_NAME",
                config.rate_limit_login_name,
                "a login was refused after many failures",
            )),
            send: Limiter::new(rate(
                "RATE_LIMIT_SEND",
                config.rate_limit_send,
                "a message was refused",
            )),
            room: Limiter::new(rate(
                "RATE_LIMIT_ROOM",
                config.rate_limit_room,
                "a new room was refused",
            )),
            users: Limiter::new(rate(
                "RATE_LIMIT_USERS",
                config.rate_limit_users,
                "a search for users was refused",
            )),
            signals: Limiter::new(rate(
                "RATE_LIMIT_SIGNALS",
                config.rate_limit_signals,
                "a read mark, or a question who is in a room, was refused",
            )),
            connect: Limiter::new(rate(
                "RATE_LIMIT_CONNECT",
                config.rate_limit_connect,
                "a socket was refused; behind a proxy, TRUST_PROXY tells addresses apart",
            )),
            events: EventLimiter::new(rate(
                "RATE_LIMIT_EVENTS",
                config.rate_limit_events,
                "an event of a socket was refused",
            )),
            others: Others::default(),
            max_rooms_per_session: config.max_rooms_per_session,
            trusted_proxies: usize::from(config.trust_proxy),
            proxy_was_logged: AtomicBool::new(false),
        }
    }

    /// The address of the client of a request; see [`address`](Self::address).
    pub fn address_of(&self, req: &HttpRequest) -> Address {
        self.address(req.peer_addr(), req.headers().get_all("X-Forwarded-For"))
    }

    /// The address of a client: its peer address, or the one that the outermost trusted proxy saw.
    ///
    /// `forwarded_for` has all lines of the header `X-Forwarded-For`, in order. They are one list,
    /// as in Node: some proxies append to a line, others add a line. The header `Forwarded` is not
    /// read, because it does not show which of the proxies set it.
    pub fn address<'a>(
        &self,
        peer: Option<SocketAddr>,
        forwarded_for: impl DoubleEndedIterator<Item = &'a HeaderValue>,
    ) -> Address {
        let peer = peer.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |peer| peer.ip());
        // Each proxy appends the address that it saw. A client can forge the entries before those.
        let mut hops = forwarded_for
            .rev()
            .flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|hop| !hop.is_empty());
        let Some(trusted) = self.trusted_proxies.checked_sub(1) else {
            if hops.next().is_some() && !self.proxy_was_logged.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "A request from {peer} has the header X-Forwarded-For, which is ignored while \
                     TRUST_PROXY is 0, so limits by address use the address of the connection. \
                     Set TRUST_PROXY to the number of proxies in front of this server, if there \
                     are any"
                );
            }
            return Address::of(peer);
        };
        Address::of(hops.nth(trusted).and_then(ip_of).unwrap_or(peer))
    }

    /// Counts an error if its cause is one of the limits that other parts check.
    pub fn note(&self, error: &ApiError) {
        let others = &self.others;
        let count = |refused: &AtomicU64| {
            refused.fetch_add(1, Ordering::Relaxed);
        };
        match error {
            // Not logged: it is a mistake of the client, and the operator cannot change anything.
            ApiError::BodyTooLarge => count(&others.body),
            ApiError::BodyTimeout => count(&others.slow_body),
            ApiError::TooManyRooms => {
                let most = self.max_rooms_per_session;
                let what = "a socket was refused a room";
                others.rooms_of_socket.note(|| limit_reached("MAX_ROOMS_PER_SESSION", most, what));
            }
            ApiError::Busy => others.passwords.note(|| error.to_string()),
            _ => {}
        }
    }

    /// How often each limit was reached, by limit.
    pub fn refused(&self) -> [(&'static str, u64); 12] {
        [
            ("login", self.login.refused.count()),
            ("login_name", self.login_name.refused.count()),
            ("send", self.send.refused.count()),
            ("room", self.room.refused.count()),
            ("users", self.users.refused.count()),
            ("signals", self.signals.refused.count()),
            ("connect", self.connect.refused.count()),
            ("events", self.events.refused.count()),
            ("body", self.others.body.load(Ordering::Relaxed)),
            ("slow_body", self.others.slow_body.load(Ordering::Relaxed)),
            ("rooms_of_socket", self.others.rooms_of_socket.count()),
            ("passwords", self.others.passwords.count()),
        ]
    }
}

/// The address in an entry of `X-Forwarded-For`, which may have a port: `192.0.2.1`,
/// `192.0.2.1:5678`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:5678`.
fn ip_of(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    bare.parse().ok().or_else(|| hop.parse().ok().map(|with_port: SocketAddr| with_port.ip()))
}

impl Address {
    /// The address for an IP address.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            v4 => Self(v4),
        }
    }
}

impl<K: Hash + Eq + Send + Sync + 'static> Limiter<K> {
    /// A limiter with this rate for each key.
    pub fn new(rate: Rate) -> Self {
        let windows = Cache::builder().max_capacity(MAX_WINDOWS).time_to_live(WINDOW).build();
        Self { rate, windows, refused: Tally::default() }
    }

    /// Counts one request.
    ///
    /// # Errors
    /// It is beyond the limit.
    pub fn take(&self, key: K) -> Result<(), LimitReached> {
        if self.rate.per_minute == 0 {
            return Ok(());
        }
        let window = self.windows.get_with(key, Window::begin);
        let before = window.count.fetch_add(1, Ordering::Relaxed);
        self.judge(&window, before)
    }

    /// Checks whether one more request is allowed, without counting it.
    ///
    /// # Errors
    /// It would be beyond the limit.
    pub fn check(&self, key: &K) -> Result<(), LimitReached> {
        match self.windows.get(key) {
            Some(window) => self.judge(&window, window.count.load(Ordering::Relaxed)),
            None => Ok(()),
        }
    }

    fn judge(&self, window: &Window, before: u32) -> Result<(), LimitReached> {
        let per_minute = self.rate.per_minute;
        if per_minute == 0 || before < per_minute {
            return Ok(());
        }
        // Reset the count, so that it never overflows.
        window.count.store(per_minute, Ordering::Relaxed);
        self.refused.note(|| self.rate.reached());
        Err(LimitReached { retry_after: WINDOW.saturating_sub(window.began.elapsed()) })
    }
}

impl EventLimiter {
    /// A limiter with this rate for each session.
    pub fn new(rate: Rate) -> Self {
        Self { rate, refused: Tally::default() }
    }

    /// Counts one request.
    ///
    /// # Errors
    /// It is beyond the limit.
    pub fn take(&self, window: &mut SessionWindow) -> Result<(), LimitReached> {
        if self.rate.per_minute == 0 {
            return Ok(());
        }
        let elapsed = window.began.map(|began| began.elapsed()).filter(|since| *since < WINDOW);
        if elapsed.is_none() {
            *window = SessionWindow { began: Some(Instant::now()), count: 0 };
        }
        if window.count < self.rate.per_minute {
            window.count += 1;
            return Ok(());
        }
        self.refused.note(|| self.rate.reached());
        Err(LimitReached { retry_after: WINDOW.saturating_sub(elapsed.unwrap_or_default()) })
    }
}

impl Rate {
    /// The log line for a reached limit.
    fn reached(&self) -> String {
        limit_reached(self.setting, self.per_minute, self.what)
    }
}

impl Window {
    fn begin() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), count: AtomicU32::new(0) })
    }
}

impl LimitReached {
    /// The seconds for `Retry-After`, at least one.
    pub fn seconds(self) -> u64 {
        self.retry_after.as_secs() + 1
    }
}

impl From<LimitReached> for ApiError {
    fn from(reached: LimitReached) -> Self {
        Self::RateLimited { seconds: reached.seconds() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str) -> Address {
        Address::of(ip.parse().unwrap())
    }

    fn rate(per_minute: u32) -> Rate {
        Rate { setting: "TEST", what: "a test", per_minute }
    }

    #[test]
    fn a_window_allows_so_many_for_each_key() {
        let limiter = Limiter::new(rate(2));
        assert_eq!([0; 4].map(|key| limiter.take(key).is_ok()), [true, true, false, false]);
        assert!(limiter.take(1).is_ok());
        let reached = limiter.take(0).unwrap_err();
        assert!((55..=60).contains(&reached.seconds()));
        assert_eq!(limiter.refused.count(), 3);
    }

    #[test]
    fn a_check_counts_nothing() {
        let limiter = Limiter::new(rate(1));
        assert!((0..5).all(|_| limiter.check(&0).is_ok()));
        assert!(limiter.take(0).is_ok());
        assert!(limiter.check(&0).is_err());
    }

    #[test]
    fn each_session_has_a_window() {
        let limiter = EventLimiter::new(rate(2));
        let (mut one, mut other) = (SessionWindow::default(), SessionWindow::default());
        assert_eq!([0; 3].map(|_| limiter.take(&mut one).is_ok()), [true, true, false]);
        assert!(limiter.take(&mut other).is_ok());
        one.began = Instant::now().checked_sub(WINDOW);
        assert!(limiter.take(&mut one).is_ok());
    }

    #[test]
    fn zero_is_no_limit() {
        let limiter = Limiter::new(rate(0));
        assert!((0..10_000).all(|_| limiter.take(0).is_ok() && limiter.check(&0).is_ok()));
        let (limiter, mut window) = (EventLimiter::new(rate(0)), SessionWindow::default());
        assert!((0..10_000).all(|_| limiter.take(&mut window).is_ok()));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        assert_eq!(address("2001:db8:1:2::1"), address("2001:db8:1:2:3:4:5:6"));
        assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let header = ["6.6.6.6, 10.0.0.1,10.0.0.2"];
        for (proxies, expected) in
            [(0, "127.0.0.1"), (1, "10.0.0.2"), (2, "10.0.0.1"), (4, "127.0.0.1")]
        {
            assert_eq!(seen(proxies, &header), address(expected), "{proxies}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        for lines in [
            &["6.6.6.6", "10.0.0.1", "10.0.0.2"][..],
            &["6.6.6.6, 10.0.0.1", "10.0.0.2"],
            &["6.6.6.6", "10.0.0.1, 10.0.0.2"],
            &["6.6.6.6,, 10.0.0.1 ,", "", " ,10.0.0.2"],
            &["not \u{e9} an address, 10.0.0.1, 10.0.0.2"],
        ] {
            assert_eq!(seen(1, lines), address("10.0.0.2"), "{lines:?}");
            assert_eq!(seen(2, lines), address("10.0.0.1"), "{lines:?}");
        }
    }

    #[test]
    fn a_port_does_not_count() {
        for (entry, expected) in [
            ("10.0.0.1:5678", "10.0.0.1"),
            ("[2001:db8::1]:5678", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1"),
        ] {
            assert_eq!(seen(1, &[entry]), address(expected), "{entry}");
        }
        for no_address in ["unknown", "_hidden", "10.0.0.1:", "10.0.0.1:x", "[::1", "::1]:2", "[]"]
        {
            assert_eq!(seen(1, &["6.6.6.6", no_address]), address("127.0.0.1"), "{no_address}");
        }
    }

    /// The client address of a request with these lines, for a server behind so many proxies.
    fn seen(proxies: u8, lines: &[&str]) -> Address {
        let vars = |name: &str| match name {
            "TRUST_PROXY" => Some(proxies.to_string()),
            "MONGO_URI" => Some("embedded".to_owned()),
            _ => None,
        };
        let limits = Limits::new(&Config::from_vars(vars).unwrap());
        let lines: Vec<_> =
            lines.iter().map(|line| HeaderValue::from_bytes(line.as_bytes()).unwrap()).collect();
        limits.address(Some("127.0.0.1:1".parse().unwrap()), lines.iter())
    }
}
