//! `cargo xtask oracle`: Linux's own device mapper as the judge of ours.
//!
//! Without an option every recorded case runs against us and is compared with what Linux answered;
//! `cargo test` does the same. `--record` asks Linux again: a kernel from a Debian package, booted
//! by QEMU without KVM (`setup.rs`, `guest.rs`), runs the same commands with the same dmsetup, and
//! the answers are written into the case files. `--generate` makes up scripts and asks both
//! in one run (`generate.rs`). Cases, scripts and the list of accepted
//! differences are in `crates/udm/tests/oracle`, what reads and compares them in
//! `crates/udm/tests/judge`, shared with the test.
//!
//! The tricky case is an answer that varies on Linux itself: a case has to be recorded twice with
//! the same result (`--record --check`), else it is worth nothing.

pub(crate) mod cpio;
mod generate;
mod guest;
#[path = "../../../crates/udm/tests/judge/mod.rs"]
mod judge;
pub(crate) mod setup;

use crate::steps::{self, Failed, cargo};
use judge::differences::Accepted;
use judge::ours::{Side, build_sectors};
use judge::{Case, case_files, load};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How the note of a case begins that is not recorded again; the reason follows.
const KEPT: &str = "kept: ";

/// Numbers of the SCSI disks as they are recorded; a boot may give others.
const SCSI: [(&str, &str); 4] = [("S0", "8:0"), ("S1", "8:32"), ("S2", "8:16"), ("S3", "8:48")];

/// What to ask, and whom.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install the packages the guest needs, by name, and fetch its kernel.
    #[arg(long)]
    setup: bool,
    /// Ask Linux again and write its answers: all cases, or those with FILTER in their path.
    #[arg(long, value_name = "FILTER", num_args = 0..=1, default_missing_value = "")]
    record: Option<String>,
    /// With --record: write nothing, fail where Linux answers otherwise than recorded.
    #[arg(long, requires = "record")]
    check: bool,
    /// Make up this many scripts, ask Linux and us, and print each that disagrees.
    #[arg(long, value_name = "N", conflicts_with = "record")]
    generate: Option<u64>,
    /// The seed of the first script; the others count up from it.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Only cases with this in their path.
    #[arg(long, value_name = "ID")]
    case: Option<String>,
}

/// Does what was asked for.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    if args.setup {
        let guest = setup::guest(root, true)?;
        println!("a guest with Linux {} is ready", guest.release);
        if args.record.is_none() && args.generate.is_none() {
            return Ok(());
        }
    }
    match (&args.record, args.generate) {
        (Some(filter), _) => record(root, filter, args.check),
        (None, Some(count)) => generate::run(root, args.seed, count),
        (None, None) => replay(root, args.case.as_deref().unwrap_or("")),
    }
}

fn oracle_folder(root: &Path) -> PathBuf {
    root.join("crates/udm/tests/oracle")
}

/// The case files with this in their path.
fn chosen(root: &Path, filter: &str) -> Result<Vec<(PathBuf, Case)>, Failed> {
    let files = case_files(&oracle_folder(root)).map_err(Failed::new)?;
    let mut cases = Vec::new();
    for path in files.into_iter().filter(|path| path.to_string_lossy().contains(filter)) {
        let case = load(&path).map_err(Failed::new)?;
        cases.push((path, case));
    }
    if cases.is_empty() {
        return Err(Failed::new(format!("no case with {filter:?} in its path")));
    }
    Ok(cases)
}

/// Builds what our side is made of.
fn our_side(root: &Path) -> Result<Side, Failed> {
    let packages = ["build", "--quiet", "--package", "udm", "--package", "udm-preload"];
    steps::run(root, &mut cargo(&packages))?;
    let folder = setup::cache(root);
    fs::create_dir_all(&folder).map_err(Failed::to("make a folder"))?;
    let sectors = folder.join("sectors-here");
    build_sectors(&oracle_folder(root), &sectors).map_err(Failed::new)?;
    let work = std::env::temp_dir().join(format!("udm-oracle-{}", std::process::id()));
    let udm = steps::target_dir(root).join("debug/udm");
    Ok(Side { udm, sectors, oracle: oracle_folder(root), work })
}

/// Our answers to these cases.
fn ours(side: &Side, cases: &[Case]) -> Vec<Result<Case, String>> {
    let jobs = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    let answers = side.run(cases, jobs);
    // Only room; each case has emptied its own folder.
    let _ = fs::remove_dir_all(&side.work);
    answers
}

