//! udm: a device mapper in user space.
//!
//! This crate names everything together: the running engine (`runtime`), measurements (`bench`), and
//! the command line. A Rust program that wants mapped devices without a daemon starts a
//! [`runtime::Runtime`].
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "being filled in")]

pub mod bench;
pub mod runtime;
