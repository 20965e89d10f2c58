//! `--control-device NAME`: a character device that answers dm ioctls, by CUSE.
//!
//! For programs that open `/dev/mapper/control` or another node themselves and cannot be started
//! under `udm exec`. The kernel hands every call on the node to this file as a message (`wire.rs`);
//! an ioctl is passed on over the daemon's own socket, as the preload library does it, so there is
//! one codec and one state machine. Threads: one reads messages, one waits for events while the
//! device is there, and each ioctl under way has one, since it may wait. Idle, all sleep.
//!
//! Rules: only root and the daemon's own user may open it, as the kernel asks for a right to
//! administer. The device goes with the process.
//!
//! The tricky case is a signal to a caller that waits: the kernel interrupts the message and still
//! waits for its answer. The connection is shut, so the daemon gives the wait up; an interrupt that
//! comes before there is a connection is remembered ([`Running`]).

mod wire;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use std::collections::BTreeMap;
use std::io::Error;
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use udm_control::api::{DmIoctl, DmPoll};
use udm_control::{Client, base64, errno, ioctl};
use udm_core::error::{ErrorCode, UserError};
use wire::{Ioctl, MESSAGE_BYTES_MAX, Message, Stage, opcode};

/// Where CUSE is.
const CUSE: &str = "/dev/cuse";

/// An ioctl under way.
enum Running {
    /// It has no connection yet.
    Starting,
    /// Interrupted before it had one.
    Interrupted,
    /// It waits on this connection.
    On(UnixStream),
}

/// An open file.
struct OpenFile {
    /// The global event number it has seen.
    seen: u32,
    /// Polls that wait are woken by this.
    wake: Option<u64>,
}

struct Device {
    cuse: OwnedFd,
    socket: PathBuf,
    running: Mutex<BTreeMap<u64, Running>>,
    files: Mutex<BTreeMap<u64, OpenFile>>,
    next_file: AtomicU64,
    event_nr: AtomicU32,
}

/// Makes the device; it answers from now on, by way of the daemon's socket.
///
/// # Errors
/// `ListenFailed` without CUSE, without the right to it, or if the name is taken or bad.
pub(super) fn start(name: &str, socket: &Path) -> Result<(), UserError> {
    let plain = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !plain || name.contains(['\0', '\n', '!']) {
        let what = format!("'{name}' is no name of a device below /dev");
        return Err(UserError::new(ErrorCode::ListenFailed, what).hint("for example: udm-control"));
    }
    let cuse = open(CUSE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
        let error = Error::from(error);
        errno::system(ErrorCode::ListenFailed, &format!("open {CUSE}"), &error)
            .hint("load the module cuse (it needs root); without it, udm exec needs no node at all")
    })?;
    hello(&cuse, name)?;
    let device = Arc::new(Device {
        cuse,
        socket: socket.to_owned(),
        running: Mutex::default(),
        files: Mutex::default(),
        next_file: AtomicU64::new(1),
        event_nr: AtomicU32::new(0),
    });
    let (events, messages) = (Arc::clone(&device), device);
    let threads = [
        Builder::new().name("udm-cuse-events".into()).spawn(move || events.follow_events()),
        Builder::new().name("udm-cuse".into()).spawn(move || messages.serve()),
    ];
    for thread in threads {
        thread.map_err(|error| errno::system(ErrorCode::ListenFailed, "start a thread", &error))?;
    }
    Ok(())
}

