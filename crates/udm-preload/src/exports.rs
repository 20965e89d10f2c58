//! The C functions that stand before those of the C library.
//!
//! Those that libdevmapper and programs on it use for the control node, the nodes it makes, and the
//! files it reads about both. Variable arguments (`open`, `ioctl`) are taken as the fixed ones a
//! caller may pass: on the machines this is for they come in the same registers.
//!
//! A device has no node, since the kernel knows nothing of it. It looks as if there were one:
//! `stat` shows its number, and making, removing or renaming it does nothing. Opening it opens the
//! file that the device is exported as, or the loop device on that file; if it is neither, it fails
//! with `ENXIO`. Such a file tells its size as a block device does.
//!
//! The tricky case is a pointer that is bad: the kernel answers `EFAULT`, here the process dies as
//! it would in any other library. Only null is told.

use crate::blocks;
use crate::control::{self, Buffer, Found, Key};
use crate::files;
use crate::next::interpose;
use crate::place::{Place, place};
use libc::{
    DIR, FILE, c_char, c_int, c_uint, c_ulong, c_void, dev_t, gid_t, mode_t, size_t, uid_t,
};
use rustix::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::ptr::null_mut;
use udm_control::ioctl::layout::is_dm;

/// What of a function is ours: nothing, a result, or an error.
type Ours<R> = Option<Result<R, Errno>>;

fn variable(name: &str) -> Option<String> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is a C string. What getenv gives is valid until the environment is changed,
    // which a program with threads must not do, by the rules of the C library itself; it is copied
    // at once.
    let value = unsafe {
        let value = libc::getenv(name.as_ptr());
        if value.is_null() { None } else { Some(CStr::from_ptr(value)) }
    };
    value.and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// What a path of our caller means to us.
fn place_of<'a>(path: *const c_char) -> Option<Place<'a>> {
    if path.is_null() {
        return None;
    }
    // SAFETY: every function here that takes a path demands a C string, as the function behind it
    // does, and it lives at least as long as the call, which is as long as what is made of it.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    // SAFETY: as in `variable`; it is only compared with the path, before anybody could change it.
    let dev_dir = unsafe {
        let value = libc::getenv(c"UDM_DEV_DIR".as_ptr());
        if value.is_null() { None } else { Some(CStr::from_ptr(value).to_bytes()) }
    };
    place(path, dev_dir)
}

fn find_node(name: &[u8]) -> Result<Found, Errno> {
    control::find(&variable, Key::Name(name)).map_err(|_| Errno::NOENT)
}

/// Opens what stands for a device's node. The node is there already and has its size.
fn open_node(name: &[u8], flags: c_int) -> Result<OwnedFd, Errno> {
    // One without a table has no node.
    find_node(name)?;
    let path = control::path_of(&variable, name)?;
    let of_a_new_file = libc::O_CREAT | libc::O_TRUNC;
    let mut flags = OFlags::from_bits_retain((flags & !of_a_new_file).cast_unsigned());
    if !path.starts_with("/dev/") {
        // It claims a block device, and has no meaning for a file that is there.
        flags.remove(OFlags::EXCL);
    }
    rustix::fs::open(path, flags, Mode::empty())
}

fn open_place(place: Place<'_>, flags: c_int) -> Result<OwnedFd, Errno> {
    let cloexec = flags & libc::O_CLOEXEC != 0;
    match place {
        Place::Control => control::open(&variable, cloexec),
        Place::Folder => files::empty_folder(cloexec),
        Place::Node(name) => open_node(name, flags),
        Place::Devices | Place::Misc | Place::Sys(..) => {
            files::file_of(&files::content(&variable, place)?, cloexec)
        }
    }
}

fn open_ours(path: *const c_char, flags: c_int) -> Ours<c_int> {
    place_of(path).map(|place| Ok(open_place(place, flags)?.into_raw_fd()))
}

interpose!(open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int, -1,
    open_ours(path, flags));
interpose!(open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int, -1,
    open_ours(path, flags));
