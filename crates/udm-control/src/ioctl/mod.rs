//! The dm ioctl face: the bytes of one ioctl in, the bytes to copy back and an errno out.
//!
//! The preload library carries a program's ioctls to the daemon as they are (`DmIoctl`), and this
//! answers as the kernel's interface 4.50 does, in the kernel's order of checks. Commands become
//! the same requests to the life cycle that the JSON face makes (`commands.rs`, `tables.rs`); there
//! is no second state machine. `layout.rs`, `specs.rs` and `lists.rs` hold the layouts.
//!
//! Rules: nothing is read beyond the bytes that came; whatever they say, there is an answer. On an
//! error only the version is copied back. No state changes before a call's bytes are checked.
//!
//! The tricky case is the size of a call: `data_size` says how much room the caller has, but a
//! command that takes no payload is sent with its header only, so what is *read* is bounded by the
//! bytes that came, and what is *written* by `data_size`.

mod commands;
mod header;
pub mod layout;
mod lists;
mod specs;
mod tables;
#[cfg(test)]
pub(crate) mod tests;

use crate::dispatch::Asker;
use crate::errno;
use crate::ops::ControlOps;
use header::{Header, VERSION};
use layout::{CALL_LEN_BYTES_MAX, HEADER_LEN_BYTES, HEADER_LEN_BYTES_MIN, VERSION_LEN_BYTES, flag};
use rustix::io::Errno;
use udm_core::error::UserError;
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Reply, Request, Ticket};
use zerocopy::IntoBytes;

/// The commands, by the kernel's names and numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Version = 0,
    RemoveAll,
    ListDevices,
    DevCreate,
    DevRemove,
    DevRename,
    DevSuspend,
    DevStatus,
    DevWait,
    TableLoad,
    TableClear,
    TableDeps,
    TableStatus,
    ListVersions,
    TargetMsg,
    DevSetGeometry,
    DevArmPoll,
    GetTargetVersion,
}

impl Command {
    pub(crate) const ALL: [Command; 18] = [
        Command::Version,
        Command::RemoveAll,
        Command::ListDevices,
        Command::DevCreate,
        Command::DevRemove,
        Command::DevRename,
        Command::DevSuspend,
        Command::DevStatus,
        Command::DevWait,
        Command::TableLoad,
        Command::TableClear,
        Command::TableDeps,
        Command::TableStatus,
        Command::ListVersions,
        Command::TargetMsg,
        Command::DevSetGeometry,
        Command::DevArmPoll,
        Command::GetTargetVersion,
    ];

    /// True if the command reads more than the header.
    fn reads_payload(self) -> bool {
        matches!(
            self,
            Command::DevRename | Command::TableLoad | Command::TargetMsg | Command::DevSetGeometry
        )
    }

    /// True if a name and a uuid in the header do not name one device.
    fn is_list(self) -> bool {
        matches!(self, Command::RemoveAll | Command::ListDevices | Command::ListVersions)
    }
}

/// True if the ioctl of this number reads more than its header, so that all of its bytes are
/// needed to answer it.
pub fn reads_payload(command: u32) -> bool {
    command_of(command).is_some_and(Command::reads_payload)
}

/// True if the ioctl of this number reads more than the version.
pub fn reads_header(command: u32) -> bool {
    command_of(command).is_some_and(|command| command != Command::Version)
}

/// True if a call that begins with these bytes is of a version that is understood.
pub fn is_version_good(call: &[u8]) -> bool {
    call.first_chunk().is_some_and(|version| check_version(version).is_ok())
}

/// True if a signal may end the wait for this ioctl's answer.
pub fn is_interruptible(command: u32) -> bool {
    matches!(command_of(command), Some(Command::DevSuspend | Command::DevWait | Command::RemoveAll))
}

/// True if the ioctl arms the descriptor it came on.
pub fn is_arm_poll(command: u32) -> bool {
    command_of(command) == Some(Command::DevArmPoll)
}

/// Only type and number of an ioctl count, as in the kernel.
fn command_of(command: u32) -> Option<Command> {
    let number = (command & 0xff) as usize;
    layout::is_dm(command).then(|| Command::ALL.get(number).copied()).flatten()
}

/// What became of an ioctl.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// 0 or an errno.
    pub(crate) errno: i32,
    /// Bytes to copy to the beginning of the caller's buffer.
    pub(crate) bytes: Vec<u8>,
    /// Why it was refused, in words.
    pub(crate) why: Option<String>,
}

/// Why an ioctl is refused.
#[derive(Debug)]
struct Refused {
    errno: Errno,
    why: String,
}

impl Refused {
    fn new(errno: Errno, why: impl Into<String>) -> Refused {
        Refused { errno, why: why.into() }
    }

    fn invalid(why: &str) -> Refused {
        Refused::new(Errno::INVAL, why)
    }

    fn no_device() -> Refused {
        Refused::new(Errno::NXIO, "there is no such mapped device")
    }
}

impl From<UserError> for Refused {
    fn from(error: UserError) -> Refused {
        Refused::new(Errno::from_raw_os_error(errno::number(error.kind())), error.to_string())
    }
}

