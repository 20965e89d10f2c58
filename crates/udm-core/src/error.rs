//! Errors that speak to people: what failed, where, what was expected, what to type next.
//!
//! A [`UserError`] is made where a user's mistake is noticed (table text, messages, commands) and
//! travels unchanged to whoever asked; fronts of the control side turn its [`ErrorKind`] into an
//! errno for the ioctl face and its [`ErrorCode`] into `udm explain`. I/O results are not errors of
//! this kind; they are a `udm_types::Status`.
//!
//! Codes are stable: a code is never reused for something else.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;

/// The class of an error; each has one errno on the ioctl face.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// EINVAL.
    Invalid,
    /// ENXIO: no such device.
    NoDevice,
    /// EBUSY: in use, or the name is taken.
    Busy,
    /// ENOENT: no such file.
    NoEntry,
    /// ENOTBLK: not something that holds blocks.
    NotBlock,
    /// EACCES.
    Access,
    /// EROFS.
    ReadOnly,
    /// EINTR: given up before it was done.
    Interrupted,
    /// ETIMEDOUT.
    TimedOut,
    /// EOVERFLOW.
    Overflow,
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
    /// EOPNOTSUPP.
    Unsupported,
    /// EAGAIN: too much at once.
    Again,
}

macro_rules! error_codes {
    ($($variant:ident = $code:literal, $kind:ident, $title:literal, $explain:literal;)*) => {
        /// A stable error code; `udm explain CODE` prints its text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ErrorCode {
            $(#[doc = $title] $variant,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)*];

            /// The code as users type it.
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$variant => $code,)* }
            }

            /// The class it belongs to unless the error says otherwise.
            pub fn kind(self) -> ErrorKind {
                match self { $(ErrorCode::$variant => ErrorKind::$kind,)* }
            }

            /// One line: what it is about.
            pub fn title(self) -> &'static str {
                match self { $(ErrorCode::$variant => $title,)* }
            }

            /// The long text: why it happens and what to do.
            pub fn explain(self) -> &'static str {
                match self { $(ErrorCode::$variant => $explain,)* }
            }
        }
    };
}

