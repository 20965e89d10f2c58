//! Mounting and unmounting: the control side of a FUSE export. It blocks; no lane calls it.
//!
//! The mount point is a regular file, and the file system is one regular file over it. Root mounts
//! by itself; others, and root without the right to, ask `fusermount3`, which is set-uid root on
//! most systems and hands the open `/dev/fuse` back through a socket.
//!
//! Rules. Only mounts of our own type (`fuse.udm`) are ever unmounted. Unmounting is lazy: the name
//! goes at once, those who have the file open keep it until the connection is closed.
//!
//! The tricky case is what a killed daemon leaves: a mount that answers ENOTCONN, or, while the
//! kernel still takes its ring down, one that does not answer at all. So a mount is asked from a
//! thread of its own, with a limit; see [`clear_stale`].

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The type our mounts have in the kernel's list.
const FS_TYPE: &str = "fuse.udm";
/// Where the kernel takes file systems in user space.
const DEVICE: &str = "/dev/fuse";
/// Helpers that mount for those who may not.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];
/// How long a mount may take to say that it lives. Its size is known without any I/O.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Mounts over each other at one place that are looked at.
const STALE_MAX: usize = 16;

/// Why something could not be mounted.
#[derive(Debug)]
pub struct MountError {
    /// What was tried.
    pub what: String,
    /// What to do about it; may be empty.
    pub hint: &'static str,
    /// The system's reason.
    pub source: io::Error,
}

impl MountError {
    fn new(what: impl Into<String>, hint: &'static str, source: io::Error) -> MountError {
        MountError { what: what.into(), hint, source }
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for MountError {}

/// What to mount.
#[derive(Clone, Debug)]
pub struct MountOrder<'a> {
    /// Over this file; made if it is missing.
    pub path: &'a Path,
    /// What lists of mounts show as the source.
    pub source: &'a str,
    /// The kernel refuses every change.
    pub read_only: bool,
}

/// A mount.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    made_file: bool,
}

/// Mounts. The connection has to be served from now on: whoever looks at the file waits for it.
///
/// # Errors
/// The system's reason, with what to do about it.
pub fn mount(order: &MountOrder<'_>) -> Result<(OwnedFd, Mount), MountError> {
    let path = settled(order.path)?;
    let made_file = make_file(&path)?;
    let made = mount_over(order, &path);
    if made.is_err() && made_file {
        // It was made a moment ago, and is empty.
        let _ = fs::remove_file(&path);
    }
    made.map(|connection| (connection, Mount { path, made_file }))
}

impl Mount {
    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the kernel ask for the size, so that everybody who has the file open sees it.
    pub fn refresh(&self) {
        // If it fails, the mount has ended, and there is nothing to refresh.
        let _ = fs::metadata(&self.path);
    }

    /// Takes the name away; those who have the file open keep it until the connection is closed.
    /// Nothing happens if it is not mounted any more.
    pub fn detach(&self) {
        if is_ours(&self.path) {
            // What cannot be unmounted stays in the kernel's list, and answers ENOTCONN.
            let _ = unmount(&self.path);
        }
    }