interpose!(openat(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int, -1,
    open_ours(path, flags));
interpose!(openat64(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int, -1,
    open_ours(path, flags));
interpose!(__open_2(path: *const c_char, flags: c_int) -> c_int, -1, open_ours(path, flags));
interpose!(__open64_2(path: *const c_char, flags: c_int) -> c_int, -1, open_ours(path, flags));
interpose!(__openat_2(at: c_int, path: *const c_char, flags: c_int) -> c_int, -1,
    open_ours(path, flags));
interpose!(__openat64_2(at: c_int, path: *const c_char, flags: c_int) -> c_int, -1,
    open_ours(path, flags));

fn fopen_ours(path: *const c_char, mode: *const c_char) -> Ours<*mut FILE> {
    place_of(path).map(|place| {
        if mode.is_null() {
            return Err(Errno::INVAL);
        }
        // SAFETY: `fopen` demands a C string.
        let words = unsafe { CStr::from_ptr(mode) }.to_bytes();
        let reads = !words.iter().any(|letter| matches!(letter, b'w' | b'a' | b'+'));
        // What else is ours can only be read.
        let writable = matches!(place, Place::Node(_)) && !reads;
        let (access, mode) =
            if writable { (libc::O_RDWR, mode) } else { (libc::O_RDONLY, c"r".as_ptr()) };
        let file = open_place(place, access | libc::O_CLOEXEC)?.into_raw_fd();
        // SAFETY: the descriptor is ours and open, the mode a C string; the stream owns it now.
        let stream = unsafe { libc::fdopen(file, mode) };
        if stream.is_null() { Err(Errno::NOMEM) } else { Ok(stream) }
    })
}

interpose!(fopen(path: *const c_char, mode: *const c_char) -> *mut FILE, null_mut(),
    fopen_ours(path, mode));
interpose!(fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE, null_mut(),
    fopen_ours(path, mode));

interpose!(opendir(path: *const c_char) -> *mut DIR, null_mut(),
place_of(path).map(|place| match place {
    Place::Folder => {
        let folder = files::empty_folder(true)?.into_raw_fd();
        // SAFETY: the descriptor is ours and that of a directory; the stream owns it now.
        let stream = unsafe { libc::fdopendir(folder) };
        if stream.is_null() { Err(Errno::NOMEM) } else { Ok(stream) }
    }
    Place::Devices | Place::Misc | Place::Control => Err(Errno::NOTDIR),
    Place::Node(_) | Place::Sys(..) => Err(Errno::NOENT),
}));

/// What `stat` shows of what is ours.
struct Shape {
    mode: mode_t,
    rdev: dev_t,
}

fn shape_of(place: Place<'_>) -> Result<Shape, Errno> {
    let shape = |mode, rdev| Ok(Shape { mode, rdev });
    match place {
        Place::Control => shape(libc::S_IFCHR | 0o600, libc::makedev(10, files::CONTROL_MINOR)),
        Place::Folder => shape(libc::S_IFDIR | 0o755, 0),
        Place::Node(name) => shape(libc::S_IFBLK | 0o660, find_node(name)?.dev),
        Place::Sys(minor, b"") => {
            control::find(&variable, Key::Minor(minor))?;
            shape(libc::S_IFDIR | 0o755, 0)
        }
        Place::Devices | Place::Misc | Place::Sys(..) => {
            files::content(&variable, place)?;
            shape(libc::S_IFREG | 0o444, 0)
        }
    }
}

fn stat_ours(path: *const c_char, into: *mut libc::stat) -> Ours<c_int> {
    place_of(path).map(|place| {
        let shape = shape_of(place)?;
        if into.is_null() {
            return Err(Errno::FAULT);
        }
        // SAFETY: the caller gives room for a `stat`, as the function behind this one demands; all
        // its fields are numbers, for which zero is a value.
        unsafe {
            into.write(std::mem::zeroed());
            (*into).st_mode = shape.mode;
            (*into).st_rdev = shape.rdev;
            (*into).st_nlink = 1;
            (*into).st_blksize = 4096;
        }
        Ok(0)
    })
}

interpose!(stat(path: *const c_char, into: *mut libc::stat) -> c_int, -1, stat_ours(path, into));
interpose!(stat64(path: *const c_char, into: *mut libc::stat) -> c_int, -1, stat_ours(path, into));
interpose!(lstat(path: *const c_char, into: *mut libc::stat) -> c_int, -1, stat_ours(path, into));
interpose!(lstat64(path: *const c_char, into: *mut libc::stat) -> c_int, -1,
    stat_ours(path, into));
interpose!(fstatat(at: c_int, path: *const c_char, into: *mut libc::stat, flags: c_int) -> c_int,
    -1, stat_ours(path, into));
interpose!(fstatat64(at: c_int, path: *const c_char, into: *mut libc::stat, flags: c_int) -> c_int,
    -1, stat_ours(path, into));
interpose!(__xstat(version: c_int, path: *const c_char, into: *mut libc::stat) -> c_int, -1,
    stat_ours(path, into));
interpose!(__xstat64(version: c_int, path: *const c_char, into: *mut libc::stat) -> c_int, -1,
    stat_ours(path, into));
interpose!(__lxstat(version: c_int, path: *const c_char, into: *mut libc::stat) -> c_int, -1,
    stat_ours(path, into));
interpose!(__lxstat64(version: c_int, path: *const c_char, into: *mut libc::stat) -> c_int, -1,
    stat_ours(path, into));

/// An open file that is a mapped device looks as its node does, since LVM compares the two.
fn fstat_ours(fd: c_int, into: *mut libc::stat) -> Ours<c_int> {
    if fd < 0 || into.is_null() {
        return None;
    }
    // SAFETY: it is only borrowed for this call; if it is not open, the system says so.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    let found = control::device_at(&variable, &blocks::path_of(file)?)?;
    // SAFETY: the caller gives room for a `stat`, as the function behind this one demands; all its
    // fields are numbers, for which zero is a value.
    unsafe {
        into.write(std::mem::zeroed());
        (*into).st_mode = libc::S_IFBLK | 0o660;
        (*into).st_rdev = found.dev;
        (*into).st_nlink = 1;
        (*into).st_blksize = 4096;
    }
    Some(Ok(0))
}

interpose!(fstat(fd: c_int, into: *mut libc::stat) -> c_int, -1, fstat_ours(fd, into));
interpose!(fstat64(fd: c_int, into: *mut libc::stat) -> c_int, -1, fstat_ours(fd, into));

interpose!(statx(at: c_int, path: *const c_char, flags: c_int, mask: c_uint,
    into: *mut libc::statx) -> c_int, -1,
place_of(path).map(|place| {
    let shape = shape_of(place)?;
    if into.is_null() {
        return Err(Errno::FAULT);
    }
    // SAFETY: the caller gives room for a `statx`, as the function behind this one demands; all
    // its fields are numbers, for which zero is a value.
    unsafe {
        into.write(std::mem::zeroed());
        (*into).stx_mask = libc::STATX_TYPE | libc::STATX_MODE | libc::STATX_NLINK;
        // A mode has 16 bits.
        (*into).stx_mode = shape.mode as u16;
        (*into).stx_nlink = 1;
        (*into).stx_blksize = 4096;
        (*into).stx_rdev_major = libc::major(shape.rdev);
        (*into).stx_rdev_minor = libc::minor(shape.rdev);
    }
    Ok(0)
}));

interpose!(access(path: *const c_char, mode: c_int) -> c_int, -1,
    place_of(path).map(|place| shape_of(place).map(|_| 0)));

interpose!(readlink(path: *const c_char, into: *mut c_char, room: size_t) -> isize, -1,
place_of(path).map(|place| match place {
    Place::Sys(minor, b"") => {
        control::find(&variable, Key::Minor(minor)).map_err(|_| Errno::NOENT)?;
        let text = format!("../../devices/virtual/block/dm-{minor}");
        let len = text.len().min(room);
        if into.is_null() {
            return Err(Errno::FAULT);
        }
        // SAFETY: the caller gives `room` bytes, as the function behind this one demands, and
        // no more than that are written; the text is elsewhere.
        unsafe { into.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), len) };
        // At most the length of a short text.
        Ok(len as isize)
    }
    Place::Control | Place::Folder | Place::Devices | Place::Misc => Err(Errno::INVAL),
    Place::Node(_) | Place::Sys(..) => Err(Errno::NOENT),
}));

