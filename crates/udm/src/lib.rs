//! udm: a device mapper in user space.
//!
//! This crate names everything together: the running engine (`runtime`), the daemon that serves it
//! to others (`daemon`), devices from a file (`up`) or for one command (`run`), commands that know
//! only the kernel's device mapper (`exec`), measurements
//! (`bench`), the tools of compress volumes (`compress`), and the command line (`cli`). A Rust
//! program that wants mapped devices without a daemon starts a [`runtime::Runtime`].
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod compress;
pub mod daemon;
pub mod demo;
mod exec;
mod open_files;
pub mod paths;
mod privileges;
pub mod run;
pub mod runtime;
mod signals;
pub mod up;
