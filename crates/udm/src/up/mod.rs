//! `udm up FILE.toml`: make what a file declares and serve it until Ctrl-C.
//!
//! The engine is in this process and private; nothing is left when it ends but the backing files. A
//! control socket is there all the same, so that another shell can swap tables under the load; if
//! another daemon has the usual one, a socket of our own is made and named.
//!
//! Order: the whole file is checked, then backing files are made, then devices, then exports. The
//! first error ends it, and what was made so far goes with the process; a backing file that was
//! created stays, since it may hold data a moment later.
//!
//! The tricky case is the directory: paths in the file are relative to the file, so the process
//! moves there first. All that comes after (table lines, sockets) then means the same place.

mod config;

pub use config::{Config, DeviceDecl, ExportDecl, FileDecl};

use crate::cli::args::UpArgs;
use crate::cli::{Failure, SCHEMA_VERSION};
use crate::daemon::{Service, say, with_absolute_paths};
use crate::privileges::{Keep, give_up, serve_file_systems};
use crate::signals::{EndWatch, Second};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use udm_control::api::ExportState;
use udm_control::ops::ExportOrder;
use udm_control::place::{ExportKind, ExportPlace};
use udm_control::{ControlOps, errno};
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::DeviceKey;
use udm_types::SECTOR_BYTES;

/// Serves what the file says.
///
/// # Errors
/// What is wrong with the file, with its line, or why something could not be made.
pub fn run(args: &UpArgs, socket: &Path, chosen: bool, json: bool) -> Result<(), Failure> {
    crate::open_files::allow_all();
    give_up(Keep::Needed)?;
    serve_file_systems();
    let end = EndWatch::start(Second::Ends)?;
    let shown = args.file.display().to_string();
    let named = |error: UserError| rename_file(&shown, error);
    let text = fs::read_to_string(&args.file)
        .map_err(|error| errno::system(ErrorCode::BadConfig, &format!("read {shown}"), &error))?;
    let config = Config::parse(&text).map_err(named)?;
    let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    enter_directory_of(&args.file)?;
    for file in &config.files {
        make_file(file).map_err(named)?;
    }
    let (service, _own_dir) = start(args, &socket, chosen, &end)?;
    for device in &config.devices {
        let is_file = |word: &str| config.files.iter().any(|file| file.path == word);
        let uuid = device.uuid.as_deref();
        with_absolute_paths(&device.table, &is_file)
            .and_then(|table| {
                let runtime = service.ops().runtime();
                runtime.create(&device.name, uuid, &table, device.readonly)
            })
            .map_err(|error| named(error.at_line(device.line)))?;
        if let Some(policy) = &device.multipath {
            let key = DeviceKey::Name(device.name.clone());
            service.ops().check_paths(&key, Some(policy.clone())).map_err(named)?;
        }
    }
    let mut exports = Vec::new();
    for export in &config.exports {
        let order = ExportOrder {
            device: DeviceKey::Name(export.device.clone()),
            place: export.place.clone(),
            name: export.name.clone(),
            read_only: export.readonly,
            tls: export.tls.clone(),
            lanes: export.lanes,
        };
        make_directory(&export.place);
        let state =
            service.ops().export(order).map_err(|error| named(error.at_line(export.line)))?;
        exports.push(state);
    }
    announce(&service, &config, &exports, json);
    end.wait();
    service.stop();
    Ok(())
}

/// Says which file the line of an error is in.
fn rename_file(file: &str, error: UserError) -> UserError {
    let mut renamed = UserError::new(error.code(), format!("{file}: {}", error.message()))
        .of_kind(error.kind())
        .hint(error.hint_text());
    if let Some(line) = error.line() {
        renamed = renamed.at_line(line);
    }
    renamed
}

fn enter_directory_of(file: &Path) -> Result<(), UserError> {
    let Some(dir) = file.parent().filter(|dir| !dir.as_os_str().is_empty()) else {
        return Ok(());
    };
    std::env::set_current_dir(dir).map_err(|error| {
        errno::system(ErrorCode::BadConfig, &format!("enter {}", dir.display()), &error)
    })
}

