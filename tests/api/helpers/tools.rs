//! Programs of other ecosystems that try this server as their users do.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::TempDir;
use tokio::process::Command;

/// Runs a command; `need` says what must be installed for it.
pub async fn run(mut command: Command, need: &str) -> Output {
    match command.kill_on_drop(true).output().await {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let program = command.as_std().get_program();
            panic!("{program:?} is not on PATH: this test needs {need}")
        }
        Err(error) => panic!("{:?} cannot be started: {error}", command.as_std()),
    }
}

/// Runs a command that must succeed.
pub async fn succeed(command: Command, need: &str, claim: &str) {
    let output = run(command, need).await;
    assert!(
        output.status.success(),
        "{claim}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A folder below `target` that `install` fills once for all test runs.
pub async fn installed(name: &str, install: impl AsyncFnOnce(&Path)) -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = cache.join(name);
    if !folder.exists() {
        // Moved into its place when it is whole, so that an interrupted test leaves no half of it.
        let whole = TempDir::new_in(cache).unwrap();
        install(whole.path()).await;
        std::fs::rename(whole.path(), &folder).unwrap();
    }
    folder
}
