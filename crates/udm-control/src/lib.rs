//! The control side: how people and programs tell a daemon what to do, and how it answers.
//!
//! The wire is varlink: JSON objects ended by a NUL byte on a unix stream socket (`wire.rs`). The
//! interface `org.udm.control` is published in docs/formats and embedded here; `api/` holds one
//! Rust type for each of its methods. `server.rs` and `connection.rs` serve it, `client.rs` asks,
//! `dispatch.rs` maps a call onto the life cycle's requests through the [`ControlOps`] trait.
//! `render/` turns answers into the exact text of dmsetup; `ioctl/` is the kernel's own interface,
//! for programs that the preload library connects to a daemon.
//!
//! Nothing here knows how a device works, and nothing here may block a lane. The wire format is our
//! own few hundred lines on purpose: the varlink crates want an async runtime, and this path sees a
//! few calls a second.
//!
//! The tricky case is the caller that goes away while it waits: its request is cancelled by ticket,
//! so that a suspend nobody waits for any more does not keep a device half suspended.
#![forbid(unsafe_code)]

pub mod api;
pub mod base64;
pub mod client;
mod connection;
mod dispatch;
pub mod errno;
pub mod fuzz;
pub mod ioctl;
pub mod ops;
pub mod place;
pub mod render;
pub mod server;
pub mod wire;

pub use client::Client;
pub use ops::ControlOps;
pub use server::Server;
/// The major number of mapped devices.
pub use udm_core::lifecycle::DM_MAJOR;

/// The published interface, as `GetInterfaceDescription` returns it.
pub const INTERFACE_TEXT: &str = include_str!("../../../docs/formats/org.udm.control.varlink");
/// Name of the interface.
pub const INTERFACE: &str = "org.udm.control";
/// Version of the interface; the first number changes when a caller of the old one would break.
pub const INTERFACE_VERSION: &str = "1.0";
/// The dm ioctl interface whose behaviour udm keeps, as `dmsetup version` shows it.
pub const DRIVER_VERSION: &str = "4.50.0";
