//! Passwords: argon2id for new ones, bcrypt for those that the original stored.
//!
//! A hash takes tens of milliseconds and 19 MiB. So hashes run on blocking threads, on half of the
//! processors at most, behind a bounded queue. If the queue is full, the client is told to try
//! again.

use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash as PhcHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;

use crate::config::{PasswordHash, cores};

/// Memory in KiB, passes and lanes: OWASP's Password Storage Cheat Sheet, first choice.
const ARGON2: (u32, u32, u32) = (19_456, 2, 1);
/// The cost that the original used.
const BCRYPT_COST: u32 = 10;
/// The highest cost of a stored hash that is verified. Each step doubles the time; cost 16 takes
/// seconds. A higher cost in a database is a mistake, and must not occupy a thread for hours.
const BCRYPT_COST_MAX: u32 = 16;
/// How many passwords may wait per hashing thread: about three seconds of work.
const QUEUE_PER_THREAD: usize = 64;

/// Hashes and verifies passwords. Cheap to clone; all clones share the threads.
#[derive(Debug, Clone)]
pub struct Passwords {
    scheme: PasswordHash,
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
    capacity: usize,
}

/// The result of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// The wrong password, or a stored value that is no hash.
    No,
    /// The right password.
    Yes,
    /// The right password, but its hash should be replaced by one of the configured kind.
    Outdated,
}

/// A password that could not be hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// The queue is full.
    #[error("too many passwords wait to be hashed")]
    Busy,
    /// The system provided no random bytes, or the hashing thread panicked.
    #[error("hashing failed")]
    Failed,
}

impl Passwords {
    /// Hashes new passwords by `scheme`, on half of the processors.
    pub fn new(scheme: PasswordHash) -> Self {
        let threads = (cores() / 2).max(1);
        let capacity = threads * (1 + QUEUE_PER_THREAD);
        Self {
            scheme,
            running: Arc::new(Semaphore::new(threads)),
            admitted: Arc::new(Semaphore::new(capacity)),
            capacity,
        }
    }

    /// How many passwords are being hashed or queued.
    pub fn waiting(&self) -> usize {
        self.capacity.saturating_sub(self.admitted.available_permits())
    }

    /// Hashes a new password: a PHC string of argon2id, or bcrypt as bcryptjs reads it.
    ///
    /// # Errors
    /// The queue is full, or the system failed.
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        let scheme = self.scheme;
        self.run(move || hash(scheme, &password)).await?
    }

    /// Verifies a password against a stored value of either kind.
    ///
    /// # Errors
    /// The queue is full, or the hashing thread panicked.
    pub async fn verify(
        &self,
        password: String,
        stored: String,
    ) -> Result<Verified, PasswordError> {
        let scheme = self.scheme;
        self.run(move || {
            if !verify(&password, &stored) {
                return Verified::No;
            }
            let is_current = match scheme {
                PasswordHash::Argon2id => is_argon2id(&stored),
                // All of bcrypt's versions: bcryptjs reads each of them.
                PasswordHash::Bcrypt => !is_argon2id(&stored),
            };
            if is_current { Verified::Yes } else { Verified::Outdated }
        })
        .await
    }

    /// Takes as long as [`Passwords::verify`] and never succeeds: for a user who does not exist.
    ///
    /// # Errors
    /// As [`Passwords::verify`].
    pub async fn verify_nobody(&self, password: String) -> Result<(), PasswordError> {
        self.verify(password, nobody(self.scheme)).await.map(drop)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let admitted = Arc::clone(&self.admitted);
        let admitted = admitted.try_acquire_owned().map_err(|_| PasswordError::Busy)?;
        let running = Arc::clone(&self.running).acquire_owned().await;
        let running = running.map_err(|_| PasswordError::Failed)?;
        tokio::task::spawn_blocking(move || {
            // Held until the work is done, even if the request has been dropped.
            let _held = (admitted, running);
            work()
        })
        .await
        .map_err(|_| PasswordError::Failed)
    }
}

fn argon2() -> Argon2<'static> {
    let (memory, passes, lanes) = ARGON2;
    let params = Params::new(memory, passes, lanes, None).expect("the parameters are in range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn hash(scheme: PasswordHash, password: &str) -> Result<String, PasswordError> {
    match scheme {
        PasswordHash::Argon2id => argon2()
            .hash_password(password.as_bytes())
            .map(|hash| hash.to_string())
            .map_err(|_| PasswordError::Failed),
        // `$2a$`, which is what bcryptjs itself writes.
        PasswordHash::Bcrypt => bcrypt::hash_with_result(password, BCRYPT_COST)
            .map(|hash| hash.format_for_version(bcrypt::Version::TwoA))
            .map_err(|_| PasswordError::Failed),
    }
}

