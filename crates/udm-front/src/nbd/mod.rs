//! The NBD server front end.
//!
//! The life of a connection, and the file each part lives in:
//!
//! ```text
//! greeting ─▶ negotiate ───────────────▶ session ──▶ end
//!             options, export chosen     requests → Command → (engine) → reply
//! ```
//!
//! - [`wire`]: every number and fixed structure of the protocol, nothing else.
//! - [`export`]: what a client may connect to; flags and block sizes derived from queue limits.
//! - [`negotiate`]: the handshake as a state machine.
//! - [`session`]: received bytes to checked commands.
//! - [`reply`]: the bytes of each reply, in the three header styles.
//! - [`fuzz`]: one entry that drives all of it with hostile bytes.
//!
//! What a client sends is never trusted: a length decides about memory only after it was compared
//! with a bound, and a broken stream ends this connection and nothing else. The reference for the
//! bytes is `docs/formats/nbd.md`.

pub mod export;
pub mod fuzz;
pub mod negotiate;
pub mod reply;
pub mod session;
pub mod wire;
