//! Front ends: how clients reach a mapped device.
//!
//! One folder each. In every folder the protocol itself is pure code: bytes in, bytes and typed
//! commands out, no descriptor, no clock, no thread. That half is what the fuzzers and the
//! simulator drive. The other half runs as actors on a lane and moves the bytes.
//!
//! A front never decides what an operation *means*: it checks what its protocol demands, hands the
//! operation to the engine, and translates the engine's [`udm_types::Status`] into the protocol's
//! own error codes. No engine type knows an NBD number, and no other crate does either.
//!
//! `unsafe` is allowed in the files named `descriptor` only.
//!
//! | folder | protocol |
//! |---|---|
//! | [`fuse`] | FUSE, the device as one file, mounted |
//! | [`nbd`] | Network Block Device, fixed newstyle, unix sockets and TCP |
//! | [`vhost_user`] | vhost-user-blk: the disk of a virtual machine |
//! | [`ublk`] | ublk: a disk of this machine's kernel |
#![deny(unsafe_code)]

pub mod fuse;
pub mod lanes;
pub mod nbd;
pub mod ublk;
pub mod vhost_user;
