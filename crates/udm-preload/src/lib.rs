//! The device mapper of a daemon for a process that knows only the kernel's.
//!
//! `udm exec -- dmsetup ls` starts a program with this library in `LD_PRELOAD` and the daemon's
//! socket in `UDM_SOCKET`. The functions here stand before the C library's of the same name: what
//! concerns `/dev/mapper`, the device mapper's lines in `/proc` and its devices below
//! `/sys/dev/block` is answered here, everything else goes on to the next function of that name.
//!
//! `exports.rs` has the functions, `next.rs` finds those they stand before, `place.rs` says which
//! paths are ours, `files.rs` what is in them, `blocks.rs` what a block device would say, and
//! `control.rs` carries ioctls to the daemon.
//!
//! Rules: no state in this process, no lock, no thread: each ioctl is a connection of its own, and
//! the descriptor that stands for `/dev/mapper/control` is known by the address it is bound to. So
//! `fork`, `dup`, `exec` and signals need no care. Nothing panics across the border to C.
//!
//! The tricky case is calling the C library from in here: its `open` is ours. What this library
//! opens for itself it opens with system calls (rustix), never through those names.

mod blocks;
mod control;
mod exports;
mod files;
mod next;
mod place;
