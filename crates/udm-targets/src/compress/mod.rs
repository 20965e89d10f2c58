//! The compress target: a crash-consistent log of compressed records with a two-slot map.
//!
//! | module | holds |
//! |---|---|
//! | [`codec`] | compressing and decompressing one extent |
//! | [`format`] | what lies on the disk, both ways between bytes and values |
//! | [`tools`] | format, check and the other offline tools |
//! | [`volume`] | the volume at work, without any I/O of its own |
//!
//! Rules. No part of it believes bytes from a disk: they become values in [`format`] only. The
//! tricky case is everything that a power cut can leave behind; the order of writes that makes it
//! harmless is in docs/formats/compress.md.

pub mod codec;
pub mod format;
pub mod fuzz;
pub mod tools;
pub mod volume;