/// Runs recorded cases against us.
fn replay(root: &Path, filter: &str) -> Result<(), Failed> {
    let cases: Vec<Case> = chosen(root, filter)?.into_iter().map(|(_, case)| case).collect();
    let accepted = Accepted::load(&oracle_folder(root)).map_err(Failed::new)?;
    let side = our_side(root)?;
    let (mut wrong, mut found) = (0, Vec::new());
    for (case, answer) in cases.iter().zip(ours(&side, &cases)) {
        let differences = match answer {
            Ok(ours) => case.compare(&ours),
            Err(error) => vec![(error, String::new())],
        };
        for (what, both) in differences {
            if !accepted.covers(&what) {
                println!("{what}\n{both}");
                wrong += 1;
            }
            found.push(what);
        }
    }
    let ids: Vec<String> = cases.iter().map(|case| case.id.clone()).collect();
    let unneeded = accepted.unneeded(&ids, &found);
    unneeded.iter().for_each(|what| println!("{what}: accepted, but it agrees"));
    let steps: usize = cases.iter().map(|case| case.steps.len()).sum();
    println!(
        "{} cases, {steps} steps: {} answers differ, {wrong} of them not accepted",
        cases.len(),
        found.len(),
    );
    match wrong + unneeded.len() {
        0 => Ok(()),
        count => Err(Failed::new(format!("{count} differences that the list does not explain"))),
    }
}

/// Asks Linux, and writes its answers into the case files.
fn record(root: &Path, filter: &str, check: bool) -> Result<(), Failed> {
    let mut cases = chosen(root, filter)?;
    cases.retain(|(_, case)| match case.notes.iter().find(|note| note.starts_with(KEPT)) {
        Some(reason) => {
            println!("{}: {reason}", case.id);
            false
        }
        None => true,
    });
    let guest = setup::guest(root, false)?;
    let questions: Vec<Case> = cases.iter().map(|(_, case)| case.clone()).collect();
    let answers = theirs(root, &guest, &questions, "recorded")?;
    let mut failed = 0;
    for ((path, old), answer) in cases.into_iter().zip(answers) {
        let mut new = match answer {
            Ok(case) => case,
            Err(error) => {
                println!("{error}");
                failed += 1;
                continue;
            }
        };
        for (what, both) in old.compare(&new).into_iter().filter(|_| check) {
            println!("{what}\n{both}");
            failed += 1;
        }
        new.notes = old.notes.into_iter().filter(|note| !note.starts_with("Linux ")).collect();
        new.notes.push(format!("Linux {}, {}", guest.release, dmsetup_version()?));
        if !check {
            fs::write(&path, new.render()).map_err(Failed::to("write a case"))?;
        }
    }
    if failed > 0 {
        return Err(Failed::new(format!("{failed} answers are missing or vary")));
    }
    Ok(())
}

/// What Linux answers to these cases, in one boot.
fn theirs(
    root: &Path,
    guest: &setup::Guest,
    cases: &[Case],
    name: &str,
) -> Result<Vec<Result<Case, String>>, Failed> {
    let commands =
        |case: &Case| -> Vec<String> { case.steps.iter().map(|s| s.command.clone()).collect() };
    let jobs: Vec<guest::Job> = cases
        .iter()
        .map(|case| guest::Job { id: case.id.clone(), steps: commands(case) })
        .collect();
    let results = setup::cache(root).join(name);
    guest::boot(root, guest, &jobs, &results)?;
    let names = device_names(&results)?;
    let collect =
        |case: &Case| Case::collect(&case.id, &commands(case), &results.join(&case.id), &names);
    Ok(cases.iter().map(collect).collect())
}

/// The guest's numbers of devices, which may vary, and those that are recorded.
fn device_names(results: &Path) -> Result<Vec<(String, String)>, Failed> {
    let text = fs::read_to_string(results.join("devices"))
        .map_err(Failed::to("read the guest's devices"))?;
    // In two moves, since one disk's number may be another's recorded one.
    let (mut names, mut moved) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["dm", "254"] => {}
            ["dm", major] => {
                return Err(Failed::new(format!("the guest's major number is {major}, not 254")));
            }
            [name, path, number] => {
                let Some((_, kept)) = SCSI.iter().find(|(scsi, _)| scsi == name) else { continue };
                let between = format!("<{name}>");
                names.push(((*path).to_owned(), between.clone()));
                names.push(((*number).to_owned(), between.clone()));
                moved.push((between, (*kept).to_owned()));
            }
            _ => {}
        }
    }
    names.extend(moved);
    for number in 0..8 {
        names.push((format!("/dev/ram{number}"), format!("1:{number}")));
        names.push((format!("/dev/loop{number}"), format!("7:{number}")));
    }
    Ok(names)
}

fn dmsetup_version() -> Result<String, Failed> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=dmsetup ${Version}", "dmsetup"])
        .output()
        .map_err(Failed::to("ask for dmsetup's version"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
