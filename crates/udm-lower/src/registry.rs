//! The registry: opens lower devices by the name a table gives, and shares what is open.
//!
//! Runs on the control side (building a table), where opening may block; lanes never come here. It
//! keeps only weak references: a device is open for as long as a table or a lane holds it.
//!
//! | name | shared with |
//! |---|---|
//! | `PATH`, `file:PATH`, `direct:PATH` | the same inode (or device number), opened the same way |
//! | `MAJOR:MINOR` | the same block device, by whatever name |
//! | `mem:SIZE:NAME` | the same NAME; the size must agree |
//! | `nbd://...`, `nbd+unix://...` | the same server, export and options, opened the same way |
//! | `mem:SIZE`, `null:SIZE` | nobody: each is new |
//!
//! Rules. Nothing is created here. A block device that is opened for writing is claimed, so a
//! mounted disk is refused (as Linux's device mapper refuses it) and cannot be mounted meanwhile.
//!
//! The tricky case is one file opened in two ways (buffered and direct, or read-only and not).
//! These are two devices, but the fence, the failed flushes and the claim belong to the file, so
//! both share one [`InodeState`].

use crate::file::{FileDevice, InodeState};
use crate::ids::{Ids, Numbered};
use crate::memory::{MemoryDevice, MemoryDisk};
use crate::name::{LowerName, escaped, no_such_number, parse_name, shorten};
use crate::nbd::{NbdDevice, NbdName, NbdProbe};
use crate::null::NullDevice;
use rustix::fs::{FileType, Stat, major, minor, stat};
use rustix::io::Errno as OsErrno;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use udm_core::table::DeviceRef;
use udm_core::{DeviceResolver, ErrorCode, ErrorKind, LinkState, LowerDevice, UserError};
use udm_driver::OpenOptions;
use udm_lane::Errno;
use udm_types::Sector;

/// Opens lower devices; one for a daemon.
#[derive(Debug)]
pub struct LowerRegistry {
    lane_count: usize,
    ids: Arc<Ids>,
    open: Mutex<OpenDevices>,
}

/// What may be open. Entries whose device has gone are swept out as the maps grow.
#[derive(Debug, Default)]
struct OpenDevices {
    files: BTreeMap<FileKey, Weak<Numbered>>,
    inodes: BTreeMap<Identity, Weak<InodeState>>,
    memories: BTreeMap<String, Weak<MemoryDisk>>,
    named: BTreeMap<(String, bool), Weak<Numbered>>,
    /// The newest of a name last; more than one only if the export came back as something else.
    exports: BTreeMap<(String, bool), Vec<OpenExport>>,
    sweep_at: usize,
}

/// An export that may be open, and how to ask it about itself.
type OpenExport = (Weak<Numbered>, NbdProbe);

/// Which file, and how it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FileKey {
    identity: Identity,
    read_only: bool,
    direct: bool,
}

/// What makes two paths the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    /// Of a regular file: file system and inode.
    Inode(u64, u64),
    /// Of a block device: its number, whatever node it is reached by.
    Block(u64),
}

/// How many dead entries may gather before a sweep.
const SWEEP_AT_LEAST: usize = 64;

impl LowerRegistry {
    /// A registry for a daemon of so many lanes.
    pub fn new(lane_count: usize) -> LowerRegistry {
        LowerRegistry {
            lane_count: lane_count.max(1),
            ids: Arc::default(),
            open: Mutex::new(OpenDevices { sweep_at: SWEEP_AT_LEAST, ..OpenDevices::default() }),
        }
    }

