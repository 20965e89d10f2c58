//! Answers as text, to the letter as dmsetup prints them.
//!
//! Scripts match this text, so it is dmsetup 1.02.185's: headings, trailing spaces, the words of
//! errors. Pure functions from answers of the control interface to strings; the command line
//! prints them. Where udm has more to say than dmsetup (why a device is suspended, what an error
//! means), it comes after dmsetup's own lines, never between them.
//!
//! `lines.rs` tables and status, `long.rs` info, `columns.rs` info -c, `tree.rs` ls --tree,
//! `lists.rs` the short lists. The texts recorded from a real kernel are in the tests.

pub mod columns;
mod failure;
mod lines;
mod lists;
mod long;
mod tree;

pub use failure::{Subject, explained, failed_ioctl, usage_of_table};
pub use lines::{LineFilter, concise, lines};
pub use lists::{NameStyle, deps, ls, ls_of_type, targets, version};
pub use long::info;
pub use tree::{Node, TreeOptions, tree};

/// What dmsetup prints when it lists nothing.
pub const NO_DEVICES: &str = "No devices found\n";
/// What dmsetup prints to the error stream when info and status find no device.
pub const NO_SUCH_DEVICE: &str = "Device does not exist.\n";
/// The last line of every failure.
pub const COMMAND_FAILED: &str = "Command failed.\n";

#[cfg(test)]
mod tests;
