//! Mailboxes: how lanes (and the control side) talk to a lane.
//!
//! A bounded lock-free queue and a way to wake the owner. Any thread may send; only the owner
//! receives. A full mailbox gives the message back: the sender keeps it and tries again next turn
//! (back-pressure), nothing is dropped and nothing grows.
//!
//! The tricky case is the lost wake-up. The owner, before it blocks, sets `sleeping`, then looks
//! into the queue once more. A sender pushes first and looks at `sleeping` after. Whichever order
//! the two interleave in, either the owner sees the message or the sender sees `sleeping`; both
//! use sequentially consistent operations, which this argument needs.

use crate::Wake;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering, fence};
use crossbeam_queue::ArrayQueue;

/// The sending end; clone it for every sender.
pub struct Mailbox<M> {
    shared: Arc<Shared<M>>,
}

/// The receiving end, owned by one lane.
pub struct MailboxReceiver<M> {
    shared: Arc<Shared<M>>,
}

/// The mailbox was full; here is the message back.
#[derive(Debug)]
pub struct MailboxFull<M>(pub M);

struct Shared<M> {
    queue: ArrayQueue<M>,
    sleeping: AtomicBool,
    wake: Arc<dyn Wake>,
}

/// Makes a mailbox for at most `capacity` messages, whose owner is woken by `wake`.
pub fn mailbox<M>(capacity: usize, wake: Arc<dyn Wake>) -> (Mailbox<M>, MailboxReceiver<M>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        sleeping: AtomicBool::new(false),
        wake,
    });
    (Mailbox { shared: Arc::clone(&shared) }, MailboxReceiver { shared })
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Mailbox { shared: Arc::clone(&self.shared) }
    }
}

impl<M> Mailbox<M> {
    /// Sends a message and wakes the owner if it sleeps.
    pub fn send(&self, message: M) -> Result<(), MailboxFull<M>> {
        self.shared.queue.push(message).map_err(MailboxFull)?;
        self.nudge();
        Ok(())
    }

    /// Wakes the owner if it sleeps, without a message.
    pub fn nudge(&self) {
        fence(Ordering::SeqCst);
        if self.shared.sleeping.swap(false, Ordering::SeqCst) {
            self.shared.wake.wake();
        }
    }
}

impl<M> MailboxReceiver<M> {
    /// Takes the next message.
    pub fn receive(&self) -> Option<M> {
        self.shared.queue.pop()
    }

    /// True if a message waits.
    pub fn has_message(&self) -> bool {
        !self.shared.queue.is_empty()
    }

    /// Announces that the owner is about to block. True if it may: no message is waiting.
    pub fn prepare_to_sleep(&self) -> bool {
        self.shared.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.shared.queue.is_empty() {
            return true;
        }
        self.awake();
        false
    }

    /// Announces that the owner runs again.
    pub fn awake(&self) {
        self.shared.sleeping.store(false, Ordering::SeqCst);
    }

    /// Another sending end.
    pub fn sender(&self) -> Mailbox<M> {
        Mailbox { shared: Arc::clone(&self.shared) }
    }
}

#[cfg(test)]
mod tests {
    use super::{MailboxFull, mailbox};
    use crate::Wake;
    use alloc::sync::Arc;
    use core::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct CountingWake(AtomicUsize);
    impl Wake for CountingWake {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (sender, receiver) = mailbox(2, Arc::new(CountingWake::default()));
        assert!(sender.send(1).is_ok());
        assert!(sender.send(2).is_ok());
        assert!(matches!(sender.send(3), Err(MailboxFull(3))));
        assert_eq!(receiver.receive(), Some(1));
        assert!(sender.send(3).is_ok());
    }

    #[test]
    fn only_a_sleeping_owner_is_woken_and_only_once() {
        let wake = Arc::new(CountingWake::default());
        let (sender, receiver) = mailbox(8, Arc::clone(&wake) as Arc<dyn Wake>);
        assert!(sender.send(1).is_ok());
        assert_eq!(wake.0.load(Ordering::SeqCst), 0);
        assert!(!receiver.prepare_to_sleep(), "a message waits");
        assert_eq!(receiver.receive(), Some(1));
        assert!(receiver.prepare_to_sleep());
        assert!(sender.send(2).is_ok());
        assert!(sender.send(3).is_ok());
        assert_eq!(wake.0.load(Ordering::SeqCst), 1);
    }
}
