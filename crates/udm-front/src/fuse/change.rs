//! Changes of byte ranges on a device that takes whole blocks.
//!
//! A write or a zeroing may begin and end anywhere. The pure part is here: which piece comes next
//! ([`Change::next_piece`]), and who has to wait for whom ([`Changes`]). The actor does the I/O.
//!
//! A piece that does not cover its blocks is a *patch*: the blocks are read, the piece is put over
//! them, and they are written back. Between the reading and the writing nobody else may change
//! these blocks, or an acknowledged write would be undone; so a patch waits for every change of
//! its blocks that is under way, and every later one waits for it. Changes that cover their blocks
//! never wait for each other: whoever writes one place twice at a time gets either, as on a disk.
//!
//! ```text
//! blocks of 512:  |      512      |     1024      |     1536      |
//! zero 600..1600:        [ patch  ][     plain    ][patch]
//! write 600..1600:       [            patch              ]
//! ```
//!
//! The tricky case is order: a change that waits also holds back those after it that touch its
//! blocks, or a stream of writes could keep it waiting for ever.

use std::collections::VecDeque;

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeKind {
    /// The payload is written.
    Write,
    /// The range reads as zeroes afterwards.
    Zero {
        /// It keeps its space.
        keep: bool,
    },
}

/// A change, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Whom to answer.
    pub(super) unique: u64,
    /// What.
    pub(super) kind: ChangeKind,
    /// Its first byte on the device.
    pub(super) start: u64,
    /// The byte after its last.
    pub(super) end: u64,
    /// What is before this is done.
    pub(super) cursor: u64,
    /// The device's block in bytes, a power of two.
    pub(super) block_bytes: u64,
}

/// The next thing to do for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Whole blocks.
    Plain {
        /// From here.
        start: u64,
        /// To here.
        end: u64,
    },
    /// Parts of blocks: read `from..to`, put `start..end` over it, write it back.
    Patch {
        /// The first byte changed.
        start: u64,
        /// The byte after the last one changed.
        end: u64,
        /// Where its first block begins.
        from: u64,
        /// Where its last block ends.
        to: u64,
    },
}

impl Change {
    /// What comes next; nothing if it is done.
    pub(super) fn next_piece(&self) -> Option<Piece> {
        let (start, end) = (self.cursor, self.end);
        if start >= end {
            return None;
        }
        let patch =
            |end: u64| Piece::Patch { start, end, from: self.down(start), to: self.up(end) };
        let starts_whole = start == self.down(start);
        Some(match self.kind {
            ChangeKind::Write if starts_whole && end == self.down(end) => {
                Piece::Plain { start, end }
            }
            ChangeKind::Write => patch(end),
            ChangeKind::Zero { .. } if starts_whole && self.down(end) > start => {
                Piece::Plain { start, end: self.down(end) }
            }
            ChangeKind::Zero { .. } => patch(end.min(self.down(start) + self.block_bytes)),
        })
    }

    fn down(&self, byte: u64) -> u64 {
        byte & !(self.block_bytes - 1)
    }

    fn up(&self, byte: u64) -> u64 {
        self.down(byte + (self.block_bytes - 1))
    }

    /// It changes parts of blocks.
    pub(super) fn is_patch(&self) -> bool {
        self.start != self.down(self.start) || self.end != self.down(self.end)
    }

    fn meets(&self, other: &Change) -> bool {
        self.down(self.start) < other.up(other.end) && other.down(other.start) < self.up(self.end)
    }
}

/// The changes of a file: who goes and who waits. `T` names a request.
#[derive(Debug)]
pub(super) struct Changes<T> {
    going: Vec<(T, Change)>,
    waiting: VecDeque<(T, Change)>,
    patches_going: usize,
}

impl<T: Copy + PartialEq> Changes<T> {
    /// For at most `room` changes at a time.
    pub(super) fn new(room: usize) -> Changes<T> {
        let (going, waiting) = (Vec::with_capacity(room), VecDeque::with_capacity(room));
        Changes { going, waiting, patches_going: 0 }
    }

    /// Takes a change. True if it may go; else it waits and comes out of `ended` later.
    pub(super) fn begin(&mut self, who: T, change: Change) -> bool {
        if !self.must_wait(&change, self.waiting.len()) {
            self.go(who, change);
            return true;
        }
        self.waiting.push_back((who, change));
        false
    }

