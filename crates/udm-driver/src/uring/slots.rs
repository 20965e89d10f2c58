//! The operations of a ring: one slot each, from `submit` to the last completion.
//!
//! A slot owns what the kernel may touch: the payload and the address list. It is freed only by
//! the operation's final completion entry, never by a cancel or a close, so memory an abandoned
//! operation still writes into stays valid.
//!
//! The slot's index and a generation make up the `user_data` of the submission entry. Generation
//! zero is kept for the driver's own entries (the doorbell, cancels), which have no slot.

use crate::shape::OpKind;
use crate::vectors::Vectors;
use udm_lane::{Handle, OpToken, Payload};

/// `user_data` of the poll on the doorbell.
pub(crate) const USER_WAKE: u64 = 1;
/// `user_data` of cancels and signals; nobody looks at their result.
pub(crate) const USER_CANCEL: u64 = 2;

/// Set in the `user_data` of a poll that goes before the operation of the other bits.
pub(crate) const POLL_BIT: u64 = 1 << 63;
/// Generations stay clear of [`POLL_BIT`].
const GENERATION_MASK: u32 = (1 << 31) - 1;

/// One operation in flight.
pub(crate) struct Slot {
    pub(crate) token: OpToken,
    pub(crate) handle: Handle,
    pub(crate) kind: OpKind,
    pub(crate) payload: Payload,
    /// An accept or a watch that must not be armed again.
    pub(crate) cancelled: bool,
    live: bool,
    generation: u32,
    /// Made with the first multi-segment payload of this slot, then kept.
    vectors: Option<Box<Vectors>>,
}

/// All slots of a ring. Its length is the largest number of operations ever in flight.
#[derive(Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    pub(crate) fn live_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a slot for an operation; gives its `user_data` and itself.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        token: OpToken,
        handle: Handle,
        kind: OpKind,
        payload: Payload,
    ) -> (u64, &mut Slot) {
        let index = match self.free.pop() {
            Some(index) => index,
            None => self.grow(),
        };
        let slot = &mut self.slots[index as usize];
        slot.token = token;
        slot.handle = handle;
        slot.kind = kind;
        slot.payload = payload;
        slot.cancelled = false;
        slot.live = true;
        // Wraps past zero, which is the driver's own.
        slot.generation = (slot.generation.wrapping_add(1) & GENERATION_MASK).max(1);
        (user_data(index, slot.generation), slot)
    }

    /// The live slot a completion entry or a cancel refers to.
    #[inline]
    pub(crate) fn get_mut(&mut self, user_data: u64) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(index_of(user_data))?;
        (slot.live && u64::from(slot.generation) == user_data >> 32).then_some(slot)
    }

    /// Ends an operation: the slot is free, its payload goes to the caller.
    #[inline]
    pub(crate) fn remove(&mut self, user_data: u64) -> Option<(OpToken, Handle, Payload)> {
        let slot = self.get_mut(user_data)?;
        slot.live = false;
        let ended = (slot.token, slot.handle, std::mem::take(&mut slot.payload));
        // The index fits: it came out of `grow`.
        self.free.push(index_of(user_data) as u32);
        Some(ended)
    }

    /// `user_data` of every live operation that `matches`, in order. A scan: cancels and closes
    /// are rare, and a map from tokens would cost every operation.
    pub(crate) fn find(&self, mut matches: impl FnMut(&Slot) -> bool) -> Vec<u64> {
        (0_u32..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.live && matches(slot))
            .map(|(index, slot)| user_data(index, slot.generation))
            .collect()
    }

    /// Frees the slots of operations whose end nobody waits for. Their memory stays behind, since
    /// the kernel may still have it.
    pub(crate) fn forget(&mut self, matches: impl FnMut(&Slot) -> bool) {
        for user_data in self.find(matches) {
            std::mem::forget(self.remove(user_data));
        }
    }

    fn grow(&mut self) -> u32 {
        let index = u32::try_from(self.slots.len())
            .expect("invariant: fewer than 2^32 operations fit into memory");
        self.slots.push(Slot {
            token: OpToken(0),
            handle: Handle(0),
            kind: OpKind::Storage,
            payload: Payload::empty(),
            cancelled: false,
            live: false,
            generation: 0,
            vectors: None,
        });
        index
    }
}

impl Slot {
    /// The slot's address list, filled from its payload.
    pub(crate) fn vectors(&mut self) -> &mut Vectors {
        let vectors = self.vectors.get_or_insert_with(|| Box::new(Vectors::new()));
        vectors.fill(&self.payload);
        vectors
    }
}

fn user_data(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

fn index_of(user_data: u64) -> usize {
    (user_data & u64::from(u32::MAX)) as usize
}

#[cfg(test)]
mod tests {
    use super::Slots;
    use crate::shape::OpKind;
    use udm_lane::{Handle, OpToken, Payload};

    #[test]
    fn a_late_completion_never_ends_the_next_operation_of_a_slot() {
        let mut slots = Slots::default();
        let (first, _) = slots.insert(OpToken(1), Handle(0), OpKind::Storage, Payload::empty());
        assert!(slots.remove(first).is_some());
        let (second, _) = slots.insert(OpToken(2), Handle(0), OpKind::Storage, Payload::empty());
        assert!(slots.remove(first).is_none());
        assert_eq!(slots.live_count(), 1);
        assert_eq!(slots.find(|slot| slot.token == OpToken(2)), [second]);
    }
}