    /// After the end: removes what is left of the mount, and the file if it was made for it.
    pub fn clean_up(&self) {
        self.detach();
        let is_empty = || fs::symlink_metadata(&self.path).is_ok_and(|file| file.len() == 0);
        if self.made_file && !is_ours(&self.path) && is_empty() {
            // Somebody else may have removed it already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes mounts that a dead daemon has left at `path`. With `patience`, also one that does not
/// answer: the caller knows that its daemon is dead.
///
/// # Errors
/// If a mount is alive, or cannot be removed.
pub fn clear_stale(path: &Path, patience: bool) -> Result<(), MountError> {
    let path = settled(path)?;
    for _ in 0..STALE_MAX {
        if !is_ours(&path) {
            return Ok(());
        }
        let is_dead = match ask(&path) {
            Some(Ok(())) => false,
            Some(Err(error)) => matches!(
                rustix::io::Errno::from_io_error(&error),
                Some(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)
            ),
            None => patience,
        };
        let shown = path.display();
        if !is_dead {
            let error = io::Error::from(io::ErrorKind::ResourceBusy);
            let hint = "choose another file, or end that export";
            let what = format!("mount over {shown}: another daemon serves there");
            return Err(MountError::new(what, hint, error));
        }
        unmount(&path).map_err(|error| {
            MountError::new(format!("unmount what a dead daemon left at {shown}"), "", error)
        })?;
    }
    Ok(())
}

/// Whether a mount answers; nothing if it does not in time. The thread ends when it does.
fn ask(path: &Path) -> Option<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    let asked = std::thread::Builder::new().name("udm-fuse-ask".into()).spawn(move || {
        // Whoever asked may have given up.
        let _ = sender.send(fs::metadata(path).map(drop));
    });
    asked.ok()?;
    receiver.recv_timeout(ANSWER_LIMIT).ok()
}

/// The path as the kernel's list has it. The last part is not looked at: it may be a dead mount.
fn settled(path: &Path) -> Result<PathBuf, MountError> {
    let bad = |error: io::Error| MountError::new(format!("find {}", path.display()), "", error);
    let name = path.file_name().ok_or_else(|| bad(io::ErrorKind::IsADirectory.into()))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize().map_err(bad)?;
    Ok(folder.join(name))
}

/// Makes the file that is mounted over. True if it was missing.
fn make_file(path: &Path) -> Result<bool, MountError> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed =
        |error: io::Error| MountError::new(format!("make the file {}", path.display()), "", error);
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(path).map_err(failed)?.is_file() {
                return Ok(false);
            }
            let hint = "give a file (it is made if it is missing); the device appears in its place";
            let what = format!("mount over {}", path.display());
            Err(MountError::new(what, hint, io::Error::other("it is no regular file")))
        }
        Err(error) => Err(failed(error)),
    }
}

fn mount_over(order: &MountOrder<'_>, path: &Path) -> Result<OwnedFd, MountError> {
    let may_mount = rustix::process::geteuid().is_root();
    if may_mount {
        match mount_directly(order, path) {
            Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {}
            other => return other,
        }
    }
    // Others than its owner may not reach a mount unless the system allows it; root then has no
    // way to it either, so it is tried first.
    let shared = mount_by_helper(order, path, ",allow_other,default_permissions");
    shared.or_else(|_| mount_by_helper(order, path, ""))
}

fn mount_directly(order: &MountOrder<'_>, path: &Path) -> Result<OwnedFd, MountError> {
    let failed = |what: &str, error: rustix::io::Errno| {
        let hint = match error {
            rustix::io::Errno::NOENT | rustix::io::Errno::NODEV | rustix::io::Errno::NXIO => {
                "the kernel has no FUSE; load its module, or pass /dev/fuse into the container"
            }
            _ => "",
        };
        MountError::new(what, hint, error.into())
    };
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let connection = rustix::fs::open(DEVICE, flags, Mode::empty())
        .map_err(|error| failed("open /dev/fuse", error))?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let options = format!(
        "fd={},rootmode=100600,user_id={},group_id={},default_permissions,allow_other",
        connection.as_raw_fd(),
        uid.as_raw(),
        gid.as_raw()
    );
    let options = CString::new(options).expect("invariant: numbers hold no NUL");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, order.read_only);
    rustix::mount::mount(order.source, path, FS_TYPE, flags, Some(options.as_c_str()))
        .map_err(|error| failed(&format!("mount over {}", path.display()), error))?;
    Ok(connection)
}

