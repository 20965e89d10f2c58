//! libdevmapper's own status parsers on the status lines we print.
//!
//! It has them (`dm_get_status_*`) for mirror, snapshot, thin, thin-pool, cache and raid, none of
//! which there is here yet; for the targets there are, this walks the status with
//! `dm_get_next_target`, as every program on libdevmapper does. A target that gets a parser's type
//! is tested by being added to `TARGETS`.

use crate::common::Place;
use crate::{dmsetup, exec, has};
use std::path::Path;
use std::process::Command;

/// Type and arguments; DISK is a file.
const TARGETS: [&str; 7] = [
    "linear DISK 0",
    "striped 1 8 DISK 0",
    "zero",
    "error",
    "delay DISK 0 1",
    "flakey DISK 0 1 0",
    "multipath 0 0 1 1 round-robin 0 1 1 DISK 1",
];
const HEADER: &str = "/usr/include/libdevmapper.h";

#[test]
fn libdevmapper_reads_every_status() {
    if !has("dmsetup") || !has("cc") {
        return;
    }
    if !Path::new(HEADER).is_file() {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!ci, "{HEADER} is missing, and CI=true asks for it");
        println!("{HEADER} (libdevmapper-dev) is missing; status parsers are not tested");
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let disk = place.file("disk", 1 << 20);
    let program = place.text("parsers");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exec/parsers.c");
    let built =
        Command::new("cc").args(["-o", &program, source, "-ldevmapper"]).status().expect("cc");
    assert!(built.success());
    let (mut arguments, mut expected) = (vec![program.as_str()], String::new());
    for target in TARGETS {
        let kind = target.split(' ').next().expect("a type");
        let table = format!("0 64 {}", target.replace("DISK", &disk));
        dmsetup(&place, &["create", kind, "--table", &table]).ok();
        arguments.push(kind);
        expected += &format!("{kind} 0 64 {kind} has no parser\n");
    }
    let table = "0 8 zero\n8 8 error\n";
    dmsetup(&place, &["create", "two", "--table", table]).ok();
    arguments.push("two");
    expected += "two 0 8 zero has no parser\ntwo 8 8 error has no parser\n";
    let ran = exec(&place, &arguments).output().expect("ran");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), expected);
    assert!(ran.status.success());
    let ran = exec(&place, &[&program, "self-test"]).output().expect("ran");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "1 0\n", "the parsers parse");
}
