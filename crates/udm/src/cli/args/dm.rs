//! Options of dmsetup's verbs, with dmsetup's names and letters.
//!
//! One struct a verb. What each verb does with them is in `create.rs`, `change.rs` and `query.rs`.
//! `--deadline`, `--on-timeout` and `--reason` are ours; everything else a script for dmsetup may
//! already use, so nothing here may change its meaning.

use super::{DeviceArgs, parse_span_ms};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `create`.
#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    /// Name of the device.
    #[arg(required_unless_present = "concise")]
    pub name: Option<String>,
    /// File with the table; standard input if neither this nor --table is given.
    pub table_file: Option<PathBuf>,
    /// The table itself; several lines are separated by newlines.
    #[arg(long, value_name = "TABLE", conflicts_with_all = ["table_file", "notable"])]
    pub table: Option<String>,
    /// Load no table.
    #[arg(short, long)]
    pub notable: bool,
    /// Uuid of the device.
    #[arg(short, long)]
    pub uuid: Option<String>,
    /// Major number; must go with -m, and is otherwise ignored.
    #[arg(short = 'j', long)]
    pub major: Option<u32>,
    /// Minor number; the lowest free one if left out.
    #[arg(short, long)]
    pub minor: Option<u32>,
    /// Open what is below read-only.
    #[arg(short, long)]
    pub readonly: bool,
    /// Several devices in one line: NAME,UUID,MINOR,FLAGS,TABLE, further tables behind commas,
    /// further devices behind semicolons. From standard input if no text is given.
    #[arg(long, num_args = 0..=1, value_name = "SPEC", default_missing_value = "",
        conflicts_with_all = ["name", "table_file", "table", "notable", "uuid", "minor"])]
    pub concise: Option<String>,
}

/// `load`.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// The device, then a file with the table; standard input if neither the file nor --table is
    /// given.
    #[arg(value_name = "DEVICE|TABLE_FILE", num_args = 0..=2)]
    pub words: Vec<String>,
    /// The table itself; several lines are separated by newlines.
    #[arg(long, value_name = "TABLE")]
    pub table: Option<String>,
    /// A device by its uuid.
    #[arg(short, long, conflicts_with = "minor")]
    pub uuid: Option<String>,
    /// Major number, with -m.
    #[arg(short = 'j', long, requires = "minor")]
    pub major: Option<u32>,
    /// A device by its minor number.
    #[arg(short, long)]
    pub minor: Option<u32>,
    /// Open what is below read-only.
    #[arg(short, long)]
    pub readonly: bool,
}

/// What to do when a suspend has not finished by its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnTimeoutArg {
    /// Give it up; the device runs on as before.
    Resume,
    /// Fail the I/O that hangs below and finish the suspend.
    Fail,
}

/// `suspend` and `resume`.
#[derive(Clone, Debug, Args)]
pub struct SuspendArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub device: DeviceArgs,
    /// Let targets push I/O back instead of waiting for it.
    #[arg(long)]
    pub noflush: bool,
    /// Do not freeze a file system (udm never does).
    #[arg(long)]
    pub nolockfs: bool,
    /// Give up after this long: 5s, 500ms, 2m.
    #[arg(long, value_name = "SPAN", value_parser = parse_span_ms)]
    pub deadline: Option<u64>,
    /// What giving up means.
    #[arg(long, value_enum, requires = "deadline")]
    pub on_timeout: Option<OnTimeoutArg>,
    /// Shown to whoever asks why the device is suspended.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `remove`.
#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub device: DeviceArgs,
    /// If it is open, remove it at the last close.
    #[arg(long)]
    pub deferred: bool,
    /// First replace its table by one that fails all I/O.
    #[arg(short, long)]
    pub force: bool,
    /// If it is busy, try again for five seconds.
    #[arg(long)]
    pub retry: bool,
}

/// `remove_all`.
#[derive(Clone, Debug, Args)]
pub struct RemoveAllArgs {
    /// Mark open devices for removal at their last close.
    #[arg(long)]
    pub deferred: bool,
    /// First replace all tables by ones that fail all I/O.
    #[arg(short, long)]
    pub force: bool,
}

