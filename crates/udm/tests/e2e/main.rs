//! End to end: the real binary, and the clients people use.
//!
//! A folder of modules in one test binary, so that it links once. Each module is a group of points
//! of `docs/internals/acceptance.md`. A tool that is missing (fio, nbdinfo, ...) makes its test say
//! so and pass, except with `CI=true`, where it fails.
//!
//! Tests wait for an answer, a line of output or a counter, never for time to pass. Everything is
//! in temporary directories; every program started is ended by its handle.

#[path = "../common/mod.rs"]
mod common;

mod activation;
#[path = "../../../udm-front/tests/nbd/certs.rs"]
mod certs;
mod clients;
mod crash;
mod deadline;
mod durable;
mod full_disk;
mod fuse;
mod idle;
mod lanes;
mod nbd;
mod nbd_below;
mod outside;
mod papers;
mod punched;
mod resize;
mod rude;
mod start;
mod swaps;
mod tls;
mod ublk;
mod verified;
mod vhost_user;
