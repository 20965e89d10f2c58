//! The order rules: ordered barriers, and the replay of held I/O.
//!
//! An ordered barrier divides what its lane submits to the device: everything before it has ended
//! when its data reaches a disk, nothing after it has begun when it ends. I/O that a suspend found
//! waiting (held at the gate, or pushed back by a target) is replayed in the order of submission.
//!
//! A disk learns which bio a write belongs to by its tags, so "begins" is what the disks saw, not
//! what the engine says. Plain and FUA writes are watched; a write with PREFLUSH waits for its own
//! flush and may be overtaken.
//!
//! The tricky case is one turn: the engine may finish a barrier and start the next bio before the
//! load hears of the first. The rules therefore compare turns: what happened in an *earlier* turn
//! than the end of the other is a violation.

use super::{Oracle, Record};
use udm_types::{BioFlags, Op, Status};

impl Oracle {
    /// Data of a write reached a disk.
    pub(crate) fn reached_disk(&mut self, number: u32) {
        let turn = self.turn;
        let Some(record) = self.under_way.get_mut(&number) else {
            if !self.given_up.contains(&number) {
                self.violate(format!("write {number} reached a disk after it had been answered"));
            }
            return;
        };
        if record.started_turn.is_some() {
            return;
        }
        record.started_turn = Some(turn);
        let record = *record;
        let watched = record.epoch != 0 && is_plain(&record);
        let Some(volume) = self.volumes[record.asked.volume].as_mut() else { return };
        if !watched || volume.class(record.asked.sector) != super::Class::Data {
            return;
        }
        let key = (record.epoch, record.asked.lane);
        let before = volume.last_started.insert(key, (record.seq, number));
        if let Some((seq, other)) = before.filter(|&(seq, _)| seq > record.seq) {
            let text = format!(
                "held I/O was replayed out of order: write {other} (place {seq}) before write \
                 {number} (place {}) on lane {}",
                record.seq, record.asked.lane
            );
            self.violate(text);
        }
    }

    /// A volume is suspended for sure: what has not begun is held.
    pub(crate) fn suspended(&mut self, index: usize) {
        let epoch = self.next_tick();
        let Some(volume) = self.volumes[index].as_mut() else { return };
        volume.epoch = epoch;
        for record in self.under_way.values_mut() {
            if record.asked.volume == index && record.started_turn.is_none() {
                record.epoch = epoch;
            }
        }
    }

    /// A resume is about to be asked for. `orderly` if no target below changes the order of I/O.
    pub(crate) fn resuming(&mut self, index: usize, orderly: bool) {
        let Some(volume) = self.volumes[index].as_mut() else { return };
        volume.epoch = 0;
        if !orderly {
            self.forget_order(index);
        }
    }

    /// A target that changes the order of I/O has come into a volume's stack.
    pub(crate) fn forget_order(&mut self, index: usize) {
        for record in self.under_way.values_mut() {
            if record.asked.volume == index {
                record.epoch = 0;
            }
        }
    }

    pub(super) fn check_order_at_end(&mut self, number: u32, record: &Record, status: Status) {
        let mut broken = None;
        for (&other_number, other) in &self.under_way {
            let same_queue =
                other.asked.volume == record.asked.volume && other.asked.lane == record.asked.lane;
            if !same_queue {
                continue;
            }
            let began_earlier = other.started_turn.is_some_and(|turn| turn < self.turn);
            let other_is_barrier = other.asked.flags.contains(BioFlags::ORDERED);
            if other_is_barrier && other.seq > record.seq && began_earlier {
                broken = Some(format!(
                    "barrier {other_number} began before bio {number}, submitted earlier, had ended"
                ));
            }
            if other_is_barrier && other.seq < record.seq && status.is_ok() {
                broken = Some(format!(
                    "bio {number}, submitted after barrier {other_number}, ended before it"
                ));
            }
            let is_barrier = record.asked.flags.contains(BioFlags::ORDERED);
            if is_barrier && status.is_ok() && other.seq > record.seq && began_earlier {
                broken = Some(format!(
                    "bio {other_number}, submitted after barrier {number}, began before it ended"
                ));
            }
        }
        if let Some(text) = broken {
            self.violate(text);
        }
    }
}

fn is_plain(record: &Record) -> bool {
    record.asked.op == Op::Write && BioFlags::FUA.contains(record.asked.flags)
}