error_codes! {
    EmptyTable = "UDM-0101", Invalid, "the table has no lines",
        "A table needs at least one line: START LENGTH TYPE ARGUMENTS, in 512-byte sectors.\nExample: 0 2048 zero";
    MissingField = "UDM-0102", Invalid, "a table line is incomplete",
        "Each line is START LENGTH TYPE ARGUMENTS. START and LENGTH are decimal numbers of 512-byte sectors.\nExample: 0 2048 linear /dev/loop0 0";
    BadNumber = "UDM-0103", Invalid, "a number was expected",
        "Numbers are decimal, without sign, unit or 0x. Sizes and positions in tables are 512-byte sectors.";
    ZeroLength = "UDM-0104", Invalid, "a table line has length 0",
        "LENGTH must be at least 1 sector.";
    Gap = "UDM-0105", Invalid, "a gap in the table",
        "The first line starts at sector 0 and each next line starts where the one before it ends.\nUse a zero or error target to fill a hole on purpose.";
    Overlap = "UDM-0106", Invalid, "table lines overlap or are out of order",
        "Each line starts exactly where the one before it ends. Lines are not sorted for you.";
    RangeOverflow = "UDM-0107", Invalid, "a number or range is too large",
        "A device can have at most 2^54 - 1 sectors. START + LENGTH must stay within that.";
    UnknownTarget = "UDM-0108", Invalid, "unknown target type",
        "The third word of a table line names the target type. `udm targets` lists the types there are.";
    TooManyTargets = "UDM-0109", Overflow, "the table has too many lines",
        "A table can have at most 1048576 lines.";
    TooFewArgs = "UDM-0110", Invalid, "a target needs more arguments",
        "The target's page in docs/targets shows its table line; `udm help target NAME` prints the short form.";
    TooManyArgs = "UDM-0111", Invalid, "a target got too many arguments",
        "The target's page in docs/targets shows its table line. To put a space into an argument, write a backslash before it.";
    BadArgument = "UDM-0112", Invalid, "an argument of a target is not acceptable",
        "The message says which values are. The target's page in docs/targets explains them.";
    DeviceTooSmall = "UDM-0113", Invalid, "a device below is too small",
        "The range a target uses (its start there, and its length) must lie inside the device below. Sizes are in 512-byte sectors.";
    Misaligned = "UDM-0114", Invalid, "a range does not fit the block size below",
        "With a device of larger blocks below (for instance 4096 bytes = 8 sectors), starts and lengths must be multiples of that block.";
    DeviceNotFound = "UDM-0115", NoEntry, "no such device or file",
        "A device in a table is a path, dm:NAME or /dev/mapper/NAME (a mapped device), MAJOR:MINOR of one, mem:SIZE, null:SIZE, nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH.";
    DeviceOpen = "UDM-0116", Io, "a device below cannot be opened",
        "The system's reason is in the message. Is the path right, and may this user open it for writing? A table loaded read-only opens its devices read-only. For an NBD export: does the server run, and does it have that export?";
    SelfReference = "UDM-0117", Invalid, "a device cannot be below itself",
        "The table names the device itself, or a device that already stands on it. Stacks have no loops.";
    StackTooDeep = "UDM-0118", Invalid, "the stack of devices is too deep",
        "At most 12 mapped devices can be stacked on each other.";
    TypeRule = "UDM-0119", Invalid, "this target type cannot stand here",
        "Some types must be alone in their table, cannot be read-only, or cannot be replaced by another type.";
    TableTooLarge = "UDM-0120", Overflow, "the table text is too large",
        "Table text is limited to 64 MiB in all and 1 MiB a line.";
    NotBlockDevice = "UDM-0121", NotBlock, "this cannot be used as a device",
        "A device in a table is a regular file or a block device, not a directory, socket or terminal.";
    SizeSyntax = "UDM-0122", Invalid, "a size was expected",
        "Sizes are a number with an optional unit: 64M, 1G, 512K, 2T (powers of 1024), or bytes without one; a multiple of 512.";
    MapModeRule = "UDM-0123", Invalid, "bio-based and request-based do not mix here",
        "A device maps bios (most targets) or requests (multipath with queue_mode mq or rq). Its first table decides, and no later one can change it, not even after `udm clear`: remove and create the device, or use queue_mode bio.\nA request-based table has exactly one target, and the devices below it are request-based or no mapped devices.";
    NoSuchDevice = "UDM-0201", NoDevice, "no such mapped device",
        "`udm ls` lists the mapped devices. A removed device is gone with its tables.";
    NameTaken = "UDM-0202", Busy, "the name is taken",
        "Names and uuids are unique. `udm ls` lists the names in use; `udm remove NAME` frees one.";
    UuidTaken = "UDM-0203", Busy, "the uuid is taken",
        "Names and uuids are unique. `udm info -c` shows the uuids in use.";
    BadName = "UDM-0204", Invalid, "not a valid name",
        "A name has 1 to 127 bytes, no '/', and is not 'control', '.' or '..'. A uuid has up to 128 bytes.";
    UuidAlreadySet = "UDM-0205", Invalid, "the device already has a uuid",
        "A uuid can be set once in a device's life, at creation or by `udm rename --setuuid`.";
    InUse = "UDM-0206", Busy, "the device is in use",
        "Something has it open: an export, a client, or another device's table. `udm info NAME` shows the open count, `udm ls --tree` what stands on it, `udm exports` who serves it.\n`udm remove --deferred NAME` removes it as soon as it is closed.";
    NoTable = "UDM-0207", Invalid, "the device has no table",
        "Load one first: `udm load NAME --table '0 2048 zero'`, then `udm resume NAME`.";
    MinorTaken = "UDM-0208", NoDevice, "the minor number is not available",
        "Another device has it, or it is 2^20 or more. Leave it out to get the lowest free one.";
    BeingRemoved = "UDM-0209", NoDevice, "the device is being removed",
        "It will be gone in a moment.";
    SuspendTimedOut = "UDM-0210", TimedOut, "the suspend did not finish before its deadline",
        "I/O was still under way below. With --on-timeout resume (the default) the device runs on as before; with --on-timeout fail that I/O is failed and the device is suspended. `udm info NAME` shows how much is in flight.";
    SuspendCancelled = "UDM-0211", Interrupted, "the suspend was given up",
        "A resume (or the end of the client that asked) ended the suspend before all I/O had come back. The device runs as before.";
    PreresumeFailed = "UDM-0212", Io, "a target refused to resume",
        "The new table is live but the device stays suspended. Load a table that can run, and resume again.";
    Suspended = "UDM-0213", Busy, "the device is suspended",
        "Resume it first: `udm resume NAME`.";
    ReadOnlyBelow = "UDM-0214", ReadOnly, "a device below is read-only",
        "Load the table with --readonly, or use a device that can be written.";
    TooManyDevices = "UDM-0215", Again, "there are too many devices",
        "A daemon holds at most 1048576 mapped devices.";
    UnknownMessage = "UDM-0301", Invalid, "the target does not know this message",
        "Messages are words for the target at a sector. The target's page in docs/targets lists them; several targets take none.";
    BadMessage = "UDM-0302", Invalid, "the message's arguments are wrong",
        "The target's page in docs/targets shows the message with its arguments.";
    NoTargetThere = "UDM-0303", Invalid, "no target at this sector",
        "The sector is beyond the end of the live table. Use 0 for the first target.";
    BadRequest = "UDM-0401", Invalid, "the control message is not understood",
        "The control socket speaks varlink: one JSON object, ended by a NUL byte, at most 64 MiB. `udm` speaks it for you.";
    UnknownMethod = "UDM-0402", Invalid, "no such method",
        "The interface file (docs/formats/org.udm.control.varlink) lists the methods.";
    BadParameter = "UDM-0403", Invalid, "a parameter of the call is wrong",
        "The message names the field and what was expected.";
    NoDaemon = "UDM-0404", NoEntry, "no daemon is listening",
        "Start one with `udm daemon`, or name its socket with --socket or UDM_SOCKET.";
    SocketInUse = "UDM-0405", Busy, "another daemon uses this socket",
        "Stop it, or choose another socket with --socket.";
    TooManyClients = "UDM-0406", Again, "too many clients at once",
        "The daemon serves a limited number of control connections. Try again in a moment.";
    NoPreload = "UDM-0407", NoEntry, "the preload library is not found",
        "`udm exec` starts a command with libudm_preload.so, which is built with `cargo build --release -p udm-preload`. It is looked for beside the udm program, in ../lib/udm from there, and in UDM_PRELOAD.";
    ExportTaken = "UDM-0501", Busy, "the device or address is already exported",
        "`udm exports` lists what is served where; `udm unexport` ends an export.";
    NoSuchExport = "UDM-0502", NoDevice, "no such export",
        "`udm exports` lists the exports.";
    BadAddress = "UDM-0503", Invalid, "not a valid address",
        "An NBD address is unix:PATH, tcp:HOST:PORT (port 0 takes a free one and prints it), or fd:NUMBER for a socket that was passed to the process. A FUSE export is the path of a file. A ublk export is a number, or nothing.";
    ListenFailed = "UDM-0504", Io, "the address cannot be listened on",
        "The system's reason is in the message. Is the port or socket path in use by something else?";
    MountFailed = "UDM-0505", Io, "the device cannot be mounted as a file",
        "The system's reason is in the message. A FUSE export needs /dev/fuse, and root or the program fusermount3 (package fuse3); in a container, --device /dev/fuse and the right to mount. It is mounted over a regular file.";
    DiskFailed = "UDM-0506", Io, "the device cannot be a disk of the kernel",
        "The system's reason is in the message. A ublk export needs Linux 6.5 or newer with ublk (modprobe ublk_drv), io_uring, and root.";
    TlsFiles = "UDM-0511", Invalid, "TLS cannot be set up with these files",
        "The message names the file and what is wrong with it. A directory for TLS holds server-cert.pem and server-key.pem, and ca-cert.pem if clients have to show a certificate; the key must not be readable by everybody. docs/fronts/nbd.md shows how to make them.";
    BadConfig = "UDM-0601", Invalid, "the file is not understood",
        "The message names the line and what was expected. examples/quickstart.toml is a complete file.";
    StateDamaged = "UDM-0602", Io, "the saved state cannot be used",
        "The state directory holds one file, written atomically. If it was edited by hand, the message names the place. Moving it away starts empty.";
    StateNotSaved = "UDM-0603", Io, "the state could not be saved",
        "The change is in force, but the file in the state directory still holds the state before it: is its file system full or read-only? The next change tries again.";
    VolumeKnown = "UDM-0701", Busy, "the device has something on it",
        "Formatting a device destroys what is on it, so one with a known signature (a file system, swap, a partition table, LVM, RAID, LUKS, another volume) is refused. If it really is to go: --force.";
    VolumeUnusable = "UDM-0702", Io, "the volume cannot be used",
        "There is no such volume on the device, its superblocks or checkpoints are damaged, or the device itself failed; the message says which. `udm compress check` lists everything that is wrong, `udm compress repair` mends what can be mended.";
    VolumeSizes = "UDM-0703", Invalid, "sizes of the volume do not fit",
        "The device has to hold superblocks, checkpoints, the map and some segments, so a few megabytes at least; a logical size is a multiple of 4096 bytes. `udm compress format --dry-run` shows what would fit.";
    Internal = "UDM-0901", Io, "a bug in udm",
        "An internal rule was broken and the operation was stopped before it could do harm. Please report the message.";
}

