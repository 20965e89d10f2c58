//! A control device by CUSE, in a guest without the kernel's device mapper.
//!
//! The guest runs the daemon itself, with `/dev/mapper/control` as its control device, and programs
//! that open that node: our own (crates/udm/tests/exec/program.c: poll, copies, signals), and with
//! `--crate-tests` the test binary of the crate `devicemapper`. Before the module is loaded, the
//! daemon has to say that it is missing.
//!
//! The tricky case is the crate's tests: some need udev or the kernel's block devices. Those are in
//! [`CANNOT`] with the reason, and all others have to pass.

use super::kernel::kernel;
use super::machine::{self, Contents, LIMIT_S, Machine};
use crate::steps::{Failed, release_udm, run as run_step};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MODULES: [&str; 2] = ["cuse", "loop"];
const PROGRAMS: [&str; 0] = [];
/// What our own program prints, but for its looks at nodes of devices, which only Linux makes.
const PROGRAM: [&str; 22] = [
    "too new: Invalid argument",
    "version: 4.50",
    "other ioctl: -1",
    "at first: quiet",
    "create: ok",
    "after an event: readable",
    "still: readable",
    "arm: ok",
    "armed: quiet",
    "child: ok",
    "after the child: readable",
    "arm: ok",
    "armed: quiet",
    "wait: Interrupted system call",
    "status: ok",
    "null: Bad address",
    "no table: -1 No such file or directory",
    "load: ok",
    "remove: ok",
    "again: No such device or address",
    "wiped: 1",
    "all: ok",
];
/// Tests of the crate `devicemapper` that cannot pass, by the beginning of their names, and why.
const CANNOT: [(&str, &str); 4] = [
    ("lineardev::tests::loop_test_duplicate_segments", "it opens /dev/dm-N, which Linux makes"),
    ("cachedev::", "there is no target cache"),
    ("thindev::", "there are no targets thin and thin-pool"),
    ("thinpooldev::", "there is no target thin-pool"),
];

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The udm to try; a release build if left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) udm: Option<PathBuf>,
    /// The test binary of the crate devicemapper (cargo test --no-run in its sources).
    #[arg(long, value_name = "FILE")]
    pub(crate) crate_tests: Option<PathBuf>,
}

/// Runs a guest to its end.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let udm = release_udm(root, args.udm.as_ref())?;
    let dir = std::env::temp_dir().join(format!("udm-guest-cuse-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let result = try_guest(root, &dir, udm, args);
    // It is ours; what cannot be removed is left to the operating system's cleaner.
    let _removed = fs::remove_dir_all(&dir);
    result
}

fn try_guest(root: &Path, dir: &Path, udm: PathBuf, args: &Args) -> Result<(), Failed> {
    let program = dir.join("program");
    let mut cc = Command::new("cc");
    cc.arg("-o").arg(&program).arg("crates/udm/tests/exec/program.c");
    run_step(root, &mut cc)?;
    let mut built = vec![udm, program];
    if let Some(tests) = &args.crate_tests {
        let named = dir.join("crate-tests");
        fs::copy(tests, &named).map_err(Failed::to("copy the crate's tests"))?;
        built.push(named);
    }
    let contents = Contents {
        init: concat!(include_str!("common-init"), include_str!("cuse-init")),
        modules: &MODULES,
        programs: &PROGRAMS,
        built: &built,
    };
    let kernel = kernel(root, None)?;
    machine::pack(dir, &kernel, &contents)?;
    let machine = Machine {
        kernel: Some(&kernel),
        memory_mib: 1024,
        limit_s: LIMIT_S,
        words: "",
        devices: &[],
    };
    let (mut said, mut tests, mut nobody) = (Vec::new(), BTreeMap::new(), String::new());
    let told = machine::follow(machine::start(dir, &machine)?, |line| {
        if let Some(line) = line.strip_prefix("program ") {
            said.push(line.to_owned());
        }
        if let Some(line) = line.strip_prefix("nobody ") {
            line.clone_into(&mut nobody);
        }
        if let Some((name, code)) = line.strip_prefix("test ").and_then(|line| line.split_once(' '))
        {
            tests.insert(name.to_owned(), code == "0");
        }
        Ok(())
    })?;
    told.expect_last("ok")?;
    if !(nobody.starts_with("65534 ") && nobody.ends_with("Permission denied")) {
        return Err(Failed::new(format!("another user was not refused: {nobody}")));
    }
    let nodes = ["stat: ", "node: ", "open: ", "gone: "];
    said.retain(|line| !nodes.iter().any(|start| line.starts_with(start)));
    if said != PROGRAM {
        return Err(Failed::new(format!("program.c said otherwise:\n{}", said.join("\n"))));
    }
    judge(&tests)
}

/// Compares the crate's tests with those that cannot pass.
fn judge(tests: &BTreeMap<String, bool>) -> Result<(), Failed> {
    let cannot = |name: &str| CANNOT.iter().any(|(known, _)| name.starts_with(known));
    let failed: Vec<&str> = tests
        .iter()
        .filter(|(name, passed)| !**passed && !cannot(name))
        .map(|(name, _)| name.as_str())
        .collect();
    let passed = tests.values().filter(|passed| **passed).count();
    println!("program.c agrees; of the crate's tests {passed} of {} pass", tests.len());
    for (known, why) in CANNOT {
        let count =
            tests.iter().filter(|(name, passed)| !**passed && name.starts_with(known)).count();
        if count > 0 {
            println!("{count} of {known} cannot: {why}");
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failed::new(format!("these fail:\n{}", failed.join("\n")))),
    }
}
