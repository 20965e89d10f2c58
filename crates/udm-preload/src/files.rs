//! What is in the files that are ours.
//!
//! The kernel's lists of drivers with the device mapper's lines as a daemon has them, and the few
//! files about a device that libdevmapper reads below `/sys`. Each is a fresh anonymous file.
//!
//! The tricky case is a kernel with a device mapper of its own: its lines go, since a process has
//! one device mapper, and this one has the daemon's.

use crate::control::{Found, Key, Variables, find};
use crate::place::Place;
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, Mode, OFlags, SeekFrom, memfd_create, open, seek};
use rustix::io::Errno;
use udm_control::DM_MAJOR;

/// The control node's minor number of the "misc" driver (10).
pub(crate) const CONTROL_MINOR: u32 = 236;
/// What the kernel's own devices have unless somebody changes it.
const READ_AHEAD_KB: u32 = 128;

/// The bytes of a file that is ours.
///
/// # Errors
/// `NOENT` if there is no such file.
pub(crate) fn content(variables: Variables<'_>, place: Place<'_>) -> Result<Vec<u8>, Errno> {
    match place {
        Place::Devices => Ok(devices(&system_file("/proc/devices")?).into_bytes()),
        Place::Misc => Ok(misc(&system_file("/proc/misc")?).into_bytes()),
        Place::Sys(minor, file) => sys(&find(variables, Key::Minor(minor))?, file),
        Place::Control | Place::Folder | Place::Node(_) => Err(Errno::NOENT),
    }
}

fn sys(device: &Found, file: &[u8]) -> Result<Vec<u8>, Errno> {
    let line = |text: &[u8]| Ok([text, b"\n"].concat());
    match file {
        b"dm/name" => line(&device.name),
        b"dm/uuid" => line(&device.uuid),
        b"dm/suspended" => line(if device.suspended { b"1" } else { b"0" }),
        b"bdi/read_ahead_kb" | b"queue/read_ahead_kb" => line(READ_AHEAD_KB.to_string().as_bytes()),
        _ => Err(Errno::NOENT),
    }
}

/// `/proc/devices` with our major number.
fn devices(system: &str) -> String {
    let mut text = String::new();
    for line in system.lines().filter(|line| !line.ends_with(" device-mapper")) {
        text.push_str(line);
        text.push('\n');
        if line == "Block devices:" {
            text.push_str(&format!("{DM_MAJOR:3} device-mapper\n"));
        }
    }
    text
}

/// `/proc/misc` with the control node.
fn misc(system: &str) -> String {
    let mut text = format!("{CONTROL_MINOR:3} device-mapper\n");
    for line in system.lines().filter(|line| !line.ends_with(" device-mapper")) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// A file of the kernel, without going through the C library's `open`.
fn system_file(path: &str) -> Result<String, Errno> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        match rustix::io::read(&file, &mut part[..]) {
            Ok(0) => return String::from_utf8(bytes).map_err(|_| Errno::IO),
            Ok(count) => bytes.extend_from_slice(&part[..count]),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A descriptor to read bytes from.
pub(crate) fn file_of(bytes: &[u8], cloexec: bool) -> Result<OwnedFd, Errno> {
    let flags = if cloexec { MemfdFlags::CLOEXEC } else { MemfdFlags::empty() };
    let file = memfd_create("udm", flags)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

/// An empty directory that is nowhere: made, opened and removed.
pub(crate) fn empty_folder(cloexec: bool) -> Result<OwnedFd, Errno> {
    let process = rustix::process::getpid().as_raw_nonzero();
    let thread = rustix::thread::gettid().as_raw_nonzero();
    let path = std::env::temp_dir().join(format!(".udm-mapper-{process}-{thread}"));
    match rustix::fs::mkdir(&path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = if cloexec { OFlags::CLOEXEC } else { OFlags::empty() };
    let folder =
        open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | flags, Mode::empty());
    rustix::fs::rmdir(&path)?;
    folder
}

#[cfg(test)]
mod tests {
    use super::{devices, misc};

    #[test]
    fn the_lists_have_one_device_mapper() {
        let system = "Character devices:\n 10 misc\n\nBlock devices:\n  8 sd\n253 device-mapper\n";
        let ours = "Character devices:\n 10 misc\n\nBlock devices:\n254 device-mapper\n  8 sd\n";
        assert_eq!(devices(system), ours);
        assert_eq!(misc("236 device-mapper\n 1 x\n"), "236 device-mapper\n 1 x\n");
        assert_eq!(misc("130 watchdog\n"), "236 device-mapper\n130 watchdog\n");
    }
}
