//! A single-threaded executor for the async parts of a lane.
//!
//! Most I/O never comes here: targets map bios with plain calls. Work that has to wait in the
//! middle (a verified load generator, later compression, snapshots, recovery) is written as a
//! task. Tasks are polled in the order they were woken; waking the same task twice before it runs
//! polls it once. A task lives on its lane and is never moved, so it need not be `Send`.
//!
//! The tricky case is a wake from another thread or from the task itself while it is being
//! polled: `queued` is cleared *before* the poll, so such a wake queues the task again.

use crate::Wake as WakeLane;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use crossbeam_queue::SegQueue;

/// A task of one executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskId {
    index: u32,
    /// Tells this task from others that had its place.
    spawn_nr: u64,
}

/// The tasks of one lane.
pub struct Executor {
    tasks: Vec<Option<Task>>,
    free: Vec<u32>,
    ready: Arc<Ready>,
    spawned: u64,
}

struct Task {
    spawn_nr: u64,
    future: Pin<Box<dyn Future<Output = ()>>>,
    signal: Arc<Signal>,
    waker: Waker,
}

struct Ready {
    // Bounded by the number of tasks: `Signal::queued` admits each task once.
    queue: SegQueue<u32>,
    wake_lane: Arc<dyn WakeLane>,
}

struct Signal {
    index: u32,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.ready.queue.push(self.index);
            self.ready.wake_lane.wake();
        }
    }
}

impl Executor {
    /// An executor whose lane is woken by `wake_lane` when a task becomes ready.
    pub fn new(wake_lane: Arc<dyn WakeLane>) -> Executor {
        Executor {
            tasks: Vec::new(),
            free: Vec::new(),
            ready: Arc::new(Ready { queue: SegQueue::new(), wake_lane }),
            spawned: 0,
        }
    }

    /// Starts a task; it is polled for the first time in the next [`Executor::run_ready`].
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'static) -> TaskId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.tasks.push(None);
            u32::try_from(self.tasks.len() - 1).expect("invariant: tasks are bounded by memory")
        });
        let signal = Arc::new(Signal {
            index,
            queued: AtomicBool::new(true),
            ready: Arc::clone(&self.ready),
        });
        let waker = Waker::from(Arc::clone(&signal));
        self.spawned += 1;
        let spawn_nr = self.spawned;
        let task = Task { spawn_nr, future: Box::pin(future), signal, waker };
        self.tasks[index as usize] = Some(task);
        self.ready.queue.push(index);
        TaskId { index, spawn_nr }
    }

    /// Drops a task where it stands. Nothing happens if it has ended.
    pub fn abort(&mut self, id: TaskId) {
        let place = &mut self.tasks[id.index as usize];
        if place.as_ref().is_some_and(|task| task.spawn_nr == id.spawn_nr) {
            *place = None;
            self.free.push(id.index);
        }
    }

    /// True until the task has ended or was aborted.
    pub fn is_alive(&self, id: TaskId) -> bool {
        let task = self.tasks[id.index as usize].as_ref();
        task.is_some_and(|task| task.spawn_nr == id.spawn_nr)
    }

    /// Polls the tasks that were ready when the call began. True if any was.
    pub fn run_ready(&mut self) -> bool {
        let batch = self.ready.queue.len();
        for _ in 0..batch {
            self.run_one();
        }
        batch > 0
    }

    /// Polls the task that has been ready longest. True if there was one.
    pub fn run_one(&mut self) -> bool {
        let Some(index) = self.ready.queue.pop() else { return false };
        // A task that ended may still have been queued by a late wake.
        let Some(mut task) = self.tasks[index as usize].take() else { return true };
        task.signal.queued.store(false, Ordering::SeqCst);
        let mut context = Context::from_waker(&task.waker);
        match task.future.as_mut().poll(&mut context) {
            Poll::Pending => self.tasks[index as usize] = Some(task),
            Poll::Ready(()) => self.free.push(index),
        }
        true
    }

    /// True if a task waits to be polled.
    pub fn has_ready(&self) -> bool {
        !self.ready.queue.is_empty()
    }

    /// How many tasks live.
    pub fn len(&self) -> usize {
        self.tasks.len() - self.free.len()
    }

    /// True if no task lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Lets the other tasks have a turn: pending once, and ready to be polled again.
pub async fn yield_now() {
    let mut has_yielded = false;
    core::future::poll_fn(|cx| {
        if core::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::{Executor, yield_now};
    use crate::NoWake;
    use alloc::rc::Rc;
    use alloc::sync::Arc;
    use core::cell::{Cell, RefCell};
    use core::future::poll_fn;
    use core::task::{Poll, Waker};

    #[test]
    fn a_task_runs_when_woken_and_frees_its_slot() {
        let mut executor = Executor::new(Arc::new(NoWake));
        let polls = Rc::new(Cell::new(0));
        let waker: Rc<RefCell<Option<Waker>>> = Rc::default();
        let (seen, slot) = (Rc::clone(&polls), Rc::clone(&waker));
        executor.spawn(poll_fn(move |cx| {
            seen.set(seen.get() + 1);
            *slot.borrow_mut() = Some(cx.waker().clone());
            if seen.get() == 3 { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert!(executor.run_ready());
        assert!(!executor.run_ready(), "nothing woke it");
        for _ in 0..2 {
            let waker = waker.borrow().clone().expect("polled once");
            waker.wake_by_ref();
            waker.wake_by_ref();
            assert!(executor.run_ready());
        }
        assert_eq!(polls.get(), 3);
        assert!(executor.is_empty());
    }

    #[test]
    fn a_task_that_yields_is_polled_again_and_one_that_is_aborted_is_not() {
        let mut executor = Executor::new(Arc::new(NoWake));
        let polls = Rc::new(Cell::new(0));
        let seen = Rc::clone(&polls);
        let endless = executor.spawn(async move {
            loop {
                seen.set(seen.get() + 1);
                yield_now().await;
            }
        });
        for _ in 0..3 {
            assert!(executor.run_one());
        }
        assert_eq!(polls.get(), 3);
        executor.abort(endless);
        assert!(executor.is_empty() && !executor.is_alive(endless));
        let next = executor.spawn(async {});
        executor.abort(endless);
        assert!(executor.is_alive(next), "an old name does not reach a new task");
        while executor.run_one() {}
        assert_eq!((polls.get(), executor.is_empty()), (3, true));
    }
}
