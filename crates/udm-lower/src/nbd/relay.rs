//! One connection for all lanes, where the server promises nothing about several.
//!
//! Without CAN_MULTI_CONN a flush covers only its own connection, and a read on another one may
//! bring what was there before a write. So there is exactly one: that of the *home* lane, the first
//! that opens the device. The other lanes keep their bios and ask home to do the work; home tells
//! them how it ended. With CAN_MULTI_CONN nothing of this exists.
//!
//! ```text
//! lane B: bio in a slot --Ask(cookie, range, memory)--> home: a request like its own
//!         slot ends     <--Done(cookie, status)--------
//! ```
//!
//! Notes lie in a queue of the receiving lane, whose bell (an eventfd it reads from) is rung once
//! for all that gathered in a turn. These queues have a lock, held for a push or a swap: the price
//! of a server that can be reached in one way only. They are bounded by the slots of the lanes.
//!
//! The tricky case is a home that closes while somebody writes to it: the queue is closed under its
//! lock, so a note is either answered or refused, and who is refused becomes home itself.

use super::lane::{NbdLane, Phase};
use super::requests::Owner;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{IntoRawFd, OwnedFd};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use udm_core::{BioBox, LowerCx};
use udm_lane::{Buf, DriverOp, Errno, Handle, Payload, RawHandle};
use udm_types::{BioFlags, Op, SECTOR_SHIFT, Status};

/// The word of the read on the bell; no connection's operation has it.
pub(super) const OP_BELL: u32 = u32::MAX;
/// The connection number of requests that home works on.
pub(super) const AT_HOME: u16 = u16::MAX;
/// No lane is home.
const NOBODY: u32 = u32::MAX;

/// Work for home.
#[derive(Debug)]
pub(super) struct Job {
    /// Who asks.
    from: u16,
    /// Its word for it.
    cookie: u64,
    /// What is asked.
    pub(super) op: Op,
    /// With which modifiers.
    pub(super) flags: BioFlags,
    /// Where.
    pub(super) start_bytes: u64,
    /// How much.
    pub(super) total_bytes: u64,
    /// The bio's memory, shared.
    pub(super) payload: Payload,
}

/// What lanes say to each other.
#[derive(Debug)]
enum Note {
    Ask(Job),
    Done { cookie: u64, status: Status },
}

/// The lanes that share one connection.
#[derive(Debug)]
pub(super) struct Relay {
    home: AtomicU32,
    posts: Mutex<BTreeMap<u16, Arc<Post>>>,
}

/// Where a lane gets its notes.
#[derive(Debug)]
struct Post {
    notes: Mutex<Notes>,
    has_rung: AtomicBool,
    bell: OwnedFd,
}

#[derive(Debug, Default)]
struct Notes {
    waiting: Vec<Note>,
    is_closed: bool,
}

/// A lane's own side.
#[derive(Debug)]
pub(super) struct Desk {
    post: Arc<Post>,
    bell: Handle,
    /// The memory of the read on the bell; `None` while that is under way.
    bell_memory: Option<Payload>,
    /// Whose bells have to be rung at the end of the turn.
    to_ring: Vec<Arc<Post>>,
    taken: Vec<Note>,
    is_home: bool,
}

impl Default for Relay {
    fn default() -> Self {
        Relay { home: AtomicU32::new(NOBODY), posts: Mutex::default() }
    }
}

impl Post {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        // A push or a swap: complete or not begun.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a note; gives it back if nobody will read it.
    fn leave(&self, note: Note) -> Result<(), Note> {
        let mut notes = self.notes();
        if notes.is_closed {
            return Err(note);
        }
        notes.waiting.push(note);
        Ok(())
    }

