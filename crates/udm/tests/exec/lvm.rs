//! LVM2, unmodified: volume groups whose logical volumes are our mapped devices.
//!
//! Debian's lvm2, with a configuration (`LVM_SYSTEM_DIR`) and a folder of devices of its own, so
//! that neither the machine's configuration nor its volumes play a part. Without the package, or
//! without the right to a loop device, a test says so and passes.

use crate::common::{Place, Ran};
use crate::{dmsetup, exec, has};
use std::path::Path;
use std::process::Command;

/// What LVM has to be told, with the folder of this test and the devices it may look at.
fn configuration(place: &Place, devices: &[&str]) -> String {
    let (lock, dev) = (place.text("lock"), place.text("dev"));
    let accepted: Vec<String> = devices.iter().map(|device| format!("\"a|^{device}$|\"")).collect();
    format!(
        "devices {{\n  dir = \"{dev}\"\n  scan = [ \"/dev\" ]\n  filter = [ {}, \"r|.*|\" ]\n  use_devicesfile = 0\n  \
         obtain_device_list_from_udev = 0\n  external_device_info_source = \"none\"\n}}\n\
         activation {{\n  udev_sync = 0\n  udev_rules = 0\n  monitoring = 0\n}}\n\
         backup {{\n  backup = 0\n  archive = 0\n}}\n\
         global {{\n  locking_dir = \"{lock}\"\n  use_lvmpolld = 0\n  event_activation = 0\n}}\n",
        accepted.join(", ")
    )
}

/// Runs a command of LVM.
fn lvm(place: &Place, line: &str) -> Ran {
    let words: Vec<&str> = line.split(' ').collect();
    let mut command = exec(place, &words);
    command.env("LVM_SYSTEM_DIR", place.path("etc")).env("LVM_SUPPRESS_FD_WARNINGS", "1");
    command.env("DM_DEV_DIR", place.path("dev")).env("UDM_DEV_DIR", place.path("dev"));
    command.output().expect("ran").into()
}

fn configure(place: &Place, devices: &[&str]) {
    for folder in ["etc", "dev/mapper"] {
        std::fs::create_dir_all(place.path(folder)).expect("a folder");
    }
    let path = place.path("etc/lvm.conf");
    std::fs::write(path, configuration(place, devices)).expect("written");
}

/// A loop device; detached on drop.
pub(crate) struct Loop(pub(crate) String);

impl Loop {
    /// On a new file of 64 MiB.
    fn on_new_file(place: &Place, name: &str) -> Option<Loop> {
        Loop::attach(&place.file(name, 64 << 20))
    }

    /// `None`, and the reason is told, where there are none.
    pub(crate) fn attach(file: &str) -> Option<Loop> {
        let output = Command::new("losetup").args(["--find", "--show", file]).output();
        let output = output.ok().filter(|output| output.status.success());
        let Some(output) = output else {
            println!("loop devices need root and a kernel that has them; not tested");
            return None;
        };
        Some(Loop(String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()))
    }

