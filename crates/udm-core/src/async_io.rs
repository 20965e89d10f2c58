//! I/O for tasks: `read`, `write`, `flush` as futures, on the lane the task runs on.
//!
//! For work that is easiest to write as a sequence: verified load, copies, later recovery. A handle
//! ([`AsyncIo`]) is shared by the tasks of a lane; behind it is an ordinary actor that submits the
//! bios the tasks ask for and wakes them when the bios come back.
//!
//! The tricky case is a future dropped before its bio is back: the bio cannot be recalled, so its
//! place is kept until it returns, and the result is thrown away then.

use crate::actor::{Actor, ActorCx};
use crate::bio::BioBox;
use crate::engine::Engine;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use udm_lane::Payload;
use udm_types::{BioFlags, DeviceId, Op, Sector, Status};

/// Submits I/O from tasks of one lane.
#[derive(Clone)]
pub struct AsyncIo {
    state: Rc<RefCell<State>>,
}

/// The end of one I/O: its status, and the payload back.
pub struct IoFuture {
    state: Rc<RefCell<State>>,
    place: usize,
    /// The result has been taken; the place may belong to another future now.
    ended: bool,
}

#[derive(Default)]
struct State {
    wishes: VecDeque<Wish>,
    places: Vec<Place>,
    free: Vec<usize>,
}

struct Wish {
    place: usize,
    device: DeviceId,
    op: Op,
    flags: BioFlags,
    sector: Sector,
    len_sectors: Sector,
    payload: Payload,
}

#[derive(Default)]
enum Place {
    /// Under way; whom to wake.
    Waiting(Option<Waker>),
    /// Back; not yet seen.
    Back(Status, Payload),
    /// Under way, and nobody waits any more.
    Abandoned,
    /// Free.
    #[default]
    Free,
}

/// The actor behind the handles of a lane.
struct TaskIo {
    state: Rc<RefCell<State>>,
}

impl Engine {
    /// A handle for the tasks of this lane. Each call makes an actor that lives as long as the
    /// lane.
    pub fn async_io(&mut self) -> AsyncIo {
        let state: Rc<RefCell<State>> = Rc::default();
        let actor = self.spawn_actor(Box::new(TaskIo { state: Rc::clone(&state) }));
        self.task_actors.push(actor);
        AsyncIo { state }
    }
}

impl AsyncIo {
    /// Starts an I/O. The payload must be as long as the range for reads and writes, else empty.
    pub fn start(
        &self,
        device: DeviceId,
        op: Op,
        flags: BioFlags,
        range: (Sector, Sector),
        payload: Payload,
    ) -> IoFuture {
        let mut state = self.state.borrow_mut();
        let place = match state.free.pop() {
            Some(place) => place,
            None => {
                state.places.push(Place::Free);
                state.places.len() - 1
            }
        };
        state.places[place] = Place::Waiting(None);
        let (sector, len_sectors) = range;
        state.wishes.push_back(Wish { place, device, op, flags, sector, len_sectors, payload });
        IoFuture { state: Rc::clone(&self.state), place, ended: false }
    }

    /// Reads into all of `payload`.
    pub fn read(&self, device: DeviceId, sector: Sector, payload: Payload) -> IoFuture {
        let len_sectors = payload.len_bytes() / udm_types::SECTOR_BYTES;
        self.start(device, Op::Read, BioFlags::empty(), (sector, len_sectors), payload)
    }

    /// Writes all of `payload`.
    pub fn write(&self, device: DeviceId, sector: Sector, payload: Payload) -> IoFuture {
        let len_sectors = payload.len_bytes() / udm_types::SECTOR_BYTES;
        self.start(device, Op::Write, BioFlags::empty(), (sector, len_sectors), payload)
    }

    /// Makes every completed write durable.
    pub fn flush(&self, device: DeviceId) -> IoFuture {
        self.start(device, Op::Flush, BioFlags::empty(), (0, 0), Payload::empty())
    }
}

impl Future for IoFuture {
    type Output = (Status, Payload);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(Status, Payload)> {
        // Polled again after its end: stays pending, as the contract of futures allows.
        if self.ended {
            return Poll::Pending;
        }
        let handle = Rc::clone(&self.state);
        let mut state = handle.borrow_mut();
        let place = self.place;
        match core::mem::take(&mut state.places[place]) {
            Place::Back(status, payload) => {
                state.free.push(place);
                self.ended = true;
                Poll::Ready((status, payload))
            }
            Place::Waiting(_) => {
                state.places[place] = Place::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
            other @ (Place::Abandoned | Place::Free) => {
                state.places[place] = other;
                Poll::Pending
            }
        }
    }
}

impl Drop for IoFuture {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut state = self.state.borrow_mut();
        match state.places[self.place] {
            Place::Waiting(_) => state.places[self.place] = Place::Abandoned,
            Place::Back(..) => {
                state.places[self.place] = Place::Free;
                state.free.push(self.place);
            }
            Place::Abandoned | Place::Free => {}
        }
    }
}

impl Actor for TaskIo {
    fn on_bio(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let payload = core::mem::take(&mut bio.payload);
        let status = bio.status;
        cx.recycle(bio);
        let mut state = self.state.borrow_mut();
        let place = tag as usize;
        match core::mem::take(&mut state.places[place]) {
            Place::Waiting(waker) => {
                state.places[place] = Place::Back(status, payload);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Place::Abandoned | Place::Free | Place::Back(..) => state.free.push(place),
        }
    }

    /// Called by the engine after tasks have run.
    fn on_turn_end(&mut self, cx: &mut ActorCx<'_>) {
        loop {
            let Some(wish) = self.state.borrow_mut().wishes.pop_front() else { return };
            let mut bio = cx.take_bio();
            bio.ask(wish.op, wish.flags, wish.sector, wish.len_sectors);
            bio.payload = wish.payload;
            cx.submit(wish.device, wish.place as u64, bio);
        }
    }
}
