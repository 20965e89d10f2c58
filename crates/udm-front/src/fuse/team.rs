//! The lanes of one mount: what their servers tell each other, and what its home keeps about them.
//!
//! One server is the mount's *home*: it has the handshake, the end, and the say about patches. The
//! others are *mates*. A mate sleeps, without a read at `/dev/fuse`, until the home invites it, and
//! goes to sleep again when there is little to do; so an idle mount, and one with a request at a
//! time, wakes one lane.
//!
//! A *patch* (see `change`) must be alone on its blocks, whichever lanes the other changes are on:
//!
//! ```text
//! owner --Want--> home --Hold--> every mate that is awake --Held--> home --Go--> owner
//! owner --Done--> home --Release--> every mate that is awake
//! ```
//!
//! Each lane has a table of its own changes; a patch enters the home's first and then those of all
//! mates. Messages of one sender arrive in order, so all tables have patches in one order, and no
//! two patches ever wait for each other.
//!
//! Rules. A mate that holds a patch does not go to sleep, so whoever holds is told to release. With
//! no mate awake a patch costs no message.
//!
//! The tricky cases are two. A mate that is invited while a patch is held: it is told with the
//! invitation, and answers like the others; the home then counts only answers it waits for. And a
//! mate that goes to sleep while the home tells it to hold: it has nothing under way, so it answers
//! and keeps nothing, since by the time of the release the home knows that it sleeps.

use super::change::Change;
use udm_types::{ActorId, LaneId};

/// Where a server is.
pub(super) type Place = (LaneId, ActorId);

/// A message between the servers of a mount.
#[derive(Debug)]
pub(super) struct TeamMessage {
    /// Which mount; an actor's number may belong to another one when a message arrives.
    pub(super) mount: u64,
    /// Whose.
    pub(super) from: Place,
    /// What.
    pub(super) note: TeamNote,
}

/// What servers tell each other.
#[derive(Debug)]
pub(super) enum TeamNote {
    /// To the home: more requests are there than this lane takes.
    Crowded,
    /// To the home: this mate sleeps, and holds nothing.
    Asleep {
        /// Its number.
        mate: u16,
    },
    /// To the home: this mate has closed `/dev/fuse`.
    Left {
        /// Its number.
        mate: u16,
    },
    /// To the home: a mate has a patch to do.
    Want {
        /// Whose, and in which slot.
        owner: Owner,
        /// It.
        change: Change,
    },
    /// To the home: it was invited and cannot help, since its driver did not take the descriptor.
    Unfit {
        /// Which mate.
        mate: u16,
        /// The queues it does not serve.
        queues: Vec<u16>,
    },
    /// To the home: the kernel does not take what was to be lent to it.
    Refused,
    /// To the home: the blocks are free of other changes on this lane.
    Held {
        /// Which patch.
        patch: u32,
    },
    /// To the home: a patch is done.
    Done {
        /// Which.
        patch: u32,
    },
    /// To a mate: read, and let nobody change the blocks of these patches.
    Invite {
        /// Patches under way, by number.
        holds: Vec<(u32, Change)>,
        /// Its queues, if requests come through the rings.
        queues: Vec<u16>,
    },
    /// To a mate: another one sleeps, so that asking for help makes sense again.
    Rested,
    /// To a mate: let nobody change these blocks.
    Hold {
        /// For this patch.
        patch: u32,
        /// Which goes over them.
        change: Change,
    },
    /// To a mate: its patch may go.
    Go {
        /// The slot it waits in.
        slot: usize,
        /// Its number.
        patch: u32,
        /// It.
        change: Change,
    },
    /// To a mate: a patch is done.
    Release {
        /// Which.
        patch: u32,
    },
    /// To a mate: end.
    End {
        /// At once, instead of answering what is under way.
        cut: bool,
    },
}

/// Whose patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// A mate; nothing for the home itself.
    pub(super) mate: Option<u16>,
    /// The slot it waits in.
    pub(super) slot: usize,
}

/// Who has a change in a lane's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A slot of this lane.
    Slot(usize),
    /// A patch of another lane.
    Patch(u32),
}

/// What a mate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Asleep,
    Awake,
    /// It is there, and cannot help.
    Unfit,
    Gone,
}

/// A patch that has the home's blocks.
#[derive(Clone, Copy, Debug)]
struct Held {
    number: u32,
    owner: Owner,
    change: Change,
    /// Answers still to come.
    missing: usize,
}

/// What the home knows.
#[derive(Debug, Default)]
pub(super) struct Team {
    mates: Vec<(Place, Mood)>,
    /// Patches that wait for blocks of the home.
    wanted: Vec<(u32, Owner)>,
    patches: Vec<Held>,
    last: u32,
}

impl Team {
    /// A home with these mates, all asleep.
    pub(super) fn new(mates: Vec<Place>) -> Team {
        let mates = mates.into_iter().map(|place| (place, Mood::Asleep)).collect();
        Team { mates, ..Team::default() }
    }

    /// Where a mate is.
    pub(super) fn place(&self, mate: u16) -> Option<Place> {
        self.mates.get(usize::from(mate)).map(|(place, _)| *place)
    }

    /// All mates that have not left.
    pub(super) fn present(&self) -> impl Iterator<Item = Place> {
        self.mates.iter().filter(|(_, mood)| *mood != Mood::Gone).map(|(place, _)| *place)
    }

