//! The life of mapped devices: create, load, suspend, resume, remove, as one state machine.
//!
//! The [`Coordinator`] lives on lane 0 and is plain state: requests, lane answers and timers go in,
//! commands for all lanes and answers to requests come out. It decides; the lanes do. Every face
//! (varlink, later the ioctl codec) and the simulator use it, so there is one set of rules.
//!
//! ```text
//!             load                     resume (swap)
//!   N --------------> I   A ---------------------------> A'
//!                             suspend: Suspend round, Postsuspend round
//!                             swap:    Bind round (preresume), Resume round
//! ```
//! Files: `request` (what can be asked), `coordinator` (the requests), `change` (suspend, resume
//! and remove, which take rounds), `remove_all`, `graph` (who stands on whom), `mode` (bio or
//! request), `device` (one device's state), `events` (the global event number),
//! `stats` (dm statistics).

mod change;
mod coordinator;
mod device;
mod events;
mod graph;
mod mode;
mod remove_all;
mod request;
mod stats;

pub use coordinator::Coordinator;
pub use device::DM_MAJOR;
pub use request::{
    DeviceKey, DeviceStatus, Gauges, Geometry, OnTimeout, Reply, ReplySink, Request, RequestGauges,
    StatusKind, StatusLine, SuspendOptions, SuspendStatus, Ticket,
};
