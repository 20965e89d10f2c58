//! `udm resize`: one table swap that makes a device larger or smaller, and who has been told.
//!
//! The last line of the live table gets longer, or the table is cut; it is loaded and swapped in
//! under noflush in one call, so that a client which dies in between leaves the device as it was.
//! What comes after the answer holds for every front: the daemon answers when the users of all
//! exports can see the size (`daemon/exports`).
//!
//! Shrinking throws blocks away, so it has to be asked for by a word with "unsafe" in it.
//!
//! The tricky case is a table that waits in the inactive slot: somebody is in the middle of a
//! change of their own, which a load would overwrite. It is refused.

use super::args::ResizeArgs;
use super::asker::{Chosen, Daemon};
use super::failure::Failure;
use super::output::Output;
use serde_json::json;
use std::fs;
use std::path::Path;
use udm_control::api::{self, Device, ExportState, Line};
use udm_core::error::{ErrorCode, UserError};
use udm_core::table::parse_size_sectors;

pub(crate) fn resize(
    daemon: &mut Daemon,
    args: &ResizeArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let chosen = Chosen::named(&args.name);
    let query = api::TableStatus {
        device: chosen.selector.clone(),
        kind: Some("table".to_owned()),
        ..api::TableStatus::default()
    };
    let found = daemon.ask(&query)?;
    check_calm(&found.device)?;
    let from_sectors = found.device.len_sectors;
    let to_sectors = wanted(&args.size, from_sectors)?;
    if to_sectors < from_sectors && !args.unsafe_shrink {
        let what = format!(
            "{} has {from_sectors} sectors; {to_sectors} would cut off what lies beyond",
            args.name
        );
        return Err(Failure::from(
            UserError::new(ErrorCode::BadParameter, what)
                .hint("shrink what is on it first, then repeat with --unsafe-shrink"),
        ));
    }
    if to_sectors != from_sectors {
        let table = text(&resized(found.lines, to_sectors));
        swap(daemon, &chosen, table, found.device.read_only)?;
    }
    let exports = daemon.ask(&api::Exports {})?.exports;
    let exports: Vec<ExportState> =
        exports.into_iter().filter(|export| export.device == args.name).collect();
    output.text(&format!("{}: {from_sectors} -> {to_sectors} sectors\n", args.name));
    for export in &exports {
        output.text(&format!("  {}\n", told(export)));
    }
    output.field(
        "resized",
        &json!({ "device": args.name, "from_sectors": from_sectors, "to_sectors": to_sectors }),
    );
    output.field("exports", &exports);
    Ok(())
}

/// Refuses a device that somebody is changing.
fn check_calm(device: &Device) -> Result<(), UserError> {
    if device.suspended {
        let what = format!("{} is suspended, and a resize would resume it", device.name);
        return Err(UserError::new(ErrorCode::Suspended, what).hint("resume it first"));
    }
    if device.inactive_present {
        let what = format!("{} has a table in the inactive slot already", device.name);
        let hint = format!("udm resume {0} swaps it in, udm clear {0} drops it", device.name);
        return Err(UserError::new(ErrorCode::BadParameter, what).hint(hint));
    }
    if !device.live_present {
        let what = format!("{} has no table, so it has no size to change", device.name);
        return Err(UserError::new(ErrorCode::NoTable, what).hint("load one"));
    }
    Ok(())
}

/// The size that is asked for: itself, or by how much more or less.
fn wanted(text: &str, from_sectors: u64) -> Result<u64, UserError> {
    let by = |text: &str| parse_size_sectors(text);
    let size = match text.split_at_checked(1) {
        Some(("+", more)) => from_sectors.checked_add(by(more)?),
        Some(("-", less)) => from_sectors.checked_sub(by(less)?).filter(|size| *size > 0),
        _ => Some(by(text)?),
    };
    size.ok_or_else(|| {
        let what = format!("{from_sectors} sectors {text} is no size");
        UserError::new(ErrorCode::SizeSyntax, what)
    })
}

/// The lines of a table of this size: those beyond it are gone, the last one ends there.
fn resized(mut lines: Vec<Line>, to_sectors: u64) -> Vec<Line> {
    lines.retain(|line| line.begin_sector < to_sectors);
    if let Some(last) = lines.last_mut() {
        last.len_sectors = to_sectors - last.begin_sector;
    }
    lines
}