/// Making, removing or changing a node: nothing, and that is done at once.
fn node_ours(path: *const c_char) -> Ours<c_int> {
    match place_of(path)? {
        Place::Node(_) | Place::Control => Some(Ok(0)),
        Place::Folder | Place::Devices | Place::Misc | Place::Sys(..) => Some(Err(Errno::PERM)),
    }
}

interpose!(mknod(path: *const c_char, mode: mode_t, dev: dev_t) -> c_int, -1, node_ours(path));
interpose!(mknodat(at: c_int, path: *const c_char, mode: mode_t, dev: dev_t) -> c_int, -1,
    node_ours(path));
interpose!(__xmknod(version: c_int, path: *const c_char, mode: mode_t, dev: *mut dev_t) -> c_int,
    -1, node_ours(path));
interpose!(chown(path: *const c_char, owner: uid_t, group: gid_t) -> c_int, -1, node_ours(path));
interpose!(chmod(path: *const c_char, mode: mode_t) -> c_int, -1, node_ours(path));
interpose!(unlink(path: *const c_char) -> c_int, -1, node_ours(path));
interpose!(rename(from: *const c_char, to: *const c_char) -> c_int, -1,
    node_ours(from).or_else(|| node_ours(to).map(|_| Err(Errno::XDEV))));
