//! The command line's grammar: every verb with its options, in one place.
//!
//! clap parses by these definitions; completions, man pages and `--help` are generated from the
//! same ones, so they cannot disagree. Verbs and options of dmsetup keep their names and letters.
//! What runs a verb is elsewhere (`change.rs`, `query.rs`, `serve.rs`, `papers.rs`).
//!
//! Options of dmsetup that mean something only to udev or to the kernel's device nodes are taken
//! and ignored ([`Ignored`]), so that scripts run unchanged.
//!
//! The tricky case is a device named by uuid or number instead of name: dmsetup allows `-u` and
//! `-j -m` on most verbs, and then the positional name falls away ([`DeviceArgs`]).

mod dm;
mod paths;

pub use dm::{
    CreateArgs, DepsArgs, InfoArgs, LoadArgs, LsArgs, MessageArgs, OnTimeoutArg, RemoveAllArgs,
    RemoveArgs, RenameArgs, ResizeArgs, SuspendArgs, TableArgs, WaitArgs, WipeArgs,
};
pub use paths::PathsArgs;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Heading of the options that every verb has.
const EVERYWHERE: &str = "Options of every verb";

/// A device mapper in user space.
#[derive(Debug, Parser)]
#[command(
    name = "udm",
    version,
    about,
    long_about = "Stacks block targets into mapped devices, serves them (NBD, FUSE, vhost-user, \
        ublk), and changes them while I/O runs. Sectors are 512 bytes in every table, status and \
        message.",
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "First steps: udm up examples/quickstart.toml\nWhat an error code means: udm explain CODE"
)]
pub struct Cli {
    /// The daemon's control socket.
    #[arg(long, global = true, value_name = "PATH", env = "UDM_SOCKET", hide_env_values = true,
        help_heading = EVERYWHERE)]
    pub socket: Option<PathBuf>,
    /// Answer in JSON: numbers are numbers, errors too are JSON (on the error stream).
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
    /// Say more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = EVERYWHERE)]
    pub verbose: u8,
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub ignored: Ignored,
    #[command(subcommand)]
    #[expect(
        missing_docs,
        reason = "its variants are documented, and a doc here would become help"
    )]
    pub command: Command,
}

