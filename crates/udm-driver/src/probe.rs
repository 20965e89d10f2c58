//! Which driver a lane gets: tried at start, reported in one line.
//!
//! `Auto` makes a ring and sends a NOP through it. Containers often forbid that (`EPERM` from a
//! seccomp profile, `ENOSYS` on old kernels, `ENOMEM` under a small memlock limit); then the
//! portable driver is taken and the report says what was refused. An explicit choice is obeyed or
//! fails; it never turns into the other driver in silence.
//!
//! Where the choice comes from (command line, environment) is the caller's business.

use crate::error::DriverError;
use crate::portable::PortableDriver;
use crate::uring::{Age, UringDriver};
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
///
/// # Errors
/// With [`DriverChoice::Uring`] what was refused; otherwise only if the system is out of
/// descriptors.
pub fn open_driver(choice: DriverChoice) -> Result<(Box<dyn Driver>, DriverReport), DriverError> {
    match choice {
        DriverChoice::Uring => open_uring(),
        DriverChoice::Portable => open_portable("chosen".to_owned()),
        DriverChoice::Auto => {
            open_uring().or_else(|error| open_portable(format!("io_uring refused: {error}")))
        }
    }
}

fn open_portable(reason: String) -> Result<(Box<dyn Driver>, DriverReport), DriverError> {
    let driver = PortableDriver::open()?;
    Ok((Box::new(driver), DriverReport { name: "portable", reason }))
}

fn open_uring() -> Result<(Box<dyn Driver>, DriverReport), DriverError> {
    let driver = UringDriver::open(Age::Current)?;
    let abilities = driver.abilities();
    let reason = format!(
        "{}, {} fixed files, {} accept",
        abilities.flavour,
        abilities.fixed_files,
        if abilities.multishot_accept { "multishot" } else { "single" },
    );
    Ok((Box::new(driver), DriverReport { name: "io_uring", reason }))
}

/// io_uring as the oldest accepted kernel has it: no newer flags, no file table, one connection
/// an accept. Here so that the contract suite runs on the fallbacks, too.
///
/// # Errors
/// As [`DriverChoice::Uring`].
#[doc(hidden)]
pub fn open_oldest_uring() -> Result<Box<dyn Driver>, DriverError> {
    Ok(Box::new(UringDriver::open(Age::Oldest)?))
}
