//! The verbs that change devices: load, resume, suspend, clear, remove, rename, message, wait.
//!
//! Each is one call, except where dmsetup itself takes several steps (`create` has a file of its
//! own): `--force` puts an error table in first. Several devices are handled in the order given, up
//! to the first failure.
//!
//! The tricky case is `remove --force` of a device with held I/O: the error table goes in under
//! noflush, since waiting for I/O that is about to fail helps nobody.

use super::args::{
    DeviceArgs, LoadArgs, MessageArgs, OnTimeoutArg, RemoveAllArgs, RemoveArgs, RenameArgs,
    SuspendArgs, WaitArgs, WipeArgs,
};
use super::asker::{Chosen, Daemon};
use super::create::check_name;
use super::failure::Failure;
use super::output::Output;
use super::table_text::TableText;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::path::Path;
use udm_control::api::{self, Device};
use udm_control::render::{Subject, failed_ioctl};
use udm_core::error::{ErrorKind, UserError};
use udm_core::table::split_words;

/// `remove --retry`: how often, and how long between.
const RETRIES: u32 = 25;
const RETRY_PAUSE_NS: i64 = 200_000_000;

pub(super) fn note(output: &mut Output, device: Option<&Device>) {
    if let Some(device) = device {
        output.push("devices", device);
    }
}

pub(crate) fn load(
    daemon: &mut Daemon,
    args: &LoadArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let by_option = args.uuid.is_some() || args.minor.is_some();
    let (names, file) = match (by_option, args.words.as_slice()) {
        (true, []) => (Vec::new(), None),
        (true, [file]) => (Vec::new(), Some(Path::new(file))),
        (false, [name]) => (vec![name.clone()], None),
        (false, [name, file]) => (vec![name.clone()], Some(Path::new(file))),
        _ => return Err(Failure::usage("Give one device, and at most one file.\n")),
    };
    let device =
        DeviceArgs { names, uuid: args.uuid.clone(), major: args.major, minor: args.minor };
    let chosen = device.required()?.remove(0);
    let table = TableText::read(args.table.as_deref(), file)?;
    table.check()?;
    let call =
        api::Load { device: chosen.selector.clone(), table: table.text, read_only: args.readonly };
    let answer = daemon.ask_dm("reload", &chosen.subject(), &call)?;
    note(output, answer.device.as_ref());
    Ok(())
}

fn on_timeout_word(on_timeout: Option<OnTimeoutArg>) -> Option<String> {
    on_timeout.map(|choice| {
        match choice {
            OnTimeoutArg::Resume => "resume",
            OnTimeoutArg::Fail => "fail",
        }
        .to_owned()
    })
}

pub(crate) fn suspend(
    daemon: &mut Daemon,
    args: &SuspendArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    for chosen in args.device.required()? {
        let call = api::Suspend {
            device: chosen.selector.clone(),
            noflush: args.noflush,
            nolockfs: args.nolockfs,
            deadline_ms: args.deadline,
            on_timeout: on_timeout_word(args.on_timeout),
            reason: args.reason.clone(),
        };
        let answer = daemon.ask_dm("suspend", &chosen.subject(), &call)?;
        note(output, answer.device.as_ref());
    }
    Ok(())
}

pub(crate) fn resume(
    daemon: &mut Daemon,
    args: &SuspendArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    for chosen in args.device.required()? {
        let call = api::Resume {
            device: chosen.selector.clone(),
            noflush: args.noflush,
            nolockfs: args.nolockfs,
            deadline_ms: args.deadline,
            on_timeout: on_timeout_word(args.on_timeout),
            reason: args.reason.clone(),
        };
        let answer = daemon.ask_dm("resume", &chosen.subject(), &call)?;
        note(output, answer.device.as_ref());
    }
    Ok(())
}

pub(crate) fn clear(
    daemon: &mut Daemon,
    args: &DeviceArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    for chosen in args.required()? {
        let call = api::Clear { device: chosen.selector.clone() };
        let answer = daemon.ask_dm("clear", &chosen.subject(), &call)?;
        note(output, answer.device.as_ref());
    }
    Ok(())
}

/// Puts a table in that fails all I/O, or the one given. The errors are dmsetup's lines.
fn wipe(
    daemon: &mut Daemon,
    chosen: &Chosen,
    table: Option<&str>,
    noflush: bool,
) -> Result<Option<Device>, (String, UserError)> {
    let subject = chosen.subject();
    let query = api::TableStatus { device: chosen.selector.clone(), ..api::TableStatus::default() };
    let mut lines = String::new();
    let len_sectors = match daemon.ask(&query) {
        Ok(answer) => answer.device.len_sectors,
        Err(error) => {
            lines += &failed_ioctl("table", &subject, &error);
            0
        }
    };
    let text = match table {
        Some(text) => text.to_owned(),
        None => format!("0 {} error", len_sectors.max(1)),
    };
    let load = api::Load { device: chosen.selector.clone(), table: text, read_only: false };
    if let Err(error) = daemon.ask(&load) {
        return Err((lines + &failed_ioctl("reload", &subject, &error), error));
    }
    let resume = api::Resume { device: chosen.selector.clone(), noflush, ..api::Resume::default() };
    match daemon.ask(&resume) {
        Ok(answer) => Ok(answer.device),
        Err(error) => Err((lines + &failed_ioctl("resume", &subject, &error), error)),
    }
}

