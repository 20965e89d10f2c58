//! ublk exports: a disk of this machine's kernel, `/dev/ublkbN`.
//!
//! Everything that matters is `udm-front`'s; this file understands numbers, refuses what would
//! only hang, and starts the server.
//!
//! The tricky case is the daemon's end. With a state directory the disk belongs to the next
//! daemon as well: after a crash, and after an orderly end while somebody holds it (it is
//! mounted), its users wait until it is taken up. Otherwise the disk ends with the daemon.

use super::{Front, Patience, SizeNews, Start, flushing_lanes, telling};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use udm_control::errno;
use udm_core::error::{ErrorCode, UserError};
use udm_front::ublk::control::UblkError;
use udm_front::ublk::server::{DiskOrder, Server};
use udm_front::ublk::wire::DEVICES_MAX;
use udm_types::{LaneId, Sector};

/// How the disk is called, before its number.
const NAME: &str = "/dev/ublkb";

/// An export to be.
pub(super) struct Plan {
    /// The kernel's choice if there is none.
    number: Option<u32>,
}

impl Plan {
    /// Understands a number, with or without `/dev/ublkb` before it, or `auto`.
    ///
    /// # Errors
    /// `BadAddress`.
    pub(super) fn parse(address: &str) -> Result<Plan, UserError> {
        if address == "auto" {
            return Ok(Plan { number: None });
        }
        let digits = address.strip_prefix(NAME).unwrap_or(address);
        let number = digits.parse().ok().filter(|number| *number < DEVICES_MAX);
        match number.filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit())) {
            Some(number) => Ok(Plan { number: Some(number) }),
            None => Err(UserError::new(
                ErrorCode::BadAddress,
                format!("'{address}': it is no number of a ublk disk"),
            )
            .hint("give N for /dev/ublkbN, or leave it out to get the next that is free")),
        }
    }
}

impl super::Plan for Plan {
    fn address(&self) -> String {
        self.number.map_or_else(|| "auto".to_owned(), |number| format!("{NAME}{number}"))
    }

    fn start(self: Box<Self>, start: Start<'_>) -> Result<Arc<dyn Front>, UserError> {
        let take_up = start.patience == Patience::OldDaemon;
        if start.suspended && !take_up {
            return Err(UserError::new(
                ErrorCode::Suspended,
                "the kernel reads the partition table of a new disk, and the device is suspended",
            )
            .hint("resume it first"));
        }
        flushing_lanes(start.runtime);
        let lanes = (0..start.runtime.lane_count())
            // Fits: there are far fewer lanes.
            .map(|lane| start.runtime.mailbox(LaneId(lane as u16)))
            .collect();
        let order = DiskOrder {
            device: start.device,
            read_only: start.read_only,
            number: self.number,
            take_up,
            outlives: start.is_kept,
            lanes: start.lanes,
        };
        let lapse = start.lapse;
        let server = Server::start(order, lanes, Box::new(move |why| lapse.tell(why)));
        let server = server.map_err(|error| refused(&error))?;
        Ok(Arc::new(UblkFront { server }))
    }
}

/// Gives up a disk by its path that a daemon before this one has left and nobody takes up. `None`
/// if there is none of this name.
pub(super) fn give_up(name: &str) -> Option<Result<(), UserError>> {
    let number = name.strip_prefix(NAME)?.parse().ok()?;
    match udm_front::ublk::control::give_up(number) {
        Ok(true) => Some(Ok(())),
        Ok(false) => None,
        Err(error) => Some(Err(refused(&error))),
    }
}

fn refused(error: &UblkError) -> UserError {
    errno::system(ErrorCode::DiskFailed, &error.what, &error.source).hint(error.hint)
}

/// A running server.
struct UblkFront {
    server: Server,
}

impl Front for UblkFront {
    fn address(&self) -> String {
        format!("{NAME}{}", self.server.number())
    }

    fn uri(&self, _name: &str) -> String {
        self.address()
    }

    fn client_count(&self) -> u32 {
        // The kernel is the one client there is.
        1
    }

    fn block_device(&self) -> Option<(u32, u32)> {
        Some(self.server.major_minor())
    }

    fn size_news(&self) -> SizeNews {
        if self.server.resizes() { SizeNews::Told } else { SizeNews::Kept }
    }

    fn settle_size(&self, done: Sender<()>) {
        self.server.settle(telling(done));
    }

    fn kept_sectors(&self) -> Option<Sector> {
        Some(self.server.told_sectors())
    }

    fn note(&self) -> Option<String> {
        self.server.note()
    }

    fn is_held(&self) -> bool {
        self.server.is_held()
    }

    fn outlives(&self) -> bool {
        self.server.outlives() && self.is_held()
    }

    fn stop(&self, cut: bool, done: Sender<()>) {
        self.server.stop(cut, telling(done));
    }

    fn clean_up(&self) {}
}

#[cfg(test)]
mod tests {
    use super::Plan;
    use crate::daemon::exports::Plan as _;

    #[test]
    fn numbers_are_taken_and_words_are_not() {
        for (text, shown) in
            [("auto", "auto"), ("0", "/dev/ublkb0"), ("/dev/ublkb17", "/dev/ublkb17")]
        {
            assert_eq!(Plan::parse(text).map(|plan| plan.address()).ok().as_deref(), Some(shown));
        }
        for text in ["", "disk", "-1", "+1", "1048576", "/dev/ublkb", "/dev/ublkc0", "1 "] {
            assert!(Plan::parse(text).is_err(), "{text}");
        }
    }
}