interpose!(mkdir(path: *const c_char, mode: mode_t) -> c_int, -1,
place_of(path).map(|place| match place {
    Place::Folder | Place::Control | Place::Devices | Place::Misc => Err(Errno::EXIST),
    Place::Node(_) | Place::Sys(..) => Err(Errno::PERM),
}));

/// The buffer of an ioctl.
struct Argument(*mut u8);

impl Buffer for Argument {
    fn read(&self, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        // SAFETY: whoever makes a dm ioctl gives a buffer of at least the version, and of as many
        // bytes as its header says once the version is good; never more than that is asked for. The
        // vector is elsewhere and has the room.
        unsafe { self.0.copy_to_nonoverlapping(bytes.as_mut_ptr(), len_bytes) };
        bytes
    }

    fn write(&mut self, bytes: &[u8]) {
        // SAFETY: as above; an answer is cut to what the caller has.
        unsafe { self.0.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn wipe(&mut self, len_bytes: usize) {
        // SAFETY: as above.
        unsafe { self.0.write_bytes(0, len_bytes) };
    }
}

fn ioctl_ours(fd: c_int, request: c_ulong, argument: *mut c_void) -> Ours<c_int> {
    // The kernel looks at the low 32 bits only.
    let request = request as u32;
    if fd >= 0
        && let Some(question) = blocks::question(request)
    {
        // SAFETY: as below.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        return blocks::answer(file, question).map(|answer| {
            if argument.is_null() {
                return Err(Errno::FAULT);
            }
            // SAFETY: whoever asks this gives room for the answer, whose size the ioctl defines.
            unsafe {
                match answer {
                    blocks::Answer::Int(value) => argument.cast::<u32>().write_unaligned(value),
                    blocks::Answer::Long(value) => argument.cast::<u64>().write_unaligned(value),
                }
            }
            Ok(0)
        });
    }
    if !is_dm(request) || fd < 0 {
        return None;
    }
    // SAFETY: it is only borrowed for this call, in which the caller keeps it open; if it is not
    // open, the system says so.
    let control = unsafe { BorrowedFd::borrow_raw(fd) };
    if !control::is_control(control) {
        return None;
    }
    if argument.is_null() {
        return Some(Err(Errno::FAULT));
    }
    let mut buffer = Argument(argument.cast());
    Some(control::call(&variable, control, request, &mut buffer).map(|()| 0))
}

interpose!(ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int, -1,
    ioctl_ours(fd, request, argument));
