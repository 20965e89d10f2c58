//! The requests of one connection that are with the engine.
//!
//! A table of slots; a bio's tag is its slot's number, so a completion finds its request without a
//! search, and the client's cookie (which a hostile client may repeat) decides nothing.
//!
//! It also counts what bounds a connection: how many requests, and how many bytes of write payload
//! in memory of their own. A slot is used again at once when its request is answered; the table
//! grows to the deepest queue the client ever had and then allocates nothing.
//!
//! The tricky case is a request that takes two bios: a trim or write-zeroes that has to be durable
//! is followed by a flush. It keeps its slot and changes its [`Phase`].

use super::outbox::Place;
use super::reply::ReplyTo;

/// What a request's current bio does, and what its end needs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// Reads into a place of the outbox.
    Read(Place),
    /// Writes from the receive buffer.
    WriteInPlace,
    /// Writes from memory of its own.
    WriteOwned,
    /// Trims or zeroes.
    Change {
        /// A flush has to follow (FUA).
        then_flush: bool,
        /// The client asked for FAST_ZERO.
        fast_zero: bool,
    },
    /// Flushes.
    Flush,
}

/// A request with the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Whom to answer.
    pub(super) to: ReplyTo,
    /// Length of its range in bytes.
    pub(super) len_bytes: u64,
    /// Where it stands.
    pub(super) phase: Phase,
}

/// The requests of a connection that are with the engine.
#[derive(Debug, Default)]
pub(super) struct Requests {
    slots: Vec<Option<Request>>,
    free: Vec<u32>,
    owned_bytes: u64,
}

impl Requests {
    /// Keeps a request; gives the tag for its bio.
    #[inline]
    pub(super) fn insert(&mut self, request: Request) -> u64 {
        if let Phase::WriteOwned = request.phase {
            self.owned_bytes += request.len_bytes;
        }
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(request);
                u64::from(slot)
            }
            None => {
                self.slots.push(Some(request));
                (self.slots.len() - 1) as u64
            }
        }
    }

    /// Takes the request of a tag out. `None` for a tag that is not in use.
    #[inline]
    pub(super) fn remove(&mut self, tag: u64) -> Option<Request> {
        let slot = u32::try_from(tag).ok()?;
        let request = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        if let Phase::WriteOwned = request.phase {
            self.owned_bytes -= request.len_bytes;
        }
        Some(request)
    }

    /// How many there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of write payload in memory of their own.
    #[inline]
    pub(super) fn owned_bytes(&self) -> u64 {
        self.owned_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Phase, Request, Requests};
    use crate::nbd::reply::ReplyTo;

    fn request(cookie: u64, phase: Phase) -> Request {
        Request { to: ReplyTo { cookie, offset_bytes: 0 }, len_bytes: 100, phase }
    }

    #[test]
    fn tags_find_their_request_whatever_the_cookie() {
        let mut requests = Requests::default();
        let first = requests.insert(request(7, Phase::Flush));
        let second = requests.insert(request(7, Phase::WriteOwned));
        assert_ne!(first, second);
        assert_eq!((requests.len(), requests.owned_bytes()), (2, 100));
        assert!(matches!(requests.remove(second), Some(Request { phase: Phase::WriteOwned, .. })));
        assert!(requests.remove(second).is_none(), "answered once");
        assert_eq!((requests.len(), requests.owned_bytes()), (1, 0));
        assert_eq!(requests.insert(request(8, Phase::WriteInPlace)), second, "the slot is reused");
        assert!(requests.remove(u64::MAX).is_none());
    }
}