/// Makes a sparse file if there is none; never changes one that is there.
fn make_file(file: &FileDecl) -> Result<(), UserError> {
    let path = Path::new(&file.path);
    let len_bytes = file.len_sectors.saturating_mul(SECTOR_BYTES);
    let failed = |error: io::Error| {
        errno::system(ErrorCode::DeviceOpen, &format!("make the file {}", file.path), &error)
            .at_line(file.line)
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(created) => created.set_len(len_bytes).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let there = fs::metadata(path).map_err(failed)?;
            if there.is_file() && there.len() < len_bytes {
                return Err(UserError::new(
                    ErrorCode::DeviceTooSmall,
                    format!("{} has {} bytes, {len_bytes} are declared", file.path, there.len()),
                )
                .at_line(file.line)
                .hint(format!("truncate -s {len_bytes} {} makes it larger", file.path)));
            }
            if !there.is_file() && !there.file_type().is_block_device() {
                return Err(UserError::new(
                    ErrorCode::NotBlockDevice,
                    format!("{} is no regular file", file.path),
                )
                .at_line(file.line));
            }
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes the directory that an export is served in. If that fails, serving says why.
fn make_directory(place: &ExportPlace) {
    let path = match place.kind {
        ExportKind::Nbd => place.address.strip_prefix("unix:"),
        ExportKind::Fuse => Some(place.address.as_str()),
        ExportKind::VhostUser => {
            Some(place.address.strip_prefix("unix:").unwrap_or(&place.address))
        }
        ExportKind::Ublk => None,
    };
    let dir = path.and_then(|path| Path::new(path).parent());
    if let Some(dir) = dir.filter(|dir| !dir.as_os_str().is_empty()) {
        let _ = fs::create_dir_all(dir);
    }
}

/// Starts the engine on the usual socket, or on one of our own if that cannot be had and was not
/// asked for by name.
fn start(
    args: &UpArgs,
    socket: &Path,
    chosen: bool,
    end: &EndWatch,
) -> Result<(Service, Option<tempfile::TempDir>), UserError> {
    let mut warn = |text: &str| eprintln!("udm: warning: {text}");
    let first = Service::start(&args.engine, socket, None, end, &mut warn);
    let refused = match first {
        Ok(service) => return Ok((service, None)),
        Err(error) => error,
    };
    let elsewhere = matches!(refused.code(), ErrorCode::SocketInUse | ErrorCode::ListenFailed);
    if chosen || !elsewhere {
        return Err(refused);
    }
    let own = tempfile::Builder::new().prefix("udm-up-").tempdir().map_err(|error| {
        errno::system(ErrorCode::ListenFailed, "make a directory for the control socket", &error)
    })?;
    let path: PathBuf = own.path().join("control.sock");
    let service = Service::start(&args.engine, &path, None, end, &mut warn)?;
    Ok((service, Some(own)))
}

fn announce(service: &Service, config: &Config, exports: &[ExportState], json: bool) {
    let socket = service.socket().unwrap_or(Path::new(""));
    let runtime = service.ops().runtime();
    if json {
        let ready = serde_json::json!({
            "schema_version": SCHEMA_VERSION,
            "ready": true,
            "socket": socket,
            "driver": runtime.driver().name,
            "exports": exports,
        });
        say(&ready.to_string());
        return;
    }
    say(&format!("udm: {}, lanes: {}", runtime.driver(), runtime.lane_count()));
    for export in exports {
        say(&format!("udm: {} is served at {}", export.device, export.uri));
    }
    let mut text = String::from("\nReady. In another terminal:\n");
    if let Some(export) = exports.first() {
        text += &how_to_use(export);
    }
    text += &format!("  export UDM_SOCKET='{}'\n", socket.display());
    if let Some(device) = config.devices.first() {
        let udm = typed_name(std::env::current_exe().ok());
        text += &format!("  {udm} table {0}\n  {udm} info {0}\n", device.name);
    }
    if let Some(device) = config.devices.iter().find(|device| device.multipath.is_some()) {
        text += &format!("  udm paths {}\n", device.name);
    }
    text += "\nCtrl-C ends it; backing files stay.";
    say(&text);
}

/// Commands that use an export, to try.
fn how_to_use(export: &ExportState) -> String {
    let uri = &export.uri;
    match ExportKind::of_word(&export.kind) {
        Some(ExportKind::VhostUser) => format!(
            "  qemu-system-x86_64 -m 1G -M memory-backend=mem \\\n    \
             -object memory-backend-memfd,id=mem,size=1G,share=on \\\n    \
             -chardev socket,id=disk,path='{uri}',reconnect=1 \\\n    \
             -device vhost-user-blk-pci,chardev=disk\n"
        ),
        Some(ExportKind::Fuse) => format!("  qemu-img info '{uri}'\n"),
        Some(ExportKind::Ublk) => format!("  lsblk '{uri}'\n"),
        Some(ExportKind::Nbd) | None => format!(
            "  nbdinfo '{uri}'\n  qemu-img info '{uri}'\n  \
             fio --name=try --ioengine=nbd --uri='{uri}' --rw=randrw --size=16M --iodepth=32\n"
        ),
    }
}

/// How to type this program's name: `udm` if the shell would find this very file, else its path.
fn typed_name(exe: Option<PathBuf>) -> String {
    let Some(exe) = exe else { return "udm".to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path).map(|folder| folder.join("udm")).find(|p| p.is_file());
    if first.and_then(|found| found.canonicalize().ok()) == exe.canonicalize().ok() {
        return "udm".to_owned();
    }
    // A newcomer has just built it and stands in the repository.
    let here = std::env::current_dir().ok();
    let short =
        here.and_then(|here| exe.strip_prefix(here).map(|rest| Path::new(".").join(rest)).ok());
    short.unwrap_or(exe).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::typed_name;

    #[test]
    fn the_name_to_type_leads_to_this_program() {
        let exe = std::env::current_exe().expect("known");
        let typed = typed_name(Some(exe.clone()));
        let found = std::path::Path::new(&typed).canonicalize().expect("it is there");
        assert_eq!(found, exe.canonicalize().expect("it is there"));
        assert_eq!(typed_name(None), "udm");
    }
}
