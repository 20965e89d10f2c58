//! Ioctls to the daemon and their answers back.
//!
//! One connection an ioctl: it lives as long as the call, so a signal that ends a wait ends it
//! there, too, when the connection is closed. The descriptor a program holds as
//! `/dev/mapper/control` is another connection, on which the daemon makes an answer readable once
//! the global event number has passed the one that was armed; so `poll` and `select` work as they
//! are.
//!
//! That descriptor is known by the name our end is bound to, in the abstract namespace. A copy made
//! by `dup`, kept over `fork` or `exec`, has it as well.
//!
//! The tricky case is arming: bytes left from before the new number counts have to be taken away,
//! but not one byte more, or an event right after would be lost. So messages are looked at before
//! they are taken.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    getsockname, recv, send, socket_with,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use udm_control::api::{
    DmIoctl, DmIoctlAnswer, DmPoll, Exports, Method, Node, NodeAnswer, Selector, WireError,
};
use udm_control::ioctl::layout::{
    self, DATA_SIZE_AT, DEV_AT, EVENT_NR_AT, FLAGS_AT, HEADER_LEN_BYTES, HEADER_LEN_BYTES_MIN,
    NAME_AT, NAME_LEN_BYTES, UUID_AT, UUID_LEN_BYTES, VERSION_LEN_BYTES, flag,
};
use udm_control::wire::{Answer, Call, MessageReader, encode};
use udm_control::{INTERFACE, base64, errno, ioctl};

/// What the names of control descriptors begin with.
const NAME_PREFIX: &[u8] = b"udm-dm-control/";
/// Names to try; another one is taken only where processes share a network but not their numbers.
const NAMES_MAX: u32 = 1000;
/// Bytes read at once.
const READ_LEN_BYTES: usize = 64 << 10;
/// How long the daemon may take to arm a descriptor, which needs no waiting.
const ARM_LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// Bytes of an ioctl that fit a message, with room for what base64 adds.
const CALL_LEN_BYTES_MAX: usize = 40 << 20;

/// A live or an inactive table.
const FLAGS_WITH_TABLE: u32 = flag::ACTIVE_PRESENT | flag::INACTIVE_PRESENT;
/// The part of a udev cookie that names its semaphore.
const COOKIE_BASE: u32 = 0xffff;

/// `DEV_STATUS`.
const DEV_STATUS: u32 = 0xc138_fd07;

/// Where the daemon listens. `variable` reads the environment.
fn socket_path(variable: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    udm_control::server::default_socket(variable)
}

/// A way to read environment variables; given by whoever may call C.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

fn connected(variables: Variables<'_>, named: bool, cloexec: bool) -> Result<OwnedFd, Errno> {
    let flags = if cloexec { SocketFlags::CLOEXEC } else { SocketFlags::empty() };
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    if named {
        name(&socket)?;
    }
    let address = SocketAddrUnix::new(socket_path(variables))?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(error @ (Errno::ACCESS | Errno::PERM)) => return Err(error),
            // No daemon is no device mapper.
            Err(_) => return Err(Errno::NXIO),
        }
    }
}

fn name(socket: &OwnedFd) -> Result<(), Errno> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = rustix::process::getpid().as_raw_nonzero();
    for _ in 0..NAMES_MAX {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut name = NAME_PREFIX.to_vec();
        name.extend_from_slice(format!("{process}/{number}").as_bytes());
        match bind(socket, &SocketAddrUnix::new_abstract_name(&name)?) {
            Err(Errno::ADDRINUSE) => {}
            other => return other,
        }
    }
    Err(Errno::ADDRINUSE)
}

/// A new descriptor that stands for the control node.
pub(crate) fn open(variables: Variables<'_>, cloexec: bool) -> Result<OwnedFd, Errno> {
    let socket = connected(variables, true, cloexec)?;
    arm(socket.as_fd())?;
    Ok(socket)
}

/// True if a descriptor stands for the control node.
pub(crate) fn is_control(fd: BorrowedFd<'_>) -> bool {
    let Ok(address) = getsockname(fd) else { return false };
    let Ok(address) = SocketAddrUnix::try_from(address) else { return false };
    address.abstract_name().is_some_and(|name| name.starts_with(NAME_PREFIX))
}

fn call_of<M: Method>(method: &M, more: bool) -> Vec<u8> {
    let parameters = match serde_json::to_value(method) {
        Ok(serde_json::Value::Object(map)) => Some(map),
        Ok(_) | Err(_) => None,
    };
    let method = format!("{INTERFACE}.{}", M::NAME);
    encode(&Call { method, parameters, more, ..Call::default() })
}

fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(socket, PollFlags::OUT)?,
            Err(_) => return Err(Errno::NXIO),
        }
    }
    Ok(())
}