/// `rename`.
#[derive(Clone, Debug, Args)]
pub struct RenameArgs {
    /// The device.
    pub name: String,
    /// Its new name, or with --setuuid its uuid.
    pub new: String,
    /// Set the uuid of a device that has none.
    #[arg(long)]
    pub setuuid: bool,
}

/// `resize`.
#[derive(Clone, Debug, Args)]
pub struct ResizeArgs {
    /// The device.
    pub name: String,
    /// Its new size in bytes, with a unit if you like (64M, 2T); with + or - by how much.
    #[arg(allow_hyphen_values = true)]
    pub size: String,
    /// Allow it to become smaller: what lies beyond the new end is not there any more.
    #[arg(long)]
    pub unsafe_shrink: bool,
}

/// `message`.
#[derive(Clone, Debug, Args)]
pub struct MessageArgs {
    /// The device.
    pub name: String,
    /// A sector of the target; 0 for the first.
    pub sector: String,
    /// The message.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// `wipe_table`.
#[derive(Clone, Debug, Args)]
pub struct WipeArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub device: DeviceArgs,
    /// Put this table in instead.
    #[arg(long, value_name = "TABLE")]
    pub table: Option<String>,
    /// Let targets push I/O back instead of waiting for it.
    #[arg(long)]
    pub noflush: bool,
    /// Do not freeze a file system (udm never does).
    #[arg(long)]
    pub nolockfs: bool,
    /// Accepted for dmsetup's sake.
    #[arg(short, long, hide = true)]
    pub force: bool,
}

/// `wait`.
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// The device.
    pub name: String,
    /// The last event number seen.
    #[arg(default_value_t = 0)]
    pub event_nr: u32,
    /// Accepted for dmsetup's sake.
    #[arg(long, hide = true)]
    pub noflush: bool,
}

/// `status` and `table`.
#[derive(Clone, Debug, Args)]
pub struct TableArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub device: DeviceArgs,
    /// Of the inactive table instead of the live one.
    #[arg(long)]
    pub inactive: bool,
    /// Only targets of this type.
    #[arg(long, value_name = "TYPE")]
    pub target: Option<String>,
    /// On one line, to be fed back into create --concise.
    #[arg(long)]
    pub concise: bool,
    /// Show keys of targets that have secrets.
    #[arg(long)]
    pub showkeys: bool,
    /// Accepted for dmsetup's sake.
    #[arg(long, hide = true)]
    pub noflush: bool,
}

/// `info`.
#[derive(Clone, Debug, Args)]
pub struct InfoArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub device: DeviceArgs,
    /// In columns.
    #[arg(short = 'c', long, short_alias = 'C')]
    pub columns: bool,
    /// Fields, separated by commas; a leading + adds to the usual ones.
    #[arg(short = 'o', long = "options", value_name = "FIELDS")]
    pub fields: Option<String>,
    /// Sort by these fields; a leading - turns one round.
    #[arg(short = 'O', long, value_name = "FIELDS", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// No headings.
    #[arg(long)]
    pub noheadings: bool,
    /// What stands between columns.
    #[arg(long, value_name = "TEXT")]
    pub separator: Option<String>,
    /// DM_FIELD='value' instead of the value alone.
    #[arg(long)]
    pub nameprefixes: bool,
    /// Of the inactive table.
    #[arg(long)]
    pub inactive: bool,
}

/// `ls`.
#[derive(Clone, Debug, Args)]
pub struct LsArgs {
    /// Only devices with a target of this type.
    #[arg(long, value_name = "TYPE", conflicts_with = "tree")]
    pub target: Option<String>,
    /// devno, devname or blkdevname; with --tree: device, nodevice, active, open, rw, uuid, ascii,
    /// utf, inverted.
    #[arg(short = 'o', long, value_name = "OPTIONS")]
    pub options: Option<String>,
    /// As a tree of what stands on what.
    #[arg(long)]
    pub tree: bool,
}

/// `deps`.
#[derive(Clone, Debug, Args)]
pub struct DepsArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented, and a doc here would become help")]
    pub device: DeviceArgs,
    /// devno, devname or blkdevname.
    #[arg(short = 'o', long, value_name = "OPTIONS")]
    pub options: Option<String>,
    /// Of the inactive table instead of the live one.
    #[arg(long)]
    pub inactive: bool,
}
