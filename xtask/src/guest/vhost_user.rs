//! A guest's root file system is a mapped device: QEMU is the vhost-user client.
//!
//! The disk's ext4 is made here, with all programs in it. An initial file system only mounts it;
//! from then on everything the guest runs is read from the device. It writes files in rounds,
//! drops its caches and reads them back, while fio verifies what it writes itself. After each line
//! it prints, the host does something to the device below: it swaps the table, grows the disk (and
//! the guest its file system, in use), or kills the daemon and starts it again. At the end the
//! guest fills the disk to its new end; its kernel must have seen no error, and fsck must find
//! nothing here.

use super::host::{Host, START_SECTORS};
use super::kernel::kernel;
use super::machine::{self, Contents, LIMIT_S, Machine};
use crate::steps::{Failed, run as run_command};
use std::path::{Path, PathBuf};
use std::process::Command;

const MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];
const PROGRAMS: [&str; 2] = ["fio", "resize2fs"];

/// How much.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds of files; the device changes in each.
    #[arg(long, default_value_t = 6)]
    pub(crate) rounds: u32,
    /// Another Linux: a series as 6.18, or newest; from Debian's backports.
    #[arg(long, value_name = "SERIES")]
    pub(crate) kernel: Option<String>,
    /// The udm to try; a release build if left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) udm: Option<PathBuf>,
}

/// Runs a guest to its end.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let mut host = Host::start(root, args.udm.as_ref())?;
    let boot = Contents {
        init: concat!(include_str!("common-init"), include_str!("boot-init")),
        modules: &MODULES,
        programs: &[],
        built: &[],
    };
    let disk = Contents {
        init: concat!(include_str!("common-init"), include_str!("vhost-user-init")),
        modules: &[],
        programs: &PROGRAMS,
        built: &[],
    };
    let kernel = kernel(root, args.kernel.as_deref())?;
    machine::pack(&host.dir, &kernel, &boot)?;
    machine::make_root(&host.dir, &kernel, &disk, &host.image(), START_SECTORS)?;
    host.udm(&["export", "vm", "--vhost-user", &host.path("vm.sock")])?;
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
    let qemu = machine::start(&host.dir, &machine)?;
    let told = machine::follow(qemu, |said| answer(&mut host, said))?;
    told.expect_last(&format!("ok {}", host.len_sectors))?;
    let mut fsck = Command::new("e2fsck");
    run_command(&host.dir, fsck.arg("-fn").arg(host.image()))?;
    let (rounds, swaps, kills) = (args.rounds, host.swaps, host.kills);
    println!("{rounds} rounds, {swaps} swaps, {kills} kills of the daemon: all is well");
    Ok(())
}

/// Does something to the device after a line of the guest.
fn answer(host: &mut Host, said: &str) -> Result<(), Failed> {
    let words: Vec<&str> = said.split(' ').collect();
    match words[..] {
        ["disk", size, serial, queues] => {
            let right = (size, serial, queues) == (&*host.len_sectors.to_string(), "vm", "2");
            if right { Ok(()) } else { Err(Failed::new(format!("a wrong disk: {said}"))) }
        }
        ["failed:", ..] => Err(Failed::new(format!("the guest {said}"))),
        // Files are being written at this moment.
        ["round", number] if number.parse::<u32>().is_ok_and(|number| number % 3 == 0) => {
            host.kill_daemon()
        }
        ["round", number] => {
            if number.parse::<u32>().is_ok_and(|number| number % 2 == 0) {
                host.grow();
            }
            host.swap()
        }
        ["done", _] => host.swap(),
        _ => Ok(()),
    }
}
