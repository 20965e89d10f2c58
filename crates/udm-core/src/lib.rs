//! The engine: tables, mapped devices, gates, dispatch, barriers, the target contract and the
//! life cycle.
//!
//! Read `bio.rs` (what travels), `target.rs` (the contract of a target), then `engine/` (a lane at
//! work) and `lifecycle/` (create, load, suspend, resume, remove as one state machine).
//!
//! The engine is deterministic: clock, timers, randomness, I/O and wake-ups reach it only through
//! the lane's driver. It takes no locks; each device has one gate per lane, and everything that
//! changes a device is a round of messages to all lanes.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod actor;
mod async_io;
pub mod bio;
pub mod engine;
pub mod error;
pub mod fuzz;
pub mod lifecycle;
pub mod lower;
pub mod table;
pub mod target;
mod target_cx;

pub use actor::{Actor, ActorCx};
pub use async_io::{AsyncIo, IoFuture};
pub use bio::{Bio, BioBox, Dest, MAX_STACK_DEPTH};
pub use engine::{Engine, EngineConfig, LaneMessage};
pub use error::{ErrorCode, ErrorKind, UserError};
pub use lower::{LinkState, LowerBench, LowerCx, LowerDevice, LowerLane, LowerRef};
pub use table::{DeviceRef, DeviceResolver, Registry, Table, TableLine};
pub use target::{Ended, MapMode, Mapped, Preresume, Target, TargetConfig, TargetCx, TargetType};
