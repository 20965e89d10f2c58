//! A guest's virtio disk is a mapped device: QEMU is the vhost-user client.
//!
//! The guest makes a file system, writes files in rounds, drops its caches and reads them back.
//! After each line it prints, the host does something to the device below: it swaps the table,
//! grows the disk, or kills the daemon and starts it again. At the end fsck must find nothing and
//! the guest's kernel must have seen no error.

use super::host::Host;
use super::machine::{self, Contents, LIMIT_S, Machine};
use crate::steps::Failed;
use std::path::{Path, PathBuf};

const MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];
const PROGRAMS: [&str; 3] = ["mkfs.ext4", "e2fsck", "resize2fs"];

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

/// Runs a guest to its end.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let mut host = Host::start(root, args.udm.as_ref())?;
    let contents = Contents {
        init: include_bytes!("vhost-user-init"),
        modules: &MODULES,
        programs: &PROGRAMS,
        built: &[],
    };
    let kernel = machine::pack(root, &host.dir, &contents)?;
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
        ["mounted"] | ["done", _] => host.swap(),
        _ => Ok(()),
    }
}
