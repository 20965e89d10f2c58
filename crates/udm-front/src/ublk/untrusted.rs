//! Devices that are made without root, which the kernel does not trust.
//!
//! Who is not root may make one if `/dev/ublk-control` is open to it. The kernel judges every
//! further order about it by the file `/dev/ublkcN`, even one to remove it; a rule of udev has to
//! give that file away first, which is waited for. Such a device has no user copy, no zero copy
//! and no recovery, and the kernel kills the thread of a queue that takes too long.
//!
//! The tricky case is a rule that is missing: the device is there, and not ours to remove. It is
//! remembered, so that a daemon leaves one behind, not one for each attempt.

use super::control::{Control, LOOK_AGAIN, NewDevice, UblkError, at, errno, file};
use super::wire::{DeviceInfo, feature, state};
use rustix::fs::Access;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udm_lane::Errno;

/// How often to look for files that udev gives away: 5 seconds.
const RULE_LOOKS_MAX: u32 = 1000;

/// What to do if it does not.
const NO_RULE: &str = "a rule of udev has to give the files of disks to who made them; see \
    docs/fronts/ublk.md, \"Without root\"";

/// The number of a device that this process made and could not open, since that rule is missing.
/// It cannot remove it either, so it makes no second one.
static NOT_OURS: Mutex<Option<u32>> = Mutex::new(None);

/// How long somebody may keep the disk of a dead daemon open before a device is not waited for.
const DELETE_MAX: Duration = Duration::from_secs(2);

impl Control {
    /// Makes a device that is no better than its owner: no user copy, no recovery.
    pub(super) fn add_untrusted(&mut self, wish: NewDevice) -> Result<DeviceInfo, UblkError> {
        self.remove_not_ours()?;
        let may_have = self.features & feature::UPDATE_SIZE;
        let features = feature::UNPRIVILEGED_DEV | feature::NEED_GET_DATA | may_have;
        let added = self.add_with(wish, features | feature::CMD_IOCTL_ENCODE);
        let info = added.map_err(|errno| self.not_added(wish, errno))?;
        self.by_path = true;
        if let Err(error) = await_file(&file(info.device)) {
            *not_ours() = Some(info.device);
            return Err(error);
        }
        Ok(info)
    }

    /// Removes the device that we made before there was a rule of udev.
    fn remove_not_ours(&mut self) -> Result<(), UblkError> {
        let Some(number) = *not_ours() else { return Ok(()) };
        self.by_path = true;
        if matches!(self.info(number), Err(UblkError { source, .. }) if is_no_right(&source)) {
            let what = format!("open {} of the last attempt", file(number));
            return Err(UblkError::new(what, Errno(errno::EACCES), NO_RULE));
        }
        let own_uid = rustix::process::getuid().as_raw();
        let is_still_there =
            |info: DeviceInfo| info.state == state::DEAD && info.owner_uid == own_uid;
        if self.info(number)?.is_some_and(is_still_there) {
            self.delete(number)?;
        }
        *not_ours() = None;
        Ok(())
    }

    /// As [`Control::delete`] of a device whose disk is gone. Somebody may still have the disk's
    /// file open, and the kernel waits for that, so the order has a thread of its own.
    pub(super) fn delete_in_time(&self, number: u32) -> Result<(), UblkError> {
        let (told, result) = channel();
        let by_path = self.by_path;
        let thread = std::thread::Builder::new().name("udm-ublk-end".to_owned());
        let spawned = thread.spawn(move || {
            let deleted = Control::open().and_then(|mut control| {
                control.by_path = by_path;
                control.delete(number)
            });
            // Fails if nobody waits any more.
            let _ = told.send(deleted);
        });
        spawned.map_err(|error| UblkError {
            what: format!("delete the ublk device {number}"),
            source: error,
            hint: "",
        })?;
        result.recv_timeout(DELETE_MAX).unwrap_or_else(|_| {
            let hint = "a program still has the disk open whose daemon has died; end it";
            Err(UblkError::new(at(number), Errno(errno::EBUSY), hint))
        })
    }
}

/// Waits until udev has given us a file.
///
/// # Errors
/// If it does not.
pub(super) fn await_file(path: &str) -> Result<(), UblkError> {
    let mut looks = 0;
    loop {
        match rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => return Ok(()),
            Err(_) if looks < RULE_LOOKS_MAX => std::thread::sleep(LOOK_AGAIN),
            Err(error) => {
                let errno = Errno(error.raw_os_error());
                return Err(UblkError::new(format!("open {path}"), errno, NO_RULE));
            }
        }
        looks += 1;
    }
}

/// Who made a device without root, as user and group. `None` if it was made by root, or there is
/// none. For a rule of udev, which gives its files away.
///
/// # Errors
/// Without ublk, or what the kernel refuses.
pub fn owner(number: u32) -> Result<Option<(u32, u32)>, UblkError> {
    let info = Control::open()?.info(number)?;
    let info = info.filter(|info| info.features & feature::UNPRIVILEGED_DEV != 0);
    Ok(info.map(|info| (info.owner_uid, info.owner_gid)))
}

fn not_ours() -> MutexGuard<'static, Option<u32>> {
    NOT_OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_no_right(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(errno::EACCES | errno::EPERM))
}
