//! This machine's side of a guest's run: a daemon with a state directory, and one device in a file.
//!
//! A folder holds all of it and goes at the end. The device's table always means the same bytes at
//! the same places, cut otherwise with every swap, so a guest notices a swap that loses something.
//!
//! The tricky case is a daemon that was killed: it is waited for before the next one is started,
//! or that one would find the old one's sockets.

use crate::steps::{Failed, release_udm};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Size of the disk at first, and what it grows by.
pub(super) const START_SECTORS: u64 = 327_680;
const STEP_SECTORS: u64 = 32_768;
/// Size of the file below: larger than the device ever gets.
const FILE_BYTES: u64 = 512 << 20;

/// The daemon and its device, which is called `vm`.
pub(super) struct Host {
    udm: PathBuf,
    pub(super) dir: PathBuf,
    daemon: Option<Child>,
    pub(super) len_sectors: u64,
    pub(super) swaps: u32,
    pub(super) kills: u32,
}

impl Host {
    /// Starts a daemon and makes the device. The udm is a release build if none is given.
    pub(super) fn start(root: &Path, udm: Option<&PathBuf>) -> Result<Host, Failed> {
        let udm = release_udm(root, udm)?;
        let dir = std::env::temp_dir().join(format!("udm-guest-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
        let (len_sectors, swaps, kills) = (START_SECTORS, 0, 0);
        let mut host = Host { udm, dir, daemon: None, len_sectors, swaps, kills };
        let image = File::create(host.dir.join("disk.img"));
        let image = image.and_then(|image| image.set_len(FILE_BYTES));
        image.map_err(Failed::to("make the disk"))?;
        host.start_daemon()?;
        host.udm(&["create", "vm", "--table", &host.table()])?;
        Ok(host)
    }

    fn table(&self) -> String {
        let image = self.path("disk.img");
        let cut = 8 * (1 + u64::from(self.swaps) * 1_117 % (START_SECTORS / 16));
        let rest = self.len_sectors - cut;
        format!("0 {cut} linear {image} 0\n{cut} {rest} linear {image} {cut}")
    }

    /// Makes the next swap one that grows the device.
    pub(super) fn grow(&mut self) {
        self.len_sectors += STEP_SECTORS;
    }

    /// Swaps the table: in turns keeping what is under way, and waiting for it with a flush.
    pub(super) fn swap(&mut self) -> Result<(), Failed> {
        self.swaps += 1;
        self.udm(&["load", "vm", "--table", &self.table()])?;
        match self.swaps % 2 {
            1 => self.udm(&["resume", "--noflush", "vm"]).map(drop),
            _ => self.udm(&["resume", "vm"]).map(drop),
        }
    }

    /// The file that is the device's content.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// Kills the daemon and starts it again.
    pub(super) fn kill_daemon(&mut self) -> Result<(), Failed> {
        self.kills += 1;
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().map_err(Failed::to("kill the daemon"))?;
            daemon.wait().map_err(Failed::to("wait for the daemon"))?;
        }
        self.start_daemon()
    }

    fn start_daemon(&mut self) -> Result<(), Failed> {
        let mut command = Command::new(&self.udm);
        command.args(["daemon", "--lanes", "2", "--socket", &self.path("control.sock")]);
        command.args(["--state", &self.path("state")]);
        let mut daemon = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Failed::to("start the daemon"))?;
        let mut line = String::new();
        if let Some(out) = daemon.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(Failed::to("hear the daemon"))?;
        }
        self.daemon = Some(daemon);
        if line.contains("ready") { Ok(()) } else { Err(Failed::new("the daemon is not ready")) }
    }

    /// Runs udm; gives its output.
    pub(super) fn udm(&self, words: &[&str]) -> Result<String, Failed> {
        let mut command = Command::new(&self.udm);
        command.args(words).env("UDM_SOCKET", self.path("control.sock")).stdin(Stdio::null());
        let output = command.output().map_err(Failed::to("run udm"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        Err(Failed::new(format!("udm {}: {why}", words.join(" "))))
    }

    /// A file of the folder.
    pub(super) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // Both fail only if it has ended already.
            let _ended = daemon.kill();
            let _status = daemon.wait();
        }
        // It is ours; what cannot be removed is left to the operating system's cleaner.
        let _removed = fs::remove_dir_all(&self.dir);
    }
}
