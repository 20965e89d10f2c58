//! Payloads as the kernel wants them: `iovec` lists and message headers.
//!
//! An operation whose payload has several segments needs a list of addresses that stays in place
//! until the kernel has read it. [`Vectors`] lives in a box that belongs to the operation's slot
//! and is used again by later operations of that slot, so steady state allocates nothing.
//!
//! It holds addresses only. Whoever fills it keeps the payload alive beside it.

use udm_lane::Payload;

/// The most segments one call takes (`UIO_MAXIOV`). A longer payload is cut here: the operation
/// then ends short, which every caller must handle anyway.
const IOVECS_MAX: usize = 1024;

/// A reusable address list.
pub(crate) struct Vectors {
    iovecs: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Vectors {
    pub(crate) fn new() -> Vectors {
        // SAFETY: `msghdr` is a plain C struct of integers and pointers; all zero is the empty
        // header (no name, no vectors, no control bytes).
        let header = unsafe { std::mem::zeroed() };
        Vectors { iovecs: Vec::new(), header }
    }

    /// Points the list at the payload's segments.
    pub(crate) fn fill(&mut self, payload: &Payload) -> &[libc::iovec] {
        self.iovecs.clear();
        self.iovecs.extend(payload.segments().take(IOVECS_MAX).map(|segment| libc::iovec {
            iov_base: segment.as_ptr().cast(),
            iov_len: segment.len_bytes as usize,
        }));
        &self.iovecs
    }

    /// The list last filled.
    pub(crate) fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// The list last filled, as a message to send.
    pub(crate) fn message(&mut self) -> *const libc::msghdr {
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = self.iovecs.len();
        &raw const self.header
    }
}

#[cfg(test)]
mod tests {
    use super::{IOVECS_MAX, Vectors};
    use udm_lane::{Buf, Payload, Segment};

    #[test]
    fn a_payload_longer_than_one_call_takes_is_cut() {
        let buf = Buf::alloc(4096);
        let mut payload = Payload::empty();
        for _ in 0..IOVECS_MAX + 5 {
            payload.push(Segment { buf: buf.clone(), offset_bytes: 512, len_bytes: 512 });
        }
        let mut vectors = Vectors::new();
        let list = vectors.fill(&payload);
        assert_eq!(list.len(), IOVECS_MAX);
        assert_eq!(list[0].iov_base as usize, buf.as_ptr() as usize + 512);
        assert_eq!(list[0].iov_len, 512);
        assert_eq!(vectors.fill(&Payload::empty()).len(), 0);
    }
}
