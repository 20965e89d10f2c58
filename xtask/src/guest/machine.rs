//! The guest itself: what is packed for it, how QEMU starts it, what its console says.
//!
//! Kernel and programs are Debian's; the initial file system is packed anew for every run. A line
//! of the console that begins with `udm:` is for the host, which answers before it reads the next.
//!
//! The tricky case is a guest that hangs or dies: QEMU runs under `timeout`, and an error shows
//! the end of the console.

use super::kernel::Kernel;
use crate::oracle::cpio::Archive;
use crate::oracle::setup::{add_binary, add_module, add_program, find, has_module};
use crate::steps::{Failed, run};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Longer than a slow machine needs without KVM for a short form.
pub(super) const LIMIT_S: u32 = 900;
/// Where this machine may have it.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
/// What ext4 asks for by this name; since Linux 6.15 it is no module any more.
const FOR_EXT4: &str = "crc32c_generic";
const COMMAND_LINE: &str = "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr \
    random.trust_cpu=on tsc=reliable no_timer_check";

/// What is in a guest.
pub(super) struct Contents<'a> {
    /// Process 1, a script of busybox's shell: `common-init` and what follows.
    pub(super) init: &'a str,
    /// Modules, beside those they need. What virtio needs Debian has built in.
    pub(super) modules: &'a [&'a str],
    /// Programs of this machine.
    pub(super) programs: &'a [&'a str],
    /// Programs that were built here.
    pub(super) built: &'a [PathBuf],
}

/// How a guest is started.
pub(super) struct Machine<'a> {
    /// If there is none, the machine's firmware finds it on a disk.
    pub(super) kernel: Option<&'a Kernel>,
    pub(super) memory_mib: u32,
    pub(super) limit_s: u32,
    /// More words for the kernel's command line, which the script reads.
    pub(super) words: &'a str,
    /// More of QEMU's arguments.
    pub(super) devices: &'a [&'a str],
}

/// Packs the initial file system of a guest into a folder.
pub(super) fn pack(dir: &Path, kernel: &Kernel, contents: &Contents<'_>) -> Result<(), Failed> {
    fs::write(dir.join("initrd"), archive(kernel, contents)?)
        .map_err(Failed::to("write the initial file system"))
}

/// Makes an ext4 of this many sectors, with these contents, in a file that is there.
pub(super) fn make_root(
    dir: &Path,
    kernel: &Kernel,
    contents: &Contents<'_>,
    image: &Path,
    len_sectors: u64,
) -> Result<(), Failed> {
    let tree = dir.join("root");
    fs::create_dir(&tree).map_err(Failed::to("make the root's folder"))?;
    let packed = dir.join("root.cpio");
    fs::write(&packed, archive(kernel, contents)?).map_err(Failed::to("write the root"))?;
    let mut unpack = Command::new(find(&BUSYBOX)?);
    run(&tree, unpack.args(["cpio", "-i", "-d", "-F"]).arg(&packed))?;
    // What is not zeroed now the guest would zero in the background.
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard", "-d"]).arg(&tree);
    run(dir, mkfs.arg(image).arg(format!("{}k", len_sectors / 2)))?;
    fs::remove_dir_all(&tree).map_err(Failed::to("remove the root's folder"))
}

/// The files of a guest.
fn archive(kernel: &Kernel, contents: &Contents<'_>) -> Result<Vec<u8>, Failed> {
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "tmp", "mnt", "bin", "usr/bin", "usr/sbin", "etc"] {
        archive.folder(folder);
    }
    archive.file("init", contents.init.as_bytes());
    archive.file("etc/mtab", b"");
    let busybox = find(&BUSYBOX)?;
    archive.file("bin/busybox", &fs::read(busybox).map_err(Failed::to("read busybox"))?);
    let mut packed = BTreeSet::new();
    for program in contents.programs {
        add_program(program, &mut packed, &mut archive)?;
    }
    for program in contents.built {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        add_binary(program, &name, &mut packed, &mut archive)?;
    }
    let mut order = Vec::new();
    for name in contents.modules {
        if *name != FOR_EXT4 || has_module(&kernel.modules, name)? {
            add_module(&kernel.modules, name, "", &mut order, &mut archive)?;
        }
    }
    archive.file("modules/order", (order.join("\n") + "\n").as_bytes());
    Ok(archive.finish())
}

