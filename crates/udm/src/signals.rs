//! The end of a foreground command: Ctrl-C, SIGTERM, or a call that asks for it.
//!
//! One channel takes all three; whoever serves waits on it and does nothing else, so an idle daemon
//! never wakes up. The first signal begins the graceful end. The second one ends the process at
//! once: a person who presses Ctrl-C twice means it.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use udm_control::errno;
use udm_core::error::{ErrorCode, UserError};

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A signal, by number.
    Signal(i32),
    /// Somebody asked over the control socket.
    Asked,
}

/// What a second signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// Ends the process at once.
    Ends,
    /// The same as the first: another process decides when it is over.
    IsReported,
}

/// Waits for the end, and lets others ask for it.
#[derive(Debug)]
pub struct EndWatch {
    sender: Sender<Ending>,
    receiver: Receiver<Ending>,
}

impl EndWatch {
    /// Takes SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// If the system refuses a handler or a thread.
    pub fn start(second: Second) -> Result<EndWatch, UserError> {
        let failed =
            |error: std::io::Error| errno::system(ErrorCode::Internal, "take signals", &error);
        let (sender, receiver) = channel();
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
        let told = sender.clone();
        thread::Builder::new()
            .name("udm-signals".into())
            .spawn(move || {
                for (count, signal) in signals.forever().enumerate() {
                    let again = count > 0 && second == Second::Ends;
                    if again || told.send(Ending::Signal(signal)).is_err() {
                        // The shell's convention for a process that a signal ended.
                        std::process::exit(128 + signal);
                    }
                }
            })
            .map_err(failed)?;
        Ok(EndWatch { sender, receiver })
    }

    /// A handle that asks for the end.
    pub fn asker(&self) -> Sender<Ending> {
        self.sender.clone()
    }

    /// Waits for the end.
    pub fn wait(&self) -> Ending {
        // Cannot fail while this struct holds a sender.
        self.receiver.recv().unwrap_or(Ending::Asked)
    }
}
