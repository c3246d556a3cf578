//! The guard: a shell that stops `mongod` when this process is gone, killed or not.
//!
//! The guard's standard input is a pipe whose other end only this process has. However it ends,
//! the system closes that end; the guard reads the end of its input, stops `mongod` and, for a
//! database that nobody wants to keep, removes the data. It has a process group of its own, so
//! that Ctrl-C in a terminal reaches the server, which finishes its requests first.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Starts `mongod` ("$@") in the background, says its pid, and waits for whichever comes first:
/// the end of its input, which means stop, or the end of `mongod`, whose status becomes its own. A
/// stop that takes more than ten seconds becomes a kill. `$REMOVE` is the folder to remove at the end, if any.
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

/// A guarded `mongod`.
#[derive(Debug)]
pub(super) struct Guard {
    shell: Child,
    /// Closing it is the order to stop.
    order: Option<ChildStdin>,
    mongod: u32,
}

impl Guard {
    /// Starts a command line under guard.
    pub(super) fn spawn(command: &[OsString], remove: Option<&Path>) -> io::Result<Self> {
        let mut shell = Command::new("sh")
            // Descriptor 3 keeps the pipe for the reader in the background, whose own standard
            // input the shell would take from /dev/null.
            .args(["-c", &format!("exec 3<&0\n{SCRIPT}"), "mongod-guard"])
            .args(command)
            .env("REMOVE", remove.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let order = shell.stdin.take();
        let mut said = String::new();
        if let Some(output) = shell.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        let mongod =
            said.trim().parse().map_err(|_| io::Error::other("the guard did not start"))?;
        Ok(Self { shell, order, mongod })
    }

    /// The process of `mongod`.
    pub(super) fn mongod(&self) -> u32 {
        self.mongod
    }

    /// Whether `mongod` has ended, and the guard with it.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.shell.try_wait(), Ok(None))
    }

    /// The signal that ended `mongod`, if it has ended and one did.
    pub(super) fn signal(&mut self) -> Option<i32> {
        let status = self.shell.try_wait().ok()??.code()?;
        // As shells say it.
        status.checked_sub(128).filter(|signal| *signal > 0)
    }

    /// Stops `mongod` and waits for its end, but no longer than this.
    pub(super) async fn stop(mut self, timeout: Duration) {
        drop(self.order.take());
        let deadline = Instant::now() + timeout;
        while !self.has_ended() && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
    }
}