    fn ring(&self) {
        if !self.has_rung.swap(true, Ordering::SeqCst) {
            // Cannot fail: the counter is far from full, and the descriptor is open.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }
}

impl Relay {
    fn posts(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<Post>>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post_of(&self, lane: u16) -> Option<Arc<Post>> {
        self.posts().get(&lane).map(Arc::clone)
    }

    /// Makes a lane home if nobody is; who is home now.
    fn claim(&self, lane: u16) -> u16 {
        let wanted = u32::from(lane);
        match self.home.compare_exchange(NOBODY, wanted, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => lane,
            // Lanes have 16-bit numbers.
            Err(home) => home as u16,
        }
    }

    fn give_up_home(&self, lane: u16) {
        let held = u32::from(lane);
        let _ = self.home.compare_exchange(held, NOBODY, Ordering::SeqCst, Ordering::SeqCst);
    }
}

impl Desk {
    /// A lane's desk, with its bell registered.
    pub(super) fn open(relay: &Relay, lane: u16, cx: &mut LowerCx<'_>) -> Result<Desk, Errno> {
        let told = |error: rustix::io::Errno| Errno(error.raw_os_error());
        let bell = eventfd(0, EventfdFlags::CLOEXEC).map_err(told)?;
        let own = rustix::io::fcntl_dupfd_cloexec(&bell, 0).map_err(told)?;
        let handle = cx.driver().register(RawHandle(own.into_raw_fd()))?;
        let post =
            Arc::new(Post { notes: Mutex::default(), has_rung: AtomicBool::new(false), bell });
        relay.posts().insert(lane, Arc::clone(&post));
        let is_home = relay.claim(lane) == lane;
        Ok(Desk {
            post,
            bell: handle,
            bell_memory: Some(Payload::from_buf(Buf::alloc(8))),
            to_ring: Vec::new(),
            taken: Vec::new(),
            is_home,
        })
    }

    fn say(&mut self, post: &Arc<Post>, note: Note) -> Result<(), Note> {
        post.leave(note)?;
        if !self.to_ring.iter().any(|known| Arc::ptr_eq(known, post)) {
            self.to_ring.push(Arc::clone(post));
        }
        Ok(())
    }
}

impl NbdLane {
    /// True if this lane asks another one.
    #[inline]
    pub(super) fn is_away(&self) -> bool {
        self.desk.as_ref().is_some_and(|desk| !desk.is_home)
    }

    /// After it was let go: listens again, and is home if nobody is.
    pub(super) fn open_desk(&mut self, cx: &mut LowerCx<'_>) {
        if let Some(desk) = &mut self.desk {
            desk.is_home = self.shared.relay.claim(self.lane) == self.lane;
        }
        self.listen(cx);
    }

    /// Listens for the bell, unless it does.
    pub(super) fn listen(&mut self, cx: &mut LowerCx<'_>) {
        if let Some(desk) = &mut self.desk
            && let Some(payload) = desk.bell_memory.take()
        {
            cx.submit_op(OP_BELL, DriverOp::Read { handle: desk.bell, offset_bytes: 0, payload });
        }
    }

    /// Hands a bio's work to home; becomes home if nobody is.
    pub(super) fn ask_home(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        let home = self.shared.relay.claim(self.lane);
        let post = if home == self.lane { None } else { self.shared.relay.post_of(home) };
        let (Some(post), Some(desk)) = (post, &mut self.desk) else {
            return self.become_home(bio, cx);
        };
        let index = self.requests.insert(Owner::Bio(bio), AT_HOME);
        let cookie = self.requests.begin(index, 0, 0, 0, cx.now);
        let slot = self.requests.get(index);
        let job = Job {
            from: self.lane,
            cookie,
            op: slot.op,
            flags: slot.flags,
            start_bytes: slot.start_bytes,
            total_bytes: slot.total_bytes,
            payload: slot.payload().cloned().unwrap_or_default(),
        };
        if desk.say(&post, Note::Ask(job)).is_ok() {
            return self.want_turn_end(cx);
        }
        // Home is closing; whoever comes first is home next.
        self.shared.relay.give_up_home(home);
        if let Owner::Bio(bio) = self.requests.remove(index) {
            self.ask_home(bio, cx);
        }
    }

    fn become_home(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        if let Some(desk) = &mut self.desk {
            desk.is_home = true;
        }
        self.phase = Phase::Fresh;
        self.connect_all(cx);
        self.take(Owner::Bio(bio), cx);
    }

    /// Tells a lane how its job ended.
    pub(super) fn tell_done(&mut self, job: Job, status: Status, cx: &mut LowerCx<'_>) {
        let Some(post) = self.shared.relay.post_of(job.from) else { return };
        let Some(desk) = &mut self.desk else { return };
        // A lane that has closed had nothing under way any more.
        let _ = desk.say(&post, Note::Done { cookie: job.cookie, status });
        drop(job);
        self.want_turn_end(cx);
    }

    /// The bell rang, or nobody listens to it any more.
    pub(super) fn bell_rang(&mut self, payload: Payload, cx: &mut LowerCx<'_>) {
        let Some(desk) = &mut self.desk else { return };
        desk.bell_memory = Some(payload);
        desk.post.has_rung.store(false, Ordering::SeqCst);
        let mut notes = std::mem::take(&mut desk.taken);
        std::mem::swap(&mut notes, &mut desk.post.notes().waiting);
        for note in notes.drain(..) {
            match note {
                Note::Ask(job) if self.phase == Phase::LetGo => {
                    self.tell_done(job, Status::Transport, cx);
                }
                Note::Ask(job) => self.take(Owner::Relayed(job), cx),
                Note::Done { cookie, status } => {
                    if let Some((slot, _)) = self.requests.awaited(cookie, AT_HOME) {
                        self.finish(slot, status, cx);
                    }
                }
            }
        }
        if let Some(desk) = &mut self.desk {
            desk.taken = notes;
        }
        if self.phase != Phase::LetGo {
            self.listen(cx);
        }
    }

    /// The end of a turn: wakes whom notes were left for.
    pub(super) fn ring_bells(&mut self) {
        if let Some(desk) = &mut self.desk {
            desk.to_ring.drain(..).for_each(|post| post.ring());
        }
    }

    /// No table wants this lane's part: another may be home.
    pub(super) fn leave_desk(&mut self, cx: &mut LowerCx<'_>) {
        let Some(desk) = &mut self.desk else { return };
        if std::mem::take(&mut desk.is_home) {
            self.shared.relay.give_up_home(self.lane);
        }
        if desk.bell_memory.is_none() {
            cx.cancel_op(OP_BELL);
        }
    }

    /// The part is closed: no note is taken any more, and those there are answered.
    pub(super) fn close_desk(&mut self, cx: &mut LowerCx<'_>) {
        let Some(desk) = &mut self.desk else { return };
        let left = {
            let mut notes = desk.post.notes();
            notes.is_closed = true;
            std::mem::take(&mut notes.waiting)
        };
        {
            let mut posts = self.shared.relay.posts();
            if posts.get(&self.lane).is_some_and(|post| Arc::ptr_eq(post, &desk.post)) {
                posts.remove(&self.lane);
            }
        }
        cx.driver().close(desk.bell);
        for note in left {
            if let Note::Ask(job) = note {
                self.tell_done(job, Status::Transport, cx);
            }
        }
        self.ring_bells();
    }
}

impl Owner {
    /// What is asked: operation, modifiers, start and length in bytes.
    pub(super) fn asks(&self) -> Option<(Op, BioFlags, u64, u64)> {
        match self {
            Owner::Bio(bio) => {
                let bytes = |sectors: u64| sectors << SECTOR_SHIFT;
                Some((bio.op, bio.flags, bytes(bio.sector), bytes(bio.len_sectors)))
            }
            Owner::Relayed(job) => Some((job.op, job.flags, job.start_bytes, job.total_bytes)),
            Owner::Nobody | Owner::Abandoned(_) => None,
        }
    }
}
