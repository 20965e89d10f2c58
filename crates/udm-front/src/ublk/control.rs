//! Orders to the kernel's ublk driver, one function each.
//!
//! All of them block. Errors say what was tried, the system's reason, and what to do about it.
//!
//! Devices that are made without root are in [`super::untrusted`]; orders about them go with the
//! path of the device's file, by which the kernel judges.
//!
//! The tricky case is a server that has just died: for a moment the kernel says "busy", since the
//! dead process still has the device open. [`Control::take_up`] waits for that, within a limit.

use super::wire::{
    ANY_DEVICE, DeviceInfo, DeviceNumbers, PARAMS_BYTES, Params, feature, order, state,
};
use std::fmt;
use std::io;
use std::time::Duration;
use udm_driver::{UblkControl, UblkOrder};
use udm_lane::Errno;
use zerocopy::IntoBytes;

/// Between two looks at a dying server's device. The kernel has no event for its end.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often to look: 20 seconds, since its last I/O below has to end first.
const LOOKS_MAX: u32 = 4000;

/// What our devices carry, to tell them from others' ("udm ublk" in letters).
const OURS: u64 = u64::from_be_bytes(*b"udm ublk");

/// Why something could not be done.
#[derive(Debug)]
pub struct UblkError {
    /// What was tried.
    pub what: String,
    /// The system's reason.
    pub source: io::Error,
    /// What to do about it; may be empty.
    pub hint: &'static str,
}

impl UblkError {
    pub(super) fn new(what: impl Into<String>, Errno(code): Errno, hint: &'static str) -> Self {
        UblkError { what: what.into(), source: io::Error::from_raw_os_error(code), hint }
    }
}

impl fmt::Display for UblkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

/// The control device, and what this kernel can do.
#[derive(Debug)]
pub struct Control {
    orders: UblkControl,
    pub(super) features: u64,
    /// Orders name the device's file.
    pub(super) by_path: bool,
}

/// A wish for a new device.
#[derive(Clone, Copy, Debug)]
pub struct NewDevice {
    /// Its number; the kernel's choice if left out.
    pub number: Option<u32>,
    /// Queues; the kernel makes no more than it has processors.
    pub queues: u16,
    /// Requests under way in each.
    pub depth: u16,
    /// The longest request.
    pub io_bytes_max: u32,
    /// It outlives its server.
    pub outlives: bool,
}

impl Control {
    /// Opens the control device.
    ///
    /// # Errors
    /// Without ublk, or without the right to it.
    pub fn open() -> Result<Control, UblkError> {
        let orders = UblkControl::open().map_err(|error| {
            let hint = match error.errno.0 {
                errno::ENOENT | errno::ENXIO | errno::ENODEV => {
                    "load the kernel's module: modprobe ublk_drv (Linux 6.5 or newer, built with \
                     BLK_DEV_UBLK)"
                }
                errno::EACCES | errno::EPERM => {
                    "ublk disks are made by root (CAP_SYS_ADMIN; in a container, also --device \
                     /dev/ublk-control), or by whom a rule of udev lets, see docs/fronts/ublk.md, \
                     \"Without root\"; else --fuse or --nbd"
                }
                _ => "ublk needs io_uring; is it forbidden here (kernel.io_uring_disabled)?",
            };
            UblkError::new(error.step, error.errno, hint)
        })?;
        let mut control = Control { orders, features: 0, by_path: false };
        let mut features = [0; 8];
        // Older kernels cannot say, and have none of those that are asked for.
        if control.order(order::GET_FEATURES, ANY_DEVICE, 0, &mut features).is_ok() {
            control.features = u64::from_ne_bytes(features);
        }
        Ok(control)
    }