/// A value with the parameters of a new hash and zeros for its salt and its output, which no known
/// password has. To make a real one would take each start 25 ms and 19 MiB.
fn nobody(scheme: PasswordHash) -> String {
    match scheme {
        PasswordHash::Argon2id => {
            let (memory, passes, lanes) = ARGON2;
            let (salt, output) = ("A".repeat(22), "A".repeat(43));
            format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${output}")
        }
        PasswordHash::Bcrypt => format!("$2a${BCRYPT_COST}${}", ".".repeat(53)),
    }
}

fn is_argon2id(stored: &str) -> bool {
    stored.starts_with("$argon2id$")
}

fn verify(password: &str, stored: &str) -> bool {
    if is_argon2id(stored) {
        let Ok(stored) = PhcHash::new(stored) else { return false };
        return argon2().verify_password(password.as_bytes(), &stored).is_ok();
    }
    let Ok(parts) = stored.parse::<bcrypt::HashParts>() else { return false };
    parts.get_cost() <= BCRYPT_COST_MAX && bcrypt::verify(password, stored).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Salt of the vectors, made with the original's bcryptjs.
    const SALT: &str = "$2a$10$abcdefghijklmnopqrstuu";

    #[test]
    fn hashes_of_the_original_verify() {
        for (password, hash) in [
            (String::new(), "jr5dF95nlffmIUNubpV71FPx1zncrEm"),
            ("a".to_owned(), "j/LkVFwQAC6H0GkC0f1Bcmj82rKvDn."),
            ("pässwörd-密码-🔑".to_owned(), "rPnusW0EphCzN97uSpMDBZtvYnx3uMS"),
            ("p".repeat(72), "c048Zt2PEMjQLjNO1o6jdlec9LQLDza"),
            ("p".repeat(100), "c048Zt2PEMjQLjNO1o6jdlec9LQLDza"),
            ("é".repeat(40), "3WPvXjVwyQ/qCoOEhfsb8Hz5o0U5kEi"),
            ("ab\0cd".to_owned(), "lXMckEUFqZkjiE7/HJG7bnkx5jOHVlW"),
        ] {
            for version in ["$2a$", "$2b$", "$2y$"] {
                let stored = format!("{version}{}{hash}", &SALT[4..]);
                assert!(verify(&password, &stored), "{password:?} {stored}");
            }
            assert!(!verify("another", &format!("{SALT}{hash}")));
        }
        let user = "$2a$10$Hzb1Z0FN2muGi3gJTHpKke8r4lDYN3tlne6wfAaBdaYIAqbELPURO";
        assert!(verify("correct horse", user));
    }

    #[test]
    fn new_hashes_verify_in_full_length() {
        let long = "h".repeat(50_000);
        for scheme in [PasswordHash::Argon2id, PasswordHash::Bcrypt] {
            assert!(verify(&long, &hash(scheme, &long).unwrap()), "{scheme:?}");
        }
        let stored = hash(PasswordHash::Argon2id, &"p".repeat(100)).unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(!verify(&"p".repeat(72), &stored));
        assert!(hash(PasswordHash::Bcrypt, "x").unwrap().starts_with("$2a$10$"));
    }

    #[test]
    fn a_stored_value_that_is_no_hash_never_matches() {
        for stored in [
            "",
            "plain",
            "$2a$10$short",
            "$argon2id$nonsense",
            "$2a$31$abcdefghijklmnopqrstuujr5dF95nlffmIUNubpV71FPx1zncrEm",
        ] {
            assert!(!verify("plain", stored), "{stored}");
        }
    }

    #[test]
    fn the_hash_of_nobody_takes_as_long_as_a_new_one() {
        let nobodys = nobody(PasswordHash::Argon2id);
        let new = hash(PasswordHash::Argon2id, "x").unwrap();
        let (nobodys, new) = (PhcHash::new(&nobodys).unwrap(), PhcHash::new(&new).unwrap());
        assert_eq!(nobodys.params, new.params);
        assert_eq!((nobodys.algorithm, nobodys.version), (new.algorithm, new.version));
        let lengths =
            |hash: &PhcHash| (hash.salt.as_ref().unwrap().len(), hash.hash.as_ref().unwrap().len());
        assert_eq!(lengths(&nobodys), lengths(&new));
        let bcrypts = [nobody(PasswordHash::Bcrypt), hash(PasswordHash::Bcrypt, "x").unwrap()];
        let costs = bcrypts.map(|hash| hash.parse::<bcrypt::HashParts>().unwrap().get_cost());
        assert_eq!(costs, [BCRYPT_COST; 2]);
        // A value that cannot be read would be refused without any work.
        let verified = argon2().verify_password(b"x", &nobodys);
        assert_eq!(verified, Err(argon2::password_hash::Error::PasswordInvalid));
        assert!(!bcrypt::verify("x", &nobody(PasswordHash::Bcrypt)).unwrap());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let passwords = Passwords::new(PasswordHash::Argon2id);
        let all = passwords.admitted.available_permits();
        let _held = passwords.admitted.try_acquire_many(all as u32).unwrap();
        assert_eq!(passwords.hash("x".to_owned()).await, Err(PasswordError::Busy));
    }
}
