//! Clients that speak something else than NBD: fio on the device as a file, libblkio as a virtual
//! machine's disk, and what needs a machine of its own: QEMU, and the kernel's NBD client.
//!
//! The guest's rows are the short forms of `cargo xtask guest`, with a daemon of their own: a guest
//! kills and restarts its daemon, which no other row could bear.

use super::nbd::verified_by_fio;
use super::place::{LEN_BYTES, Place};
use super::{Row, told};
use crate::guest;
use crate::steps::{Failed, cargo, run as run_step, target_dir};

/// What the rows with a guest need.
pub(super) const QEMU: &str = "qemu-system-x86_64";

pub(super) const ROWS: [Row; 5] = [
    Row {
        tool: "fio (libaio)",
        version: ["fio", "--version"],
        needs: &[],
        mounts: true,
        what: "the FUSE file at depth 64 verified, O_DIRECT, fsync",
        run: |place| fio(place, "libaio"),
    },
    Row {
        tool: "fio (io_uring)",
        version: ["fio", "--version"],
        needs: &[],
        mounts: true,
        what: "the FUSE file at depth 64 verified, O_DIRECT, fsync",
        run: |place| fio(place, "io_uring"),
    },
    Row {
        tool: "blkio (vhost-user)",
        version: ["blkio", ""],
        needs: &[],
        mounts: false,
        what: "2 queues, depth 64, verified; FUA, flush, zeroes, discard",
        run: blkio,
    },
    Row {
        tool: "QEMU (vhost-user disk)",
        version: [QEMU, "--version"],
        needs: &[QEMU],
        mounts: false,
        what: "a guest's ext4, table swapped, grown, daemon killed",
        run: |place| guest::vhost_user_disk(&place.root, &place.udm),
    },
    Row {
        tool: "nbd-client (kernel)",
        version: ["nbd-client", "-V"],
        needs: &[QEMU, "openssl"],
        mounts: false,
        what: "a guest's ext4, clear and TLS, table swapped, grown",
        run: |place| guest::nbd_client(&place.root, &place.udm),
    },
];

fn fio(place: &Place, engine: &str) -> Result<(), Failed> {
    let (engine, file) = (format!("--ioengine={engine}"), format!("--filename={}", place.file));
    verified_by_fio(&[&engine, &file, "--direct=1"])
}

fn blkio(place: &Place) -> Result<(), Failed> {
    let manifest = place.root.join("interop/Cargo.toml");
    let built = target_dir(&place.root).join("interop");
    let mut build = cargo(&["build", "--quiet", "--locked"]);
    build.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(&built);
    run_step(&place.root, &mut build)?;
    let program = built.join("debug/udm-interop").display().to_string();
    told(&program, &[&place.vhost_socket, &LEN_BYTES.to_string()]).map(drop)
}
