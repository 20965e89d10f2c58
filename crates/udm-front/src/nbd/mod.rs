//! The NBD server front end.
//!
//! The life of a connection, and the file each part lives in:
//!
//! ```text
//! greeting --> negotiate ------------> session --------------------------------> end
//!              options, export chosen  request -> Command -> (engine) -> reply
//! ```
//!
//! - [`wire`]: every number and fixed structure of the protocol, nothing else.
//! - [`export`]: what a client may connect to; flags and block sizes derived from queue limits.
//! - [`negotiate`]: the handshake as a state machine.
//! - [`session`]: received bytes to checked commands.
//! - [`reply`]: the bytes of each reply, in the three header styles.
//! - [`fuzz`]: one entry that drives all of that with hostile bytes.
//! - [`tls`]: what is between the socket and all that, if the client asked for it.
//! - [`server`]: the listener, an actor; `connection`: one client, an actor. `inbox`, `outbox` and
//!   `requests` are the connection's memory: what was received, what is sent, what is under way.
//!
//! What a client sends is never trusted: a length decides about memory only after it was compared
//! with a bound, and a broken stream ends this connection and nothing else. The reference for the
//! bytes is `docs/formats/nbd.md`.

mod connection;
mod descriptor;
pub mod export;
pub mod fuzz;
mod inbox;
pub mod negotiate;
mod outbox;
pub mod reply;
mod requests;
pub mod server;
pub mod session;
pub mod tls;
pub mod wire;
