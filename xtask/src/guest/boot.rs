//! A disk that firmware boots from: a boot loader, a kernel and its initial file system.
//!
//! The disk is a FAT without partitions, with SYSLINUX in it, made without root and without a
//! mount. The firmware reads the loader through its own virtio driver, the loader reads the rest
//! through the firmware: two more clients of the front end, long before Linux.
//!
//! The tricky case is a machine without these programs: then the kernel is given to QEMU, and that
//! is said.

use super::kernel::Kernel;
use crate::steps::{Failed, is_installed, run};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Enough for any kernel, and for FAT with 32 bits.
pub(super) const LEN_SECTORS: u64 = 131_072;

/// True if the programs are there.
pub(super) fn is_possible() -> bool {
    let all = ["syslinux", "mcopy", "mkfs.vfat"].iter().all(|program| is_installed(program));
    if !all {
        println!("no syslinux, mtools, dosfstools (cargo xtask oracle --setup): no boot loader");
    }
    all
}

/// Makes the disk, as `boot.img` of a folder in which `initrd` is already.
pub(super) fn make(dir: &Path, kernel: &Kernel, command_line: &str) -> Result<(), Failed> {
    let config = format!(
        "SERIAL 0 115200\nDEFAULT linux\nLABEL linux\nLINUX vmlinuz\nINITRD initrd\n\
         APPEND {command_line}\n"
    );
    fs::write(dir.join("syslinux.cfg"), config).map_err(Failed::to("write the loader's file"))?;
    let kib = (LEN_SECTORS / 2).to_string();
    run(dir, Command::new("mkfs.vfat").args(["-F", "32", "-C", "boot.img", &kib]))?;
    run(dir, Command::new("syslinux").args(["--install", "boot.img"]))?;
    let copy = |from: &Path, to: &str| {
        run(dir, Command::new("mcopy").args(["-i", "boot.img"]).arg(from).arg(format!("::{to}")))
    };
    copy(&kernel.image, "vmlinuz")?;
    copy(Path::new("initrd"), "initrd")?;
    copy(Path::new("syslinux.cfg"), "syslinux.cfg")
}