    /// Opens the device of this name, or finds it open.
    ///
    /// # Errors
    /// Says what is wrong with the name, or why the system refused, and what to try.
    pub fn open(&self, name: &str, read_only: bool) -> Result<DeviceRef, UserError> {
        match parse_name(name)? {
            LowerName::File { path, direct } => self.open_path(name, path, direct, read_only),
            LowerName::Number { major, minor } => {
                let path = node_of(major, minor).ok_or_else(|| no_such_number(name))?;
                self.open_path(name, &path, false, read_only)
            }
            LowerName::Memory { len_sectors, name: label } => {
                self.open_memory(name, len_sectors, label, read_only)
            }
            LowerName::Nbd(nbd) => self.open_nbd(name, &nbd, read_only),
            LowerName::Null { len_sectors } => {
                let device =
                    self.number(Box::new(NullDevice::new(name, len_sectors, read_only)))?;
                Ok(describe(device, None))
            }
        }
    }

    fn number(&self, device: Box<dyn LowerDevice>) -> Result<Arc<Numbered>, UserError> {
        Ids::number(&self.ids, device).ok_or_else(|| {
            UserError::new(ErrorCode::TooManyDevices, "there are too many devices below")
        })
    }

    fn open_memory(
        &self,
        shown: &str,
        len_sectors: Sector,
        label: Option<&str>,
        read_only: bool,
    ) -> Result<DeviceRef, UserError> {
        let make = || {
            MemoryDisk::new(len_sectors).map(Arc::new).map_err(|errno| {
                let text = format!("{shown}: {}", system_text(errno));
                UserError::new(ErrorCode::DeviceOpen, text).hint("try a smaller size")
            })
        };
        let Some(label) = label else {
            let device = MemoryDevice::new(shown, make()?, read_only);
            return Ok(describe(self.number(Box::new(device))?, None));
        };
        let mut open = self.lock();
        let key = (label.to_owned(), read_only);
        let disk = match open.memories.get(label).and_then(Weak::upgrade) {
            Some(disk) if disk.len_sectors() != len_sectors => {
                let bytes = disk.len_sectors() * 512;
                let text =
                    format!("the memory '{label}' is in use with another size, {bytes} bytes");
                return Err(UserError::new(ErrorCode::BadArgument, text)
                    .hint(format!("write mem:{bytes}:{label}, or choose another name")));
            }
            Some(disk) => disk,
            None => make()?,
        };
        if let Some(device) = open.named.get(&key).and_then(Weak::upgrade) {
            return Ok(describe(device, None));
        }
        let device = MemoryDevice::new(shown, Arc::clone(&disk), read_only);
        let device = self.number(Box::new(device))?;
        open.memories.insert(label.to_owned(), Arc::downgrade(&disk));
        open.named.insert(key, Arc::downgrade(&device));
        open.sweep();
        Ok(describe(device, None))
    }

    /// Opens an export, or finds it open: then it need not be reachable now, as a disk that has
    /// failed can still be named. One that came back as something else is opened anew.
    fn open_nbd(
        &self,
        shown: &str,
        name: &NbdName,
        read_only: bool,
    ) -> Result<DeviceRef, UserError> {
        let key = (name.key(), read_only);
        let known = |open: &OpenDevices| {
            let mut newest_first = open.exports.get(&key)?.iter().rev();
            newest_first.find_map(|(device, probe)| device.upgrade().filter(|_| !probe.is_misfit()))
        };
        if let Some(device) = known(&self.lock()) {
            return Ok(describe(device, None));
        }
        // Not under the lock: a server that does not answer must not hold up other tables.
        let device = NbdDevice::open(&escaped(shown), name, read_only)?;
        let probe = device.probe();
        let device = self.number(Box::new(device))?;
        let mut open = self.lock();
        if let Some(first) = known(&open) {
            return Ok(describe(first, None));
        }
        let same_name = open.exports.entry(key).or_default();
        same_name.retain(|(device, _)| device.strong_count() > 0);
        same_name.push((Arc::downgrade(&device), probe));
        open.sweep();
        Ok(describe(device, None))
    }

    /// How the connections of a device stand, by the name it has in tables; `None` if it is not
    /// open or not reached over a connection.
    pub fn link(&self, name: &str) -> Option<LinkState> {
        let LowerName::Nbd(nbd) = parse_name(name).ok()? else { return None };
        let open = self.lock();
        [false, true].into_iter().find_map(|read_only| {
            let mut newest_first = open.exports.get(&(nbd.key(), read_only))?.iter().rev();
            newest_first.find_map(|(device, _)| device.upgrade())?.link()
        })
    }

