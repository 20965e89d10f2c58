//! dmsetup's verbs, one session each, with its own words and exit codes.

use crate::common::Place;
use crate::{dmsetup, exec, has};

/// Runs dmsetup and compares its output.
macro_rules! says {
    ($place:expr, $($arg:expr),+ => $expected:expr) => {
        assert_eq!(dmsetup($place, &[$($arg),+]).ok(), $expected, "{:?}", [$($arg),+])
    };
}

#[test]
fn a_device_from_create_to_remove() {
    if !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let disk = place.file("disk.img", 8 << 20);
    let table = format!("0 8192 linear {disk} 0");
    says!(&place, "create", "a", "-u", "UUID-a", "--table", &table => "");
    says!(&place, "table" => format!("a: {table}\n"));
    says!(&place, "status" => "a: 0 8192 linear \n");
    says!(&place, "create", "b", "--table", "0 4096 linear /dev/mapper/a 0" => "");
    says!(&place, "ls" => "a\t(254:0)\nb\t(254:1)\n");
    says!(&place, "ls", "--tree" => "b (254:1)\n `-a (254:0)\n");
    says!(&place, "deps", "b" => "1 dependencies\t: (254, 0)\n");
    says!(&place, "deps", "-o", "devname", "b" => "1 dependencies\t: (a)\n");
    says!(&place, "deps", "-o", "blkdevname", "b" => "1 dependencies\t: (dm-0)\n");
    says!(&place, "info", "-c", "--noheadings", "-o", "name,uuid,major,minor,attr,open,segments"
        => "a:UUID-a:254:0:L--w:1:1\nb::254:1:L--w:0:1\n");
    says!(&place, "info", "-c", "--noheadings", "-o", "read_ahead,blkdevname,blkdevs_used", "b"
        => "256:dm-1:dm-0\n");
    // By uuid, by number, and by the node that looks as if it were there.
    for key in [&["-u", "UUID-a"][..], &["-j", "254", "-m", "0"], &["/dev/mapper/a"]] {
        let args: Vec<&str> = ["info", "-c", "--noheadings", "-o", "name"].to_vec();
        let args: Vec<&str> = args.iter().chain(key).copied().collect();
        assert_eq!(dmsetup(&place, &args).ok(), "a\n", "{key:?}");
    }
    says!(&place, "load", "b", "--table", "0 16 error" => "");
    says!(&place, "table", "--inactive", "b" => "0 16 error \n");
    says!(&place, "info", "-c", "--noheadings", "-o", "attr", "b" => "LI-w\n");
    says!(&place, "clear", "b" => "");
    says!(&place, "info", "-c", "--noheadings", "-o", "attr", "b" => "L--w\n");
    says!(&place, "wipe_table", "b" => "");
    says!(&place, "table", "b" => "0 4096 error \n");
    says!(&place, "remove", "--retry", "b" => "");
    says!(&place, "remove", "--force", "a" => "");
    says!(&place, "ls" => "No devices found\n");
}

