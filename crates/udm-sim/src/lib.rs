//! The deterministic world around the production engine: lanes, clock and disks under one seed.
//!
//! [`world::run`] makes a world from a [`world::Scenario`] and returns its [`world::Verdict`].
//! Start reading at `world.rs` (the loop and the two phases), then `volume.rs` and `changes.rs`
//! (what happens to devices), `load.rs` (who does I/O), `oracle/` (who judges). `driver.rs`,
//! `crash/` is another world: volumes with metadata of their own, crashed at every write.
//! `ops.rs` and `disk.rs` are the simulated hardware, `layout.rs` and `dress.rs` draw tables and
//! know what they mean.
//!
//! A world is a function of its seed: no clock, no threads, no hash order in here (`clippy.toml`
//! bans them). The engine, its mailboxes, executor, targets and the file lower device are the
//! production ones. docs/internals/simulator.md is the guide.
#![forbid(unsafe_code)]

mod changes;
mod control;
pub mod crash;
mod director;
mod disk;
mod dress;
mod driver;
mod hold;
mod lane_io;
mod layout;
mod load;
mod multi;
mod ops;
mod oracle;
mod paths;
mod pauses;
pub mod search;
pub mod selectors;
mod side;
mod state;
mod swarm;
mod tally;
mod trace;
mod value;
mod vault;
mod volume;
mod weather;
pub mod world;

pub use state::Canary;
pub use tally::Tally;
