//! A daemon of the real binary for a test: started in a directory of its own, waited for until it
//! says it is ready, killed when the test ends.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// The binary under test.
pub(crate) const UDM: &str = env!("CARGO_BIN_EXE_udm");

/// What a command printed.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: Option<i32>,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
            code: output.status.code(),
        }
    }
}

impl Ran {
    /// The output of a command that must succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// The error stream of a command that must fail with 1, with this code in it.
    #[track_caller]
    pub(crate) fn fails(self, code: &str) -> String {
        assert_eq!(self.code, Some(1), "{}{}", self.out, self.err);
        assert!(self.err.contains(&format!("[{code}]")), "expected {code}: {}", self.err);
        self.err
    }
}

/// A place for a daemon that outlives it, so that another one can be started there.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place { dir: tempfile::tempdir().expect("temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// A sparse file.
    pub(crate) fn file(&self, name: &str, len_bytes: u64) -> String {
        let file = std::fs::File::create(self.path(name)).expect("created");
        file.set_len(len_bytes).expect("sized");
        self.text(name)
    }

    /// Runs a command of udm against this place's socket.
    pub(crate) fn udm(&self, args: &[&str]) -> Ran {
        self.udm_with(args, "")
    }

    /// The same with standard input.
    pub(crate) fn udm_with(&self, args: &[&str], input: &str) -> Ran {
        let mut child = Command::new(UDM)
            .args(args)
            .env("UDM_SOCKET", self.path("control.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_owned();
        // A thread, since both pipes may fill; a command that reads nothing breaks this one.
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().expect("ended");
        writer.join().expect("written");
        output.into()
    }

    /// Asks for a field of a device's `info -c` until it is as expected.
    pub(crate) fn await_field(&self, device: &str, field: &str, expected: &str) {
        for _ in 0..10_000 {
            let shown = self.udm(&["info", "-c", "--noheadings", "-o", field, device]).ok();
            if shown.trim_end() == expected {
                return;
            }
        }
        panic!("{field} of {device} never became {expected}");
    }

    /// Starts a command that goes on while the test does.
    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        Command::new(UDM)
            .args(args)
            .env("UDM_SOCKET", self.path("control.sock"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started")
    }

    /// Starts a daemon and waits until it is ready.
    pub(crate) fn daemon(&self, args: &[&str]) -> Daemon {
        let mut daemon = self.start(args);
        let mut line = String::new();
        daemon.out.read_line(&mut line).expect("its output");
        if !line.contains("ready") {
            let mut err = String::new();
            daemon.child.stderr.take().expect("piped").read_to_string(&mut err).expect("read");
            panic!("the daemon did not start: {line}{err}");
        }
        daemon
    }

    /// Starts a daemon that may fail.
    pub(crate) fn start(&self, args: &[&str]) -> Daemon {
        let mut child = Command::new(UDM)
            .arg("daemon")
            .args(args)
            .env("UDM_SOCKET", self.path("control.sock"))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Daemon { child, out }
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) out: BufReader<std::process::ChildStdout>,
}

impl Daemon {
    /// Sends SIGTERM and waits; what it said on the error stream.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        let status = self.child.wait().expect("ended");
        let mut err = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut err).expect("read");
        assert!(status.success(), "{status}: {err}");
        err
    }

    /// Kills it without a warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// Waits for a daemon that must fail; what it said.
    #[track_caller]
    pub(crate) fn failed(mut self) -> String {
        let status = self.child.wait().expect("ended");
        let mut err = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut err).expect("read");
        assert_eq!(status.code(), Some(1), "{err}");
        err
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the state file.
pub(crate) fn state_of(dir: &Path) -> serde_json::Value {
    let bytes = std::fs::read(dir.join("state.json")).expect("a state file");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// An NBD client that has one write under way.
pub(crate) struct Writer(UnixStream);

impl Writer {
    /// Connects, and sends a write of one block to sector 0 of the export.
    pub(crate) fn start(socket: &Path, export: &str) -> Writer {
        let mut stream = UnixStream::connect(socket).expect("connects");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("greets");
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello).expect("sent");
        let mut size_and_flags = [0; 10];
        stream.read_exact(&mut size_and_flags).expect("the export is there");
        let mut write = 0x2560_9513_u32.to_be_bytes().to_vec();
        write.extend([0, 0, 0, 1]);
        write.extend(7_u64.to_be_bytes());
        write.extend(0_u64.to_be_bytes());
        write.extend(4096_u32.to_be_bytes());
        write.extend([0x5a; 4096]);
        stream.write_all(&write).expect("sent");
        Writer(stream)
    }

    /// Waits for the write's reply: its error number.
    pub(crate) fn error(mut self) -> u32 {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).expect("answered");
        assert_eq!(reply[8..], 7_u64.to_be_bytes());
        u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]])
    }
}