/// Answers an ioctl.
pub(crate) fn run(
    command: u32,
    input: &[u8],
    ops: &dyn ControlOps,
    asker: &mut dyn Asker,
) -> Outcome {
    let refuse = |refused: Refused, bytes: Vec<u8>| Outcome {
        errno: refused.errno.raw_os_error(),
        bytes,
        why: Some(refused.why),
    };
    if !layout::is_dm(command) {
        return refuse(Refused::new(Errno::NOTTY, "not a dm ioctl"), Vec::new());
    }
    let Some(theirs) = input.first_chunk::<VERSION_LEN_BYTES>() else {
        return refuse(Refused::new(Errno::FAULT, "no version in the call"), Vec::new());
    };
    // From here on the version is written back, whatever else happens.
    let version = VERSION.as_bytes().to_vec();
    if let Err(refused) = check_version(theirs) {
        return refuse(refused, version);
    }
    let Some(command) = command_of(command) else {
        return refuse(Refused::new(Errno::NOTTY, "no such dm ioctl"), version);
    };
    if command == Command::Version {
        return Outcome { errno: 0, bytes: version, why: None };
    }
    let result = Call::new(command, input, ops, asker).and_then(|mut call| {
        call.run(command)?;
        call.show_node();
        Ok(call.into_bytes())
    });
    match result {
        Ok(bytes) if bytes.is_empty() => Outcome { errno: 0, bytes: version, why: None },
        Ok(bytes) => Outcome { errno: 0, bytes, why: None },
        Err(refused) => refuse(refused, version),
    }
}

fn check_version(theirs: &[u8; VERSION_LEN_BYTES]) -> Result<(), Refused> {
    let part = |at: usize| {
        u32::from_ne_bytes([theirs[at], theirs[at + 1], theirs[at + 2], theirs[at + 3]])
    };
    let (major, minor) = (part(0), part(4));
    if major == VERSION[0] && minor <= VERSION[1] {
        return Ok(());
    }
    let [ours_major, ours_minor, ours_patch] = VERSION;
    let why = format!(
        "the caller speaks {major}.{minor}, this is {ours_major}.{ours_minor}.{ours_patch}"
    );
    Err(Refused::new(Errno::INVAL, why))
}

/// A checked call under way.
struct Call<'a> {
    header: Header,
    /// All bytes of the call, at most `data_size`.
    bytes: &'a [u8],
    /// Bytes the caller has in all.
    size_bytes: usize,
    /// What goes behind the header.
    result: Vec<u8>,
    /// The caller named one device by its name.
    named: bool,
    ops: &'a dyn ControlOps,
    asker: &'a mut dyn Asker,
}

