//! udm's daemon, and asking it with udm's own verbs, as a user would.
//!
//! Started once for a soak and ended with it. If it ends by itself, or a verb fails, the soak has
//! found something: nothing is tried a second time here.

use crate::steps::Failed;
use serde_json::Value;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the daemon may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// A running daemon.
pub(crate) struct Daemon {
    udm: PathBuf,
    socket: PathBuf,
    child: Child,
}

/// What the device has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// Completed I/Os.
    pub(crate) ios: u64,
    /// Of those, failed.
    pub(crate) errors: u64,
    /// Under way, held at a gate, or in a request queue.
    pub(crate) waiting: u64,
    /// Calls in which a target broke its contract.
    pub(crate) breaches: u64,
}

impl Daemon {
    pub(crate) fn start(udm: &Path, dir: &Path) -> Result<Daemon, Failed> {
        let socket = dir.join("control.sock");
        let log = File::create(dir.join("udm.log")).map_err(Failed::to("make a log"))?;
        let child = Command::new(udm)
            .args(["daemon", "--lanes", "2", "--socket"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(Failed::to("start udm"))?;
        let daemon = Daemon { udm: udm.to_owned(), socket, child };
        super::wait_until("udm listens", START_MAX, || {
            Ok(UnixStream::connect(&daemon.socket).is_ok())
        })?;
        Ok(daemon)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a verb; what it prints.
    pub(crate) fn udm(&self, words: &[&str]) -> Result<String, Failed> {
        let output = Command::new(&self.udm)
            .args(words)
            .env("UDM_SOCKET", &self.socket)
            .output()
            .map_err(Failed::to("run udm"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(Failed::new(format!("udm {}: {why}", words.join(" "))));
        }
        String::from_utf8(output.stdout).map_err(Failed::to("read udm's output"))
    }

    /// Starts a verb, which goes on while the caller does.
    pub(crate) fn start_verb(&self, words: &[&str]) -> Result<Child, Failed> {
        Command::new(&self.udm)
            .args(words)
            .env("UDM_SOCKET", &self.socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Failed::to("run udm"))
    }

    /// Runs a verb with JSON.
    pub(crate) fn ask(&self, words: &[&str]) -> Result<Value, Failed> {
        let mut words = words.to_vec();
        words.push("--json");
        serde_json::from_str(&self.udm(&words)?).map_err(Failed::to("read udm's JSON"))
    }

    pub(crate) fn done(&self, device: &str) -> Result<Done, Failed> {
        let answer = self.ask(&["info", device])?;
        let gauges = &answer["devices"][0]["gauges"];
        let number = |field: &str| gauges[field].as_u64().unwrap_or(0);
        let counters = gauges["counters"].as_array().cloned().unwrap_or_default();
        Ok(Done {
            ios: counters.iter().filter_map(|counter| counter["ios"].as_u64()).sum(),
            errors: number("errors"),
            waiting: number("in_flight")
                + number("held")
                + gauges["requests"]["waiting"].as_u64().unwrap_or(0),
            breaches: number("contract_breaches"),
        })
    }

    /// Paths that are active.
    pub(crate) fn active_paths(&self, device: &str) -> Result<usize, Failed> {
        let answer = self.ask(&["paths", device])?;
        let paths = answer["paths"].as_array().cloned().unwrap_or_default();
        Ok(paths.iter().filter(|path| path["state"] == "active").count())
    }

    /// Still there? A daemon that ended by itself is the worst finding of all.
    pub(crate) fn check_alive(&mut self) -> Result<(), Failed> {
        match self.child.try_wait().map_err(Failed::to("ask for the daemon's end"))? {
            None => Ok(()),
            Some(status) => Err(Failed::new(format!("udm has ended: {status}"))),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
