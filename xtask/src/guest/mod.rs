//! `cargo xtask guest`: a stock Linux in QEMU uses a mapped device through a front end, while its
//! table is swapped, it grows, and its daemon is killed.
//!
//! Kernel and programs are Debian's, made ready by `cargo xtask oracle --setup`; QEMU runs without
//! KVM, so this works everywhere. Each front end has a module. The guest prints lines that begin
//! with `udm:` on its console; each is a step the host waits for, so nobody waits for time to pass.
//! What every file system goes through is in `common-init`, before each guest's own script.
//!
//! The tricky case is a guest that hangs: QEMU is started under `timeout`, and the end of its
//! console is shown.

mod boot;
mod cuse;
mod host;
mod kernel;
mod machine;
mod nbd;
mod ublk;
mod vhost_user;

use crate::oracle::setup::{cache, kernel_tree};
use crate::steps::{Failed, is_installed};
use std::path::Path;

/// What to try.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    front: Front,
}

#[derive(clap::Subcommand)]
enum Front {
    /// The control device by CUSE: ioctls, poll, signals, and the tests of the crate devicemapper.
    Cuse(cuse::Args),
    /// The root file system by vhost-user-blk: files, fio, fsck, with swaps, growth and kills.
    VhostUser(vhost_user::Args),
    /// The kernel's ublk disk, its daemon in the guest: load, files, fsck, with swaps and kills.
    Ublk(ublk::Args),
    /// The kernel's NBD client: mkfs, files, growth, fsck, with swaps; in the clear and by TLS.
    Nbd(nbd::Args),
}

/// A short form for CI; says so where the machine has no guest.
pub(crate) fn short(root: &Path) -> Result<(), Failed> {
    if !is_installed("qemu-system-x86_64") || kernel_tree(&cache(root)).is_err() {
        println!("no QEMU or no kernel for it (cargo xtask oracle --setup); left out: the guest");
        return Ok(());
    }
    cuse::run(root, &cuse::Args { udm: None, crate_tests: None })?;
    vhost_user::run(root, &vhost_user::Args { rounds: 6, kernel: None, udm: None })?;
    ublk::run(root, &ublk::Args { rounds: 3, kills: 3, kernel: None, udm: None })?;
    if !nbd::is_possible() {
        println!("no nbd-client (cargo xtask oracle --setup); left out: the guest's NBD client");
        return Ok(());
    }
    nbd::run(root, &nbd::Args { rounds: 2, udm: None })
}

/// A few rounds of a virtual machine's disk, with this udm.
pub(crate) fn vhost_user_disk(root: &Path, udm: &Path) -> Result<(), Failed> {
    vhost_user::run(root, &vhost_user::Args { rounds: 6, kernel: None, udm: Some(udm.to_owned()) })
}

/// A few rounds of the kernel's NBD client, with this udm.
pub(crate) fn nbd_client(root: &Path, udm: &Path) -> Result<(), Failed> {
    nbd::run(root, &nbd::Args { rounds: 2, udm: Some(udm.to_owned()) })
}

/// Tries one front end.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    match &args.front {
        Front::Cuse(args) => cuse::run(root, args),
        Front::VhostUser(args) => vhost_user::run(root, args),
        Front::Ublk(args) => ublk::run(root, args),
        Front::Nbd(args) => nbd::run(root, args),
    }
}
