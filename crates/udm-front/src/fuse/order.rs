//! What the control side of a mount and its servers tell each other, and what they serve.
//!
//! The control side is a thread of the daemon that may block; servers are actors and never do. It
//! sends a [`MountCall`] and hears [`MountEvent`]s, which are told on a lane.

use std::fmt;
use udm_types::DeviceId;

/// What to serve.
#[derive(Clone, Debug)]
pub struct Served {
    /// Tells the mount from others of this daemon.
    pub mount: u64,
    /// The device.
    pub device: DeviceId,
    /// Refuse every change.
    pub read_only: bool,
    /// Whose file it is.
    pub uid: u32,
    /// Of which group.
    pub gid: u32,
    /// When it was mounted, in seconds since 1970.
    pub since_s: u64,
    /// The kernel's queues of a connection, if requests may come through the lanes' rings.
    pub ring_queues: Option<u16>,
}

/// What happens to a mount, for its control side. Told on the lane: do not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountEvent {
    /// The handshake is over.
    Ready {
        /// Requests come through the rings of the lanes, not by reads of `/dev/fuse`.
        by_ring: bool,
    },
    /// The kernel speaks another protocol.
    Refused,
    /// The rings were switched off during the handshake; requests come by reads.
    RingsRefused,
    /// The device has another size; who asks for it gets the new one.
    Resized,
    /// Nothing is under way any more, but the kernel has our memory: abort the connection.
    Abort,
    /// Nothing is served any more: unmounted, aborted, or stopped.
    Ended,
}

/// What the control side tells a server; send it as the message of a `LaneMessage::ToActor`.
#[derive(Debug)]
pub struct MountCall {
    /// Which mount is meant; an actor's number may belong to another one when this arrives.
    pub mount: u64,
    /// What.
    pub order: MountOrder,
}

/// What the control side wants.
pub enum MountOrder {
    /// End. For the home.
    Stop {
        /// At once, instead of answering what is under way.
        cut: bool,
        /// Called on the lane when `/dev/fuse` is closed on all lanes.
        done: Box<dyn FnOnce() + Send>,
    },
    /// Asks how often the file was opened on this lane, less how often it was closed.
    Count(Box<dyn FnOnce(i32) + Send>),
    /// The connection has been aborted, or cannot be: end, whatever is under way. For the home.
    Close,
}

impl fmt::Debug for MountOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountOrder::Stop { cut, .. } => write!(f, "Stop(cut: {cut})"),
            MountOrder::Count(_) => f.write_str("Count"),
            MountOrder::Close => f.write_str("Close"),
        }
    }
}