    /// Nobody goes or waits.
    pub(super) fn is_empty(&self) -> bool {
        self.going.is_empty() && self.waiting.is_empty()
    }

    fn go(&mut self, who: T, change: Change) {
        self.patches_going += usize::from(change.is_patch());
        self.going.push((who, change));
    }

    /// Whether a change with `before` waiting ones before it has to wait.
    fn must_wait(&self, change: &Change, before: usize) -> bool {
        let is_patch = change.is_patch();
        if !is_patch && self.patches_going == 0 && before == 0 {
            return false;
        }
        let clash = |other: &Change| (is_patch || other.is_patch()) && change.meets(other);
        self.going.iter().any(|(_, other)| clash(other))
            || self.waiting.iter().take(before).any(|(_, other)| clash(other))
    }

    /// A change is done; the next one that may go because of it, if there is any. Call
    /// [`Changes::next`] again until it gives nothing.
    pub(super) fn ended(&mut self, who: T) {
        if let Some(at) = self.going.iter().position(|(going, _)| *going == who) {
            let (_, change) = self.going.swap_remove(at);
            self.patches_going -= usize::from(change.is_patch());
        }
    }

    /// A change that waited and may go now.
    pub(super) fn next(&mut self) -> Option<(T, Change)> {
        let at = (0..self.waiting.len()).find(|at| {
            let (_, change) = &self.waiting[*at];
            !self.must_wait(change, *at)
        })?;
        let (who, change) = self.waiting.remove(at)?;
        self.go(who, change);
        Some((who, change))
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, ChangeKind, Changes, Piece};

    fn change(kind: ChangeKind, start: u64, end: u64) -> Change {
        Change { unique: 0, kind, start, end, cursor: start, block_bytes: 512 }
    }

    fn pieces(mut change: Change) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while let Some(piece) = change.next_piece() {
            pieces.push(piece);
            let (Piece::Plain { end, .. } | Piece::Patch { end, .. }) = piece;
            assert!(end > change.cursor, "every piece gets on");
            change.cursor = end;
        }
        assert_eq!(change.cursor, change.end);
        pieces
    }

    #[test]
    fn whole_blocks_go_as_they_are_and_edges_are_patched() {
        let zero = ChangeKind::Zero { keep: false };
        assert_eq!(
            pieces(change(ChangeKind::Write, 512, 1536)),
            [Piece::Plain { start: 512, end: 1536 }]
        );
        assert_eq!(
            pieces(change(ChangeKind::Write, 600, 1600)),
            [Piece::Patch { start: 600, end: 1600, from: 512, to: 2048 }]
        );
        assert_eq!(
            pieces(change(zero, 600, 1600)),
            [
                Piece::Patch { start: 600, end: 1024, from: 512, to: 1024 },
                Piece::Plain { start: 1024, end: 1536 },
                Piece::Patch { start: 1536, end: 1600, from: 1536, to: 2048 },
            ]
        );
        assert_eq!(
            pieces(change(zero, 10, 20)),
            [Piece::Patch { start: 10, end: 20, from: 0, to: 512 }]
        );
    }

    #[test]
    fn a_patch_is_alone_on_its_blocks_and_nobody_overtakes_it() {
        let write = |start, end| change(ChangeKind::Write, start, end);
        let mut changes = Changes::new(8);
        assert!(changes.begin(1, write(0, 1024)));
        assert!(changes.begin(2, write(0, 1024)), "whole blocks do not wait for each other");
        assert!(!changes.begin(3, write(100, 200)), "a patch does");
        assert!(!changes.begin(4, write(0, 512)), "and later ones wait for it");
        assert!(changes.begin(5, write(512, 1024)), "on its blocks only");
        assert!(changes.begin(6, write(2000, 2100)));
        changes.ended(1);
        assert_eq!(changes.next(), None, "2 is still there");
        changes.ended(2);
        assert_eq!(changes.next().map(|(who, _)| who), Some(3));
        assert_eq!(changes.next(), None);
        changes.ended(3);
        assert_eq!(changes.next().map(|(who, _)| who), Some(4));
        assert_eq!(changes.next(), None);
    }
}
