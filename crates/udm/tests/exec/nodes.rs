//! The nodes of mapped devices that can be opened somewhere: as a FUSE file, by a loop device.
//!
//! Mounting needs root and `/dev/fuse` here; without them a test says so and passes.

use crate::common::{Place, Ran};
use crate::lvm::Loop;
use crate::{dmsetup, exec, has};
use std::path::{Path, PathBuf};

/// Takes down what is mounted at a place, however the test ends.
pub(crate) struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        // Fails if it is not mounted any more.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Serves a device as a file beside the daemon's socket.
pub(crate) fn export(place: &Place, device: &str) -> Option<(String, Unmounted)> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("mounting needs root and /dev/fuse here; not tested");
        return None;
    }
    let file = format!("{device}.file");
    place.udm(&["export", device, "--fuse", &place.text(&file)]).ok();
    Some((place.text(&file), Unmounted(place.path(&file))))
}

/// A loop device on a mapped device.
pub(crate) struct Looped {
    pub(crate) device: Loop,
    _mount: Unmounted,
}

impl Looped {
    /// `None`, and the reason is told, where that is not possible.
    pub(crate) fn export(place: &Place, device: &str) -> Option<Looped> {
        let (file, mount) = export(place, device)?;
        Some(Looped { device: Loop::attach(&file)?, _mount: mount })
    }

    /// Takes all of it down; the device is closed then.
    pub(crate) fn end(self, place: &Place, device: &str) {
        let Looped { device: loop_device, _mount } = self;
        drop(loop_device);
        place.udm(&["unexport", device]).ok();
    }
}

fn sh(place: &Place, script: &str) -> Ran {
    exec(place, &["sh", "-c", script]).output().expect("ran").into()
}

#[test]
fn a_device_that_is_a_file_can_be_opened_and_has_a_link() {
    if !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let links = place.text("dev/mapper");
    let daemon = place.daemon(&["--links", &links]);
    let disk = place.file("disk.img", 1 << 20);
    dmsetup(&place, &["create", "a", "--table", &format!("0 2048 linear {disk} 0")]).ok();
    let nowhere = sh(&place, "cat /dev/mapper/a");
    assert!(nowhere.err.contains("No such device or address"), "{}", nowhere.err);
    let Some((file, _mount)) = export(&place, "a") else { return };
    let link = |name: &str| std::fs::read_link(place.path("dev/mapper").join(name)).ok();
    assert_eq!(link("a"), Some(PathBuf::from(&file)));
    sh(&place, "printf there | dd of=/dev/mapper/a bs=5 seek=3 conv=notrunc status=none").ok();
    assert_eq!(std::fs::read(&disk).expect("read")[15..20], *b"there");
    assert_eq!(sh(&place, "dd if=/dev/mapper/a bs=5 skip=3 count=1 status=none").ok(), "there");
    assert_eq!(sh(&place, "blockdev --getsize64 --getss /dev/mapper/a").ok(), "1048576\n512\n");
    assert_eq!(sh(&place, "stat -c '%F %Hr:%Lr' /dev/mapper/a").ok(), "block special file 254:0\n");
    dmsetup(&place, &["rename", "a", "b"]).ok();
    assert_eq!((link("a"), link("b")), (None, Some(PathBuf::from(&file))));
    // The same in a folder of devices of one's own, without root's /dev.
    let own = place.text("dev");
    let mut command = exec(&place, &["dmsetup", "info", "-c", "--noheadings", "-o", "name"]);
    command.env("DM_DEV_DIR", &own).env("UDM_DEV_DIR", &own);
    assert_eq!(Ran::from(command.output().expect("ran")).ok(), "b\n");
    assert_eq!(link("b"), Some(PathBuf::from(&file)), "libdevmapper made and removed nothing");
    place.udm(&["unexport", "a"]).ok();
    assert_eq!(link("b"), None);
    drop(daemon);
}

#[test]
fn without_cuse_or_with_a_bad_name_there_is_no_control_device() {
    let fails = |name: &str, words: &str| {
        let place = Place::new();
        let ran = place.udm(&["daemon", "--control-device", name]);
        let said = ran.fails("UDM-0504");
        assert!(said.contains(words), "{said}");
        assert!(!place.path("control.sock").exists(), "nothing is left of it");
    };
    for name in ["", "/dev/x", "a//b", "../x", "a!b"] {
        fails(name, "is no name of a device below /dev");
    }
    if Path::new("/dev/cuse").exists() {
        println!("this machine has CUSE; what is said without it is not tested");
    } else {
        fails("udm-test", "udm exec needs no node at all");
    }
}

#[test]
fn the_number_is_that_of_the_loop_device() {
    if !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let disk = place.file("disk.img", 1 << 20);
    dmsetup(&place, &["create", "a", "--table", &format!("0 2048 linear {disk} 0")]).ok();
    dmsetup(&place, &["create", "b", "--table", "0 8 linear /dev/mapper/a 0"]).ok();
    let devno = |args: &[&str]| {
        let args = [&["info", "-c", "--noheadings", "-o", "devno"], args].concat();
        dmsetup(&place, &args).ok().trim().to_owned()
    };
    assert_eq!(devno(&["a"]), "254:0");
    let Some(looped) = Looped::export(&place, "a") else { return };
    let number = looped.device.number();
    let (major, minor) = number.split_once(':').expect("two numbers");
    assert_eq!(devno(&["a"]), number);
    assert_eq!(devno(&["-j", major, "-m", minor]), "254:0", "it is found by it");
    assert_eq!(devno(&["-j", "254", "-m", "0"]), "254:0", "and by ours, for trees");
    let shown = sh(&place, "stat -c '%F %Hr:%Lr' /dev/mapper/a").ok();
    assert_eq!(shown, format!("block special file {number}\n"));
    assert_eq!(dmsetup(&place, &["ls", "--tree"]).ok(), "b (254:1)\n `-a (254:0)\n");
    dmsetup(&place, &["mknodes"]).ok();
    sh(&place, "printf there | dd of=/dev/mapper/a conv=notrunc,fsync status=none").ok();
    assert_eq!(std::fs::read(&disk).expect("read")[..5], *b"there");
    looped.end(&place, "a");
    assert_eq!(devno(&["a"]), "254:0");
}