/// Asks a helper to mount; gives the connection it sends back.
fn mount_by_helper(order: &MountOrder<'_>, path: &Path, more: &str) -> Result<OwnedFd, MountError> {
    let what = format!("mount over {}", path.display());
    let failed = |error: io::Error| MountError::new(what.clone(), "", error);
    // The helper's end has to pass an exec; both are closed when this function returns.
    let flags = SocketFlags::empty();
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|error| failed(error.into()))?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    let access = if order.read_only { "ro" } else { "rw" };
    // A comma would end the option.
    let source = order.source.replace([',', '\\'], "_");
    let options = format!("{access},nosuid,nodev,fsname={source},subtype=udm{more}");
    let number = theirs.as_raw_fd().to_string();
    let mut child = helper(|helper| {
        helper.args(["-o", &options, "--"]).arg(path).env("_FUSE_COMMFD", &number);
    })
    .map_err(|error| {
        let hint = "install fuse3, which has fusermount3, or run the daemon as root";
        MountError::new(what.clone(), hint, error)
    })?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // What it says is for people; without it the exit code has to do.
        let _ = stderr.read_to_string(&mut said);
    }
    let status = child.wait().map_err(failed)?;
    match received {
        Some(connection) if status.success() => Ok(connection),
        _ => {
            let said = said.trim();
            let reason = if said.is_empty() { "the helper refused" } else { said };
            // A helper that is set-uid root is not, for a process that gave that up.
            let hint = match rustix::thread::no_new_privs() {
                Ok(true) => {
                    "the daemon may not mount: it was started with --no-privileges, or \
                    without CAP_SYS_ADMIN"
                }
                Ok(false) | Err(_) => "",
            };
            Err(MountError::new(what, hint, io::Error::other(reason.to_owned())))
        }
    }
}

/// Starts the first helper that is there.
fn helper(arrange: impl Fn(&mut Command)) -> io::Result<std::process::Child> {
    let mut missing = io::Error::from(io::ErrorKind::NotFound);
    for name in HELPERS {
        let mut command = Command::new(name);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        arrange(&mut command);
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing = error,
            other => return other,
        }
    }
    Err(missing)
}

/// The descriptor that comes through a socket; nothing if the other side closes it without one.
fn receive_descriptor(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

fn unmount(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let child = helper(|helper| {
        helper.args(["-u", "-z", "--"]).arg(path);
    })?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Whether what is mounted at `path` is one of ours.
fn is_ours(path: &Path) -> bool {
    let Ok(list) = fs::read("/proc/self/mountinfo") else { return false };
    type_at(&list, path).is_some_and(|kind| kind == FS_TYPE.as_bytes())
}

/// The type of what is mounted at `path`, by the kernel's list: of several, the last.
fn type_at<'a>(list: &'a [u8], path: &Path) -> Option<&'a [u8]> {
    let mut words = line_of(list, path)?.split(|byte| *byte == b' ');
    words.find(|word| *word == b"-")?;
    words.next()
}

/// What the kernel's list says of what is mounted at `path`: of several, the last.
pub(super) fn line_of<'a>(list: &'a [u8], path: &Path) -> Option<&'a [u8]> {
    use std::os::unix::ffi::OsStrExt;
    let wanted = path.as_os_str().as_bytes();
    list.split(|byte| *byte == b'\n').rev().find(|line| {
        let place = line.split(|byte| *byte == b' ').nth(4);
        place.is_some_and(|place| unescaped(place) == wanted)
    })
}

/// A word of the list: blanks and their like are written as three octal digits.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *byte == b'\\');
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let decoded = number.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(decoded.unwrap_or(*byte));
        rest = if decoded.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::{make_file, settled, type_at};
    use std::path::Path;

    const LIST: &[u8] = b"22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n\
        40 22 0:35 / /run/my\\040disk rw,nosuid - fuse.udm udm:disk rw,user_id=0\n\
        41 22 0:36 / /run/a rw shared:7 - fuse.udm udm:a rw\n\
        42 22 0:37 / /run/a rw shared:8 - tmpfs none rw\n";

    #[test]
    fn the_last_mount_at_a_place_counts_and_blanks_are_read() {
        let of = |path: &str| type_at(LIST, Path::new(path));
        assert_eq!(of("/run/my disk"), Some(&b"fuse.udm"[..]));
        assert_eq!(of("/run/a"), Some(&b"tmpfs"[..]));
        assert_eq!(of("/"), Some(&b"ext4"[..]));
        assert_eq!(of("/run/b"), None);
        assert_eq!(type_at(b"1 2 3\n\n", Path::new("/")), None);
    }

    #[test]
    fn only_a_regular_file_is_mounted_over() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = settled(&dir.path().join("disk")).expect("its folder is there");
        assert!(make_file(&path).expect("made"));
        assert!(!make_file(&path).expect("there already"));
        let error = make_file(dir.path()).expect_err("a directory");
        assert!(error.to_string().contains("no regular file"), "{error}");
        assert!(settled(&dir.path().join("missing/disk")).is_err());
    }
}
