//! The compress target: a crash-consistent log of compressed records with a two-slot map.
//!
//! | module | holds |
//! |---|---|
//! | [`format`] | what lies on the disk, both ways between bytes and values |
//! | [`tools`] | format, check and the other offline tools |
//!
//! Rules. No part of it believes bytes from a disk: they become values in [`format`] only. The
//! tricky case is everything that a power cut can leave behind; the order of writes that makes it
//! harmless is in docs/formats/compress.md.

pub mod format;
pub mod tools;
