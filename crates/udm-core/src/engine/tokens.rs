//! Operation tokens: who started a driver operation, packed into 64 bits.
//!
//! Layout: 4 bits kind, 28 bits owner, 32 bits chosen by the owner. No table, no allocation; an
//! owner's slot is not reused while operations of it are under way, so a token never lies.

use udm_lane::OpToken;
use udm_types::{ActorId, LowerId};

const KIND_SHIFT: u32 = 60;
const OWNER_SHIFT: u32 = 32;
const OWNER_MASK: u64 = (1 << (KIND_SHIFT - OWNER_SHIFT)) - 1;
const KIND_ACTOR: u64 = 1;
const KIND_LOWER: u64 = 2;

/// The owner of an operation and its word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpOwner {
    Actor(ActorId, u32),
    Lower(LowerId, u32),
}

pub(crate) fn actor_token(actor: ActorId, user: u32) -> OpToken {
    token(KIND_ACTOR, actor.0, user)
}

pub(crate) fn lower_token(lower: LowerId, user: u32) -> OpToken {
    token(KIND_LOWER, lower.0, user)
}

fn token(kind: u64, owner: u32, user: u32) -> OpToken {
    debug_assert!(u64::from(owner) <= OWNER_MASK, "owner ids are bounded by their registries");
    OpToken((kind << KIND_SHIFT) | (u64::from(owner) << OWNER_SHIFT) | u64::from(user))
}

/// Takes a token apart; `None` for one this lane never made.
pub(crate) fn owner(token: OpToken) -> Option<OpOwner> {
    let number = ((token.0 >> OWNER_SHIFT) & OWNER_MASK) as u32;
    let user = token.0 as u32;
    match token.0 >> KIND_SHIFT {
        KIND_ACTOR => Some(OpOwner::Actor(ActorId(number), user)),
        KIND_LOWER => Some(OpOwner::Lower(LowerId(number), user)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{OpOwner, actor_token, lower_token, owner};
    use udm_lane::OpToken;
    use udm_types::{ActorId, LowerId};

    #[test]
    fn tokens_round_trip() {
        let actor = actor_token(ActorId(0x0abc_def0), u32::MAX);
        assert_eq!(owner(actor), Some(OpOwner::Actor(ActorId(0x0abc_def0), u32::MAX)));
        let lower = lower_token(LowerId(7), 0);
        assert_eq!(owner(lower), Some(OpOwner::Lower(LowerId(7), 0)));
        assert_eq!(owner(OpToken(3)), None);
    }
}
