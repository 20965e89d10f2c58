//! `cargo xtask interop`: other people's programs use a device of a real daemon, one row each.
//!
//! One device, a linear table over a file, is served over NBD (in the clear and by TLS), as a file
//! and as a virtual machine's disk, all at once; a second one receives copies. Each row is one
//! program: which version it is, what it did, whether it went well. A program that is missing
//! is a row, too, and a failure where everything has to be there (`CI=true`). One row that fails
//! does not keep the others from running.
//!
//! | file | holds |
//! |---|---|
//! | `place.rs` | the daemon, its devices and exports; running programs |
//! | `nbd.rs` | NBD clients: QEMU's, libnbd's, nbdkit, fio, TLS |
//! | `others.rs` | the file, the virtual machine's disk, and what needs a guest |
//!
//! The tricky case is the order: each row begins by making the contents it wants, so any one can be
//! run alone.

mod nbd;
mod others;
mod place;

use crate::steps::{Failed, is_ci, is_installed};
use place::Place;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A udm that is built already, instead of a release build.
    #[arg(long, value_name = "PATH")]
    pub(crate) udm: Option<PathBuf>,
    /// Without the guest: QEMU's machine and the kernel's client (they take a minute or two).
    #[arg(long)]
    pub(crate) without_guest: bool,
    /// Only rows whose tool has this in its name.
    #[arg(value_name = "TOOL")]
    pub(crate) only: Option<String>,
}

impl Args {
    /// As a step of CI, which runs the guest by itself.
    pub(crate) fn short() -> Args {
        Args { udm: None, without_guest: true, only: None }
    }
}

/// One program.
struct Row {
    tool: &'static str,
    /// The program, and what makes it tell its version; a library, and nothing.
    version: [&'static str; 2],
    /// Programs that it needs besides.
    needs: &'static [&'static str],
    /// Whether this machine has to let us mount.
    mounts: bool,
    what: &'static str,
    run: fn(&Place) -> Result<(), Failed>,
}

/// How a row ended.
enum Ending {
    Well,
    LeftOut(String),
    Wrong(Failed),
}

/// Runs all rows and prints the table.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let place = Place::start(root, args)?;
    let rows = nbd::ROWS.iter().chain(&others::ROWS);
    let wanted = |row: &&Row| args.only.as_ref().is_none_or(|only| row.tool.contains(&**only));
    let mut told = Vec::new();
    for row in rows.filter(wanted) {
        let begin = Instant::now();
        let ending = ending_of(row, &place);
        println!("{}: {:.1} s", row.tool, begin.elapsed().as_secs_f64());
        told.push((row, ending));
    }
    if told.is_empty() {
        return Err(Failed::new("no such tool in the list"));
    }
    let is_wrong = print(root, &told);
    place.end()?;
    if is_wrong { Err(Failed::new("interop: not all is well, see the table")) } else { Ok(()) }
}

fn ending_of(row: &Row, place: &Place) -> Ending {
    if row.needs.contains(&others::QEMU) && place.without_guest {
        return Ending::LeftOut("a step of its own: cargo xtask guest".to_owned());
    }
    let [program, option] = row.version;
    let program = (!option.is_empty()).then_some(program);
    let mut needs = program.iter().chain(row.needs);
    if let Some(missing) = needs.find(|tool| !is_installed(tool)) {
        let why = format!("{missing} is not installed");
        return if is_ci() { Ending::Wrong(Failed::new(why)) } else { Ending::LeftOut(why) };
    }
    if row.mounts && !place::can_mount() {
        return Ending::LeftOut("mounting needs root and /dev/fuse".to_owned());
    }
    match (row.run)(place) {
        Ok(()) => Ending::Well,
        Err(failed) => Ending::Wrong(failed),
    }
}

/// Prints the table; true if a row went wrong.
fn print(root: &Path, told: &[(&Row, Ending)]) -> bool {
    println!("\n{:<26} {:<16} {:<60} result", "tool", "version", "what it did");
    let mut is_wrong = false;
    for (row, ending) in told {
        let result = match ending {
            Ending::Well => "ok".to_owned(),
            Ending::LeftOut(why) => format!("left out: {why}"),
            Ending::Wrong(failed) => {
                is_wrong = true;
                format!("FAILED: {failed}")
            }
        };
        println!(
            "{:<26} {:<16} {:<60} {result}",
            row.tool,
            version_of(root, row.version),
            row.what
        );
    }
    is_wrong
}

/// What a program says its version is: the first word with a dot between digits. A library has
/// no option to be asked with, but a place among what our client on it is built from.
fn version_of(root: &Path, words: [&str; 2]) -> String {
    let [name, option] = words;
    let said = if option.is_empty() {
        let lock = std::fs::read_to_string(root.join("interop/Cargo.lock")).unwrap_or_default();
        let place = lock.split_once(&format!("name = \"{name}\"\n"));
        place.map(|(_, rest)| rest.to_owned())
    } else {
        let output = place::outside(name).arg(option).output();
        output.ok().map(|told| String::from_utf8_lossy(&told.stdout).into_owned())
    };
    said.and_then(|said| number_in(&said)).unwrap_or_else(|| "?".to_owned())
}

fn number_in(text: &str) -> Option<String> {
    let begins = |word: &str| word.find(|letter: char| letter.is_ascii_digit());
    text.split_whitespace().find_map(|word| {
        let number = &word[begins(word)?..];
        number
            .contains('.')
            .then(|| number.trim_end_matches(|end: char| !end.is_ascii_digit()).to_owned())
    })
}

/// Runs a program for at most a minute; what it prints.
fn told(program: &str, words: &[&str]) -> Result<String, Failed> {
    let output = place::outside("timeout")
        .arg("60")
        .arg(program)
        .args(words)
        .output()
        .map_err(Failed::to(format!("start {program}")))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let last: Vec<&str> = text.trim().lines().rev().take(3).collect();
    let words = words.join(" ");
    Err(Failed::new(format!("{program} {words}: {}: {}", output.status, last.join(" / "))))
}

/// Fails unless it is so.
fn expect(is_so: bool, what: &str) -> Result<(), Failed> {
    if is_so { Ok(()) } else { Err(Failed::new(what)) }
}

#[cfg(test)]
mod tests {
    use super::number_in;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let said = |text| number_in(text).unwrap_or_default();
        assert_eq!(said("qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7)"), "7.2.22");
        assert_eq!(said("fio-3.33\n"), "3.33");
        assert_eq!(said("This is nbd-client, from nbd 3.24\n"), "3.24");
        assert_eq!(said("version = \"0.5.1\"\n"), "0.5.1");
        assert_eq!(said("no number"), "");
    }
}