    /// All mates that may have changes under way.
    pub(super) fn awake(&self) -> impl Iterator<Item = Place> {
        self.mates.iter().filter(|(_, mood)| *mood == Mood::Awake).map(|(place, _)| *place)
    }

    /// Wakes a mate that sleeps; gives where it is, and what it has to hold. The answers to that
    /// are counted.
    pub(super) fn invite(&mut self) -> Option<(Place, Vec<(u32, Change)>)> {
        let (place, mood) = self.mates.iter_mut().find(|(_, mood)| *mood == Mood::Asleep)?;
        *mood = Mood::Awake;
        let holds = self.patches.iter_mut().map(|held| {
            // One that goes already waits for no answers; nor does it for this one.
            held.missing += usize::from(held.missing > 0);
            (held.number, held.change)
        });
        Some((*place, holds.collect()))
    }

    /// A mate sleeps.
    pub(super) fn sleeps(&mut self, mate: u16) {
        if let Some((_, mood @ Mood::Awake)) = self.mates.get_mut(usize::from(mate)) {
            *mood = Mood::Asleep;
        }
    }

    /// A mate cannot help; it is not invited again.
    pub(super) fn unfit(&mut self, mate: u16) {
        if let Some((_, mood @ Mood::Awake)) = self.mates.get_mut(usize::from(mate)) {
            *mood = Mood::Unfit;
        }
    }

    /// A mate has left. What waits for its answer is not let go: the mount ends.
    pub(super) fn left(&mut self, mate: u16) {
        if let Some((_, mood)) = self.mates.get_mut(usize::from(mate)) {
            *mood = Mood::Gone;
        }
    }

    /// Somebody wants to patch; gives the patch a number.
    pub(super) fn want(&mut self, owner: Owner) -> u32 {
        self.last = self.last.wrapping_add(1);
        self.wanted.push((self.last, owner));
        self.last
    }

    /// A wanted patch has the home's blocks. Whose patch goes, if that is all; else all mates that
    /// are awake have to be told to hold.
    pub(super) fn hold(&mut self, number: u32, change: Change) -> Option<Owner> {
        let at = self.wanted.iter().position(|(wanted, _)| *wanted == number)?;
        let (_, owner) = self.wanted.swap_remove(at);
        let missing = self.awake().count();
        self.patches.push(Held { number, owner, change, missing });
        (missing == 0).then_some(owner)
    }

    /// A mate holds. Whose patch goes, if this was the last answer.
    pub(super) fn held(&mut self, patch: u32) -> Option<(Owner, Change)> {
        let held = self.patches.iter_mut().find(|held| held.number == patch)?;
        if held.missing == 0 {
            return None;
        }
        held.missing -= 1;
        (held.missing == 0).then_some((held.owner, held.change))
    }

    /// A patch is done.
    pub(super) fn done(&mut self, patch: u32) -> Option<Owner> {
        let at = self.patches.iter().position(|held| held.number == patch)?;
        Some(self.patches.swap_remove(at).owner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::change::{Change, ChangeKind};
    use super::{Owner, Team};
    use udm_types::{ActorId, LaneId};

    const CHANGE: Change = Change {
        unique: 1,
        kind: ChangeKind::Write,
        start: 100,
        end: 200,
        cursor: 100,
        block_bytes: 512,
    };
    const OWNER: Owner = Owner { mate: Some(1), slot: 3 };

    fn team() -> Team {
        Team::new((1..4).map(|lane| (LaneId(lane), ActorId(7))).collect())
    }

    #[test]
    fn a_patch_waits_for_the_mates_that_are_awake_and_for_no_other() {
        let mut team = team();
        let first = team.want(OWNER);
        assert_eq!(team.hold(first, CHANGE), Some(OWNER), "nobody is awake");
        assert_eq!(team.done(first), Some(OWNER));
        assert!(team.invite().is_some_and(|(_, holds)| holds.is_empty()));
        team.invite();
        assert_eq!(team.awake().count(), 2);
        let next = team.want(OWNER);
        assert_ne!(first, next);
        assert_eq!(team.hold(next, CHANGE), None);
        assert_eq!(team.held(next), None);
        assert_eq!(team.held(next), Some((OWNER, CHANGE)), "the last answer lets it go");
        assert_eq!(team.held(next), None, "and only that");
        assert_eq!(team.done(next), Some(OWNER));
        assert_eq!(team.done(next), None);
    }

    #[test]
    fn who_is_invited_meanwhile_holds_too_and_counts_only_if_it_matters() {
        let mut team = team();
        team.invite();
        let patch = team.want(OWNER);
        assert_eq!(team.hold(patch, CHANGE), None);
        let (place, holds) = team.invite().expect("another one sleeps");
        assert_eq!((place.0, holds), (LaneId(2), vec![(patch, CHANGE)]));
        assert_eq!(team.held(patch), None, "two answers are waited for now");
        assert!(team.held(patch).is_some());
        let (_, holds) = team.invite().expect("the last one");
        assert_eq!(holds.len(), 1, "it is told");
        assert_eq!(team.held(patch), None, "but the patch goes already");
        assert!(team.invite().is_none(), "all are awake");
        team.sleeps(0);
        assert_eq!(team.invite().map(|(place, _)| place.0), Some(LaneId(1)));
        team.unfit(0);
        assert!(team.invite().is_none(), "who cannot help is not asked again");
        assert_eq!(team.present().count(), 3, "but told of the end");
        team.left(0);
        team.sleeps(0);
        assert!(team.invite().is_none(), "who has left is not invited");
        assert_eq!(team.present().count(), 2);
    }
}