pub(crate) fn wipe_table(
    daemon: &mut Daemon,
    args: &WipeArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    for chosen in args.device.required()? {
        let wiped = wipe(daemon, &chosen, args.table.as_deref(), args.noflush);
        let device = wiped.map_err(|(lines, error)| Failure::dm(lines, Some(error)))?;
        note(output, device.as_ref());
    }
    Ok(())
}

pub(crate) fn remove(
    daemon: &mut Daemon,
    args: &RemoveArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    for chosen in args.device.required()? {
        // As with dmsetup, a failed wipe is told but does not stop the removal. Held I/O is about
        // to fail anyway, so nothing is gained by waiting for it: noflush.
        let told = match args.force {
            true => wipe(daemon, &chosen, None, true).err().map(|(lines, _)| lines),
            false => None,
        };
        let removed = remove_one(daemon, &chosen, args);
        if let Err(mut failure) = removed {
            if let (Some(told), Some(lines)) = (told, &mut failure.lines) {
                lines.insert_str(0, &told);
            }
            return Err(failure);
        }
        output.push("removed", &chosen.selector);
    }
    Ok(())
}

fn remove_one(daemon: &mut Daemon, chosen: &Chosen, args: &RemoveArgs) -> Result<(), Failure> {
    let call = api::Remove { device: chosen.selector.clone(), deferred: args.deferred };
    let mut left = if args.retry { RETRIES } else { 0 };
    loop {
        match daemon.ask(&call) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Busy && left > 0 => {
                left -= 1;
                pause(daemon)?;
            }
            Err(error) => return Err(Failure::ioctl("remove", &chosen.subject(), error)),
        }
    }
}

/// Lets some time pass, or less if the daemon goes away.
fn pause(daemon: &mut Daemon) -> Result<(), Failure> {
    let socket = daemon.client()?.socket();
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    let span = Timespec { tv_sec: 0, tv_nsec: RETRY_PAUSE_NS };
    // A signal ends it early, which does no harm.
    let _ = poll(&mut polled, Some(&span));
    Ok(())
}

pub(crate) fn remove_all(
    daemon: &mut Daemon,
    args: &RemoveAllArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    if args.force {
        for device in daemon.devices()? {
            // As above: told by the daemon's state if it matters, never fatal.
            let _ = wipe(daemon, &Chosen::named(&device.name), None, true);
        }
    }
    daemon.ask_dm(
        "remove_all",
        &Subject::default(),
        &api::RemoveAll { deferred: args.deferred },
    )?;
    output.field("devices", &daemon.devices()?);
    Ok(())
}

pub(crate) fn rename(
    daemon: &mut Daemon,
    args: &RenameArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let chosen = Chosen::named(&args.name);
    let answer = if args.setuuid {
        let call = api::SetUuid { device: chosen.selector.clone(), uuid: args.new.clone() };
        daemon.ask_dm("rename", &chosen.subject(), &call)?
    } else {
        check_name(&args.new, "")?;
        let call = api::Rename { device: chosen.selector.clone(), name: args.new.clone() };
        daemon.ask_dm("rename", &chosen.subject(), &call)?
    };
    note(output, answer.device.as_ref());
    Ok(())
}

pub(crate) fn message(
    daemon: &mut Daemon,
    args: &MessageArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let chosen = Chosen::named(&args.name);
    let Ok(sector) = args.sector.parse() else {
        return Err(Failure::dm("Invalid sector.\n", None));
    };
    let words = split_words(&args.words.join(" "));
    let empty = words.is_empty();
    let call = api::Message { device: chosen.selector.clone(), sector, words };
    let answer = daemon.ask_dm("message", &chosen.subject(), &call).map_err(|mut failure| {
        if let (true, Some(lines)) = (empty, &mut failure.lines) {
            lines.insert_str(0, "No message supplied.\n");
        }
        failure
    })?;
    if let Some(text) = &answer.text {
        output.text(text);
        if !text.ends_with('\n') {
            output.text("\n");
        }
    }
    output.field("text", &answer.text);
    Ok(())
}

pub(crate) fn wait(
    daemon: &mut Daemon,
    args: &WaitArgs,
    verbose: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let chosen = Chosen::named(&args.name);
    let call = api::Wait { device: chosen.selector.clone(), event_nr: args.event_nr };
    let answer = daemon.ask_dm("waitevent", &chosen.subject(), &call)?;
    if let Some(device) = answer.device.as_ref().filter(|_| verbose) {
        output.text(&format!("Event number:      {}\n", device.event_nr));
    }
    note(output, answer.device.as_ref());
    Ok(())
}
