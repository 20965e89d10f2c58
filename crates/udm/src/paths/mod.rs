//! The part that multipathd plays: path checkers, failback, marginal paths, a bound on queueing.
//!
//! | file | holds |
//! |---|---|
//! | `config.rs` | the words of a policy and what they mean |
//! | `view.rs` | what the target says of itself, read from its `status` and `table` lines |
//! | `policy/` | the decisions: pure, with the time as an argument |
//! | `checker.rs` | the I/O of checks, an actor on a lane |
//! | `watch.rs` | the thread that brings these together, and sends the messages |
//! | `report.rs` | the rows of `udm paths` |
//!
//! The target does without all of this: it fails paths by itself and never brings one back. What is
//! here acts on it only as anybody could, by `udm message`, so the kernel's behaviour is what a
//! table shows until somebody asks for checks.

mod checker;
pub mod config;
pub mod policy;
mod report;
pub mod view;
mod watch;

pub use config::Policy;
pub(crate) use report::{devices, paths};
pub use watch::{PathNote, PathNotes, PathWatch};
