//! A guest boots from mapped devices and has its root file system on one: QEMU is the client.
//!
//! The machine starts as machines do: its firmware reads a boot loader from one mapped device, the
//! loader reads a kernel and an initial file system, and that mounts the root, on another. Its ext4
//! is made here, with all programs in it; everything the guest runs is read from the device. It
//! writes files in rounds, drops its caches and reads them back, while fio verifies what it writes
//! itself. After each line it prints, the host does something to the device below: it swaps the
//! table, grows the disk (and the guest its file system, in use), or kills the daemon and starts it
//! again. At the end the guest fills the disk to its new end; its kernel must have seen no error,
//! and fsck must find nothing here.

use super::boot;
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
    let first = Contents {
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
    machine::pack(&host.dir, &kernel, &first)?;
    machine::make_root(&host.dir, &kernel, &disk, &host.image(), START_SECTORS)?;
    host.udm(&["export", "vm", "--vhost-user", &host.path("vm.sock")])?;
    let words = format!("udm_rounds={}", args.rounds);
    let by_loader = boot::is_possible();
    let mut devices = disk_arguments("vm", "num-queues=2");
    if by_loader {
        boot::make(&host.dir, &kernel, &machine::command_line(&words))?;
        let table = format!("0 {} linear {} 0", boot::LEN_SECTORS, host.path("boot.img"));
        host.udm(&["create", "boot", "--table", &table])?;
        host.udm(&["export", "boot", "--vhost-user", &host.path("boot.sock")])?;
        devices.extend(disk_arguments("boot", "bootindex=1"));
    }
    let machine = Machine {
        kernel: if by_loader { None } else { Some(&kernel) },
        memory_mib: 512,
        limit_s: LIMIT_S,
        words: &words,
        devices: &devices.iter().map(String::as_str).collect::<Vec<_>>(),
    };
    let qemu = machine::start(&host.dir, &machine)?;
    let told = machine::follow(qemu, |said| answer(&mut host, said))?;
    told.expect_last(&format!("ok {}", host.len_sectors))?;
    let mut fsck = Command::new("e2fsck");
    run_command(&host.dir, fsck.arg("-fn").arg(host.image()))?;
    let (rounds, swaps, kills) = (args.rounds, host.swaps, host.kills);
    if by_loader && !told.has("loader") {
        return Err(Failed::new("the guest was not started by the boot loader"));
    }
    println!("{rounds} rounds, {swaps} swaps, {kills} kills of the daemon: all is well");
    Ok(())
}

/// QEMU's arguments for a disk at a socket of this name.
fn disk_arguments(name: &str, more: &str) -> Vec<String> {
    vec![
        "-chardev".to_owned(),
        format!("socket,id={name},path={name}.sock,reconnect=1"),
        "-device".to_owned(),
        format!("vhost-user-blk-pci,chardev={name},{more}"),
    ]
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