#[test]
fn suspends_with_all_flags_renames_messages_and_waits() {
    if !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    says!(&place, "create", "a", "--table", "0 8 zero" => "");
    let state = || dmsetup(&place, &["info", "-c", "--noheadings", "-o", "suspended", "a"]).ok();
    for flags in [&[][..], &["--noflush"], &["--nolockfs"], &["--noflush", "--nolockfs"]] {
        let args: Vec<&str> = ["suspend", "a"].iter().chain(flags).copied().collect();
        assert_eq!(dmsetup(&place, &args).ok(), "");
        assert_eq!(state(), "Suspended\n", "{flags:?}");
        assert_eq!(dmsetup(&place, &args).ok(), "", "again is no error");
        let args: Vec<&str> = ["resume", "a"].iter().chain(flags).copied().collect();
        assert_eq!(dmsetup(&place, &args).ok(), "");
        assert_eq!(state(), "Active\n", "{flags:?}");
    }
    let event_nr =
        |name| dmsetup(&place, &["info", "-c", "--noheadings", "-o", "events", name]).ok();
    says!(&place, "rename", "a", "b" => "");
    says!(&place, "rename", "b", "--setuuid", "U" => "");
    assert_eq!(event_nr("b"), "2\n");
    // An event that has been is no wait.
    says!(&place, "wait", "b", "1" => "");
    let waiting = exec(&place, &["dmsetup", "wait", "b", "2"]).spawn().expect("started");
    says!(&place, "rename", "b", "c" => "");
    let waited = waiting.wait_with_output().expect("ended");
    // It found the device before the rename, or has not found it after.
    assert!(matches!(waited.status.code(), Some(0 | 1)), "{waited:?}");
    assert_eq!(event_nr("c"), "3\n");
    let unknown = dmsetup(&place, &["message", "c", "0", "hello", "you"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.contains("failed: Invalid argument"), "{}", unknown.err);
    says!(&place, "setgeometry", "c", "1", "2", "3", "0" => "");
}

#[test]
fn removals_of_open_devices_and_of_all() {
    if !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    says!(&place, "create", "a", "--table", "0 8 zero" => "");
    says!(&place, "create", "b", "--table", "0 8 linear /dev/mapper/a 0" => "");
    let busy = dmsetup(&place, &["remove", "a"]);
    assert_eq!(busy.code, Some(1));
    assert!(busy.err.contains("failed: Device or resource busy"), "{}", busy.err);
    says!(&place, "remove", "--deferred", "a" => "");
    let deferred = || dmsetup(&place, &["info", "a"]).ok().contains("DEFERRED REMOVE");
    assert!(deferred());
    says!(&place, "message", "a", "0", "@cancel_deferred_remove" => "");
    assert!(!deferred());
    says!(&place, "remove", "--deferred", "a" => "");
    says!(&place, "remove", "b" => "");
    says!(&place, "ls" => "No devices found\n");
    says!(&place, "create", "--concise", "d,,,rw,0 8 zero;e,E,,ro,0 8 error,8 8 zero" => "");
    says!(&place, "table", "--concise" => "d,,0,rw,0 8 zero ;e,E,1,ro,0 8 error ,8 8 zero \n");
    says!(&place, "remove_all" => "");
    says!(&place, "ls" => "No devices found\n");
}

#[test]
fn versions_targets_and_what_needs_no_device() {
    if !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    assert!(dmsetup(&place, &["version"]).ok().ends_with("Driver version:    4.50.0\n"));
    let targets = dmsetup(&place, &["targets"]).ok();
    assert!(targets.contains("linear           v1.5.0\n"), "{targets}");
    says!(&place, "target-version", "zero" => "zero             v1.2.0\n");
    says!(&place, "splitname", "--noheadings", "vg-lv", "LVM" => "vg:lv:\n");
    says!(&place, "create", "a", "--table", "0 8 zero" => "");
    says!(&place, "mknodes" => "");
    says!(&place, "ls", "--target", "zero" => "a\t(254, 0)\n");
    says!(&place, "ls", "--target", "linear" => "");
}

#[test]
fn refusals_have_the_kernels_errno_and_our_reason() {
    if !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let fails = |args: &[&str], words: &str| {
        let ran = dmsetup(&place, args);
        assert_eq!(ran.code, Some(1), "{args:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(words), "{args:?}: {}", ran.err);
    };
    fails(&["create", "a", "--table", "0 8 nothing"], "reload ioctl on a (254:0) failed: Invalid");
    fails(&["create", "a", "--table", "0 8 zero\n9 8 zero"], "failed: Invalid argument");
    fails(&["create", "a", "--table", "0 8 linear /no/file 0"], "No such file or directory");
    fails(&["remove", "a"], "No such device or address");
    says!(&place, "create", "a", "--table", "0 8 zero" => "");
    fails(&["create", "a", "--table", "0 8 zero"], "Device or resource busy");
    fails(&["rename", "a", "a"], "");
    says!(&place, "create", "n", "--notable" => "");
    fails(&["message", "n", "0", "x"], "Invalid argument");
    says!(&place, "table", "n" => "\n");
    let explained = exec(&place, &["dmsetup", "create", "x", "--table", "0 8 zer"])
        .env("UDM_EXPLAIN", "1")
        .output()
        .expect("ran");
    let words = String::from_utf8(explained.stderr).expect("text");
    assert!(words.contains("udm: line 1, field 3: ") && words.contains("zero"), "{words}");
}

#[test]
fn a_missing_daemon_or_library_is_told_in_our_words() {
    let place = Place::new();
    let none = exec(&place, &["true"]).output().expect("ran");
    let words = String::from_utf8(none.stderr).expect("text");
    assert!(words.contains("[UDM-0404]"), "{words}");
    let _daemon = place.daemon(&[]);
    let none = exec(&place, &["true"]).env("UDM_PRELOAD", "/no/lib.so").output().expect("ran");
    let words = String::from_utf8(none.stderr).expect("text");
    assert!(words.contains("[UDM-0407]"), "{words}");
    let code = exec(&place, &["sh", "-c", "exit 7"]).status().expect("ran").code();
    assert_eq!(code, Some(7));
    let missing = exec(&place, &["/no/program"]).output().expect("ran");
    assert_eq!(missing.status.code(), Some(1));
}
