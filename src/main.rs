//! The process: arguments, configuration, logging, start, signals.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use realtime_chat_backend::app::Application;
use realtime_chat_backend::check::check;
use realtime_chat_backend::config::{Config, dotenv};
use realtime_chat_backend::logging;
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
A chat backend: REST, WebSocket and Socket.IO over MongoDB.

Usage: realtime-chat-backend [OPTION]

  --check    look at the configuration and the database, change nothing
  --help     this text
  --version  the version

Everything else is set by environment variables or .env; .env.example lists
them all. Without any, it starts a MongoDB of its own and serves on port 5000.
";

/// What the command line asks for.
enum Command {
    Serve,
    Check,
    Print(String),
}

#[actix_web::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(code) => code,
        Err(error) => {
            // Not through the log, which RUST_LOG may have silenced.
            eprintln!("{}: {error}", env!("CARGO_PKG_NAME"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let command = command(std::env::args().skip(1))?;
    if let Command::Print(text) = command {
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    let dotenv = dotenv::load(Path::new(".env")).map_err(|error| format!(".env: {error}"))?;
    logging::start(&dotenv);
    let config = Config::from_env(&dotenv)?;
    if let Command::Check = command {
        let report = check(&config).await?;
        print!("{report}");
        return Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let (demo, data) = (config.demo, config.embedded.data_dir.clone());
    let application = Application::build(config).await?;
    log::info!("Listening on http://{}", application.addr());
    greet(application.addr(), demo, application.is_embedded().then_some(&*data));
    application.run_until(terminated()?).await?;
    log::info!("Stopped");
    Ok(ExitCode::SUCCESS)
}

fn command(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let command = match arguments.next().as_deref() {
        None => Command::Serve,
        Some("--check") => Command::Check,
        Some("--help" | "-h") => Command::Print(HELP.to_owned()),
        Some("--version" | "-V") => {
            let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
            Command::Print(format!("{name} {version}\n"))
        }
        Some(other) => return Err(format!("unknown option {other:?}, see --help")),
    };
    match arguments.next() {
        None => Ok(command),
        Some(other) => Err(format!("unexpected {other:?}, see --help")),
    }
}

/// Tells a person where to look; a log file has no use for it.
fn greet(addr: SocketAddr, demo: bool, embedded: Option<&Path>) {
    if !std::io::stdout().is_terminal() {
        return;
    }
    let host =
        if addr.ip().is_unspecified() { "localhost".to_owned() } else { addr.ip().to_string() };
    let url = format!("http://{host}:{}", addr.port());
    let (bold, reset) = match std::env::var_os("NO_COLOR") {
        None => ("\x1b[1m", "\x1b[0m"),
        Some(_) => ("", ""),
    };
    println!("\n  {bold}Chat server{reset}  {url}");
    if demo {
        println!("  {bold}Try it     {reset}  {url}/demo");
    }
    println!("  {bold}API        {reset}  {url}/docs");
    if let Some(data) = embedded {
        println!("  {bold}Data       {reset}  {} (an embedded MongoDB)", data.display());
    }
    println!("  Stop with Ctrl-C\n");
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
