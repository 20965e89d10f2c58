//! The real drivers of a lane, and everything else that meets the operating system for it.
//!
//! [`open_driver`] gives a lane its [`udm_lane::Driver`]: io_uring, or where that is refused a
//! portable one (epoll and a few threads), with a line that says which and why. Around it:
//! opening lower files and devices, sockets, shared mappings (our own and those of clients), lane
//! threads, clocks.
//!
//! This crate knows no targets, tables or bios; it moves bytes. It is also where `unsafe` lives:
//! each block says why it is sound, and the rule they all rest on is that memory handed to the
//! kernel belongs to its operation until the kernel's last word about it.

mod calls;
mod clock;
mod errno;
mod error;
mod file_mapping;
mod fuse_clone;
mod handles;
mod inherited;
mod kernel_view;
mod open;
mod orphan;
mod portable;
mod probe;
mod shape;
mod shared_memory;
mod sockets;
mod threads;
mod ublk_control;
mod uring;
mod vectors;
mod wake;

pub use clock::{cpu_time_ns, monotonic_ns};
pub use errno::status_from_errno;
pub use error::DriverError;
pub use file_mapping::FileMapping;
pub use fuse_clone::clone_fuse;
pub use inherited::{ListensAt, inherited_listener};
pub use kernel_view::KernelView;
pub use open::{OpenOptions, OpenedFile, open_file};
pub use orphan::remove_orphan;
#[doc(hidden)]
pub use probe::open_oldest_uring;
pub use probe::{DriverChoice, DriverReport, open_driver};
pub use shared_memory::SharedMemory;
pub use sockets::{SOCKET_MODE_DEFAULT, begin_connect, listen_tcp, listen_unix, tune_connection};
pub use threads::{allowed_cpus, become_io_flusher, spawn_lane};
pub use ublk_control::{UblkControl, UblkOrder};
