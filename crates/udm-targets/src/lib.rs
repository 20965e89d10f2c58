//! The target types of udm. `ls src` is the feature list.
//!
//! Each target has its folder with the same file names: `mod.rs` (the type: word, version,
//! features), `table.rs` (arguments in and out), `map.rs` (the work on a lane), and `status.rs`
//! where `status` prints something. A target never imports another; what at least three of them
//! need is in `leg.rs`.
//!
//! Rules. No clock, no I/O, no threads, no allocation on the mapping path: time and randomness come
//! in as values, so a simulated run can be repeated bit for bit. Every target has its page in
//! docs/targets and its line in `tests/conformance.rs`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod compress;
mod delay;
mod error;
mod flakey;
mod leg;
mod linear;
mod multipath;
mod striped;
mod zero;

use udm_core::{Registry, TargetType};

/// Every target type, in the order `targets` lists them.
pub fn all() -> [&'static dyn TargetType; 9] {
    [
        &compress::CompressType,
        &delay::DelayType,
        &error::ErrorType,
        &flakey::FlakeyType,
        &compress::InsituType,
        &linear::LinearType,
        &multipath::MultipathType,
        &striped::StripedType,
        &zero::ZeroType,
    ]
}

/// A registry of every target type.
pub fn registry() -> Registry {
    Registry::new(all())
}