/// The handshake; when it is over the node is there.
fn hello(cuse: &OwnedFd, name: &str) -> Result<(), UserError> {
    let failed = |error: Error| {
        errno::system(ErrorCode::ListenFailed, &format!("make the device {name}"), &error)
            .hint("is there a device of this name?")
    };
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let count = rustix::io::read(cuse, &mut bytes[..]).map_err(|error| failed(error.into()))?;
    let answer = wire::hello(&Message::of(&bytes[..count]), name)
        .ok_or_else(|| UserError::new(ErrorCode::ListenFailed, "CUSE of this kernel is too old"))?;
    rustix::io::write(cuse, &answer).map_err(|error| failed(error.into()))?;
    // A kernel that could not make it has hung up by now.
    let mut polled = [PollFd::new(cuse, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).map_err(|error| failed(error.into()))?;
    if polled[0].revents().contains(PollFlags::ERR) {
        return Err(failed(Error::from(rustix::io::Errno::EXIST)));
    }
    Ok(())
}

impl Device {
    /// Reads messages until the device is gone.
    fn serve(self: Arc<Self>) {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        loop {
            match rustix::io::read(&self.cuse, &mut bytes[..]) {
                Ok(count) => self.take(&Message::of(&bytes[..count])),
                // The second: a message was taken back before it was read.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT) => {}
                Err(_) => return,
            }
        }
    }

    fn take(self: &Arc<Self>, message: &Message<'_>) {
        let unique = message.unique;
        match message.opcode {
            opcode::OPEN => self.answer(&self.open(message)),
            opcode::RELEASE => {
                self.files().remove(&message.handle());
                self.answer(&wire::done(unique));
            }
            opcode::FLUSH => self.answer(&wire::done(unique)),
            opcode::IOCTL => self.ioctl(message),
            opcode::POLL => self.answer(&self.poll(message)),
            opcode::INTERRUPT => self.interrupt(message.handle()),
            _ => self.answer(&wire::refused(unique, wire::errno::ENOSYS)),
        }
    }

    /// Writes an answer. It fails if nobody waits for it any more.
    fn answer(&self, bytes: &[u8]) {
        let _ = rustix::io::write(&self.cuse, bytes);
    }

    fn open(&self, message: &Message<'_>) -> Vec<u8> {
        if message.uid != 0 && message.uid != rustix::process::geteuid().as_raw() {
            return wire::refused(message.unique, wire::errno::EACCES);
        }
        let Ok(seen) = self.event_nr_now() else {
            return wire::refused(message.unique, wire::errno::ENXIO);
        };
        let handle = self.next_file.fetch_add(1, Ordering::Relaxed);
        self.files().insert(handle, OpenFile { seen, wake: None });
        wire::opened(message.unique, handle)
    }

    fn poll(&self, message: &Message<'_>) -> Vec<u8> {
        let mut files = self.files();
        let now = self.event_nr.load(Ordering::SeqCst);
        let readable = files.get_mut(&message.handle()).is_some_and(|file| {
            file.wake = message.wake().or(file.wake);
            is_past(now, file.seen)
        });
        wire::polled(message.unique, readable)
    }

    fn ioctl(self: &Arc<Self>, message: &Message<'_>) {
        let (unique, question) = (message.unique, Ioctl::of(message));
        let call_bytes = match question.stage() {
            Stage::Retry { wanted_bytes, room_bytes } => {
                return self.answer(&question.retry(unique, wanted_bytes, room_bytes));
            }
            Stage::Refuse(errno) => {
                return self.answer(&question.answered(unique, errno, Vec::new()));
            }
            Stage::Ask { call_bytes } => call_bytes,
        };
        let is_arm = ioctl::is_arm_poll(question.command);
        self.running().insert(unique, Running::Starting);
        let (device, body) = (Arc::clone(self), message.body.to_vec());
        let (uid, opcode) = (message.uid, message.opcode);
        let started = Builder::new().name("udm-cuse-ioctl".into()).spawn(move || {
            let message = Message { opcode, unique, uid, body: &body };
            let question = Ioctl::of(&message);
            let (errno, bytes) = match device.ask(unique, &question, call_bytes) {
                Ok(answered) => answered,
                Err(errno) => (errno, Vec::new()),
            };
            if errno == 0 && is_arm {
                device.arm(message.handle());
            }
            device.running().remove(&unique);
            device.answer(&question.answered(unique, errno, bytes));
        });
        if started.is_err() {
            self.running().remove(&unique);
            self.answer(&question.answered(unique, wire::errno::EAGAIN, Vec::new()));
        }
    }

    /// Asks the daemon; gives the errno and the bytes to copy back.
    fn ask(
        &self,
        unique: u64,
        question: &Ioctl<'_>,
        call_bytes: usize,
    ) -> Result<(i32, Vec<u8>), i32> {
        let mut client = Client::connect(&self.socket).map_err(|_| wire::errno::ENXIO)?;
        if ioctl::is_interruptible(question.command) {
            let socket = client.socket().try_clone().map_err(|_| wire::errno::ENOMEM)?;
            let mut running = self.running();
            if matches!(running.insert(unique, Running::On(socket)), Some(Running::Interrupted)) {
                return Err(wire::errno::EINTR);
            }
        }
        let data = base64::encode(&question.call(call_bytes));
        let answered = client.call(&DmIoctl { command: question.command, data });
        let answer = answered.map_err(|_| match self.running().get(&unique) {
            Some(Running::Interrupted) => wire::errno::EINTR,
            Some(Running::Starting | Running::On(_)) | None => wire::errno::ENXIO,
        })?;
        let bytes = base64::decode(&answer.data).ok_or(wire::errno::EIO)?;
        Ok((answer.errno, bytes))
    }

    fn interrupt(&self, unique: u64) {
        let mut running = self.running();
        let Some(under_way) = running.get_mut(&unique) else { return };
        if let Running::On(socket) = std::mem::replace(under_way, Running::Interrupted) {
            // It may be at its end already; then its answer is on the way.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn arm(&self, handle: u64) {
        let Ok(now) = self.event_nr_now() else { return };
        if let Some(file) = self.files().get_mut(&handle) {
            file.seen = now;
        }
    }

    /// The global event number.
    fn event_nr_now(&self) -> Result<u32, UserError> {
        let mut number = 0;
        Client::connect(&self.socket)?.stream(&DmPoll {}, |answer| {
            number = answer.event_nr;
            ControlFlow::Break(())
        })?;
        Ok(number)
    }

    /// Wakes polls when something happens, until the daemon ends.
    fn follow_events(&self) {
        let Ok(mut client) = Client::connect(&self.socket) else { return };
        loop {
            let followed = client.stream(&DmPoll {}, |answer| {
                self.event_nr.store(answer.event_nr, Ordering::SeqCst);
                self.wake_past(answer.event_nr);
                ControlFlow::Continue(())
            });
            if followed.is_err() {
                return;
            }
        }
    }

    fn wake_past(&self, now: u32) {
        let mut files = self.files();
        for file in files.values_mut().filter(|file| is_past(now, file.seen)) {
            if let Some(wake) = file.wake.take() {
                self.answer(&wire::wake_up(wake));
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<u64, OpenFile>> {
        // Nothing in here is left half done.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Event numbers wrap.
fn is_past(now: u32, seen: u32) -> bool {
    now.wrapping_sub(seen).cast_signed() > 0
}
