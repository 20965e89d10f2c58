//! What a client can do that ends its connection.
//!
//! A breach is the client's bug or its attack: it concerns this connection and nothing else. What
//! a guest may merely ask in vain (a read past the end, an unknown request) is no breach; it is
//! answered with a status.

use std::fmt;

/// Why a connection was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// A message that cannot be understood, or not in this state.
    Message(&'static str),
    /// A memory table that is refused.
    Memory(&'static str),
    /// An address outside of the guest's memory.
    Address(u64),
    /// A ring that contradicts itself.
    Ring(&'static str),
    /// A chain of descriptors that cannot be a request.
    Chain(&'static str),
    /// An in-flight record that contradicts the ring.
    Inflight(&'static str),
    /// The operating system refused something.
    System(&'static str, i32),
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Breach::Message(what) => write!(f, "a message: {what}"),
            Breach::Memory(what) => write!(f, "memory: {what}"),
            Breach::Address(addr) => write!(f, "the address {addr:#x} is not the guest's memory"),
            Breach::Ring(what) => write!(f, "a ring: {what}"),
            Breach::Chain(what) => write!(f, "a chain of descriptors: {what}"),
            Breach::Inflight(what) => write!(f, "the in-flight record: {what}"),
            Breach::System(what, errno) => write!(f, "{what}: error {errno}"),
        }
    }
}

impl std::error::Error for Breach {}
