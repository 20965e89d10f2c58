//! `udm run --table LINE -- CMD`: a device for as long as a command runs.
//!
//! A private engine makes the device and serves it on a unix socket in a fresh directory that only
//! its user can enter. The command finds the address in `UDM_NBD_URI` and, should it want to change
//! the device, the control socket in `UDM_SOCKET`. When it ends, so does everything else, and its
//! exit code is ours (128 + signal if a signal ended it, as shells have it).
//!
//! The tricky case is Ctrl-C: the terminal sends it to the command, too. It decides what to make of
//! it; we wait for its end, so that it never finds its device gone. SIGTERM comes to us alone and
//! is passed on.

use crate::cli::Failure;
use crate::cli::args::RunArgs;
use crate::daemon::{Service, with_absolute_paths};
use crate::signals::{EndWatch, Ending, Second};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGTERM;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use udm_control::ControlOps;
use udm_control::errno;
use udm_control::ops::ExportOrder;
use udm_control::place::{ExportKind, ExportPlace};
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::DeviceKey;

/// Runs the command with its device.
///
/// # Errors
/// If the device cannot be made or the command not be started; silent with the command's exit code
/// if that is not 0.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let end = EndWatch::start(Second::IsReported)?;
    let dir = tempfile::Builder::new().prefix("udm-run-").tempdir().map_err(|error| {
        errno::system(ErrorCode::ListenFailed, "make a directory for sockets", &error)
    })?;
    let control = dir.path().join("control.sock");
    let mut warn = |text: &str| eprintln!("udm: warning: {text}");
    let service = Service::start(&args.engine, &control, None, &end, &mut warn)?;
    let table = with_absolute_paths(&args.table, &|_| false)?;
    service.ops().runtime().create(&args.name, None, &table, args.readonly)?;
    let order = ExportOrder {
        device: DeviceKey::Name(args.name.clone()),
        place: ExportPlace {
            kind: ExportKind::Nbd,
            address: format!("unix:{}", dir.path().join("nbd.sock").display()),
        },
        name: None,
        read_only: args.readonly,
        tls: None,
        lanes: None,
    };
    let export = service.ops().export(order)?;
    let (program, rest) =
        args.command.split_first().ok_or_else(|| Failure::usage("Give a command after --.\n"))?;
    let failed = |error: std::io::Error| {
        UserError::new(ErrorCode::BadParameter, format!("cannot run {program}: {error}"))
            .of_kind(errno::kind_of(&error))
    };
    let mut child = Command::new(program)
        .args(rest)
        .env("UDM_NBD_URI", &export.uri)
        .env("UDM_SOCKET", &control)
        .spawn()
        .map_err(failed)?;
    pass_on(end, &child);
    let status = child.wait().map_err(failed)?;
    service.stop();
    let exit = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    match u8::try_from(exit).unwrap_or(1) {
        0 => Ok(()),
        exit => Err(Failure::silent(exit)),
    }
}

/// Passes SIGTERM on to the command. The thread ends with this process.
fn pass_on(end: EndWatch, child: &Child) {
    let pid = Pid::from_child(child);
    let told = std::thread::Builder::new().name("udm-signals-on".into()).spawn(move || {
        loop {
            if end.wait() == Ending::Signal(SIGTERM) {
                // It may have ended by itself a moment ago.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
    });
    // Without the thread, SIGTERM waits for the command's end.
    drop(told);
}