/// Options of dmsetup that change nothing here.
#[derive(Clone, Debug, Default, Args)]
pub struct Ignored {
    /// Accepted for dmsetup's sake.
    #[arg(long, global = true, hide = true)]
    pub noudevsync: bool,
    /// Accepted for dmsetup's sake.
    #[arg(long, global = true, hide = true)]
    pub noudevrules: bool,
    /// Accepted for dmsetup's sake.
    #[arg(long, global = true, hide = true)]
    pub verifyudev: bool,
    /// Accepted for dmsetup's sake.
    #[arg(long, global = true, hide = true)]
    pub checks: bool,
    /// Accepted for dmsetup's sake.
    #[arg(long, global = true, hide = true)]
    pub noopencount: bool,
    /// Accepted for dmsetup's sake.
    #[arg(short = 'y', long, global = true, hide = true)]
    pub yes: bool,
    /// Accepted for dmsetup's sake.
    #[arg(long, global = true, hide = true)]
    pub udevcookie: Option<String>,
    /// Accepted for dmsetup's sake.
    #[arg(long, global = true, hide = true)]
    pub readahead: Option<String>,
    /// Accepted for dmsetup's sake.
    #[arg(long, global = true, hide = true)]
    pub addnodeoncreate: bool,
    /// Accepted for dmsetup's sake.
    #[arg(long, global = true, hide = true)]
    pub addnodeonresume: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground.
    Daemon(DaemonArgs),
    /// Make a device: create it, load its table, resume it.
    Create(CreateArgs),
    /// Load a table into the inactive slot; the live table is not touched.
    #[command(alias = "reload")]
    Load(LoadArgs),
    /// Swap the inactive table in, if there is one, and let I/O flow.
    Resume(SuspendArgs),
    /// Hold I/O and wait for what is under way.
    Suspend(SuspendArgs),
    /// Empty the inactive slot.
    Clear(DeviceArgs),
    /// Remove devices.
    Remove(RemoveArgs),
    /// Remove every device that nobody has open.
    #[command(name = "remove_all", alias = "remove-all")]
    RemoveAll(RemoveAllArgs),
    /// Give a device another name, or a uuid if it has none.
    Rename(RenameArgs),
    /// Make a device larger or smaller while it is used; says who has been told.
    Resize(ResizeArgs),
    /// Send a message to the target at a sector.
    Message(MessageArgs),
    /// Replace a device's table by one that fails all I/O.
    #[command(name = "wipe_table", alias = "wipe-table")]
    WipeTable(WipeArgs),
    /// Wait for a device's next event.
    Wait(WaitArgs),
    /// The state of a device's targets.
    Status(TableArgs),
    /// A device's table, to be fed back into load.
    Table(TableArgs),
    /// A device's state: long, or in columns with -c.
    Info(InfoArgs),
    /// The devices.
    Ls(LsArgs),
    /// What a device stands on.
    Deps(DepsArgs),
    /// The target types and their versions.
    Targets,
    /// The versions of some target types.
    #[command(name = "target-version")]
    TargetVersion {
        /// Types.
        targets: Vec<String>,
    },
    /// Version of udm, and of the kernel interface it keeps to.
    Version,
    /// Serve a device to clients.
    Export(ExportArgs),
    /// Stop serving an export.
    Unexport {
        /// Name of the export.
        name: String,
    },
    /// What is served where.
    Exports,
    /// Who made a ublk device without root: user and group, for a rule of udev.
    UblkOwner {
        /// As the kernel calls it, ublkc0 or ublkb0.
        device: String,
    },
    /// The paths of multipath devices, and whether they are checked.
    Paths(PathsArgs),
    /// Offline tools of compress volumes: format, check and others.
    Compress(crate::compress::CompressArgs),
    /// Serve what a file declares, in the foreground.
    Up(UpArgs),
    /// Make a device for as long as a command runs.
    Run(RunArgs),
    /// Run a command (dmsetup, say) that finds the daemon where it looks for the kernel's driver.
    Exec(ExecArgs),
    /// Measure the engine on this machine.
    Bench(crate::bench::BenchArgs),
    /// The story in one minute: tables swapped, grown and repaired under a verified load.
    Demo(crate::demo::DemoArgs),
    /// What an error code means.
    Explain {
        /// A code such as UDM-0105; all of them if left out.
        code: Option<String>,
    },
    /// A completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    Man {
        /// Where to.
        dir: PathBuf,
    },
    /// Help on a verb, or on a target type: `udm help target linear`.
    Help {
        /// A verb; or `target` and a type.
        topic: Vec<String>,
    },
}

/// Which devices, by any of dmsetup's three ways.
#[derive(Clone, Debug, Default, Args)]
pub struct DeviceArgs {
    /// Devices by name.
    #[arg(value_name = "DEVICE")]
    pub names: Vec<String>,
    /// A device by its uuid.
    #[arg(short, long, conflicts_with_all = ["names", "minor"])]
    pub uuid: Option<String>,
    /// Major number, with -m.
    #[arg(short = 'j', long, requires = "minor")]
    pub major: Option<u32>,
    /// A device by its minor number.
    #[arg(short, long, conflicts_with = "names")]
    pub minor: Option<u32>,
}

/// Which driver the lanes use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DriverArg {
    /// `io_uring` if the system allows it, else the portable one.
    #[default]
    Auto,
    /// `io_uring`, or fail.
    Uring,
    /// epoll and a few threads.
    Portable,
}

/// How the engine runs; of `daemon`, `up` and `run`.
#[derive(Clone, Debug, Default, Args)]
pub struct EngineArgs {
    /// Lanes (threads that do I/O); one for each processor if left out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub lanes: Option<u16>,
    /// The driver of the lanes.
    #[arg(long, value_enum, default_value_t)]
    pub driver: DriverArg,
}

/// `daemon`.
#[derive(Clone, Debug, Args)]
pub struct DaemonArgs {
    /// Keep devices, tables and exports here, and bring them back at the next start.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Keep a symbolic link here, named as the device, to the file of each device that has one.
    #[arg(long, value_name = "DIR")]
    pub links: Option<PathBuf>,
    /// Answer the device mapper's ioctls at the node /dev/NAME, too, by CUSE. Needs root.
    #[arg(long, value_name = "NAME")]
    pub control_device: Option<String>,
    /// Give up all privileges at the start, also those that mounts and disks of the kernel need
    /// (FUSE, ublk). Those that nothing needs are given up in any case.
    #[arg(long, conflicts_with = "control_device")]
    pub no_privileges: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub engine: EngineArgs,
}

