//! The process: arguments, configuration, logging, start, signals.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::pin::pin;

use realtime_chat_backend::app::Application;
use realtime_chat_backend::check::check;
use realtime_chat_backend::config::{Config, dotenv};
use realtime_chat_backend::{health_check, logging};
use tikv_jemallocator::Jemalloc;
use tokio::signal::unix::{SignalKind, signal};

/// It gives memory back when clients leave and when passwords were hashed, which the allocator of
/// glibc does not.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const HELP: &str = "\
A chat backend: REST, WebSocket and Socket.IO over MongoDB.

Usage: realtime-chat-backend [OPTION]

  --check    look at the configuration and the database, change nothing
  --health   ask the server of this configuration whether it is up
  --help     this text
  --version  the version

Everything else is set by environment variables or .env; .env.example lists
them all. Without any, it starts a MongoDB of its own and serves on port 5000.
";

/// The command of the arguments.
enum Command {
    Serve,
    Check,
    Health,
    Print(String),
}

#[actix_web::main]
async fn main() {
    let is_success = match run().await {
        Ok(is_success) => is_success,
        Err(error) => {
            // Not with the log, because RUST_LOG may have silenced it.
            eprintln!("{}: {error}", env!("CARGO_PKG_NAME"));
            false
        }
    };
    // All parts have stopped. The runtime would still wait for threads with a running name look-up
    // or download.
    std::process::exit(i32::from(!is_success));
}

/// Runs the command. Returns whether it was successful.
async fn run() -> Result<bool, Box<dyn std::error::Error>> {
    let command = command(std::env::args().skip(1))?;
    if let Command::Print(text) = command {
        return print(&text).map(|()| true);
    }
    // First of all: process 1 of a container ignores signals without a handler.
    let mut terminated = pin!(terminated()?);
    let dotenv = dotenv::load(Path::new(".env")).map_err(|error| format!(".env: {error}"))?;
    logging::start(&dotenv.variables);
    for line in &dotenv.passed_over {
        log::warn!(
            ".env: line {line} is ignored, as by npm's dotenv: it is not KEY=value, not a comment \
             and not blank"
        );
    }
    let config = Config::from_env(&dotenv.variables)?;
    for notice in &config.notices {
        log::warn!("{notice}");
    }
    if let Command::Check = command {
        let report = check(&config).await?;
        print(&report.to_string())?;
        return Ok(report.is_good());
    }
    if let Command::Health = command {
        print(&format!("The server at {} is up\n", health_check::ask(&config).await?))?;
        return Ok(true);
    }
    let (demo, data) = (config.demo, config.embedded.data_dir.clone());
    let application = tokio::select! {
        application = Application::build(config) => application?,
        () = &mut terminated => {
            log::info!("Stopped during the start");
            return Ok(true);
        }
    };
    if io::stdout().is_terminal() {
        let data = application.is_embedded().then_some(&*data);
        print(&greeting(&application.url(), demo, data))?;
    }
    application.run_until(terminated).await?;
    log::info!("Stopped");
    Ok(true)
}

/// Writes to the standard output. A closed pipe is not an error.
fn print(text: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn command(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let command = match arguments.next().as_deref() {
        None => Command::Serve,
        Some("--check") => Command::Check,
        Some("--health") => Command::Health,
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

/// The text for a person at a terminal.
fn greeting(url: &str, demo: bool, embedded: Option<&Path>) -> String {
    let (bold, reset) = match std::env::var_os("NO_COLOR") {
        None => ("\x1b[1m", "\x1b[0m"),
        Some(_) => ("", ""),
    };
    let mut text = format!("\n  {bold}Chat server{reset}  {url}\n");
    if demo {
        text += &format!("  {bold}Try it     {reset}  {url}/demo\n");
    }
    text += &format!("  {bold}API        {reset}  {url}/docs\n");
    text += &format!("  {bold}Client     {reset}  {url}/chat.js\n");
    if let Some(data) = embedded {
        text += &format!("  {bold}Data       {reset}  {} (an embedded MongoDB)\n", data.display());
    }
    text + "  Stop with Ctrl-C\n\n"
}

/// Resolves at SIGINT or SIGTERM. The handlers are installed when this returns, not when the future
/// is polled.
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
