//! Programs of other ecosystems that use this server.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::TempDir;
use tokio::process::Command;

/// Runs a command. `need` names what must be installed.
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

/// A folder in `target` that `install` fills once for all test runs.
pub async fn installed(name: &str, install: impl AsyncFnOnce(&Path)) -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = cache.join(name);
    if !folder.exists() {
        // Move it when it is complete, so that an interrupted test leaves no partial folder.
        let whole = TempDir::new_in(cache).unwrap();
        install(whole.path()).await;
        std::fs::rename(whole.path(), &folder).unwrap();
    }
    folder
}
