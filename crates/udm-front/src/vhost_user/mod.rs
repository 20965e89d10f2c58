//! The vhost-user-blk front end: a mapped device as the virtio disk of a virtual machine.
//!
//! ```text
//!  front-end (QEMU)                 control thread                   lanes
//!  socket: messages, descriptors -> wire -> session (state)  ------> queue actor: ring, requests
//!  guest memory, rings <------------ mapped once ------------------> read and written in place
//!  kick eventfd -----------------------------------------------------> watched by the driver
//!  call eventfd <----------------------------------------------------- rung by the driver
//! ```
//!
//! - [`wire`]: every number and structure of the protocol, bytes to messages and back.
//! - [`session`]: the state of a connection; decides what a message does.
//! - [`config`]: features and configuration space from queue limits.
//! - [`memory`], [`ring`], [`request`], [`inflight`]: what lies in the guest's memory.
//! - [`queue`]: one virtqueue on a lane, an actor. [`server`]: the socket's thread, `link` its
//!   messages; [`changes`]: tells the client of resizes.
//! - [`fuzz`]: one entry that drives all of that with hostile messages and memory.
//!
//! Nothing that a client or a guest says is trusted; what contradicts itself is a
//! [`breach::Breach`], which ends the connection and nothing else.

pub mod breach;
pub mod changes;
pub mod config;
pub mod fuzz;
pub mod inflight;
mod link;
pub mod memory;
pub mod queue;
pub mod request;
pub mod ring;
pub mod server;
pub mod session;
pub mod wire;
