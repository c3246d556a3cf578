//! The contenders, and their start and stop.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::Result;
use crate::contender::Contender;
use crate::http::{Connection, request};
use crate::install;
use crate::process::{Process, free_port};

/// The secret of all servers, so that a token is valid for all of them.
const SECRET: &str = "0f4c1a77c2b9a5d1e6830b52d94e7f1a6c35d8be20497fa1";
/// The timeout of a start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The timeout of a stop, after which the server is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Starts contenders.
pub struct Launcher {
    /// The folder for logs, and for the contenders that are installed or built.
    pub folder: PathBuf,
    /// The binary of this repository's server.
    pub ours: PathBuf,
}

/// A running server.
pub struct Server {
    /// Its address.
    pub addr: SocketAddr,
    /// Its process.
    pub process: Process,
    /// The time from its start to its first answer.
    pub started_in: Duration,
    /// `None` for an attached server.
    child: Option<Child>,
}

impl Launcher {
    /// Starts a contender with this database and waits for its first answer to `GET /rooms`. With a
    /// token, this answer needs the database.
    pub async fn start(
        &self,
        contender: Contender,
        uri: &str,
        token: Option<&str>,
    ) -> Result<Server> {
        self.start_with(contender, uri, token, &[]).await
    }

    /// Starts one of several instances, which peers have to be told.
    pub async fn start_instance(&self, contender: Contender, uri: &str) -> Result<Server> {
        self.start_with(contender, uri, None, &[("INSTANCES", "1")]).await
    }

    async fn start_with(
        &self,
        contender: Contender,
        uri: &str,
        token: Option<&str>,
        variables: &[(&str, &str)],
    ) -> Result<Server> {
        let port = free_port()?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = match contender {
            Contender::Ours => Command::new(&self.ours),
            Contender::Floor => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["--serve-floor", &port.to_string()]);
                command
            }
            other => install::command(&self.folder, other)?,
        };
        let log = File::create(self.folder.join(format!("{}.log", contender.name())))?;
        command
            .env("PORT", port.to_string())
            .env("HOST", "127.0.0.1")
            .env("MONGO_URI", uri)
            .env("JWT_SECRET", SECRET)
            .envs(variables.iter().copied())
            // No rate limits: the load comes from one address and one user.
            .envs(
                ["LOGIN", "LOGIN_NAME", "SEND", "ROOM", "CONNECT", "EVENTS"]
                    .map(|what| (format!("RATE_LIMIT_{what}"), "0")),
            )
            // This folder has no .env file.
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let begin = Instant::now();
        let mut child =
            command.spawn().map_err(|error| format!("{}: {error}", contender.name()))?;
        let pid = child.id().ok_or("it has ended already")?;
        let request = request("GET", "/api/chat/rooms", token, None);
        let answers = async {
            loop {
                if first_answer(addr, &request, contender, token.is_some()).await.is_ok() {
                    return Result::<()>::Ok(());
                }
                if let Some(status) = child.try_wait()? {
                    return Err(format!("{} ended: {status}", contender.name()).into());
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(START_TIMEOUT, answers).await.map_err(|_| "no answer from the server")??;
        let started_in = begin.elapsed();
        Ok(Server { addr, process: Process(pid), started_in, child: Some(child) })
    }
}

impl Server {
    /// A server that runs on this machine already.
    pub fn attach(pid: u32, port: u16) -> Self {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { addr, process: Process(pid), started_in: Duration::ZERO, child: None }
    }

    /// Stops it and waits until it has ended.
    pub async fn stop(self) -> Result<()> {
        let Some(mut child) = self.child else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(self.process.0)?), Signal::SIGTERM)?;
        if timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
            child.kill().await?;
        }
        Ok(())
    }
}

async fn first_answer(
    addr: SocketAddr,
    request: &[u8],
    contender: Contender,
    with_token: bool,
) -> Result<()> {
    let mut connection = Connection::open(addr).await?;
    if contender == Contender::Floor {
        return Ok(());
    }
    let status = if with_token { 200 } else { 401 };
    match connection.exchange(request).await?.status {
        answered if answered == status => Ok(()),
        other => Err(format!("{other}").into()),
    }
}
