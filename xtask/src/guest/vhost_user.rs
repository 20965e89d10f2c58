//! A guest's virtio disk is a mapped device: QEMU is the vhost-user client.
//!
//! The guest makes a file system, writes files in rounds, drops its caches and reads them back.
//! After each line it prints, the host does something to the device below: it swaps the table,
//! grows the disk, or kills the daemon and starts it again. At the end fsck must find nothing and
//! the guest's kernel must have seen no error.

use crate::oracle::cpio::Archive;
use crate::oracle::setup::{add_module, add_program, cache, find, kernel_tree};
use crate::steps::{Failed, release_udm};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Modules of the guest, beside those they need. What virtio needs Debian has built in.
const MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];
const PROGRAMS: [&str; 3] = ["mkfs.ext4", "e2fsck", "resize2fs"];
/// Longer than a slow machine needs without KVM.
const LIMIT_S: u32 = 900;
const COMMAND_LINE: &str = "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr \
    random.trust_cpu=on tsc=reliable no_timer_check";
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
        let kernel = self.pack(root)?;
        let image = File::create(self.dir.join("disk.img"));
        let image = image.and_then(|image| image.set_len(512 << 20));
        image.map_err(Failed::to("make the disk"))?;
        self.start_daemon()?;
        self.udm(&["create", "vm", "--table", &self.table()])?;
        self.udm(&["export", "vm", "--vhost-user", &self.path("vm.sock")])?;
        let start = Instant::now();
        let mut qemu = self.start_qemu(&kernel, args)?;
        let out = qemu.stdout.take().ok_or_else(|| Failed::new("QEMU has no console"))?;
        let (mut tail, mut end) = (Vec::new(), None);
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if let Some(said) = line.trim().strip_prefix("udm: ") {
                println!("{:>4} s  {said}", start.elapsed().as_secs());
                end = Some(said.to_owned());
                self.answer(said)?;
            }
            tail.push(line);
        }
        let _status = qemu.wait();
        let wanted = format!("ok {}", self.len_sectors);
        if end.as_deref() == Some(&*wanted) {
            let Host { swaps, kills, .. } = self;
            println!(
                "{} rounds, {swaps} swaps, {kills} kills of the daemon: all is well",
                args.rounds
            );
            return Ok(());
        }
        let last = tail.get(tail.len().saturating_sub(20)..).unwrap_or_default().join("\n");
        Err(Failed::new(format!("the guest did not say '{wanted}'; its console ends:\n{last}")))
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

    /// Packs the guest's programs and modules; gives the kernel.
    fn pack(&self, root: &Path) -> Result<PathBuf, Failed> {
        let (kernel, modules) = kernel_tree(&cache(root))?;
        let mut archive = Archive::default();
        for folder in ["proc", "sys", "dev", "tmp", "mnt", "bin", "usr/bin", "usr/sbin", "etc"] {
            archive.folder(folder);
        }
        archive.file("init", include_bytes!("vhost-user-init"));
        archive.file("etc/mtab", b"");
        let busybox = find(&["/bin/busybox", "/usr/bin/busybox"])?;
        archive.file("bin/busybox", &fs::read(busybox).map_err(Failed::to("read busybox"))?);
        let mut packed = std::collections::BTreeSet::new();
        for program in PROGRAMS {
            add_program(program, &mut packed, &mut archive)?;
        }
        let mut order = Vec::new();
        for name in MODULES {
            add_module(&modules, name, "", &mut order, &mut archive)?;
        }
        archive.file("modules/order", (order.join("\n") + "\n").as_bytes());
        let initrd = self.dir.join("initrd");
        fs::write(initrd, archive.finish()).map_err(Failed::to("write the initial file system"))?;
        Ok(kernel)
    }

    fn start_qemu(&self, kernel: &Path, args: &Args) -> Result<Child, Failed> {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=2", &LIMIT_S.to_string(), "qemu-system-x86_64"])
            // One thread for both processors: with two, a kernel that patches its own code while
            // it starts can meet a half-patched instruction (seen with QEMU 7.2).
            .args(["-accel", "tcg,thread=single,tb-size=256", "-machine", "pc,memory-backend=mem"])
            .args(["-cpu", "max,la57=off", "-smp", "2", "-m", "512"])
            .args(["-object", "memory-backend-memfd,id=mem,size=512M,share=on"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel)
            .args(["-initrd", "initrd", "-append"])
            .arg(format!("{COMMAND_LINE} udm_rounds={}", args.rounds))
            .args(["-serial", "stdio"])
            .args(["-chardev", "socket,id=disk,path=vm.sock,reconnect=1"])
            .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2"]);
        command.current_dir(&self.dir).stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().map_err(Failed::to("start qemu-system-x86_64"))
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
