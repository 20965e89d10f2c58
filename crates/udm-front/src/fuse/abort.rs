//! Whether a connection may go over io_uring, and how it is aborted then. It blocks: not for lanes.
//!
//! A connection over io_uring has our memory until the kernel lets go of it, and nothing but the
//! end of the connection makes it do that: an unmount, if nobody has the file open, or a word in
//! the file `abort` of fusectl, a file system that systemd mounts at `/sys/fs/fuse/connections`.
//! Where it is not, it is mounted at a folder of our own for the moment of opening that file.
//!
//! Rules. The way is taken only where the system's administrator has switched it on
//! (`/sys/module/fuse/parameters/enable_uring`), and only by those who may mount, since the others
//! may not abort.
//!
//! The tricky case is asking for the connection's number: a mount that is not served yet answers
//! nobody, so it is taken from the kernel's list of mounts.

use super::mount::line_of;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether FUSE may use io_uring.
const ENABLED: &str = "/sys/module/fuse/parameters/enable_uring";
/// Processors there may ever be: the kernel has a queue for each.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// Where fusectl is, if somebody has mounted it.
const CONTROL: &str = "/sys/fs/fuse/connections";
const CONTROL_TYPE: &CStr = c"fusectl";

/// How many queues the kernel wants lent memory for, if connections may go over io_uring here.
pub fn ring_queues() -> Option<u16> {
    let enabled = fs::read_to_string(ENABLED).ok()?;
    if !matches!(enabled.trim(), "Y" | "1") || !rustix::process::geteuid().is_root() {
        return None;
    }
    count(&fs::read_to_string(POSSIBLE).ok()?)
}

/// How many numbers a list such as `0-3,6` has; only one without gaps, which queues need.
fn count(list: &str) -> Option<u16> {
    let last = match list.trim().strip_prefix('0')? {
        "" => 0,
        rest => rest.strip_prefix('-')?.parse::<u16>().ok()?,
    };
    last.checked_add(1)
}

/// A connection that can be aborted: the file that does it, open.
#[derive(Debug)]
pub struct Connection(fs::File);

impl Connection {
    /// The connection of what is mounted at `path`, if this process may abort it. What is opened
    /// here cannot be missing or refused at the end, when nothing else would help.
    pub fn at(path: &Path) -> Option<Connection> {
        let list = fs::read("/proc/self/mountinfo").ok()?;
        let device = line_of(&list, path)?.split(|byte| *byte == b' ').nth(2)?;
        let (_, number) = std::str::from_utf8(device).ok()?.split_once(':')?;
        let open = |control: &Path| {
            fs::OpenOptions::new().write(true).open(control.join(number).join("abort")).ok()
        };
        open(Path::new(CONTROL))
            .or_else(|| {
                let folder = Folder::new().ok()?;
                folder.mount().ok()?;
                open(&folder.0)
            })
            .map(Connection)
    }

    /// Ends it: requests under way fail, and the kernel lets go of our memory. Nothing happens to
    /// one that has ended by itself.
    ///
    /// # Errors
    /// The system's; none is known.
    pub fn abort(&self) -> io::Result<()> {
        (&self.0).write_all(b"1")
    }
}

/// A folder of our own; unmounted and removed on drop. A file opened in it stays.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Folder> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("udm-fusectl-{process}-{number}"));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Folder(path))
    }

    fn mount(&self) -> io::Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount(CONTROL_TYPE, &self.0, CONTROL_TYPE, flags, None)?;
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Fails if it was not mounted; then there is nothing to take down but the folder.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn queues_are_counted_where_there_are_no_gaps() {
        assert_eq!(count("0\n"), Some(1));
        assert_eq!(count("0-3\n"), Some(4));
        for other in ["", "1-3", "0-3,6", "0-65535", "0-x"] {
            assert_eq!(count(other), None, "{other}");
        }
    }
}
