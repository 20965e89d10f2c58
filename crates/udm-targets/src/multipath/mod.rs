//! `multipath`: several ways to one device, in priority groups; I/O survives the loss of a way.
//!
//! | file | holds |
//! |---|---|
//! | `table.rs`, `config.rs` | the table line; what all lanes share |
//! | `map.rs` | the work on a lane: map, end_io, hooks |
//! | `group.rs`, `selectors/` | a lane's groups and paths; which path the next I/O takes |
//! | `queue.rs` | bios that wait for a path |
//! | `home.rs` | one truth for all lanes: the home lane, its notes, the time limit |
//! | `message.rs` | messages that change something |
//! | `counters.rs` | where each number stands among the counters |
//! | `status.rs`, `report.rs`, `explain.rs` | the texts made of them |
//!
//! It is written to the behaviour of Linux's multipath 1.15.0: grammar, messages, status, which
//! errors fail a path, what a suspend does with what waits. What differs on purpose is in the
//! manual.
//!
//! The tricky case is that there is no shared memory: each lane decides on its own copy of the path
//! states, and yet a failure is counted once and a reinstate is never lost; see `home.rs`.
//!
//! Manual: docs/targets/multipath.md.

mod config;
mod counters;
mod explain;
mod group;
mod home;
mod map;
mod message;
mod queue;
mod report;
mod selectors;
mod status;
mod table;

use alloc::boxed::Box;
use udm_core::table::{Args, BuildCx};
use udm_core::target::{TargetConfig, TypeFeatures};
use udm_core::{TargetType, UserError};

/// The `multipath` target type.
pub(crate) struct MultipathType;

impl TargetType for MultipathType {
    fn name(&self) -> &'static str {
        "multipath"
    }

    fn version(&self) -> [u32; 3] {
        [1, 15, 0]
    }

    fn features(&self) -> TypeFeatures {
        TypeFeatures { singleton: true, immutable: true, ..TypeFeatures::default() }
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        Ok(Box::new(table::parse(args, cx)?))
    }
}
