//! `udm exec -- CMD`: a command that finds the daemon where it looks for the kernel's driver.
//!
//! The command is started with the preload library before the C library, the daemon's socket in
//! `UDM_SOCKET`, and udev switched off for libdevmapper (`DM_DISABLE_UDEV`), since there are no
//! uevents. This process becomes the command; nothing of us stays in between.
//!
//! The library is looked for in `UDM_PRELOAD`, beside this program, and in `../lib/udm` from there.
//!
//! The tricky case is a command that is not linked dynamically, or has other rights than we: the
//! system ignores the library then, without a word. It is said in the documentation.

use crate::cli::Failure;
use crate::cli::args::ExecArgs;
use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use udm_control::{Client, errno};
use udm_core::error::{ErrorCode, ErrorKind, UserError};

/// The library's file name.
const LIBRARY: &str = "libudm_preload.so";

/// Becomes the command; returns only if that fails.
///
/// # Errors
/// No daemon, no library, or the command cannot be started.
pub(crate) fn run(args: &ExecArgs, socket: &Path) -> Result<(), Failure> {
    let (program, rest) =
        args.command.split_first().ok_or_else(|| Failure::usage("Give a command after --.\n"))?;
    // A missing daemon is told in our words; libdevmapper's would be about the kernel.
    drop(Client::connect(socket)?);
    let socket = std::path::absolute(socket).map_err(|error| {
        errno::system(ErrorCode::NoDaemon, &format!("find {}", socket.display()), &error)
    })?;
    let library = find_library()?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("LD_PRELOAD", preload(&library, env::var_os("LD_PRELOAD")))
        .env("UDM_SOCKET", socket)
        .env("DM_DISABLE_UDEV", "1");
    if let Some(folder) = &args.dev_dir {
        // Without a slash at its end: paths are compared with it.
        let folder = std::path::absolute(folder.components().as_path())
            .and_then(|folder| std::fs::create_dir_all(folder.join("mapper")).map(|()| folder))
            .map_err(|error| {
                let what = format!("make the folder {}", folder.display());
                errno::system(ErrorCode::BadParameter, &what, &error)
            })?;
        // The first is libdevmapper's own.
        command.env("DM_DEV_DIR", &folder).env("UDM_DEV_DIR", &folder);
    }
    if args.explain {
        command.env("UDM_EXPLAIN", "1");
    }
    let error = command.exec();
    let what = format!("cannot run {}: {error}", program.to_string_lossy());
    Err(UserError::new(ErrorCode::BadParameter, what).of_kind(errno::kind_of(&error)).into())
}

/// Ours first, then what was there.
fn preload(library: &Path, before: Option<OsString>) -> OsString {
    let mut value = library.as_os_str().to_owned();
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        value.push(":");
        value.push(before);
    }
    value
}

fn find_library() -> Result<PathBuf, UserError> {
    if let Some(named) = env::var_os("UDM_PRELOAD").filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        if named.is_file()
            && let Ok(whole) = std::path::absolute(&named)
        {
            return Ok(whole);
        }
        let what = format!("UDM_PRELOAD names {}, which is no file", named.display());
        return Err(UserError::new(ErrorCode::NoPreload, what));
    }
    let folder = env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    let places = folder.map_or_else(Vec::new, |folder| {
        vec![folder.join(LIBRARY), folder.join("../lib/udm").join(LIBRARY)]
    });
    if let Some(found) = places.iter().find(|place| place.is_file()) {
        return Ok(found.clone());
    }
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let what = format!("there is no {LIBRARY}; looked for {}", places.join(" and "));
    Err(UserError::new(ErrorCode::NoPreload, what)
        .of_kind(ErrorKind::NoEntry)
        .hint("build it with: cargo build --release -p udm-preload; or name it in UDM_PRELOAD"))
}

#[cfg(test)]
mod tests {
    use super::preload;
    use std::path::Path;

    #[test]
    fn other_libraries_stay_behind_ours() {
        let ours = Path::new("/x/lib.so");
        assert_eq!(preload(ours, None), "/x/lib.so");
        assert_eq!(preload(ours, Some("".into())), "/x/lib.so");
        assert_eq!(preload(ours, Some("/y.so /z.so".into())), "/x/lib.so:/y.so /z.so");
    }
}
