//! The command line.

use std::time::Duration;

use crate::Result;
use crate::rows::Group;
use crate::servers::Contender;

const USAGE: &str = "\
Usage: cargo bench --bench compare -- [--quick] [--only ROWS] [--servers SERVERS] [--attach PID:PORT]

  --quick      short measurements and small numbers of sockets, without the curves
  --only       groups of rows, separated by commas: ";

/// The options.
#[derive(Debug, Clone)]
pub struct Options {
    /// Short measurements, which are less precise.
    pub quick: bool,
    /// Groups of rows; `None` means all.
    pub only: Option<Vec<Group>>,
    /// The contenders.
    pub servers: Vec<Contender>,
    /// Process id and port of a running server.
    pub attach: Option<(u32, u16)>,
}

impl Options {
    /// Reads the arguments. `None` after `--help`, which was printed.
    pub fn parse(arguments: &[String]) -> Result<Option<Self>> {
        let mut options =
            Self { quick: false, only: None, servers: Contender::ALL.into(), attach: None };
        let mut arguments = arguments.iter().map(String::as_str);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument {
                // Cargo passes this to every benchmark.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--only" => {
                    let known = |name: &str| {
                        let group = Group::ALL.iter().find(|group| group.name() == name);
                        group.copied().ok_or(format!("no rows are called {name}"))
                    };
                    options.only = Some(value()?.split(',').map(known).collect::<Result<_, _>>()?);
                }
                "--servers" => {
                    let known = |name: &str| {
                        let mut servers = Contender::ALL.into_iter();
                        let server = servers.find(|known| known.name().eq_ignore_ascii_case(name));
                        server.ok_or(format!("no server is called {name}"))
                    };
                    options.servers = value()?.split(',').map(known).collect::<Result<_, _>>()?;
                }
                "--attach" => {
                    let (pid, port) = value()?.split_once(':').ok_or("--attach needs PID:PORT")?;
                    options.attach = Some((pid.parse()?, port.parse()?));
                }
                "--help" | "-h" => {
                    let names: Vec<_> = Group::ALL.iter().map(|group| group.name()).collect();
                    println!("{USAGE}{}", names.join(", "));
                    return Ok(None);
                }
                other => return Err(format!("{other} is no option; see --help").into()),
            }
        }
        Ok(Some(options))
    }

    /// Whether to measure these rows.
    pub fn wants(&self, group: Group) -> bool {
        match &self.only {
            Some(only) => only.contains(&group),
            None => group != Group::Curves || !self.quick,
        }
    }

    /// Whether nothing was left out, so that the results are written.
    pub fn is_complete(&self) -> bool {
        !self.quick && self.only.is_none() && self.servers.len() == Contender::ALL.len()
    }

    /// The duration of the warm-up. Node is several times faster after it has compiled hot code.
    pub fn warm_up(&self) -> Duration {
        Duration::from_millis(self.pick(3_000, 1_000))
    }

    /// The duration of a measurement.
    pub fn measure(&self) -> Duration {
        Duration::from_millis(self.pick(6_000, 1_500))
    }

    /// The first number for a full run, the second one for a quick run.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}
