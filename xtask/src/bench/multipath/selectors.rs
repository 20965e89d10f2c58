//! All selectors over bad paths: in simulated time (`udm-sim --selectors`), then over NBD.
//!
//! Over NBD the paths are nbdkit servers with its delay filter: a read takes so long, and so many
//! threads work on a connection at once. A path that stalls is one that is stopped (SIGSTOP) for a
//! tenth of a second, twice a second. Reads only: a server that goes on later could do an old write
//! over a newer one.
//!
//! Simulated numbers are exact; those over NBD have the machine's noise in them and only confirm.

use super::{Bench, Fio, fio};
use crate::soak::daemon::Daemon;
use crate::soak::{pause, wait_until};
use crate::steps::{Failed, cargo};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const START_MAX: Duration = Duration::from_secs(20);
/// The device: 64 MiB.
const DEVICE_SECTORS: u64 = 131_072;
/// As many reads under way as both good paths take.
const WORDS: [&str; 3] = ["--rw=randread", "--iodepth=32", "--numjobs=2"];

/// Scenarios: name, what the second server is like, whether it stalls.
const SCENARIOS: [(&str, &[&str], &str, bool); 4] = [
    ("equal", &["-t", "16"], "4ms", false),
    ("one slow", &["-t", "16"], "40ms", false),
    ("one stalls", &["-t", "16"], "4ms", true),
    ("one small queue", &["-t", "1"], "4ms", false),
];

/// Selectors with the arguments of their paths.
const SELECTORS: [(&str, [&str; 2]); 6] = [
    ("round-robin", ["", ""]),
    ("queue-length", ["", ""]),
    ("service-time", ["", ""]),
    ("historical-service-time", ["", ""]),
    ("io-affinity", ["1", "2"]),
    ("latency", ["", ""]),
];

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    let mut text = "\n## Selectors\n\nTwo paths; the first is good, the second as the column says: as good, ten times \
        slower, standing still for 100 ms twice a second, or taking few I/Os at once. Throughput in percent of the good \
        path alone (200 % is both), and the 99th percentile of latency.\n\nIn simulated time (`udm-sim --selectors`, the \
        same everywhere; 1 ms an I/O, 32 at once, 64 reads under way on two lanes):\n\n"
        .to_owned();
    text += &simulated(bench)?;
    if bench.has(&["nbdkit", "fio"], "selectors over NBD") {
        text += "\nOver NBD (nbdkit with a delay of 4 ms, fio, 64 reads under way on two connections; one run each, with \
            this machine's noise):\n\n";
        text += &over_nbd(bench)?;
    }
    Ok(text)
}

fn simulated(bench: &Bench<'_>) -> Result<String, Failed> {
    let output =
        cargo(&["run", "--quiet", "--package", "udm-sim", "--bin", "udm-sim", "--", "--selectors"])
            .current_dir(bench.root)
            .output()
            .map_err(Failed::to("run udm-sim"))?;
    match output.status.success() {
        true => String::from_utf8(output.stdout).map_err(Failed::to("read udm-sim's output")),
        false => Err(Failed::new(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

fn over_nbd(bench: &Bench<'_>) -> Result<String, Failed> {
    let backing = |delay: &str| format!("--filter=delay memory 64M rdelay={delay}");
    let good = Server::start(bench, "good", &["-t", "16"], &backing("4ms"))?;
    let alone = {
        let device = Device::make(bench, "bio", "service-time", &[(good.device(), "")])?;
        fio(bench, &device.uri, &WORDS)?
    };
    let mut rows = SELECTORS.map(|(selector, _)| format!("| {selector} |"));
    let mut heading = "| selector |".to_owned();
    for (name, options, delay, stalls) in SCENARIOS {
        heading += &format!(" {name} |");
        let other = Server::start(bench, "other", options, &backing(delay))?;
        for ((selector, args), row) in SELECTORS.iter().zip(&mut rows) {
            let paths = [(good.device(), args[0]), (other.device(), args[1])];
            let device = Device::make(bench, "bio", selector, &paths)?;
            let told = match stalls {
                true => other.while_stalling(|| fio(bench, &device.uri, &WORDS))?,
                false => fio(bench, &device.uri, &WORDS)?,
            };
            let percent = 100.0 * told.iops / alone.iops;
            let Fio { p99_ms, .. } = told;
            *row += &format!(" {percent:.0} %, {p99_ms:.0} ms |");
        }
    }
    Ok(format!("{heading}\n|---|--:|--:|--:|--:|\n{}\n", rows.join("\n")))
}

/// An nbdkit server on a socket of its own.
pub(super) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    pub(super) fn start(
        bench: &Bench<'_>,
        name: &str,
        options: &[&str],
        backing: &str,
    ) -> Result<Server, Failed> {
        let socket = bench.dir.join(format!("{name}.sock"));
        // Of the server before, if there was one.
        let _removed = std::fs::remove_file(&socket);
        let child = Command::new("nbdkit")
            .args(["-f", "-U"])
            .arg(&socket)
            .args(options)
            .args(backing.split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Failed::to("start nbdkit"))?;
        let server = Server { child, socket };
        wait_until(
            "nbdkit accepts",
            START_MAX,
            || Ok(UnixStream::connect(&server.socket).is_ok()),
        )?;
        Ok(server)
    }

    /// As a table names it.
    pub(super) fn device(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Runs something while this server stands still now and then.
    fn while_stalling<R>(&self, run: impl FnOnce() -> R) -> R {
        let ended = AtomicBool::new(false);
        let pid = Pid::from_child(&self.child);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    // Both fail only if it has ended, and then everything fails.
                    let _stopped = kill_process(pid, Signal::STOP);
                    pause(Duration::from_millis(100));
                    let _going = kill_process(pid, Signal::CONT);
                    pause(Duration::from_millis(400));
                }
            });
            let result = run();
            ended.store(true, Ordering::Relaxed);
            result
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A multipath device on these paths, served by a daemon of its own.
struct Device {
    /// Ends with this.
    _daemon: Daemon,
    uri: String,
}

impl Device {
    fn make(
        bench: &Bench<'_>,
        mode: &str,
        selector: &str,
        paths: &[(String, &str)],
    ) -> Result<Device, Failed> {
        let daemon = Daemon::start(&bench.udm, &bench.dir)?;
        let arg_count = usize::from(paths.iter().any(|(_, args)| !args.is_empty()));
        let words: Vec<String> = paths
            .iter()
            .map(|(path, args)| format!("{path} {args}").trim_end().to_owned())
            .collect();
        let table = format!(
            "0 {DEVICE_SECTORS} multipath 2 queue_mode {mode} 0 1 1 {selector} 0 {} {arg_count} {}",
            paths.len(),
            words.join(" ")
        );
        daemon.udm(&["create", "disk", "--table", &table])?;
        let socket = bench.dir.join("disk.sock");
        // Of the device before, if there was one: its daemon was killed.
        let _removed = std::fs::remove_file(&socket);
        let address = format!("unix:{}", socket.display());
        let uri = daemon.udm(&["export", "disk", "--nbd", &address])?.trim().to_owned();
        Ok(Device { _daemon: daemon, uri })
    }
}
