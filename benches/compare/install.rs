//! Installs and builds the contenders that are not part of this repository's own build.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::Result;
use crate::contender::Contender;

/// The folder of `benches` in the repository.
pub fn benches() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches")
}

impl Contender {
    /// Its folder below `benches`, and the packages to name in the results.
    fn source(self) -> Option<(&'static str, &'static [&'static str])> {
        Some(match self {
            Self::Ours | Self::Floor => return None,
            Self::Node => ("node", &["express", "mongoose", "socket.io", "bcryptjs"]),
            Self::Bun => ("peers/bun", &["bun", "@socket.io/bun-engine", "socket.io", "mongodb"]),
            Self::Uws => ("peers/uws", &["@btc-vision/uwebsockets.js", "socket.io", "mongodb"]),
            Self::Axum => ("peers/axum", &["axum", "socketioxide", "mongodb"]),
        })
    }

    /// The packages that it is made of, with the versions of its lock file.
    pub fn packages(self) -> Result<Option<String>> {
        let Some((folder, names)) = self.source() else { return Ok(None) };
        let folder = benches().join(folder);
        let (file, before): (_, fn(&str) -> String) = match self {
            Self::Axum => ("Cargo.lock", |name| format!("name = \"{name}\"\nversion = \"")),
            _ => ("package.json", |name| format!("\"{name}\": \"")),
        };
        let text = fs::read_to_string(folder.join(file))?;
        let named = names.iter().map(|name| {
            let version = text.split_once(&before(name)).and_then(|(_, rest)| rest.split_once('"'));
            version.map(|(version, _)| format!("{name} {version}"))
        });
        Ok(named.collect::<Option<Vec<_>>>().map(|named| named.join(", ")))
    }
}

/// Installs or builds a contender in a folder, unless that was done before. Returns what a reader
/// of the results has to know about it.
pub async fn prepare(folder: &Path, contender: Contender) -> Result<Option<String>> {
    let Some((source, _)) = contender.source() else { return Ok(None) };
    let source = benches().join(source);
    let target = installed(folder, contender);
    match contender {
        Contender::Axum => {
            let mut cargo = Command::new(cargo());
            cargo.args(["build", "--release", "--locked", "--manifest-path"]);
            cargo.arg(source.join("Cargo.toml")).arg("--target-dir").arg(target);
            succeed(cargo, "cargo build of the peer with axum").await?;
            Ok(None)
        }
        Contender::Uws => {
            install(&source, &target).await?;
            relink(&target).await
        }
        _ => {
            install(&source, &target).await?;
            Ok(None)
        }
    }
}

/// The command that starts a contender that was prepared in this folder.
pub fn command(folder: &Path, contender: Contender) -> Result<Command> {
    let installed = installed(folder, contender);
    let mut command = match contender {
        Contender::Axum => return Ok(Command::new(installed.join("release/compare-peer-axum"))),
        Contender::Bun => {
            // The package has one binary for each platform, of which npm installs the right one.
            let mut platforms = fs::read_dir(installed.join("node_modules/@oven"))?;
            let platform = platforms.next().ok_or("npm has installed no binary of Bun")??;
            Command::new(platform.path().join("bin/bun"))
        }
        _ => Command::new("node"),
    };
    command.arg(installed.join("server.js")).env("NODE_ENV", "production");
    Ok(command)
}

fn installed(folder: &Path, contender: Contender) -> PathBuf {
    folder.join(contender.name().to_lowercase())
}

/// Copies a server in JavaScript and installs its packages, unless they are there.
async fn install(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    for folder in [source.parent(), Some(source)].into_iter().flatten() {
        // The peers share a file, which is in the folder around theirs.
        for file in fs::read_dir(folder)? {
            let file = file?;
            if file.path().extension().is_some_and(|extension| extension == "js") {
                fs::copy(file.path(), target.join(file.file_name()))?;
            }
        }
    }
    let wanted = fs::read(source.join("package-lock.json"))?;
    let installed = target.join("node_modules/.installed");
    if fs::read(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    for file in ["package.json", "package-lock.json"] {
        fs::copy(source.join(file), target.join(file))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(target);
    succeed(npm, "npm ci").await?;
    fs::write(installed, wanted)?;
    Ok(())
}

/// Makes uWebSockets.js load on this system, which may be older than the one it was built on.
async fn relink(target: &Path) -> Result<Option<String>> {
    let load = async || {
        let mut node = Command::new("node");
        node.args(["--input-type=module", "-e", "import '@btc-vision/uwebsockets.js'"]);
        node.current_dir(target).output().await
    };
    let loaded = load().await?;
    let relinked = target.join("node_modules/.relinked");
    if !loaded.status.success() {
        let said = String::from_utf8_lossy(&loaded.stderr);
        let binary = said.split_once("(required by ").and_then(|(_, rest)| rest.split_once(')'));
        let Some((binary, _)) = binary.filter(|_| said.contains("GLIBC_2.38")) else {
            return Err(format!("uWebSockets.js does not load: {said}").into());
        };
        let mut node = Command::new("node");
        node.arg("relink.js").arg(binary).current_dir(target);
        succeed(node, "relinking uWebSockets.js").await?;
        if !load().await?.status.success() {
            return Err("uWebSockets.js does not load, also after relinking".into());
        }
        fs::write(&relinked, "")?;
    }
    Ok(relinked.exists().then(|| {
        "**uWS.** The published binary of uWebSockets.js wants glibc 2.38, which this machine does \
         not have. `benches/peers/uws/relink.js` gave three functions in it their old names, and \
         changed no code."
            .to_owned()
    }))
}

/// The cargo that runs this benchmark.
fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

async fn succeed(mut command: Command, what: &str) -> Result<()> {
    let status = command.status().await.map_err(|error| format!("{what}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{what} failed: {status}").into()) }
}
