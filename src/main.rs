//! The process: configuration, logging, start, signals.

use std::path::Path;
use std::process::ExitCode;

use env_logger::{Builder, Env};
use realtime_chat_backend::app::Application;
use realtime_chat_backend::config::{Config, dotenv};
use tokio::signal::unix::{SignalKind, signal};

/// What is logged unless `RUST_LOG` says otherwise.
const DEFAULT_LOG: &str = "info,actix_server=warn,mongodb=warn";

#[actix_web::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not through the log, which RUST_LOG may have silenced.
            eprintln!("{}: {error}", env!("CARGO_PKG_NAME"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let dotenv = dotenv::load(Path::new(".env")).map_err(|error| format!(".env: {error}"))?;
    start_logging(&dotenv);
    let config = Config::from_env(&dotenv)?;
    let application = Application::build(config).await?;
    log::info!("Listening on http://{}", application.addr());
    application.run_until(terminated()?).await?;
    log::info!("Stopped");
    Ok(())
}

/// `RUST_LOG` of the environment, else of `.env`, else the default.
fn start_logging(dotenv: &[(String, String)]) {
    let default = dotenv.iter().find(|(name, _)| name == "RUST_LOG");
    let default = default.map_or(DEFAULT_LOG, |(_, value)| value);
    Builder::from_env(Env::default().default_filter_or(default)).init();
}

/// Resolves at SIGINT or SIGTERM. The handlers are there when this returns, not when it is polled.
fn terminated() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
