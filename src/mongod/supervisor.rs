//! The supervisor: a shell that stops `mongod` when this process has ended, even if it was killed.
//!
//! Its standard input is a pipe whose other end only this process has. When this process ends, the
//! system closes that end. The supervisor then reads the end of its input, stops `mongod` and, if
//! the database is temporary, removes the data. It has a process group of its own, so that Ctrl-C
//! in a terminal reaches only the server, which finishes its requests first.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Starts `mongod` ("$@") in the background, prints its pid, and waits. At the end of its input it
/// stops `mongod`, and kills it after ten seconds. When `mongod` ends, the script ends with the
/// same status. `$REMOVE` is the folder to remove at the end, if any.
const SCRIPT: &str = r#"
"$@" </dev/null >/dev/null 2>&1 3<&- &
mongod=$!
echo $mongod
exec >/dev/null 2>&1
{ read -r _; kill -TERM $mongod; sleep 10; kill -KILL $mongod; } <&3 &
reader=$!
exec 3<&-
wait $mongod
status=$?
kill -KILL $reader
[ -z "$REMOVE" ] || rm -rf -- "$REMOVE"
exit $status
"#;

/// A supervised `mongod`.
#[derive(Debug)]
pub(super) struct Supervisor {
    shell: Child,
    /// Closing this pipe stops `mongod`.
    stop_pipe: Option<ChildStdin>,
    mongod: u32,
}

impl Supervisor {
    /// Starts a command with a supervisor.
    pub(super) fn spawn(command: &[OsString], remove: Option<&Path>) -> io::Result<Self> {
        let mut shell = Command::new("sh")
            // Descriptor 3 keeps the pipe for the reader in the background: the shell sets the
            // standard input of background commands to /dev/null.
            .args(["-c", &format!("exec 3<&0\n{SCRIPT}"), "mongod-supervisor"])
            .args(command)
            .env("REMOVE", remove.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let stop_pipe = shell.stdin.take();
        let mut pid_line = String::new();
        if let Some(output) = shell.stdout.take() {
            BufReader::new(output).read_line(&mut pid_line)?;
        }
        let mongod = pid_line
            .trim()
            .parse()
            .map_err(|_| io::Error::other("the supervisor of mongod did not start"))?;
        Ok(Self { shell, stop_pipe, mongod })
    }

    /// The process id of `mongod`.
    pub(super) fn mongod(&self) -> u32 {
        self.mongod
    }

    /// Whether `mongod` has ended, and the supervisor with it.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.shell.try_wait(), Ok(None))
    }

    /// The signal that ended `mongod`, if one did.
    pub(super) fn signal(&mut self) -> Option<i32> {
        let status = self.shell.try_wait().ok()??.code()?;
        // A shell reports a signal as 128 plus its number.
        status.checked_sub(128).filter(|signal| *signal > 0)
    }

    /// Stops `mongod` and waits for its end, for at most this time.
    pub(super) async fn stop(mut self, timeout: Duration) {
        drop(self.stop_pipe.take());
        let deadline = Instant::now() + timeout;
        while !self.has_ended() && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
    }
}
