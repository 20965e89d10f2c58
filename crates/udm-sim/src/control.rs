//! Requests to the life cycle, for scripts written as async code.
//!
//! A script asks and awaits the answer, or sleeps in virtual time; the world carries requests to
//! lane
//! 0 as the control faces do (a message in the mailbox) and answers back. So a script reads like
//! what a user types, and many of them run at once on one small executor (the production one).
//!
//! Every request must be answered, once. What is still waiting when nothing can happen any more is
//! a violation and is named in the report.
//!
//! The tricky case is a full mailbox: the message comes back and is sent again in a later step, in
//! order, as the contract of mailboxes asks of every sender.

use crate::state::Stage;
use crossbeam_queue::SegQueue;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use udm_core::engine::LaneMessage;
use udm_core::lifecycle::{Reply, Request};
use udm_core::{Actor, UserError};
use udm_lane::{Mailbox, MailboxFull};
use udm_types::Nanos;

/// An answer.
pub(crate) type Answer = Result<Reply, UserError>;

/// The way to the life cycle and the clock.
#[derive(Clone)]
pub(crate) struct Control {
    stage: Stage,
    inner: Rc<RefCell<Inner>>,
    answers: Arc<SegQueue<(u64, Answer)>>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    outbox: VecDeque<(u64, Request)>,
    unsent: Option<LaneMessage>,
    waiting: BTreeMap<u64, Waiting>,
    sleepers: BTreeMap<(Nanos, u64), Waker>,
    newcomers: Vec<(usize, Box<dyn Actor>)>,
}

struct Waiting {
    what: String,
    answer: Option<Answer>,
    waker: Option<Waker>,
}

impl Control {
    /// A way in; `stage` for clock and trace.
    pub(crate) fn new(stage: Stage) -> Control {
        Control { stage, inner: Rc::default(), answers: Arc::default() }
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn ask(&self, request: Request) -> Answer {
        let id = self.send(request);
        self.answer_to(id).await
    }

    /// Asks; the answer is fetched with [`Control::answer_to`].
    pub(crate) fn send(&self, request: Request) -> u64 {
        let mut inner = self.inner.borrow_mut();
        inner.next += 1;
        let id = inner.next;
        let what = short(&request);
        {
            let mut state = self.stage.get();
            state.note("request", &[id]);
            state.note_text("asks", &what);
            state.tally.count("requests");
        }
        inner.waiting.insert(id, Waiting { what, answer: None, waker: None });
        inner.outbox.push_back((id, request));
        id
    }

    /// Waits for an answer.
    pub(crate) async fn answer_to(&self, id: u64) -> Answer {
        poll_fn(|cx| {
            let mut inner = self.inner.borrow_mut();
            let waiting = inner.waiting.get_mut(&id).expect("invariant: an answer is fetched once");
            match waiting.answer.take() {
                Some(answer) => {
                    inner.waiting.remove(&id);
                    Poll::Ready(answer)
                }
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Waits in virtual time.
    pub(crate) async fn sleep(&self, span: Nanos) {
        let deadline = self.stage.get().now + span;
        let mut key = None;
        poll_fn(|cx| {
            if self.stage.get().now >= deadline {
                return Poll::Ready(());
            }
            let mut inner = self.inner.borrow_mut();
            let key = *key.get_or_insert_with(|| {
                inner.next += 1;
                (deadline, inner.next)
            });
            inner.sleepers.insert(key, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Hands an actor to the world, which installs it on a lane.
    pub(crate) fn install(&self, lane: usize, actor: Box<dyn Actor>) {
        self.inner.borrow_mut().newcomers.push((lane, actor));
    }

    /// Actors to install.
    pub(crate) fn take_newcomers(&self) -> Vec<(usize, Box<dyn Actor>)> {
        std::mem::take(&mut self.inner.borrow_mut().newcomers)
    }

    /// When the next sleeper wakes.
    pub(crate) fn next_wake(&self) -> Option<Nanos> {
        self.inner.borrow().sleepers.first_key_value().map(|(&(when, _), _)| when)
    }

    /// Carries requests to lane 0 and answers back, and wakes who is due.
    pub(crate) fn pump(&self, coordinator: &Mailbox<LaneMessage>) {
        self.carry_requests(coordinator);
        while let Some((id, answer)) = self.answers.pop() {
            let mut state = self.stage.get();
            match &answer {
                Ok(_) => state.note("answer ok", &[id]),
                Err(error) => {
                    state.note("answer no", &[id]);
                    state.note_text("says", error.code().as_str());
                }
            }
            let mut inner = self.inner.borrow_mut();
            match inner.waiting.get_mut(&id) {
                Some(waiting) if waiting.answer.is_none() => {
                    waiting.answer = Some(answer);
                    if let Some(waker) = waiting.waker.take() {
                        waker.wake();
                    }
                }
                Some(_) | None => {
                    state.oracle.violate(format!("request {id} was answered twice"));
                }
            }
        }
        let now = self.stage.get().now;
        loop {
            let mut inner = self.inner.borrow_mut();
            match inner.sleepers.first_entry() {
                Some(entry) if entry.key().0 <= now => entry.remove().wake(),
                Some(_) | None => break,
            }
        }
    }

    fn carry_requests(&self, coordinator: &Mailbox<LaneMessage>) {
        loop {
            let mut inner = self.inner.borrow_mut();
            let message = match inner.unsent.take() {
                Some(message) => message,
                None => {
                    let Some((id, request)) = inner.outbox.pop_front() else { return };
                    let answers = Arc::clone(&self.answers);
                    let sink = Box::new(move |answer| answers.push((id, answer)));
                    LaneMessage::Request(Box::new(request), sink)
                }
            };
            if let Err(MailboxFull(message)) = coordinator.send(message) {
                inner.unsent = Some(message);
                return;
            }
        }
    }

    /// Requests without an answer, for a report.
    pub(crate) fn unanswered(&self) -> Vec<String> {
        let inner = self.inner.borrow();
        let waiting = inner.waiting.values().filter(|waiting| waiting.answer.is_none());
        waiting.map(|waiting| waiting.what.clone()).collect()
    }
}

/// A request without its table.
fn short(request: &Request) -> String {
    let mut text = format!("{request:?}");
    if let Some(at) = text.find("table: ") {
        text.truncate(at);
    }
    text
}