    /// Whether this kernel has a feature.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn order(&mut self, code: u32, device: u32, word: u64, memory: &mut [u8]) -> Result<(), Errno> {
        let path = if self.by_path && device != ANY_DEVICE { file(device) } else { String::new() };
        self.orders.call(UblkOrder { code, device, word, path: &path, memory }).map(drop)
    }

    /// Makes a device; without root one that the kernel does not trust, if it lets us.
    ///
    /// # Errors
    /// If the number is taken, there is no right to it, or the kernel is too old.
    pub fn add(&mut self, wish: NewDevice) -> Result<DeviceInfo, UblkError> {
        let may_have = self.features & (feature::UPDATE_SIZE | feature::NO_AUTO_PART_SCAN);
        let mut features = feature::USER_COPY | feature::CMD_IOCTL_ENCODE | may_have;
        if wish.outlives {
            features |= feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE;
        }
        let added = match self.add_with(wish, features) {
            Err(Errno(errno::EPERM)) => return self.add_untrusted(wish),
            added => added,
        };
        let info = added.map_err(|errno| self.not_added(wish, errno))?;
        if info.features & feature::USER_COPY == 0 {
            let number = info.device;
            let _unless_it_is_gone = self.delete(number);
            let errno = Errno(errno::EOPNOTSUPP);
            return Err(UblkError::new("make a ublk device", errno, "it takes Linux 6.5 or newer"));
        }
        Ok(info)
    }

    pub(super) fn add_with(&mut self, wish: NewDevice, features: u64) -> Result<DeviceInfo, Errno> {
        let device = wish.number.unwrap_or(ANY_DEVICE);
        let mut info = DeviceInfo {
            queues: wish.queues,
            depth: wish.depth,
            io_bytes_max: wish.io_bytes_max,
            device,
            server_pid: own_pid(),
            features,
            server_word: OURS,
            ..DeviceInfo::default()
        };
        // There is no file yet.
        self.by_path = false;
        self.order(order::ADD, device, 0, info.as_mut_bytes())?;
        Ok(info)
    }

    pub(super) fn not_added(&mut self, wish: NewDevice, errno: Errno) -> UblkError {
        let device = wish.number.unwrap_or(ANY_DEVICE);
        let what = match wish.number {
            Some(number) => format!("make the ublk device {number}"),
            None => "make a ublk device".to_owned(),
        };
        let hint = match errno.0 {
            errno::EEXIST if self.is_left(device).unwrap_or(false) => {
                "a daemon that has died left it: start one with its --state directory, or give \
                 the disk up with udm unexport /dev/ublkbN (its users get errors)"
            }
            errno::EEXIST => "choose another number, or leave it out",
            errno::EPERM => "ublk disks are made by root (CAP_SYS_ADMIN); else --fuse or --nbd",
            errno::EACCES => {
                "without root the kernel allows so many ublk devices (ublks_max of its module) and \
                 no more"
            }
            _ => "",
        };
        UblkError::new(what, errno, hint)
    }

    /// What the kernel knows of a device; `None` if there is none of this number.
    ///
    /// # Errors
    /// The kernel's.
    pub fn info(&mut self, number: u32) -> Result<Option<DeviceInfo>, UblkError> {
        let mut info = DeviceInfo::default();
        let mut asked = self.order(order::GET_INFO, number, 0, info.as_mut_bytes());
        if !self.by_path && matches!(asked, Err(Errno(errno::EINVAL | errno::EPERM))) {
            // It was made without root, or we are not root: then its file says who may ask.
            self.by_path = true;
            asked = self.order(order::GET_INFO, number, 0, info.as_mut_bytes());
        }
        match asked {
            Ok(()) => Ok(Some(info)),
            Err(Errno(errno::ENODEV)) => Ok(None),
            Err(errno) => Err(failed("look at", number, errno)),
        }
    }

    /// Whether a device is one of ours whose server has died and that nobody has taken up. Waits
    /// for the end of a server that is just dying.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_left(&mut self, number: u32) -> Result<bool, UblkError> {
        for _ in 0..LOOKS_MAX {
            let Some(info) = self.info(number)? else { return Ok(false) };
            let is_left = match info.state {
                state::QUIESCED | state::FAIL_IO => true,
                // Without recovery: there is no disk any more, or not yet.
                state::DEAD => !lives(info.server_pid),
                _ => false,
            };
            if info.server_word != OURS || is_left || lives(info.server_pid) {
                return Ok(info.server_word == OURS && is_left);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(false)
    }

    /// Takes up our device whose server has died, waiting for its last I/O. `None` if there is
    /// nothing to take up; a remainder of it is removed.
    ///
    /// # Errors
    /// If the device is somebody else's, or its server lives.
    pub fn take_up(&mut self, number: u32) -> Result<Option<DeviceInfo>, UblkError> {
        let mut looks = 0;
        loop {
            looks += 1;
            let Some(info) = self.info(number)? else { return Ok(None) };
            if info.server_word != OURS {
                let hint = "another program's device has this number; choose another one";
                return Err(UblkError::new(at(number), Errno(errno::EBUSY), hint));
            }
            if info.state == state::DEAD {
                self.delete_in_time(number)?;
                return Ok(None);
            }
            if info.features & feature::USER_RECOVERY == 0 && !lives(info.server_pid) {
                // It is about to be dead.
                if looks < LOOKS_MAX {
                    std::thread::sleep(LOOK_AGAIN);
                    continue;
                }
                return Err(failed("wait for the end of", number, Errno(errno::EBUSY)));
            }
            match self.order(order::START_RECOVERY, number, 0, &mut []) {
                Ok(()) => return Ok(Some(info)),
                Err(Errno(errno::EBUSY)) if looks < LOOKS_MAX => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                Err(errno @ Errno(errno::EBUSY)) => {
                    return Err(UblkError::new(at(number), errno, "another daemon serves it"));
                }
                Err(errno) => return Err(failed("take up", number, errno)),
            }
        }
    }

    /// The disk of a device that was taken up goes on. Waits for the queues.
    ///
    /// # Errors
    /// The kernel's.
    pub fn go_on(&mut self, number: u32) -> Result<(), UblkError> {
        let ended = self.order(order::END_RECOVERY, number, own_pid() as u64, &mut []);
        ended.map_err(|errno| failed("go on with", number, errno))
    }

    /// Makes the disk. Waits for the queues, and for the partition table to be read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(&mut self, number: u32, params: &Params) -> Result<(), UblkError> {
        let mut params = *params;
        let bytes = &mut params.as_mut_bytes()[..PARAMS_BYTES];
        let told = self.order(order::SET_PARAMS, number, 0, bytes);
        told.map_err(|errno| failed("describe", number, errno))?;
        let started = self.order(order::START, number, own_pid() as u64, &mut []);
        started.map_err(|errno| failed("start", number, errno))
    }

    /// The disk as the kernel knows it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn params(&mut self, number: u32) -> Result<Params, UblkError> {
        let mut params = Params { len_bytes: PARAMS_BYTES as u32, ..Params::default() };
        let bytes = &mut params.as_mut_bytes()[..PARAMS_BYTES];
        let asked = self.order(order::GET_PARAMS, number, 0, bytes);
        asked.map_err(|errno| failed("look at", number, errno))?;
        Ok(params)
    }

    /// The numbers of a device's files.
    ///
    /// # Errors
    /// The kernel's.
    pub fn numbers(&mut self, number: u32) -> Result<DeviceNumbers, UblkError> {
        self.params(number).map(|params| params.numbers)
    }

    /// Whether the kernel can be told another size of a disk that is in use.
    pub fn resizes(&self) -> bool {
        self.has(feature::UPDATE_SIZE)
    }

    /// Tells the kernel another size.
    ///
    /// # Errors
    /// `EOPNOTSUPP` from a kernel that cannot (before Linux 6.16).
    pub fn resize(&mut self, number: u32, len_sectors: u64) -> Result<(), UblkError> {
        let resized = match self.resizes() {
            true => self.order(order::UPDATE_SIZE, number, len_sectors, &mut []),
            false => Err(Errno(errno::EOPNOTSUPP)),
        };
        resized.map_err(|errno| failed("resize", number, errno))
    }

    /// Removes the disk. Waits for what is under way.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop(&mut self, number: u32) -> Result<(), UblkError> {
        let stopped = self.order(order::STOP, number, 0, &mut []);
        stopped.map_err(|errno| failed("stop", number, errno))
    }

    /// Removes the device. Waits until nobody has its file open.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete(&mut self, number: u32) -> Result<(), UblkError> {
        let deleted = self.order(order::DELETE, number, 0, &mut []);
        deleted.map_err(|errno| failed("delete", number, errno))
    }
}

