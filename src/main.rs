//! The process: configuration, logging, start, signals.

use std::process::ExitCode;

use realtime_chat_backend::app::Application;
use realtime_chat_backend::config::Config;

#[actix_web::main]
async fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::from_env(&[])?;
    let application = Application::build(config).await?;
    log::info!("Listening on http://{}", application.addr());
    application.run_until(terminated()).await?;
    Ok(())
}

/// Resolves at SIGINT or SIGTERM.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};

    let mut term = signal(SignalKind::terminate()).expect("signals can be handled");
    let mut int = signal(SignalKind::interrupt()).expect("signals can be handled");
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
