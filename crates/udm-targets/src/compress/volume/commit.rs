//! Getting records to the disk, and making them durable: the writer, the group commit, the timer.
//!
//! Rules. A commit is: seal, wait until every record up to there is written, one flush of the disk,
//! and everybody who wanted no more than that is served. While it runs, newcomers gather for the
//! next one. So a flush costs one write and one flush of the disk however many wait for it.
//!
//! The tricky case is a failure. A record that could not be written, or a flush that failed, leaves
//! a hole that recovery would stop at; nothing behind it can ever be promised. So the volume takes
//! no more writes, everybody who waits gets the error, and what is in memory stays readable.

use super::options::{State, Trouble};
use super::shared::Core;
use super::tally::add;
use alloc::rc::Rc;
use core::future::poll_fn;
use core::task::Poll;
use udm_types::Status;

/// Waits until everything up to `sequence` is durable.
pub(super) async fn commit(core: &Rc<Core>, sequence: u64) -> Status {
    {
        let mut live = core.live.borrow_mut();
        if live.log.durable >= sequence {
            return Status::Ok;
        }
        live.wanted = live.wanted.max(sequence);
    }
    core.commit.notify();
    core.durable
        .wait_for(|| {
            let is_durable = core.live.borrow().log.durable >= sequence;
            if is_durable { Some(Status::Ok) } else { core.failure() }
        })
        .await
}

/// A flush of users: everything appended until now.
pub(super) async fn flush(core: &Rc<Core>) -> Status {
    let sequence = core.live.borrow().log.last_sequence();
    commit(core, sequence).await
}

/// Waits until no commit is under way or to come, not even for a flush that was taken back.
pub(super) async fn wait_idle(core: &Rc<Core>) {
    core.durable
        .until(|| {
            let live = core.live.borrow();
            let is_served = live.wanted <= live.log.durable || live.log.is_broken;
            is_served && !live.is_committing
        })
        .await;
}

/// Waits until everything up to `sequence` is written.
pub(super) async fn wait_written(core: &Rc<Core>, sequence: u64) -> Status {
    core.written
        .wait_for(|| {
            let is_written = core.live.borrow().log.written() >= sequence;
            if is_written { Some(Status::Ok) } else { core.failure() }
        })
        .await
}

impl Core {
    /// The status of those who wait for a log that will never get there.
    fn failure(&self) -> Option<Status> {
        if !self.live.borrow().log.is_broken {
            return None;
        }
        match &*self.port.state.borrow() {
            State::ReadOnly(Trouble::Disk(error)) | State::Failed(Trouble::Disk(error)) => {
                Some(error.status)
            }
            State::ReadOnly(_) | State::Failed(_) | State::Recovering | State::Serving => {
                Some(Status::IoErr)
            }
        }
    }

    /// The log cannot go on.
    fn break_log(&self, trouble: Trouble) {
        self.live.borrow_mut().log.is_broken = true;
        self.read_only(trouble);
    }
}

/// Task: looks after the writes of records. Lives as long as the volume.
pub(super) async fn writer(core: Rc<Core>) {
    loop {
        let seen = core.live.borrow().log.sealed();
        let outcome =
            poll_fn(|cx| match core.live.borrow_mut().log.poll_writes(&core.port.disk, cx) {
                Ok(false) => Poll::Pending,
                Ok(true) => Poll::Ready(Ok(())),
                Err(error) => Poll::Ready(Err(error)),
            });
        // New records have to be polled once, so that their ends are heard.
        let more = core.sealed.until(|| core.live.borrow().log.sealed() > seen);
        match either(outcome, more).await {
            Some(Ok(())) => {
                core.written.notify();
                core.room.notify();
            }
            Some(Err(error)) => core.break_log(Trouble::Disk(error)),
            None => {}
        }
    }
}

/// The first one's value, or nothing if the second one ended first.
async fn either<T>(first: impl Future<Output = T>, second: impl Future<Output = ()>) -> Option<T> {
    let mut first = core::pin::pin!(first);
    let mut second = core::pin::pin!(second);
    poll_fn(|cx| {
        if let Poll::Ready(value) = first.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        second.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// Task: commits, one after the other. Lives as long as the volume.
pub(super) async fn committer(core: Rc<Core>) {
    loop {
        core.commit
            .until(|| {
                let live = core.live.borrow();
                live.wanted > live.log.durable && !live.log.is_broken
            })
            .await;
        if core.live.borrow().wanted > core.live.borrow().log.sealed() {
            core.seal();
        }
        let target = core.live.borrow().log.sealed();
        if !wait_written(&core, target).await.is_ok() {
            continue;
        }
        if core.port.options.has_volatile_cache {
            add(&core.port.tally.commits, 1);
            core.live.borrow_mut().is_committing = true;
            let flushed = core.port.disk.flush().await;
            core.live.borrow_mut().is_committing = false;
            core.durable.notify();
            if let Err(error) = flushed {
                core.break_log(Trouble::Disk(error));
                continue;
            }
        }
        core.live.borrow_mut().log.durable = target;
        core.durable.notify();
    }
}

/// Task: writes the open record when it has waited long enough. Lives as long as the volume.
pub(super) async fn sealer(core: Rc<Core>) {
    let Some(age) = core.port.options.writeback else { return };
    loop {
        core.sealed.until(|| core.live.borrow().log.has_open()).await;
        let sequence = core.live.borrow().log.last_sequence();
        let deadline = core.port.clock.now() + age;
        let is_sealed = || (core.live.borrow().log.sealed() >= sequence).then_some(());
        if core.port.clock.wait_until(deadline, &core.sealed, is_sealed).await.is_none() {
            core.seal();
        }
    }
}
