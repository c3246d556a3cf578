//! The CPU time and the memory of a process, and a description of the machine.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::Result;

/// The clock ticks a second of CPU times, on every Linux machine but the Alpha.
const TICKS: f64 = 100.0;

/// A measured process.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

impl Process {
    /// The CPU time of all threads so far, in seconds.
    pub fn cpu(self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        // The name in parentheses may contain anything; the fields after it are numbers.
        let (_, fields) = stat.rsplit_once(')').ok_or("no name in stat")?;
        let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks = times.sum::<Result<u64, _>>()?;
        Ok(ticks as f64 / TICKS)
    }

    /// Waits until it is idle, 15 s at most. After a start, a server may be busy: this one reads
    /// the events of the last minutes.
    pub async fn settle(self) -> Result<()> {
        for _ in 0..50 {
            let before = self.cpu()?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            if self.cpu()? - before <= 2.0 / TICKS {
                break;
            }
        }
        Ok(())
    }

    /// The resident memory, in bytes.
    pub fn memory(self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
        Ok(kib.parse::<f64>()? * 1024.0)
    }

    /// The resident memory when it has not changed for two seconds, or after 30 s.
    pub async fn settled_memory(self) -> Result<f64> {
        let (mut last, mut unchanged) = (self.memory()?, 0);
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.memory()?;
            unchanged = if (now - last).abs() < last * 0.002 { unchanged + 1 } else { 0 };
            last = now;
            if unchanged == 4 {
                break;
            }
        }
        Ok(last)
    }
}

/// Raises the soft limit of open files to the hard limit, also for child processes.
pub fn raise_file_limit() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// A free port.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A short description of the machine: processor, number of cores, memory, kernel.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = field(&cpu, "model name").unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kib: f64 = field(&memory, "MemTotal")
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cores} cores, {:.0} GiB, Linux {}", kib / 1_048_576.0, kernel.trim())
}

/// A note if the machine was busy before the run.
pub fn others() -> Option<String> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = load.split_whitespace().next()?.parse().ok()?;
    (load > 0.7).then(|| format!(", which others used too (load average {load:.1} at the start)"))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}