/// `export`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("place").required(true))]
pub struct ExportArgs {
    /// The device.
    pub device: String,
    /// Serve it over NBD here: unix:PATH, tcp:HOST:PORT (port 0 takes a free one), or fd:NUMBER, a
    /// socket that was passed to the daemon.
    #[arg(long, value_name = "ADDRESS", group = "place")]
    pub nbd: Option<String>,
    /// Serve it as a file: mount it over this one, which is made if it is missing.
    #[arg(long, value_name = "PATH", group = "place")]
    pub fuse: Option<PathBuf>,
    /// Serve it as the disk of a virtual machine (vhost-user-blk), at this unix socket.
    #[arg(long, value_name = "SOCKET", group = "place")]
    pub vhost_user: Option<PathBuf>,
    /// Serve it as a disk of this machine's kernel (ublk): /dev/ublkbID, or the next that is free.
    #[arg(
        long,
        value_name = "ID",
        group = "place",
        num_args = 0..=1,
        default_missing_value = "auto"
    )]
    pub ublk: Option<String>,
    /// Name of the export; the device's name if left out.
    #[arg(long)]
    pub name: Option<String>,
    /// Refuse writes.
    #[arg(short, long)]
    pub readonly: bool,
    /// Spread its queues or connections over not more of the daemon's lanes than this; over all if
    /// left out. Fewer cost less for each request, more answer more at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub lanes: Option<u16>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub tls: TlsArgs,
}

/// TLS of an NBD export.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "TLS, for --nbd")]
pub struct TlsArgs {
    /// Speak TLS with the certificates of this directory: server-cert.pem, server-key.pem.
    #[arg(long, value_name = "DIR", requires = "nbd")]
    pub tls_certificates: Option<PathBuf>,
    /// Speak TLS with the pre-shared keys of this file: a line NAME:HEX for each client.
    #[arg(long, value_name = "FILE", requires = "nbd", conflicts_with = "tls_certificates")]
    pub tls_psk: Option<PathBuf>,
    /// Whether clients have to use TLS; `required` if certificates or keys are given.
    #[arg(long, value_name = "WHEN")]
    pub tls: Option<TlsArg>,
    /// Refuse clients without a certificate signed by the directory's ca-cert.pem.
    #[arg(long, requires = "tls_certificates")]
    pub tls_verify_peer: bool,
}

/// Whether clients have to use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsArg {
    /// There is no TLS.
    Off,
    /// They may.
    #[value(alias = "on")]
    Allowed,
    /// Without it they are refused.
    #[value(alias = "require")]
    Required,
}

/// `up`.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// What to serve (see examples/quickstart.toml).
    pub file: PathBuf,
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub engine: EngineArgs,
}

/// `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The device's table; several lines are separated by newlines.
    #[arg(long, value_name = "TABLE")]
    pub table: String,
    /// Name of the device and its export.
    #[arg(long, default_value = "run")]
    pub name: String,
    /// Open what is below read-only.
    #[arg(short, long)]
    pub readonly: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub engine: EngineArgs,
    /// The command; it finds the device's address in UDM_NBD_URI.
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// `exec`.
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// Say on the error stream why the daemon refused something; dmsetup shows only an errno.
    #[arg(long)]
    pub explain: bool,
    /// The command's folder of devices, instead of /dev: the daemon is at DIR/mapper/control.
    #[arg(long, value_name = "DIR")]
    pub dev_dir: Option<PathBuf>,
    /// The command.
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// A span of time in milliseconds: 500ms, 5s, 2m, or seconds without a unit.
pub fn parse_span_ms(text: &str) -> Result<u64, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let factor_ms = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .zip(factor_ms)
        .and_then(|(number, factor)| number.checked_mul(factor))
        .ok_or_else(|| "expected a span such as 500ms, 5s or 2m".to_owned())
}