fn wait(socket: BorrowedFd<'_>, what: PollFlags) -> Result<(), Errno> {
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(socket, what)], Some(&ARM_LIMIT)) {
            Ok(0) => return Err(Errno::IO),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes the descriptor readable from the next global event on, and not for any before.
pub(crate) fn arm(control: BorrowedFd<'_>) -> Result<(), Errno> {
    send_all(control, &call_of(&DmPoll {}, true))?;
    loop {
        let answer: Answer =
            serde_json::from_slice(&take_message(control)?).map_err(|_| Errno::IO)?;
        if answer.error.is_some() {
            return Err(refusal(answer));
        }
        // The first answer of the new poll; all before it were of the old one.
        if answer.continues {
            return Ok(());
        }
    }
}

/// Takes one message from a descriptor and nothing behind it.
fn take_message(control: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut message = Vec::new();
    let mut bytes = [0; 1024];
    loop {
        wait(control, PollFlags::IN)?;
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let seen = match recv(control, &mut bytes, flags) {
            Ok((0, _)) => return Err(Errno::NXIO),
            Ok((count, _)) => count,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(_) => return Err(Errno::NXIO),
        };
        let end = bytes[..seen].iter().position(|byte| *byte == 0);
        let wanted = end.map_or(seen, |end| end + 1);
        let (taken, _) = recv(control, &mut bytes[..wanted], RecvFlags::DONTWAIT)?;
        message.extend_from_slice(&bytes[..taken]);
        if message.pop_if(|last| *last == 0).is_some() {
            return Ok(message);
        }
    }
}

/// The errno of an error the daemon answered to the call itself.
fn refusal(answer: Answer) -> Errno {
    let parameters = answer.parameters.unwrap_or_default();
    match serde_json::from_value::<WireError>(parameters) {
        Ok(error) => {
            let kind = udm_control::api::from_wire(&error).kind();
            Errno::from_raw_os_error(errno::number(kind))
        }
        Err(_) => Errno::IO,
    }
}

fn receive(socket: BorrowedFd<'_>, interruptible: bool) -> Result<Vec<u8>, Errno> {
    let mut reader = MessageReader::default();
    let mut bytes = vec![0; READ_LEN_BYTES];
    loop {
        if let Some(message) = reader.next_message().map_err(|_| Errno::IO)? {
            return Ok(message);
        }
        match recv(socket, &mut bytes[..], RecvFlags::empty()) {
            Ok((0, _)) => return Err(Errno::NXIO),
            Ok((count, _)) => reader.push(&bytes[..count]),
            Err(Errno::INTR) if !interruptible => {}
            Err(Errno::INTR) => return Err(Errno::INTR),
            Err(_) => return Err(Errno::NXIO),
        }
    }
}

/// Asks the daemon for an ioctl.
fn ask(variables: Variables<'_>, command: u32, bytes: &[u8]) -> Result<DmIoctlAnswer, Errno> {
    let call = DmIoctl { command, data: base64::encode(bytes) };
    ask_method(variables, &call, ioctl::is_interruptible(command))
}

/// Asks the daemon.
fn ask_method<M: Method>(
    variables: Variables<'_>,
    method: &M,
    interruptible: bool,
) -> Result<M::Answer, Errno> {
    let socket = connected(variables, false, true)?;
    send_all(socket.as_fd(), &call_of(method, false))?;
    let message = receive(socket.as_fd(), interruptible)?;
    let answer: Answer = serde_json::from_slice(&message).map_err(|_| Errno::IO)?;
    if answer.error.is_some() {
        return Err(refusal(answer));
    }
    serde_json::from_value(answer.parameters.unwrap_or_default()).map_err(|_| Errno::IO)
}

/// A caller's buffer: how to read from its beginning and write to it.
pub(crate) trait Buffer {
    /// The first bytes.
    fn read(&self, len_bytes: usize) -> Vec<u8>;
    /// Replaces the first bytes.
    fn write(&mut self, bytes: &[u8]);
    /// Makes the first bytes zero.
    fn wipe(&mut self, len_bytes: usize);
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

/// An ioctl on the control descriptor.
pub(crate) fn call(
    variables: Variables<'_>,
    control: BorrowedFd<'_>,
    command: u32,
    buffer: &mut dyn Buffer,
) -> Result<(), Errno> {
    // The version is all that surely is there, until it has been found good.
    let mut input = buffer.read(VERSION_LEN_BYTES);
    let mut room = VERSION_LEN_BYTES;
    if ioctl::reads_header(command) && ioctl::is_version_good(&input) {
        input = buffer.read(HEADER_LEN_BYTES_MIN);
        let size = word(&input, DATA_SIZE_AT) as usize;
        if (HEADER_LEN_BYTES_MIN..=layout::CALL_LEN_BYTES_MAX).contains(&size) {
            room = size;
            if ioctl::reads_payload(command) && size > CALL_LEN_BYTES_MAX {
                return Err(Errno::NOMEM);
            }
            let whole = ioctl::reads_payload(command);
            input = buffer.read(if whole { size } else { size.min(HEADER_LEN_BYTES) });
            if word(&input, FLAGS_AT) & flag::SECURE_DATA != 0 {
                buffer.wipe(size);
            }
        }
    }
    let answer = ask(variables, command, &input)?;
    let mut output = base64::decode(&answer.data).ok_or(Errno::IO)?;
    output.truncate(room);
    if word(&input, EVENT_NR_AT) & COOKIE_BASE != 0 && output.len() >= HEADER_LEN_BYTES_MIN {
        // There is no udev to take the cookie: libdevmapper does it itself if no uevent was made.
        let flags = word(&output, FLAGS_AT) & !flag::UEVENT_GENERATED;
        output[FLAGS_AT..FLAGS_AT + 4].copy_from_slice(&flags.to_ne_bytes());
    }
    buffer.write(&output);
    if answer.errno != 0 {
        if variables("UDM_EXPLAIN").is_some() {
            eprintln!("udm: {}", answer.why.unwrap_or_default());
        }
        return Err(Errno::from_raw_os_error(answer.errno));
    }
    if ioctl::is_arm_poll(command) { arm(control) } else { Ok(()) }
}

/// A device as the daemon knows it.
pub(crate) struct Found {
    /// Its number, as the kernel encodes it for the C library.
    pub(crate) dev: u64,
    /// Its name.
    pub(crate) name: Vec<u8>,
    /// Its uuid.
    pub(crate) uuid: Vec<u8>,
    /// Is it suspended?
    pub(crate) suspended: bool,
}

/// How to name a device.
#[derive(Clone, Copy)]
pub(crate) enum Key<'a> {
    /// By name.
    Name(&'a [u8]),
    /// By minor number.
    Minor(u32),
}

/// The file or block device that is a mapped device.
///
/// # Errors
/// `NOENT` without that device, `NXIO` if it is nowhere.
pub(crate) fn path_of(variables: Variables<'_>, name: &[u8]) -> Result<String, Errno> {
    let name = std::str::from_utf8(name).map_err(|_| Errno::NOENT)?;
    let call = Node { device: Selector::name(name) };
    let answer: NodeAnswer = ask_method(variables, &call, false).map_err(|error| match error {
        Errno::NXIO => Errno::NOENT,
        other => other,
    })?;
    answer.path.ok_or(Errno::NXIO)
}

/// The mapped device that is this file.
pub(crate) fn device_at(variables: Variables<'_>, file: &[u8]) -> Option<Found> {
    let served = ask_method(variables, &Exports {}, false).ok()?;
    let export = served.exports.into_iter().find(|export| export.address.as_bytes() == file)?;
    find(variables, Key::Name(export.device.as_bytes())).ok()
}

/// Looks a device up. One without a table has no block device, as in the kernel: it is not there.
pub(crate) fn find(variables: Variables<'_>, key: Key<'_>) -> Result<Found, Errno> {
    let mut header = vec![0; HEADER_LEN_BYTES];
    header[..4].copy_from_slice(&4_u32.to_ne_bytes());
    let size = HEADER_LEN_BYTES as u32;
    header[DATA_SIZE_AT..DATA_SIZE_AT + 4].copy_from_slice(&size.to_ne_bytes());
    match key {
        Key::Name(name) if name.len() < 128 && !name.is_empty() => {
            header[NAME_AT..NAME_AT + name.len()].copy_from_slice(name);
        }
        Key::Name(_) => return Err(Errno::NOENT),
        Key::Minor(minor) => {
            let dev = rustix::fs::makedev(udm_control::DM_MAJOR, minor);
            header[DEV_AT..DEV_AT + 8].copy_from_slice(&dev.to_ne_bytes());
        }
    }
    let answer = ask(variables, DEV_STATUS, &header)?;
    if answer.errno != 0 {
        return Err(Errno::NOENT);
    }
    let bytes = base64::decode(&answer.data).ok_or(Errno::IO)?;
    if word(&bytes, FLAGS_AT) & FLAGS_WITH_TABLE == 0 {
        return Err(Errno::NOENT);
    }
    let text = |at: usize, len: usize| {
        let field = bytes.get(at..at + len).unwrap_or_default();
        field.iter().copied().take_while(|byte| *byte != 0).collect()
    };
    let dev = bytes.get(DEV_AT..).and_then(|rest| rest.first_chunk()).ok_or(Errno::IO)?;
    Ok(Found {
        dev: u64::from_ne_bytes(*dev),
        name: text(NAME_AT, NAME_LEN_BYTES),
        uuid: text(UUID_AT, UUID_LEN_BYTES),
        suspended: word(&bytes, FLAGS_AT) & flag::SUSPEND != 0,
    })
}
