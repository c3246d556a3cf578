//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::contender::Contender;
use crate::rows::Group;

const USAGE: &str = "\
Usage: cargo bench --bench compare -- [OPTIONS]

  --peers               also the peers Bun, uWS and axum, which are installed and built first
  --quick               short measurements and small numbers of sockets, without the curves
  --only ROWS           groups of rows, separated by commas
  --servers SERVERS     ours, Node, floor, Bun, uWS or axum, separated by commas
  --binary PATH         another build of this repository's server
  --attach PID:PORT     a server that runs already, without MongoDB and other servers
  --redraw              measure nothing; draw the table of the README from benches/RESULTS.md

Groups of rows: ";

/// The options.
#[derive(Debug, Clone)]
pub struct Options {
    /// Short measurements, which are less precise.
    pub quick: bool,
    /// Groups of rows; `None` means all.
    pub only: Option<Vec<Group>>,
    /// The contenders.
    pub servers: Vec<Contender>,
    /// A binary of this repository's server, instead of the one that was built with this one.
    pub binary: Option<PathBuf>,
    /// Process id and port of a running server.
    pub attach: Option<(u32, u16)>,
    /// Only draw the table of the README.
    pub redraw: bool,
}

impl Options {
    /// Reads the arguments. `None` after `--help`, which was printed.
    pub fn parse(arguments: &[String]) -> Result<Option<Self>> {
        let mut options = Self {
            quick: false,
            only: None,
            servers: vec![Contender::Ours, Contender::Node, Contender::Floor],
            binary: None,
            attach: None,
            redraw: false,
        };
        let mut arguments = arguments.iter().map(String::as_str);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument {
                // Cargo passes this to every benchmark.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--redraw" => options.redraw = true,
                "--peers" => options.servers.extend(Contender::PEERS),
                "--only" => {
                    let mut only = Vec::new();
                    for name in value()?.split(',') {
                        only.extend(
                            Group::named(name).ok_or(format!("no rows are called {name}"))?,
                        );
                    }
                    options.only = Some(only);
                }
                "--servers" => {
                    let known = |name: &str| {
                        let mut servers = Contender::ALL.into_iter();
                        let server = servers.find(|known| known.name().eq_ignore_ascii_case(name));
                        server.ok_or(format!("no server is called {name}"))
                    };
                    options.servers = value()?.split(',').map(known).collect::<Result<_, _>>()?;
                }
                "--binary" => options.binary = Some(std::fs::canonicalize(value()?)?),
                "--attach" => {
                    let (pid, port) = value()?.split_once(':').ok_or("--attach needs PID:PORT")?;
                    options.attach = Some((pid.parse()?, port.parse()?));
                }
                "--help" | "-h" => {
                    let names: Vec<_> = Group::ALL.iter().map(|group| group.name()).collect();
                    println!("{USAGE}{}, and curves for all curves", names.join(", "));
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
            None => !group.is_curve() || !self.quick,
        }
    }

    /// Whether nothing was left out, so that the results are written. The figures of a table are
    /// always of one run.
    pub fn is_complete(&self) -> bool {
        !self.quick
            && self.only.is_none()
            && self.binary.is_none()
            && Contender::ALL.iter().all(|contender| self.servers.contains(contender))
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
