//! Programs that are not ours: are they there, run them, wait for them with a limit.
//!
//! Output goes to files rather than pipes, so a program that prints much never waits for a reader.
//! The wait is on the program's descriptor; the limit only keeps a hang from stopping the suite.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take before it counts as hung.
pub(crate) const LIMIT: Duration = Duration::from_secs(100);

/// True if all tools are installed; says which are missing, and fails if CI should have them.
#[must_use]
pub(crate) fn have(tools: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = |tool: &str| path.split(':').any(|dir| Path::new(dir).join(tool).is_file());
    let missing: Vec<&&str> = tools.iter().filter(|tool| !found(tool)).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI lacks {missing:?}");
    eprintln!("not checked: {missing:?} not installed");
    false
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// The output of a program that must succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }
}

/// A running program; killed on drop.
pub(crate) struct Running {
    child: Child,
    out: File,
    err: File,
    name: String,
}

impl Running {
    /// Starts a program with no input.
    pub(crate) fn start(command: &mut Command) -> Running {
        let out = tempfile::tempfile().expect("temporary file");
        let err = tempfile::tempfile().expect("temporary file");
        let child = command
            .env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin")
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("cloned"))
            .stderr(err.try_clone().expect("cloned"))
            .spawn()
            .expect("started");
        Running { child, out, err, name: format!("{command:?}") }
    }

    /// True until it has ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_none()
    }

    /// Asks it to end in good order, and waits for that.
    #[track_caller]
    pub(crate) fn end(self) -> Ended {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("signalled");
        self.wait()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ended {
        if self.is_running() {
            let pid = Pid::from_child(&self.child);
            let descriptor = pidfd_open(pid, PidfdFlags::empty()).expect("a descriptor");
            let span = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
            let ended = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&span));
            assert_eq!(ended, Ok(1), "did not end: {}", self.name);
        }
        let status = self.child.wait().expect("ended");
        let read = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind().expect("rewound");
            file.read_to_end(&mut bytes).expect("read");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Ended { code: status.code(), out: read(&mut self.out), err: read(&mut self.err) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> Ended {
    Running::start(Command::new(program).args(args)).wait()
}

/// fio's report, which comes after what its engine prints.
pub(crate) fn report(out: &str) -> serde_json::Value {
    let begin = out.find("\n{").map_or(0, |at| at + 1);
    serde_json::from_str(&out[begin..]).expect("JSON")
}

/// Asks again and again until there is an answer. What is asked takes its time itself.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < LIMIT, "never: {what}");
        std::thread::yield_now();
    }
}