/// A mistake a user made, or a state that forbids what they asked.
#[derive(Clone, PartialEq, Eq)]
pub struct UserError {
    inner: Box<Detail>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Detail {
    code: ErrorCode,
    kind: ErrorKind,
    line: Option<u32>,
    field: Option<u32>,
    message: String,
    hint: String,
}

impl UserError {
    /// An error with the message that says what is wrong here.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> UserError {
        UserError {
            inner: Box::new(Detail {
                code,
                kind: code.kind(),
                line: None,
                field: None,
                message: message.into(),
                hint: String::new(),
            }),
        }
    }

    /// Sets the table line (counted from 1).
    #[must_use]
    pub fn at_line(mut self, line: u32) -> UserError {
        self.inner.line = Some(line);
        self
    }

    /// Sets the field of the line (counted from 1: START is field 1).
    #[must_use]
    pub fn at_field(mut self, field: u32) -> UserError {
        self.inner.field = Some(field);
        self
    }

    /// Adds what to type or try next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> UserError {
        self.inner.hint = hint.into();
        self
    }

    /// Gives the error another class than its code's usual one.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> UserError {
        self.inner.kind = kind;
        self
    }

    /// A message no target knows.
    pub fn unknown_message(words: &[String]) -> UserError {
        let first = words.first().map_or("", String::as_str);
        UserError::new(
            ErrorCode::UnknownMessage,
            format!("this target has no message '{}'", first.to_owned()),
        )
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.inner.code
    }

    /// The class.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The table line, counted from 1.
    pub fn line(&self) -> Option<u32> {
        self.inner.line
    }

    /// The field of the line, counted from 1.
    pub fn field(&self) -> Option<u32> {
        self.inner.field
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// What to try next; may be empty.
    pub fn hint_text(&self) -> &str {
        &self.inner.hint
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.inner.line, self.inner.field) {
            (Some(line), Some(field)) => write!(f, "line {line}, field {field}: ")?,
            (Some(line), None) => write!(f, "line {line}: ")?,
            (None, Some(field)) => write!(f, "field {field}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.inner.message)?;
        if !self.inner.hint.is_empty() {
            write!(f, "; {}", self.inner.hint)?;
        }
        write!(f, " [{}]", self.inner.code.as_str())
    }
}

impl fmt::Debug for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for UserError {}
