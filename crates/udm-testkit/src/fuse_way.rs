//! By which way the requests of a FUSE mount come: reads of `/dev/fuse`, or the lanes' rings.
//!
//! The kernel decides by a switch for the whole machine when a mount begins. So that tests can be
//! about either, each holds the switch from before its mount until after the handshake; the file
//! itself is the lock between them.

use std::cell::Cell;
use std::fs::{File, read_to_string, write};

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Reads of `/dev/fuse`.
    Reads,
    /// The lanes' rings.
    Rings,
}

impl Way {
    /// The word of `udm exports`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Way::Reads => "read",
            Way::Rings => "io_uring",
        }
    }
}

thread_local! {
    /// That of the test on this thread.
    static WAY: Cell<Way> = const { Cell::new(Way::Reads) };
}

/// That of this test.
pub fn way() -> Way {
    WAY.get()
}

/// Runs a test over rings, if the kernel has them; else says so.
pub fn over_rings(test: impl FnOnce()) {
    if File::open(SWITCH).is_err() {
        eprintln!("not checked: FUSE over io_uring needs Linux 6.14 with it built in");
        return;
    }
    WAY.set(Way::Rings);
    test();
    WAY.set(Way::Reads);
}

/// Mounts that begin while this lives go this test's way; then the switch is as it was.
#[derive(Debug)]
pub struct Held {
    was: String,
    _lock: File,
}

/// Puts the switch where this test wants it. Nothing is held where there is no switch.
///
/// # Panics
/// If it may not: such tests are root's, as mounting is.
#[must_use]
pub fn hold_way() -> Option<Held> {
    let lock = File::open(SWITCH).ok()?;
    lock.lock().expect("locked");
    let was = read_to_string(SWITCH).expect("readable");
    let wanted = if way() == Way::Rings { "Y" } else { "N" };
    if was.trim() != wanted {
        write(SWITCH, wanted).expect("root may");
    }
    Some(Held { was, _lock: lock })
}

impl Drop for Held {
    fn drop(&mut self) {
        let is = read_to_string(SWITCH).expect("readable");
        if is != self.was {
            write(SWITCH, self.was.trim()).expect("root may");
        }
    }
}