    /// Its number, as tables print it.
    pub(crate) fn number(&self) -> String {
        let name = Path::new(&self.0).file_name().expect("a name");
        let path = Path::new("/sys/block").join(name).join("dev");
        std::fs::read_to_string(path).expect("its number").trim().to_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn lvm_makes_changes_and_removes_volumes_on_loop_devices() {
    if !has("lvm") || !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let (Some(one), Some(two)) =
        (Loop::on_new_file(&place, "one"), Loop::on_new_file(&place, "two"))
    else {
        return;
    };
    let _daemon = place.daemon(&["--lanes", "1"]);
    configure(&place, &[&one.0, &two.0]);
    let (first, second) = (one.number(), two.number());
    let table = |name: &str| dmsetup(&place, &["table", name]).ok();
    lvm(&place, &format!("pvcreate -y {} {}", one.0, two.0)).ok();
    lvm(&place, &format!("vgcreate vg {} {}", one.0, two.0)).ok();
    lvm(&place, "lvcreate -y -Zn -Wn -n lin -L 16M vg").ok();
    assert_eq!(table("vg-lin"), format!("0 32768 linear {first} 2048\n"));
    lvm(&place, "lvcreate -y -Zn -Wn -n str -i 2 -L 16M vg").ok();
    let striped = format!("0 32768 striped 2 128 {first} 34816 {second} 2048\n");
    assert_eq!(table("vg-str"), striped);
    lvm(&place, "lvextend -L +8M vg/lin").ok();
    // Behind the stripe on the first disk: a table of two lines.
    let grown = format!("0 32768 linear {first} 2048\n32768 16384 linear {first} 51200\n");
    assert_eq!(table("vg-lin"), grown);
    if let Some(looped) = crate::nodes::Looped::export(&place, "vg-lin") {
        // In use as a block device: LVM finds it by its uuid and changes it all the same.
        let shown = dmsetup(&place, &["info", "-c", "--noheadings", "-o", "devno", "vg-lin"]).ok();
        assert_eq!(shown.trim(), looped.device.number());
        lvm(&place, "lvextend -L +4M vg/lin").ok();
        looped.end(&place, "vg-lin");
    }
    lvm(&place, "lvreduce -f -L 8M vg/lin").ok();
    assert_eq!(table("vg-lin"), format!("0 16384 linear {first} 2048\n"));
    lvm(&place, "vgchange -an vg").ok();
    assert_eq!(dmsetup(&place, &["ls"]).ok(), "No devices found\n");
    lvm(&place, "vgchange -ay vg").ok();
    assert_eq!(table("vg-str"), striped);
    let shown = lvm(&place, "lvs --noheadings -o lv_name,lv_attr,lv_size vg").ok();
    let shown: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(shown, ["lin", "-wi-a-----", "8.00m", "str", "-wi-a-----", "16.00m"]);
    lvm(&place, "lvremove -y vg/lin vg/str").ok();
    lvm(&place, "vgremove vg").ok();
    assert_eq!(dmsetup(&place, &["ls"]).ok(), "No devices found\n");
}

#[test]
fn lvm_stands_on_devices_that_are_files() {
    if !has("lvm") || !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "1", "--links", &place.text("dev/mapper")]);
    let mut mounts = Vec::new();
    for name in ["pv0", "pv1"] {
        let disk = place.file(&format!("{name}.img"), 64 << 20);
        dmsetup(&place, &["create", name, "--table", &format!("0 131072 linear {disk} 0")]).ok();
        let Some(mount) = crate::nodes::export(&place, name) else { return };
        mounts.push(mount);
    }
    let [one, two] = ["dev/mapper/pv0", "dev/mapper/pv1"].map(|name| place.text(name));
    configure(&place, &[&one, &two]);
    let conf = std::fs::read_to_string(place.path("etc/lvm.conf")).expect("read");
    let conf =
        conf.replace("scan = [ \"/dev\" ]", &format!("scan = [ \"{}\" ]", place.text("dev")));
    std::fs::write(place.path("etc/lvm.conf"), conf).expect("written");
    lvm(&place, &format!("pvcreate -y {one} {two}")).ok();
    lvm(&place, &format!("vgcreate vg {one} {two}")).ok();
    let made = lvm(&place, "lvcreate -y -Zn -Wn -n str -i 2 -L 16M vg");
    assert!(!made.err.contains("ioctl"), "{}", made.err);
    made.ok();
    let table = || dmsetup(&place, &["table", "vg-str"]).ok();
    assert_eq!(table(), "0 32768 striped 2 128 254:0 2048 254:1 2048\n");
    lvm(&place, "lvextend -L +16M vg/str").ok();
    assert_eq!(table(), "0 65536 striped 2 128 254:0 2048 254:1 2048\n");
    lvm(&place, "vgchange -an vg").ok();
    lvm(&place, "vgchange -ay vg").ok();
    lvm(&place, "lvremove -y vg/str").ok();
    lvm(&place, "vgremove vg").ok();
    assert_eq!(dmsetup(&place, &["ls"]).ok(), "pv0\t(254:0)\npv1\t(254:1)\n");
    for name in ["pv0", "pv1"] {
        place.udm(&["unexport", name]).ok();
    }
}
