//! Waiting inside a volume: for a condition of the shared state, and for a time.
//!
//! All tasks of a volume run on one thread and share one state. Who waits for something in it names
//! the condition and the [`Signal`] that is given whenever it may have become true.
//!
//! Rules. A signal carries nothing; the condition is looked at again. So a signal too many costs a
//! poll and a signal too few would be a hang: every place that changes what a condition reads gives
//! the signal. A task is entered once, however often it is polled.
//!
//! The tricky case is a task that gave up waiting (it was dropped): its waker stays until the next
//! signal, and waking it then does nothing.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Poll, Waker};
use udm_types::Nanos;

/// Something that tasks wait for.
#[derive(Default)]
pub(super) struct Signal {
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// What somebody waits for may have become true.
    pub(super) fn notify(&self) {
        // Taken out first: a waker may not, but should be allowed to, come back here.
        let mut waiting = core::mem::take(&mut *self.waiting.borrow_mut());
        for waker in waiting.drain(..) {
            waker.wake();
        }
        let mut place = self.waiting.borrow_mut();
        if place.is_empty() {
            *place = waiting;
        }
    }

    /// Ends when `condition` gives something.
    pub(super) async fn wait_for<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| match condition() {
            Some(value) => Poll::Ready(value),
            None => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    /// Ends when `condition` holds.
    pub(super) async fn until(&self, mut condition: impl FnMut() -> bool) {
        self.wait_for(|| condition().then_some(())).await;
    }
}

/// The volume's clock, as its host tells it, and who waits for a time.
#[derive(Default)]
pub(super) struct Clock {
    now: Cell<Nanos>,
    alarms: RefCell<BTreeMap<(Nanos, u64), Waker>>,
    count: Cell<u64>,
}

impl Clock {
    /// The time.
    pub(super) fn now(&self) -> Nanos {
        self.now.get()
    }

    /// The host: it is `now`. Wakes whose time has come.
    pub(super) fn advance(&self, now: Nanos) {
        self.now.set(now.max(self.now.get()));
        loop {
            let mut alarms = self.alarms.borrow_mut();
            let Some(first) = alarms.first_entry().filter(|first| first.key().0 <= now) else {
                return;
            };
            let waker = first.remove();
            drop(alarms);
            waker.wake();
        }
    }

    /// When the host has to come back at the latest.
    pub(super) fn next(&self) -> Option<Nanos> {
        self.alarms.borrow().first_key_value().map(|(key, _)| key.0)
    }

    /// Ends when it is `deadline`, or `condition` gives something; `signal` says when to look.
    pub(super) async fn wait_until<T>(
        &self,
        deadline: Nanos,
        signal: &Signal,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let alarm = Alarm { clock: self, deadline, key: Cell::new(None) };
        let value = signal.wait_for(|| match condition() {
            Some(value) => Some(Some(value)),
            None => (alarm.clock.now() >= deadline).then_some(None),
        });
        let mut value = core::pin::pin!(value);
        poll_fn(|cx| {
            let poll = value.as_mut().poll(cx);
            if poll.is_pending() {
                alarm.set(cx.waker());
            }
            poll
        })
        .await
    }
}

/// An entry in the clock; taken out when it is dropped.
struct Alarm<'a> {
    clock: &'a Clock,
    deadline: Nanos,
    key: Cell<Option<(Nanos, u64)>>,
}

impl Alarm<'_> {
    fn set(&self, waker: &Waker) {
        if self.deadline == Nanos(u64::MAX) {
            // It never comes, and whoever sleeps until the next alarm need not know of it.
            return;
        }
        let key = self.key.get().unwrap_or_else(|| {
            self.clock.count.set(self.clock.count.get() + 1);
            (self.deadline, self.clock.count.get())
        });
        self.key.set(Some(key));
        self.clock.alarms.borrow_mut().insert(key, waker.clone());
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.get() {
            self.clock.alarms.borrow_mut().remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, Signal};
    use alloc::rc::Rc;
    use alloc::sync::Arc;
    use core::cell::Cell;
    use udm_lane::{Executor, NoWake};
    use udm_types::Nanos;

    #[test]
    fn a_condition_is_looked_at_when_the_signal_is_given() {
        let mut tasks = Executor::new(Arc::new(NoWake));
        let (signal, value) = (Rc::new(Signal::default()), Rc::new(Cell::new(0)));
        let (waits_for, seen) = (Rc::clone(&signal), Rc::clone(&value));
        tasks.spawn(async move { waits_for.until(|| seen.get() == 2).await });
        tasks.run_ready();
        value.set(1);
        signal.notify();
        tasks.run_ready();
        value.set(2);
        assert!(!tasks.run_ready() && !tasks.is_empty(), "nobody said so");
        signal.notify();
        tasks.run_ready();
        assert!(tasks.is_empty());
    }

    #[test]
    fn a_wait_ends_by_its_condition_or_its_time() {
        let mut tasks = Executor::new(Arc::new(NoWake));
        let (signal, clock) = (Rc::new(Signal::default()), Rc::new(Clock::default()));
        let (is_true, outcomes) = (Rc::new(Cell::new(false)), Rc::new(Cell::new((None, None))));
        for first in [true, false] {
            let (signal, clock, is_true, outcomes) =
                (Rc::clone(&signal), Rc::clone(&clock), Rc::clone(&is_true), Rc::clone(&outcomes));
            tasks.spawn(async move {
                let deadline = Nanos(if first { 10 } else { 20 });
                let outcome =
                    clock.wait_until(deadline, &signal, || is_true.get().then_some(7)).await;
                let (a, b) = outcomes.get();
                let mine = Some(outcome);
                outcomes.set(if first { (mine, b) } else { (a, mine) });
            });
        }
        tasks.run_ready();
        assert_eq!(clock.next(), Some(Nanos(10)));
        clock.advance(Nanos(9));
        assert!(!tasks.run_ready());
        clock.advance(Nanos(10));
        tasks.run_ready();
        assert_eq!((clock.next(), outcomes.get()), (Some(Nanos(20)), (Some(None), None)));
        is_true.set(true);
        signal.notify();
        tasks.run_ready();
        assert_eq!((clock.next(), outcomes.get()), (None, (Some(None), Some(Some(7)))));
    }

    /// Found by the simulator: its clock went past the end of time.
    #[test]
    fn a_time_that_never_comes_is_no_alarm() {
        let mut tasks = Executor::new(Arc::new(NoWake));
        let (signal, clock) = (Rc::new(Signal::default()), Rc::new(Clock::default()));
        let (waits, sleeps) = (Rc::clone(&signal), Rc::clone(&clock));
        tasks.spawn(async move {
            sleeps.wait_until(Nanos(u64::MAX), &waits, || None::<()>).await;
        });
        tasks.run_ready();
        assert_eq!(clock.next(), None);
    }
}
