//! One boot of the Linux guest: cases in, what they printed out.
//!
//! QEMU without KVM, so it runs everywhere and needs no rights; no disk, no network. The guest's
//! tools are one archive, the cases of this run another behind it. Two virtio ports lead back: a
//! log with a line for each case as it ends, and a tar of all results.
//!
//! The tricky case is a guest that dies or hangs: then there is no tar, and the end of its console
//! is shown instead. Nothing here waits without a limit.

use super::cpio::Archive;
use super::setup::Guest;
use crate::steps::{Failed, run};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// No boot takes longer before its first case, in seconds.
const BOOT_LIMIT_S: usize = 120;
/// Without KVM a case takes seconds; the guest's own limit for one is 25.
const CASE_LIMIT_S: usize = 10;
const COMMAND_LINE: &str = "console=ttyS0 loglevel=3 panic=-1 mitigations=off nokaslr audit=0 \
    apparmor=0 random.trust_cpu=on tsc=reliable no_timer_check rcupdate.rcu_expedited=1 \
    cryptomgr.notests=1 initcall_blacklist=crypto_kdf108_init,jent_mod_init";

/// A case to be run: its name and its commands.
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) steps: Vec<String>,
}

/// Runs the jobs in one boot; their results are then in folders of `results`.
pub(crate) fn boot(root: &Path, guest: &Guest, jobs: &[Job], results: &Path) -> Result<(), Failed> {
    if results.is_dir() {
        fs::remove_dir_all(results).map_err(Failed::to("empty the results' folder"))?;
    }
    fs::create_dir_all(results).map_err(Failed::to("make the results' folder"))?;
    pack(root, guest, jobs, &results.join("initrd"))?;
    let start = Instant::now();
    let mut qemu = start_qemu(guest, results, BOOT_LIMIT_S + CASE_LIMIT_S * jobs.len())?;
    follow(&mut qemu);
    let ended = qemu.wait().is_ok_and(|status| status.success());
    let tar = results.join("tar");
    if !ended || fs::metadata(&tar).map_or(true, |file| file.len() == 0) {
        let console = fs::read_to_string(results.join("console")).unwrap_or_default();
        let lines: Vec<&str> = console.lines().collect();
        let end = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n");
        return Err(Failed::new(format!("the guest gave no results; its console ends:\n{end}")));
    }
    run(results, Command::new("tar").args(["-xf", "tar"]))?;
    eprintln!("the guest took {:.0} s for {} cases", start.elapsed().as_secs_f64(), jobs.len());
    Ok(())
}

/// Writes tools and cases as one initial file system.
fn pack(root: &Path, guest: &Guest, jobs: &[Job], to: &Path) -> Result<(), Failed> {
    let scripts = root.join("crates/udm/tests/oracle");
    let mut archive = Archive::default();
    for name in ["guest.sh", "replay.sh"] {
        let text = fs::read(scripts.join(name)).map_err(Failed::to(format!("read {name}")))?;
        archive.file(&format!("in/{name}"), &text);
    }
    for job in jobs {
        let steps = job.steps.join("\n") + "\n";
        archive.file(&format!("in/cases/{}/steps", job.id), steps.as_bytes());
    }
    let tools = fs::read(&guest.tools).map_err(Failed::to("read the guest's tools"))?;
    let mut file = File::create(to).map_err(Failed::to("make the initial file system"))?;
    let written = file.write_all(&tools).and_then(|()| file.write_all(&archive.finish()));
    written.map_err(Failed::to("write the initial file system"))
}

/// Starts the guest; its log comes from the child's standard output.
fn start_qemu(guest: &Guest, results: &Path, limit_s: usize) -> Result<Child, Failed> {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=2", &limit_s.to_string(), "qemu-system-x86_64"])
        .args(["-accel", "tcg,thread=multi,tb-size=256", "-machine", "pc"])
        .args(["-cpu", "max,la57=off", "-smp", "1", "-m", "2048"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&guest.kernel)
        .args(["-initrd", "initrd", "-append", COMMAND_LINE])
        .args(["-chardev", "file,id=console,path=console", "-serial", "chardev:console"])
        .args(["-device", "virtio-serial-pci"]);
    let ports = [("log", "file,path=/dev/stdout"), ("results", "file,path=tar")];
    for (port, backend) in ports {
        let (kind, options) = backend.split_once(',').unwrap_or((backend, ""));
        command.args(["-chardev", &format!("{kind},id={port},{options}")]);
        command.args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
    }
    command.current_dir(results).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().map_err(Failed::to("start qemu-system-x86_64"))
}

/// Shows what the log says of cases that did not go well, until the guest ends.
fn follow(qemu: &mut Child) {
    let Some(out) = qemu.stdout.take() else { return };
    for line in BufReader::new(out).lines().map_while(Result::ok) {
        // A case that went well is its name and two times.
        if line.split(' ').count() != 3 {
            eprintln!("guest: {line}");
        }
    }
}
