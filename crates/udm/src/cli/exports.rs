//! The verbs about exports: export, unexport, exports.
//!
//! `export` prints the address clients type (an NBD URI, or a file's path) and nothing else, so
//! that a script can take it from there: `nbdinfo "$(udm export disk --nbd unix:./disk.sock)"`.
//! An export belongs to the daemon and lives on after the command.

use super::args::{ExportArgs, TlsArg, TlsArgs};
use super::asker::Daemon;
use super::failure::Failure;
use super::output::Output;
use std::num::NonZeroU16;
use std::path::Path;
use udm_control::api::{self, ExportState, Selector, Tls};
use udm_control::errno;
use udm_core::error::{ErrorCode, UserError};

pub(crate) fn export(
    daemon: &mut Daemon,
    args: &ExportArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let call = api::Export {
        device: Selector::name(&*args.device),
        nbd: args.nbd.as_deref().map(absolute_socket),
        fuse: args.fuse.as_deref().map(absolute_file),
        vhost_user: args.vhost_user.as_deref().map(absolute_file),
        ublk: args.ublk.clone(),
        name: args.name.clone(),
        read_only: args.readonly,
        tls: tls(&args.tls),
        lanes: args.lanes.and_then(NonZeroU16::new),
    };
    let export = daemon.ask(&call)?.export;
    output.text(&format!("{}\n", export.uri));
    output.field("export", &export);
    Ok(())
}

/// Needs no daemon: the kernel knows. Fails for a device that root made, so that a rule of udev
/// leaves that alone.
pub(crate) fn ublk_owner(device: &str, output: &mut Output) -> Result<(), Failure> {
    let number = ["ublkc", "ublkb"].iter().find_map(|kind| device.strip_prefix(kind)?.parse().ok());
    let wrong = |text: String| UserError::new(ErrorCode::BadAddress, text);
    let number =
        number.ok_or_else(|| wrong(format!("'{device}': it is no ublkcN and no ublkbN")))?;
    let owner = udm_front::ublk::untrusted::owner(number)
        .map_err(|error| errno::system(ErrorCode::DiskFailed, &error.what, &error.source))?;
    let (user, group) =
        owner.ok_or_else(|| wrong(format!("'{device}': nobody made it without root")))?;
    output.text(&format!("{user} {group}\n"));
    output.field("user", &user);
    output.field("group", &group);
    Ok(())
}

/// What the options about TLS mean.
fn tls(args: &TlsArgs) -> Option<Tls> {
    let required = match args.tls {
        Some(TlsArg::Off) => return None,
        Some(TlsArg::Allowed) => Some(false),
        Some(TlsArg::Required) | None => None,
    };
    let (dir, keys) = (args.tls_certificates.as_deref(), args.tls_psk.as_deref());
    (dir.is_some() || keys.is_some()).then(|| Tls {
        certificates: dir.map(absolute_file),
        psk: keys.map(absolute_file),
        required,
        verify_peer: args.tls_verify_peer.then_some(true),
    })
}

/// A socket path as the daemon must see it: its working directory is another one.
fn absolute_socket(address: &str) -> String {
    let Some(path) = address.strip_prefix("unix:").filter(|path| !path.is_empty()) else {
        return address.to_owned();
    };
    match std::path::absolute(path) {
        Ok(path) => format!("unix:{}", path.display()),
        Err(_) => address.to_owned(),
    }
}

/// As [`absolute_socket`].
fn absolute_file(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

pub(crate) fn unexport(
    daemon: &mut Daemon,
    name: &str,
    output: &mut Output,
) -> Result<(), Failure> {
    daemon.ask(&api::Unexport { name: name.to_owned() })?;
    output.field("unexported", &name);
    Ok(())
}

pub(crate) fn exports(daemon: &mut Daemon, output: &mut Output) -> Result<(), Failure> {
    let exports = daemon.ask(&api::Exports {})?.exports;
    output.text(&table(&exports));
    output.field("exports", &exports);
    Ok(())
}

fn table(exports: &[ExportState]) -> String {
    if exports.is_empty() {
        return "No exports found\n".to_owned();
    }
    let width = |of: fn(&ExportState) -> &str, heading: &str| {
        let longest = exports.iter().map(|export| of(export).chars().count()).max();
        longest.unwrap_or(0).max(heading.len())
    };
    let name = width(|export| &export.name, "Name");
    let device = width(|export| &export.device, "Device");
    let mut text = format!("{:<name$} {:<device$} Mode Clients Address\n", "Name", "Device");
    for export in exports {
        let mode = if export.read_only { "ro" } else { "rw" };
        text += &format!(
            "{:<name$} {:<device$} {mode:<4} {:>7} {}\n",
            export.name, export.device, export.connections, export.uri
        );
        if let Some(note) = &export.note {
            text += &format!("  {note}\n");
        }
    }
    text
}
