//! Tables: text to lines, lines to targets, targets to a table that lanes can serve from.
//!
//! `text.rs` splits text into [`TableLine`]s and knows nothing of targets. `args.rs` walks the
//! words of a line with errors that name the field. `build.rs` runs the kernel's rules over the
//! lines, calls each target type, stacks limits and checks areas; its result is a [`Table`], which
//! is immutable and shared by all lanes. `registry.rs` lists the target types.
//!
//! A table never changes; a device changes by getting another one.

mod args;
mod build;
mod registry;
mod text;

pub use args::{Args, parse_size_sectors};
pub use build::{BuildCx, DeviceRef, DeviceResolver, FlushRoute, Table, TableBuilder, TableTarget};
pub use registry::Registry;
pub use text::{
    LINE_LEN_BYTES_MAX, TABLE_LEN_BYTES_MAX, TARGETS_MAX, TableLine, parse_table, split_words,
};