/// The device's file.
pub(super) fn file(number: u32) -> String {
    format!("/dev/ublkc{number}")
}

/// Error numbers of the kernel's answers.
pub(super) mod errno {
    pub(in crate::ublk) const EPERM: i32 = 1;
    pub(in crate::ublk) const ENOENT: i32 = 2;
    pub(in crate::ublk) const ENXIO: i32 = 6;
    pub(in crate::ublk) const EACCES: i32 = 13;
    pub(in crate::ublk) const EBUSY: i32 = 16;
    pub(in crate::ublk) const EEXIST: i32 = 17;
    pub(in crate::ublk) const ENODEV: i32 = 19;
    pub(in crate::ublk) const EINVAL: i32 = 22;
    pub(in crate::ublk) const EOPNOTSUPP: i32 = 95;
}

pub(super) fn at(number: u32) -> String {
    format!("take up the ublk device {number}")
}

fn failed(what: &str, number: u32, errno: Errno) -> UblkError {
    UblkError::new(format!("{what} the ublk device {number}"), errno, "")
}

/// Removes a disk of ours that a dead server left; its users get errors. False if it is none.
///
/// # Errors
/// Without ublk, or what the kernel refuses.
pub fn give_up(number: u32) -> Result<bool, UblkError> {
    let mut control = Control::open()?;
    if !control.is_left(number)? {
        return Ok(false);
    }
    control.stop(number)?;
    control.delete_in_time(number)?;
    Ok(true)
}

/// Whether there is a process of this number.
fn lives(pid: i32) -> bool {
    // The kernel says -1 when there is none.
    let pid = rustix::process::Pid::from_raw(pid.max(0));
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}
