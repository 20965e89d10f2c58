//! Programs of others, with a limit of time each: a broken device may hang whoever touches it.
//!
//! Everything they print goes to a log in the soak's folder. A program that does not end in time is
//! a finding; it is killed and not waited for, since one that hangs in the kernel cannot be.

use crate::steps::Failed;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long any of them may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program; its exit code.
pub(super) fn code(dir: &Path, words: &[&str]) -> Result<i32, Failed> {
    let log = log(dir, words[0]);
    let file = File::create(&log).map_err(Failed::to("make a log"))?;
    let errors = file.try_clone().map_err(Failed::to("make a log"))?;
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(Failed::to(format!("start {}", words[0])))?;
    let begin = Instant::now();
    loop {
        let ended = child.try_wait().map_err(Failed::to("ask for a child's end"))?;
        if let Some(status) = ended {
            return status.code().ok_or_else(|| Failed::new(format!("{}: {status}", words[0])));
        }
        if begin.elapsed() > LIMIT {
            // If it cannot be killed, it hangs in the kernel and stays there.
            let _killed = child.kill();
            return Err(Failed::new(format!("{} hangs", words.join(" "))));
        }
        super::super::pause(Duration::from_millis(2));
    }
}

/// Where a program's output is.
fn log(dir: &Path, program: &str) -> PathBuf {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    dir.join(format!("{name}.out"))
}

/// Runs a program that has to succeed; what it printed.
pub(super) fn run(dir: &Path, words: &[&str]) -> Result<String, Failed> {
    let code = code(dir, words)?;
    let text = std::fs::read_to_string(log(dir, words[0])).unwrap_or_default();
    match code {
        0 => Ok(text),
        _ => Err(Failed::new(format!("{}: exit code {code}: {}", words.join(" "), text.trim()))),
    }
}
