//! A guest's virtio disk is a mapped device: QEMU is the vhost-user client.
//!
//! The guest makes a file system, writes files in rounds, drops its caches and reads them back.
//! After each line it prints, the host does something to the device below: it swaps the table,
//! grows the disk, or kills the daemon and starts it again. At the end fsck must find nothing and
//! the guest's kernel must have seen no error.

use super::machine::{self, Contents, LIMIT_S, Machine};
use crate::steps::{Failed, release_udm};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];
const PROGRAMS: [&str; 3] = ["mkfs.ext4", "e2fsck", "resize2fs"];
/// Size of the disk at first, and what it grows by.
const START_SECTORS: u64 = 131_072;
const STEP_SECTORS: u64 = 32_768;

/// How much.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds of files; the device changes in each.
    #[arg(long, default_value_t = 6)]
    pub(crate) rounds: u32,
    /// The udm to try; a release build if left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) udm: Option<PathBuf>,
}

/// The daemon and its device.
struct Host {
    udm: PathBuf,
    dir: PathBuf,
    daemon: Option<Child>,
    len_sectors: u64,
    swaps: u32,
    kills: u32,
}

/// Runs a guest to its end.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let udm = release_udm(root, args.udm.as_ref())?;
    let dir = std::env::temp_dir().join(format!("udm-guest-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let (len_sectors, swaps, kills) = (START_SECTORS, 0, 0);
    let mut host = Host { udm, dir, daemon: None, len_sectors, swaps, kills };
    let result = host.try_guest(root, args);
    // It is ours; what cannot be removed is left to the operating system's cleaner.
    let _removed = fs::remove_dir_all(&host.dir);
    result
}

impl Host {
    fn try_guest(&mut self, root: &Path, args: &Args) -> Result<(), Failed> {
        let contents = Contents {
            init: include_bytes!("vhost-user-init"),
            modules: &MODULES,
            programs: &PROGRAMS,
            built: &[],
        };
        let kernel = machine::pack(root, &self.dir, &contents)?;
        let image = File::create(self.dir.join("disk.img"));
        let image = image.and_then(|image| image.set_len(512 << 20));
        image.map_err(Failed::to("make the disk"))?;
        self.start_daemon()?;
        self.udm(&["create", "vm", "--table", &self.table()])?;
        self.udm(&["export", "vm", "--vhost-user", &self.path("vm.sock")])?;
        let machine = Machine {
            kernel: &kernel,
            memory_mib: 512,
            limit_s: LIMIT_S,
            words: &format!("udm_rounds={}", args.rounds),
            devices: &[
                "-chardev",
                "socket,id=disk,path=vm.sock,reconnect=1",
                "-device",
                "vhost-user-blk-pci,chardev=disk,num-queues=2",
            ],
        };
        let qemu = machine::start(&self.dir, &machine)?;
        let told = machine::follow(qemu, |said| self.answer(said))?;
        told.expect_last(&format!("ok {}", self.len_sectors))?;
        let (rounds, swaps, kills) = (args.rounds, self.swaps, self.kills);
        println!("{rounds} rounds, {swaps} swaps, {kills} kills of the daemon: all is well");
        Ok(())
    }

    /// Does something to the device after a line of the guest.
    fn answer(&mut self, said: &str) -> Result<(), Failed> {
        let words: Vec<&str> = said.split(' ').collect();
        match words[..] {
            ["disk", size, serial, queues] => {
                let right = (size, serial, queues) == (&*self.len_sectors.to_string(), "vm", "2");
                if right { Ok(()) } else { Err(Failed::new(format!("a wrong disk: {said}"))) }
            }
            ["failed:", ..] => Err(Failed::new(format!("the guest {said}"))),
            // Files are being written at this moment.
            ["round", number] if number.parse::<u32>().is_ok_and(|number| number % 3 == 0) => {
                self.kill_daemon()
            }
            ["round", number] => {
                if number.parse::<u32>().is_ok_and(|number| number % 2 == 0) {
                    self.len_sectors += STEP_SECTORS;
                }
                self.swap()
            }
            ["mounted"] | ["done", _] => self.swap(),
            _ => Ok(()),
        }
    }

    /// The device's table: the same bytes at the same places, cut otherwise with every swap.
    fn table(&self) -> String {
        let image = self.path("disk.img");
        let cut = 8 * (1 + u64::from(self.swaps) * 1_117 % (START_SECTORS / 16));
        let rest = self.len_sectors - cut;
        format!("0 {cut} linear {image} 0\n{cut} {rest} linear {image} {cut}")
    }

    fn swap(&mut self) -> Result<(), Failed> {
        self.swaps += 1;
        self.udm(&["load", "vm", "--table", &self.table()])?;
        self.udm(&["resume", "--noflush", "vm"])
    }

    fn kill_daemon(&mut self) -> Result<(), Failed> {
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

    fn udm(&self, words: &[&str]) -> Result<(), Failed> {
        let mut command = Command::new(&self.udm);
        command.args(words).env("UDM_SOCKET", self.path("control.sock")).stdin(Stdio::null());
        let output = command.output().map_err(Failed::to("run udm"))?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        Err(Failed::new(format!("udm {}: {why}", words.join(" "))))
    }

    fn path(&self, name: &str) -> String {
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
    }
}