    fn open_path(
        &self,
        shown: &str,
        path: &str,
        direct: bool,
        read_only: bool,
    ) -> Result<DeviceRef, UserError> {
        let refused = |errno: Errno| refusal(path, direct, read_only, errno);
        let stat = stat(path).map_err(|error| refused(Errno(error.raw_os_error())))?;
        let (identity, number) = identify(&stat, path)?;
        let key = FileKey { identity, read_only, direct };
        let mut open = self.lock();
        if let Some(device) = open.files.get(&key).and_then(Weak::upgrade) {
            let mut found = describe(device, number);
            if number.is_none() {
                found.shown = escaped(shown);
            }
            return Ok(found);
        }
        let known = open.inodes.get(&identity).and_then(Weak::upgrade);
        let inode = known.unwrap_or_default();
        let options = OpenOptions { read_only, direct, ..OpenOptions::default() };
        let inode_kept = Arc::clone(&inode);
        let device =
            FileDevice::open(Path::new(path), &escaped(shown), options, inode, self.lane_count)
                .map_err(refused)?;
        if device.len_sectors() == 0 {
            let text = format!("{} holds less than one block", shorten(path));
            return Err(UserError::new(ErrorCode::DeviceTooSmall, text).hint(format!(
                "give it a size first, for example: truncate -s 1G {}",
                shorten(path)
            )));
        }
        let device = self.number(Box::new(device))?;
        open.files.insert(key, Arc::downgrade(&device));
        open.inodes.insert(identity, Arc::downgrade(&inode_kept));
        open.sweep();
        Ok(describe(device, number))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, OpenDevices> {
        // A panic in here left at worst an entry too few.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceResolver for &LowerRegistry {
    fn resolve(&mut self, name: &str, read_only: bool) -> Result<DeviceRef, UserError> {
        self.open(name, read_only)
    }
}

impl OpenDevices {
    /// Forgets devices that have gone, now and then, so that a table of 20,000 files does not cost
    /// 20,000 sweeps.
    fn sweep(&mut self) {
        if self.len() < self.sweep_at {
            return;
        }
        self.files.retain(|_, device| device.strong_count() > 0);
        self.inodes.retain(|_, inode| inode.strong_count() > 0);
        self.named.retain(|_, device| device.strong_count() > 0);
        self.memories.retain(|_, disk| disk.strong_count() > 0);
        self.exports
            .retain(|_, same_name| same_name.iter().any(|(device, _)| device.strong_count() > 0));
        self.sweep_at = SWEEP_AT_LEAST.max(2 * self.len());
    }

    fn len(&self) -> usize {
        self.files.len() + self.named.len() + self.exports.len()
    }
}

/// The node of a block device, by its number: where the kernel says that it is, or among udev's
/// links. It is the device's for certain, or there is none.
fn node_of(wanted_major: u32, wanted_minor: u32) -> Option<String> {
    let number = format!("{wanted_major}:{wanted_minor}");
    let told = std::fs::read_to_string(format!("/sys/dev/block/{number}/uevent"));
    let named = told.ok().and_then(|text| {
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        Some(format!("/dev/{name}"))
    });
    let places = named.into_iter().chain([format!("/dev/block/{number}")]);
    places.into_iter().find(|path| {
        stat(path.as_str()).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
                && (major(stat.st_rdev), minor(stat.st_rdev)) == (wanted_major, wanted_minor)
        })
    })
}

fn describe(device: Arc<Numbered>, number: Option<(u32, u32)>) -> DeviceRef {
    DeviceRef { number, ..DeviceRef::of_lower(&device.reference()) }
}

