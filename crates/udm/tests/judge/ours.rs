//! Our side: a daemon of its own for each case, and its commands through `udm exec`.
//!
//! Called by the test and by `cargo xtask oracle`. Cases run beside each other; each has a folder
//! with the daemon's socket, the files that stand for the devices below, and the results.
//!
//! The tricky case is a command that never ends: the whole case has a limit, and one beyond it is
//! an error that names the case.

use super::{Case, Step};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;

/// As large as the guest's.
const DISK_LEN_BYTES: u64 = 16 << 20;
const DISKS: usize = 8;
/// A case takes a fraction of a second; some wait for a deadline.
const LIMIT_S: u32 = 60;
/// What `timeout` ends with then.
const TIMED_OUT: i32 = 124;

/// What is needed to run cases.
pub(crate) struct Side {
    /// The binary under test, with the preload library beside it.
    pub(crate) udm: PathBuf,
    /// The tool for sectors, compiled.
    pub(crate) sectors: PathBuf,
    /// `tests/oracle`.
    pub(crate) oracle: PathBuf,
    /// Where each case gets a folder.
    pub(crate) work: PathBuf,
}

/// Compiles the tool for sectors.
pub(crate) fn build_sectors(oracle: &Path, to: &Path) -> Result<(), String> {
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-Wall", "-o"]).arg(to).arg(oracle.join("sectors.c"));
    let status = cc.status().map_err(|error| format!("cc: {error}"))?;
    if status.success() { Ok(()) } else { Err("sectors.c does not compile".to_owned()) }
}

impl Side {
    /// Runs the cases, `jobs` at a time; our answers in the same order.
    pub(crate) fn run(&self, cases: &[Case], jobs: usize) -> Vec<Result<Case, String>> {
        let todo = Mutex::new(cases.iter().enumerate());
        let done = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    loop {
                        let next = todo.lock().expect("invariant: no one panics here").next();
                        let Some((number, case)) = next else { return };
                        let answer = self.run_one(case);
                        let mut done = done.lock().expect("invariant: no one panics here");
                        done.push((number, answer));
                    }
                });
            }
        });
        let mut done = done.into_inner().expect("invariant: no one panicked");
        done.sort_by_key(|(number, _)| *number);
        done.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Runs one case in a daemon of its own.
    fn run_one(&self, case: &Case) -> Result<Case, String> {
        let folder = self.work.join(&case.id);
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", case.id))?;
        let answer = self.run_in(case, &folder).map_err(|error| format!("{}: {error}", case.id));
        // It is only room; a folder that stays hurts nobody.
        let _ = fs::remove_dir_all(&folder);
        answer
    }

    fn run_in(&self, case: &Case, folder: &Path) -> Result<Case, String> {
        let words = |error: std::io::Error| error.to_string();
        let socket = folder.join("control.sock");
        let mut daemon = Running(self.start_daemon(&socket)?);
        let disks = make_disks(folder).map_err(words)?;
        let commands: Vec<String> = case.steps.iter().map(|step| step.command.clone()).collect();
        fs::write(folder.join("steps"), commands.join("\n") + "\n").map_err(words)?;
        let path = std::env::var("PATH").unwrap_or_default();
        // It ends the whole group, so nothing is left of a case that hangs.
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", &LIMIT_S.to_string()]).arg(&self.udm);
        command.args(["exec", "--", "bash"]).arg(self.oracle.join("replay.sh")).arg(folder);
        for (variable, _, path) in &disks {
            command.env(variable, path).env(format!("{variable}N"), path);
        }
        command
            .env("UDM_SOCKET", &socket)
            .env("UDM", &self.udm)
            .env("SECTORS", &self.sectors)
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .env("DMMAJ", "254")
            .env("LC_ALL", "C")
            .env_remove("UDM_PRELOAD")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = command.status().map_err(words)?;
        if status.code() == Some(TIMED_OUT) {
            return Err(format!("still running after {LIMIT_S} s"));
        }
        if !status.success() {
            return Err(format!("the script: {status}"));
        }
        if let Some(status) = daemon.0.try_wait().map_err(words)? {
            return Err(format!("the daemon ended: {status}"));
        }
        let names: Vec<(String, String)> =
            disks.into_iter().map(|(_, number, path)| (path, number)).collect();
        Case::collect(&case.id, &commands, folder, &names)
    }

    fn start_daemon(&self, socket: &Path) -> Result<Child, String> {
        let mut child = Command::new(&self.udm)
            .args(["daemon", "--lanes", "1"])
            .env("UDM_SOCKET", socket)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("the daemon: {error}"))?;
        let mut line = String::new();
        let out = child.stdout.take().expect("invariant: it was piped");
        // A daemon that cannot start closes its output.
        let _ = BufReader::new(out).read_line(&mut line);
        if line.contains("ready") {
            return Ok(child);
        }
        let _ = child.kill();
        let _ = child.wait();
        Err("the daemon does not start".to_owned())
    }
}

/// A child that does not outlive the case.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Files for the devices below: variable, the kernel's number, path.
fn make_disks(folder: &Path) -> std::io::Result<Vec<(String, String, String)>> {
    let mut disks = Vec::new();
    // The SCSI disks are two paths to one store each, so two names of one file.
    let scsi = [("S0", "8:0"), ("S1", "8:32"), ("S2", "8:16"), ("S3", "8:48")];
    let letters = (0..DISKS).flat_map(|n| {
        [("R", 1), ("L", 7)].map(|(letter, major)| (format!("{letter}{n}"), format!("{major}:{n}")))
    });
    let all = scsi.iter().map(|(name, number)| ((*name).to_owned(), (*number).to_owned()));
    for (name, number) in all.chain(letters) {
        let path = folder.join(format!("disk-{name}"));
        match name.as_str() {
            "S1" => std::os::unix::fs::symlink(folder.join("disk-S0"), &path)?,
            "S3" => std::os::unix::fs::symlink(folder.join("disk-S2"), &path)?,
            _ => fs::File::create(&path)?.set_len(DISK_LEN_BYTES)?,
        }
        disks.push((name, number, path.to_string_lossy().into_owned()));
    }
    Ok(disks)
}

/// The commands of a case without answers.
pub(crate) fn questions(id: &str, commands: &[String]) -> Case {
    let step = |command: &String| Step { command: command.clone(), ..Step::default() };
    Case { id: id.to_owned(), notes: Vec::new(), steps: commands.iter().map(step).collect() }
}
