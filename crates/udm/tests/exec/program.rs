//! A program of its own on the control node: poll, copies of the descriptor, signals.

use crate::common::Place;
use crate::{exec, has};
use std::process::Command;

const EXPECTED: &str = "stat: 0 10:236
too new: Invalid argument
version: 4.50
other ioctl: -1
at first: quiet
create: ok
after an event: readable
still: readable
arm: ok
armed: quiet
child: ok
after the child: readable
arm: ok
armed: quiet
wait: Interrupted system call
status: ok
null: Bad address
no table: -1 No such file or directory
load: ok
node: 0 254:0 block 1
open: -1 No such device or address
remove: ok
again: No such device or address
wiped: 1
all: ok
gone: -1 No such file or directory
";

#[test]
fn poll_copies_and_signals_are_as_on_the_kernels_node() {
    if !has("cc") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let program = place.text("program");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exec/program.c");
    let built = Command::new("cc").args(["-o", &program, source]).status().expect("cc");
    assert!(built.success());
    let ran = exec(&place, &[&program]).output().expect("ran");
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), EXPECTED);
}