impl<'a> Call<'a> {
    /// Checks what all commands have in common.
    fn new(
        command: Command,
        input: &'a [u8],
        ops: &'a dyn ControlOps,
        asker: &'a mut dyn Asker,
    ) -> Result<Call<'a>, Refused> {
        let fault = || Refused::new(Errno::FAULT, "the call is shorter than it says");
        let mut header = Header::read(input).ok_or_else(fault)?;
        let size_bytes = header.data_size as usize;
        if !(HEADER_LEN_BYTES_MIN..=CALL_LEN_BYTES_MAX).contains(&size_bytes) {
            return Err(Refused::invalid("data_size is out of range"));
        }
        if command.reads_payload() && input.len() < size_bytes {
            return Err(fault());
        }
        header.version = VERSION;
        let own = flag::BUFFER_FULL | flag::UEVENT_GENERATED | flag::SECURE_DATA | flag::DATA_OUT;
        header.set(own, false);
        if !command.is_list() {
            if command == Command::DevCreate {
                if header.name().is_empty() {
                    return Err(Refused::invalid("a device needs a name"));
                }
            } else if !header.name().is_empty() && !header.uuid().is_empty() {
                return Err(Refused::invalid("a name and a uuid cannot both name the device"));
            }
            header.name[header.name.len() - 1] = 0;
            header.uuid[header.uuid.len() - 1] = 0;
        }
        header.data_size = HEADER_LEN_BYTES_MIN as u32;
        let bytes = &input[..input.len().min(size_bytes)];
        let named = !command.is_list() && !header.name().is_empty();
        Ok(Call { header, bytes, size_bytes, result: Vec::new(), named, ops, asker })
    }

    fn run(&mut self, command: Command) -> Result<(), Refused> {
        match command {
            // Answered before; arming is the business of the descriptor it came on.
            Command::Version | Command::DevArmPoll => Ok(()),
            Command::RemoveAll => self.remove_all(),
            Command::ListDevices => self.list_devices(),
            Command::DevCreate => self.create(),
            Command::DevRemove => self.remove(),
            Command::DevRename => self.rename(),
            Command::DevSuspend => self.suspend_or_resume(),
            Command::DevStatus => self.status(),
            Command::DevWait => self.wait(),
            Command::TableLoad => self.load(),
            Command::TableClear => self.clear(),
            Command::TableDeps => self.deps(),
            Command::TableStatus => self.table_status(),
            Command::ListVersions => self.list_versions(),
            Command::TargetMsg => self.message(),
            Command::DevSetGeometry => self.set_geometry(),
            Command::GetTargetVersion => self.target_version(),
        }
    }

    /// Shows the number of the kernel's block device on the mapped device, if there is one, to a
    /// caller that named the device by its name: that is how libdevmapper asks when it makes the
    /// node. Asked by uuid or number it builds trees, and takes what is not of the device mapper's
    /// major for foreign; so there the number stays ours.
    fn show_node(&mut self) {
        let shown = header::our_minor(self.header.dev);
        let Some(minor) = shown.filter(|_| self.named) else { return };
        let node = self.ops.nodes().into_iter().find(|node| node.minor == minor);
        if let Some((major, minor)) = node.and_then(|node| node.number) {
            self.header.dev = header::dev_number(major, minor);
        }
    }

    /// What is copied back: `data_size` bytes, of which the result's begin at 312.
    fn into_bytes(self) -> Vec<u8> {
        let len = self.header.data_size as usize;
        let mut bytes = self.header.as_bytes().to_vec();
        bytes.extend_from_slice(&self.result);
        // `data_size` never says more than was written; a result may be cut by it.
        bytes.truncate(len);
        bytes
    }

    /// Begins a result: says where it starts and how much room it has.
    fn begin_result(&mut self) -> usize {
        let start = self.size_bytes.min(HEADER_LEN_BYTES);
        self.header.data_start = start as u32;
        self.size_bytes - start
    }

    /// Sets the result, or says that it has no room.
    fn put_result(&mut self, result: Option<Vec<u8>>) {
        match result {
            Some(result) => {
                self.header.data_size = (HEADER_LEN_BYTES + result.len()) as u32;
                self.result = result;
            }
            None => self.header.set(flag::BUFFER_FULL, true),
        }
    }

    /// The key the header names: exactly one of uuid, name and number.
    fn key(&self) -> Result<DeviceKey, Refused> {
        let text = |bytes: &[u8]| {
            // No device has a name that is not UTF-8, so none is found.
            String::from_utf8(bytes.to_vec()).map_err(|_| Refused::no_device())
        };
        let (name, uuid, dev) = (self.header.name(), self.header.uuid(), self.header.dev);
        match (uuid.is_empty(), name.is_empty(), dev) {
            (false, true, 0) => Ok(DeviceKey::Uuid(text(uuid)?)),
            (true, false, 0) => Ok(DeviceKey::Name(text(name)?)),
            (true, true, 1..) => self.by_number(dev).ok_or_else(Refused::no_device),
            _ => Err(Refused::no_device()),
        }
    }

    /// The device of this number, or below the kernel's block device of this number.
    fn by_number(&self, dev: u64) -> Option<DeviceKey> {
        let is_on = |number: Option<(u32, u32)>| {
            number.is_some_and(|(major, minor)| header::dev_number(major, minor) == dev)
        };
        let below = || {
            let nodes = self.ops.nodes();
            nodes.into_iter().find(|node| is_on(node.number)).map(|node| node.minor)
        };
        header::our_minor(dev).or_else(below).map(DeviceKey::Minor)
    }

    /// Finds the device and writes what was found into the header.
    fn find(&mut self) -> Result<(DeviceKey, Box<DeviceStatus>), Refused> {
        let key = self.key()?;
        let device = self.ask_status(Request::Status { device: key.clone() }, None)?;
        self.header.write_found(&device);
        Ok((key, device))
    }

    fn ask(&mut self, request: Request, ticket: Option<Ticket>) -> Result<Reply, Refused> {
        Ok(self.asker.ask(request, ticket)?)
    }

    /// Asks for something whose answer is the device.
    fn ask_status(
        &mut self,
        request: Request,
        ticket: Option<Ticket>,
    ) -> Result<Box<DeviceStatus>, Refused> {
        match self.ask(request, ticket)? {
            Reply::Done(Some(device)) => Ok(device),
            Reply::Done(None) => Err(Refused::no_device()),
            other => Err(crate::dispatch::unexpected(&other).into()),
        }
    }

    /// Asks for a change and makes it durable.
    fn change(&mut self, request: Request, ticket: Option<Ticket>) -> Result<Reply, Refused> {
        let touched = crate::dispatch::touched_by(&request);
        let reply = self.asker.ask(request, ticket);
        // A refused request may have changed something too (a resume whose swap went through).
        let settled = self.ops.settle(touched.as_ref());
        let reply = reply?;
        settled?;
        Ok(reply)
    }

    /// The string at `data_start`, which must lie inside the call and have its NUL there.
    fn text_at(&self, start: usize) -> Result<&'a [u8], Refused> {
        let wrong = || Refused::invalid("the string lies outside the call or does not end");
        if (self.header.data_start as usize) < HEADER_LEN_BYTES_MIN {
            return Err(wrong());
        }
        let rest = self.bytes.get(start..).ok_or_else(wrong)?;
        let text = header::until_nul(rest);
        if text.len() == rest.len() { Err(wrong()) } else { Ok(text) }
    }
}