fn text(lines: &[Line]) -> String {
    let line = |line: &Line| {
        format!("{} {} {} {}\n", line.begin_sector, line.len_sectors, line.target, line.args)
    };
    lines.iter().map(line).collect()
}

fn swap(
    daemon: &mut Daemon,
    chosen: &Chosen,
    table: String,
    read_only: bool,
) -> Result<(), UserError> {
    daemon.ask(&api::Load { device: chosen.selector.clone(), table, read_only })?;
    let resume = api::Resume {
        device: chosen.selector.clone(),
        noflush: true,
        reason: Some("resize".to_owned()),
        ..api::Resume::default()
    };
    if let Err(error) = daemon.ask(&resume) {
        // What was to come is dropped, so that the device is what it was; the reason is the news.
        let _ = daemon.ask(&api::Clear { device: chosen.selector.clone() });
        return Err(error);
    }
    Ok(())
}

/// What the users of an export know.
fn told(export: &ExportState) -> String {
    let place = format!("{} ({})", export.uri, export.kind);
    let clients = match export.connections {
        1 => "its client".to_owned(),
        count => format!("its {count} clients"),
    };
    match (export.on_resize.as_str(), export.connections) {
        ("told", 0) => format!("{place}: nobody is connected"),
        ("told", _) => format!("{place}: told"),
        ("seen", _) => match loops_on(Path::new(&export.address)).as_slice() {
            [] => format!("{place}: seen by whoever looks"),
            loops => {
                let loops = loops.join(" ");
                format!("{place}: seen by whoever looks; now: losetup --set-capacity {loops}")
            }
        },
        ("kept", _) => {
            let size = export.size_sectors;
            format!("{place}: keeps its {size} sectors until it is exported again")
        }
        (_, 0) => format!("{place}: nobody is connected"),
        (_, _) => format!("{place}: {clients} must connect anew to see it"),
    }
}

/// The loop devices of this machine that stand on a file.
fn loops_on(file: &Path) -> Vec<String> {
    let Ok(blocks) = fs::read_dir("/sys/block") else { return Vec::new() };
    let mut found: Vec<String> = blocks
        .filter_map(|block| {
            let block = block.ok()?;
            let below = fs::read_to_string(block.path().join("loop/backing_file")).ok()?;
            let is_on = Path::new(below.trim_end_matches('\n')) == file;
            is_on.then(|| format!("/dev/{}", block.file_name().to_string_lossy()))
        })
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::{Line, resized, text, told, wanted};
    use udm_control::api::ExportState;

    fn line(begin_sector: u64, len_sectors: u64) -> Line {
        Line { begin_sector, len_sectors, target: "zero".to_owned(), args: String::new() }
    }

    #[test]
    fn a_size_is_itself_or_a_difference() {
        assert_eq!(wanted("1M", 8).ok(), Some(2048));
        assert_eq!(wanted("+4K", 8).ok(), Some(16));
        assert_eq!(wanted("-2K", 8).ok(), Some(4));
        for bad in ["", "+", "-4K", "-8K", "+1", "x", "0", "+18446744073709551104"] {
            assert!(wanted(bad, 8).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_line_takes_the_change() {
        let lines = vec![line(0, 8), line(8, 8)];
        assert_eq!(text(&resized(lines.clone(), 24)), "0 8 zero \n8 16 zero \n");
        assert_eq!(text(&resized(lines.clone(), 12)), "0 8 zero \n8 4 zero \n");
        assert_eq!(text(&resized(lines, 8)), "0 8 zero \n");
    }

    #[test]
    fn each_export_says_what_its_users_know() {
        let mut export = ExportState {
            kind: "nbd".to_owned(),
            uri: "nbd://here".to_owned(),
            on_resize: "ask".to_owned(),
            ..ExportState::default()
        };
        assert_eq!(told(&export), "nbd://here (nbd): nobody is connected");
        export.connections = 2;
        assert!(told(&export).ends_with("its 2 clients must connect anew to see it"));
        (export.on_resize, export.size_sectors) = ("kept".to_owned(), 8);
        assert!(told(&export).ends_with("keeps its 8 sectors until it is exported again"));
    }
}
