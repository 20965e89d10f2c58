//! One connection of a lane: its socket, its buffers, and how it stands.
//!
//! Holds no logic beyond that; `lane` and `link` move it along.
//!
//! ```text
//! Down --attempt--> Greeting --agreed--> Up --no table left--> Leaving
//!   ^                  |                  |                       |
//!   +------ failed, too late, broken, timed out, said good-bye ---+
//! ```
//!
//! Every operation carries the number of the connection and of its *epoch*, which changes when the
//! socket is closed. So the end of an operation of a former socket is known for what it is, and its
//! bytes never reach the new one.

use super::handshake::Handshake;
use super::inbox::Inbox;
use super::outbox::Outbox;
use super::replies::Replies;
use super::wire::HeaderStyle;
use udm_lane::Handle;
use udm_types::Nanos;

/// Requests of one connection on their way at once: far beyond what servers work on at a time, and
/// what bounds its buffers.
pub(super) const IN_FLIGHT_MAX: u32 = 256;

/// Bits of an operation's word for its kind.
const KIND_BITS: u32 = 2;
/// Bits for the connection's number.
const NUMBER_BITS: u32 = 6;
/// The epoch takes the rest and wraps: four million reconnects.
const EPOCH_MASK: u32 = u32::MAX >> (KIND_BITS + NUMBER_BITS);

/// What an operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpKind {
    /// A receive into the inbox.
    Recv,
    /// A receive into a bio's memory.
    RecvDirect,
    /// A send.
    Send,
}

/// How a connection stands.
#[derive(Debug)]
pub(super) enum Link {
    /// Not there; the next attempt is due at this time, or nobody wants it.
    Down(Option<Nanos>),
    /// Connecting, or shaking hands; both have to be over by then.
    Greeting {
        /// The socket.
        handle: Handle,
        /// The machine.
        handshake: Box<Handshake>,
        /// When to give up.
        until: Nanos,
    },
    /// Requests are answered.
    Up {
        /// The socket.
        handle: Handle,
        /// The reply stream.
        replies: Replies,
        /// How heads look.
        style: HeaderStyle,
    },
    /// The good-bye is being sent.
    Leaving(Handle),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its number on the lane.
    pub(super) number: u16,
    epoch: u32,
    /// How it stands.
    pub(super) link: Link,
    /// What has been received.
    pub(super) inbox: Inbox,
    /// What is to be sent.
    pub(super) outbox: Outbox,
    /// A receive is under way.
    pub(super) is_receiving: bool,
    /// Requests on their way.
    pub(super) in_flight: u32,
    /// Reads among them.
    pub(super) reads: u32,
    /// What these reads will bring.
    pub(super) read_bytes: u64,
    /// The timer for the oldest request is set to this.
    pub(super) io_timer: Option<Nanos>,
    /// Attempts that failed since a request was answered.
    pub(super) failures: u32,
    /// A request was answered since it is up.
    pub(super) has_answered: bool,
    /// When it came up.
    pub(super) up_since: Nanos,
    /// Attempts ever; chooses the address.
    pub(super) attempts: u32,
}

impl Connection {
    /// A connection that nobody has tried yet.
    pub(super) fn new(number: u16) -> Connection {
        Connection {
            number,
            epoch: 0,
            link: Link::Down(None),
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            is_receiving: false,
            in_flight: 0,
            reads: 0,
            read_bytes: 0,
            io_timer: None,
            failures: 0,
            has_answered: false,
            up_since: Nanos::ZERO,
            attempts: 0,
        }
    }

    /// The word for an operation of this socket.
    #[inline]
    pub(super) fn user(&self, kind: OpKind) -> u32 {
        let kind = match kind {
            OpKind::Recv => 0,
            OpKind::RecvDirect => 1,
            OpKind::Send => 2,
        };
        self.epoch << (KIND_BITS + NUMBER_BITS) | u32::from(self.number) << KIND_BITS | kind
    }

    /// Which connection an operation's word names.
    #[inline]
    pub(super) fn number_of(user: u32) -> usize {
        (user >> KIND_BITS & ((1 << NUMBER_BITS) - 1)) as usize
    }

    /// What an operation was, if it belongs to the socket of now.
    #[inline]
    pub(super) fn kind_of(&self, user: u32) -> Option<OpKind> {
        if user >> (KIND_BITS + NUMBER_BITS) != self.epoch {
            return None;
        }
        match user & ((1 << KIND_BITS) - 1) {
            0 => Some(OpKind::Recv),
            1 => Some(OpKind::RecvDirect),
            _ => Some(OpKind::Send),
        }
    }

    /// True if requests can be sent.
    #[inline]
    pub(super) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// The socket, if there is one.
    pub(super) fn handle(&self) -> Option<Handle> {
        match &self.link {
            Link::Down(_) => None,
            Link::Greeting { handle, .. } | Link::Up { handle, .. } | Link::Leaving(handle) => {
                Some(*handle)
            }
        }
    }

    /// The socket is closed: what is under way on it belongs to the past.
    pub(super) fn forget_socket(&mut self) -> Option<Handle> {
        let handle = self.handle()?;
        self.link = Link::Down(None);
        self.epoch = (self.epoch + 1) & EPOCH_MASK;
        self.inbox.reset();
        self.outbox.reset();
        self.is_receiving = false;
        self.has_answered = false;
        (self.in_flight, self.reads, self.read_bytes) = (0, 0, 0);
        Some(handle)
    }
}