/// Which file it is, and its number if it is a block device.
fn identify(stat: &Stat, path: &str) -> Result<(Identity, Option<(u32, u32)>), UserError> {
    let wrong = |what: &str| {
        let text = format!("{} is {what}, not a file or block device", shorten(path));
        Err(UserError::new(ErrorCode::NotBlockDevice, text))
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((Identity::Inode(stat.st_dev, stat.st_ino), None)),
        FileType::BlockDevice => {
            let number = (major(stat.st_rdev), minor(stat.st_rdev));
            Ok((Identity::Block(stat.st_rdev), Some(number)))
        }
        FileType::Directory => wrong("a directory"),
        FileType::CharacterDevice => wrong("a character device"),
        FileType::Fifo => wrong("a pipe"),
        FileType::Socket => wrong("a socket"),
        FileType::Symlink | FileType::Unknown => wrong("something else"),
    }
}

/// Why the system refused to open a path, in the user's terms.
fn refusal(path: &str, direct: bool, read_only: bool, errno: Errno) -> UserError {
    let shown = shorten(path);
    let system = system_text(errno);
    let error = |code, text: String| UserError::new(code, text);
    match OsErrno::from_raw_os_error(errno.0) {
        OsErrno::NOENT | OsErrno::NOTDIR => {
            let found = error(ErrorCode::DeviceNotFound, format!("there is no {shown}"));
            found.hint(nearest_hint(path))
        }
        OsErrno::ACCESS | OsErrno::PERM if !read_only => {
            error(ErrorCode::DeviceOpen, format!("{shown} cannot be opened for writing: {system}"))
                .of_kind(ErrorKind::Access)
                .hint("if reading is enough, load the table with --readonly")
        }
        OsErrno::ACCESS | OsErrno::PERM => {
            error(ErrorCode::DeviceOpen, format!("{shown} cannot be opened: {system}"))
                .of_kind(ErrorKind::Access)
        }
        OsErrno::ROFS => {
            error(ErrorCode::DeviceOpen, format!("{shown} cannot be opened for writing: {system}"))
                .of_kind(ErrorKind::ReadOnly)
                .hint("load the table with --readonly")
        }
        OsErrno::BUSY => {
            let text = format!("{shown} is in use: mounted, part of a volume, or a tool is at it");
            error(ErrorCode::DeviceOpen, text)
                .of_kind(ErrorKind::Busy)
                .hint("`lsblk` shows what stands on a block device")
        }
        OsErrno::NXIO | OsErrno::NODEV => {
            let text = format!("{shown} exists, but there is no device behind it: {system}");
            error(ErrorCode::DeviceOpen, text).of_kind(ErrorKind::NoDevice)
        }
        OsErrno::INVAL if direct => {
            let text = format!("{shown} cannot be opened past the page cache (O_DIRECT)");
            error(ErrorCode::DeviceOpen, text)
                .of_kind(ErrorKind::Unsupported)
                .hint(format!("write {shown} without direct:"))
        }
        OsErrno::MFILE | OsErrno::NFILE => {
            error(ErrorCode::DeviceOpen, format!("{shown} cannot be opened: {system}"))
                .of_kind(ErrorKind::Again)
                .hint("raise the limit of open files (ulimit -n) and start the daemon again")
        }
        _ => error(ErrorCode::DeviceOpen, format!("{shown} cannot be opened: {system}")),
    }
}

fn system_text(errno: Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno.0)
}

/// What the user may have meant by a path that is not there.
fn nearest_hint(path: &str) -> String {
    let path = Path::new(path);
    let (Some(folder), Some(name)) =
        (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return String::new();
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!("there is no folder {} either, or it cannot be read", folder.display());
    };
    let near = entries
        .take(ENTRIES_SEARCHED_MAX)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .map(|known| (edit_distance(&known, name), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min();
    match near {
        Some((_, known)) => format!("did you mean {}?", folder.join(known).display()),
        None => {
            "create it first, for example with truncate -s 1G; only `udm up` creates files".into()
        }
    }
}

/// Entries of a folder that are compared with a mistyped name. Bounds what a huge folder costs.
const ENTRIES_SEARCHED_MAX: usize = 4096;

/// Edit distance (insert, delete, replace).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