/// What the kernel is told, with these words for the script.
pub(super) fn command_line(words: &str) -> String {
    format!("{COMMAND_LINE} {words}")
}

/// Starts a guest that was packed into this folder.
pub(super) fn start(dir: &Path, machine: &Machine<'_>) -> Result<Child, Failed> {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=2", &machine.limit_s.to_string(), "qemu-system-x86_64"])
        // One thread for both processors: with two, a kernel that patches its own code while
        // it starts can meet a half-patched instruction (seen with QEMU 7.2).
        .args(["-accel", "tcg,thread=single,tb-size=256", "-machine", "pc,memory-backend=mem"])
        .args(["-cpu", "max,la57=off", "-smp", "2", "-m", &machine.memory_mib.to_string()])
        .arg("-object")
        .arg(format!("memory-backend-memfd,id=mem,size={}M,share=on", machine.memory_mib))
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-serial", "stdio"])
        .args(machine.devices);
    if let Some(kernel) = machine.kernel {
        command.arg("-kernel").arg(&kernel.image).args(["-initrd", "initrd", "-append"]);
        command.arg(command_line(machine.words));
    }
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().map_err(Failed::to("start qemu-system-x86_64"))
}

/// Follows a guest to its end. `answer` is called with every line for the host.
pub(super) fn follow(
    mut qemu: Child,
    mut answer: impl FnMut(&str) -> Result<(), Failed>,
) -> Result<Told, Failed> {
    let start = Instant::now();
    let out = qemu.stdout.take().ok_or_else(|| Failed::new("QEMU has no console"))?;
    let mut told = Told { last: String::new(), console: Vec::new() };
    for line in BufReader::new(out).lines().map_while(Result::ok) {
        if let Some(said) = line.trim().strip_prefix("udm: ") {
            println!("{:>4} s  {said}", start.elapsed().as_secs());
            said.clone_into(&mut told.last);
            if let Err(failed) = answer(said) {
                // `timeout` passes it on; both may have ended already.
                let timeout = rustix::process::Pid::from_child(&qemu);
                let _ended = rustix::process::kill_process(timeout, rustix::process::Signal::TERM);
                let _status = qemu.wait();
                return Err(failed);
            }
        }
        told.console.push(line);
    }
    let _status = qemu.wait();
    Ok(told)
}

/// What a guest said.
pub(super) struct Told {
    last: String,
    console: Vec<String>,
}

impl Told {
    /// Fails with the end of the console if these were not the last words.
    pub(super) fn expect_last(&self, wanted: &str) -> Result<(), Failed> {
        self.expect(self.last == wanted, wanted)
    }

    /// Fails with the end of the console if the last words did not begin like this.
    pub(super) fn expect_last_to_begin(&self, wanted: &str) -> Result<(), Failed> {
        self.expect(self.last.starts_with(wanted), wanted)
    }

    /// Whether it said this.
    pub(super) fn has(&self, words: &str) -> bool {
        self.console.iter().any(|line| line.trim().strip_prefix("udm: ") == Some(words))
    }

    fn expect(&self, is_right: bool, wanted: &str) -> Result<(), Failed> {
        if is_right {
            return Ok(());
        }
        let from = self.console.len().saturating_sub(20);
        let last = self.console.get(from..).unwrap_or_default().join("\n");
        Err(Failed::new(format!("the guest did not say '{wanted}'; its console ends:\n{last}")))
    }
}
