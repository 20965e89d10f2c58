//! The control socket: a unix stream socket that only its owner may use, one thread a client.
//!
//! The daemon starts a [`Server`] with its [`ControlOps`]; the server owns the socket file and
//! removes it at the end. Threads and not an event loop: a call may open files or wait for a
//! suspend, and a few clients a second do not pay for anything cleverer. When idle, every thread
//! sleeps in the kernel; nothing polls.
//!
//! Bounds: [`CLIENTS_MAX`] clients at once. One more waits for somebody to leave, since on a busy
//! machine most of them have gone and only their threads have not noticed yet; if nobody leaves for
//! [`ROOM_LIMIT`], it is told so and sent away, and so is everybody after it until there is room.
//!
//! The tricky case is a socket file that is already there. If a daemon answers on it, it is left
//! alone (`SocketInUse`). If nobody listens, it is what a killed daemon left behind and is
//! replaced. The lock beside it (`PATH.lock`) decides between two daemons that start at the same
//! moment.

use crate::connection::{Connection, Flag, Shared, answer_of, wait_readable};
use crate::dispatch::CallError;
use crate::errno;
use crate::ops::ControlOps;
use crate::wire::encode;
use rustix::event::Timespec;
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, open};
use rustix::net::{self, SocketAddrUnix};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use udm_core::error::{ErrorCode, ErrorKind, UserError};

/// Clients at once. Each has a thread that sleeps and at most one message in memory. A program that
/// came through the preload library has two connections while it asks something, and hundreds of
/// them may run at once on a machine that boots.
pub const CLIENTS_MAX: usize = 1024;
/// Clients waiting to be accepted.
const LISTEN_BACKLOG: i32 = 4096;
/// How long to leave the listener alone when the system has no descriptor for a client.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long one client too many waits for room.
const ROOM_LIMIT: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// Longest socket path in bytes that the system takes, with room for its NUL.
const SOCKET_PATH_LEN_BYTES_MAX: usize = 107;

/// A socket that listens but is not served yet. Clients that connect wait.
///
/// Taken before anything else a daemon does, so that the second of two daemons touches nothing.
pub struct Bound {
    path: PathBuf,
    listener: Option<UnixListener>,
    /// Held for as long as the socket: the right to this path.
    lock: Option<OwnedFd>,
}

impl Bound {
    /// Listens.
    ///
    /// # Errors
    /// `SocketInUse` if a daemon has this path, `ListenFailed` with the system's reason.
    pub fn open(path: &Path) -> Result<Bound, UserError> {
        if path.as_os_str().len() > SOCKET_PATH_LEN_BYTES_MAX {
            return Err(UserError::new(
                ErrorCode::ListenFailed,
                format!("the socket path is longer than {SOCKET_PATH_LEN_BYTES_MAX} bytes"),
            )
            .of_kind(ErrorKind::Invalid)
            .hint("choose a shorter one with --socket or UDM_SOCKET"));
        }
        make_directory(path)?;
        let lock = take_lock(path)?;
        let listener = listen(path).map_err(|error| not_listening(path, &error))?;
        Ok(Bound { path: path.to_owned(), listener: Some(listener), lock: Some(lock) })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Never served: the daemon did not start. Served: the server has taken both out.
        if self.listener.take().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
    path: PathBuf,
    accepting: Option<JoinHandle<()>>,
    _lock: Option<OwnedFd>,
}

type Clients = Arc<Mutex<BTreeMap<u64, JoinHandle<()>>>>;

impl Server {
    /// Listens and starts to serve.
    ///
    /// # Errors
    /// As [`Bound::open`] and [`Server::serve`].
    pub fn start(path: &Path, ops: Arc<dyn ControlOps>) -> Result<Server, UserError> {
        Server::serve(Bound::open(path)?, ops)
    }

    /// Starts to serve.
    ///
    /// # Errors
    /// `ListenFailed` if the system refuses a thread or a descriptor.
    pub fn serve(mut bound: Bound, ops: Arc<dyn ControlOps>) -> Result<Server, UserError> {
        let path = bound.path.clone();
        let failed = |error: io::Error| not_listening(&path, &error);
        let listener = bound.listener.as_ref().map(UnixListener::try_clone).transpose();
        let Some(listener) = listener.map_err(failed)? else {
            return Err(failed(io::ErrorKind::NotConnected.into()));
        };
        listener.set_nonblocking(true).map_err(failed)?;
        let stop = Flag::new().map_err(failed)?;
        let shared = Arc::new(Shared { ops, stop });
        let door = Door {
            shared: Arc::clone(&shared),
            clients: Clients::default(),
            left: Arc::new(Flag::new().map_err(failed)?),
            next_number: 0,
            is_shut: false,
        };
        let accepting = thread::Builder::new()
            .name("udm-control".into())
            .spawn(move || accept_all(&listener, door))
            .map_err(failed)?;
        bound.listener = None;
        let lock = bound.lock.take();
        Ok(Server { shared, path, accepting: Some(accepting), _lock: lock })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes no more calls, answers what is under way, removes the socket.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.stop.raise();
        if let Some(accepting) = self.accepting.take() {
            let _ = fs::remove_file(&self.path);
            // A thread that panicked has lost its own client only.
            let _ = accepting.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn not_listening(path: &Path, error: &io::Error) -> UserError {
    errno::system(ErrorCode::ListenFailed, &format!("listen on {}", path.display()), error)
}

fn make_directory(path: &Path) -> Result<(), UserError> {
    let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    if directory.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        let what = format!("create the directory {}", directory.display());
        errno::system(ErrorCode::ListenFailed, &what, &error)
    })
}

fn take_lock(path: &Path) -> Result<OwnedFd, UserError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let failed = |error: rustix::io::Errno| {
        let what = format!("lock {}", Path::new(&name).display());
        errno::system(ErrorCode::ListenFailed, &what, &error.into())
    };
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let lock = open(&name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(in_use(path)),
        Err(error) => Err(failed(error)),
    }
}

/// Listens on a socket that was private before it had a name.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = net::socket_with(
        net::AddressFamily::UNIX,
        net::SocketType::STREAM,
        net::SocketFlags::CLOEXEC,
        None,
    )?;
    // The file takes the mode the socket has at this moment.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    match net::bind(&socket, &address) {
        Err(rustix::io::Errno::ADDRINUSE) if UnixStream::connect(path).is_err() => {
            // The lock is ours, so whoever left it is dead.
            fs::remove_file(path)?;
            net::bind(&socket, &address)?;
        }
        other => other?,
    }
    net::listen(&socket, LISTEN_BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn in_use(path: &Path) -> UserError {
    UserError::new(
        ErrorCode::SocketInUse,
        format!("a daemon already listens on {}", path.display()),
    )
    .hint("choose another socket with --socket or UDM_SOCKET")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the map is held leaves it whole: it is only inserted into and removed from.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everybody who is connected, and who comes next.
struct Door {
    shared: Arc<Shared>,
    clients: Clients,
    /// Raised by whoever leaves.
    left: Arc<Flag>,
    next_number: u64,
    /// It was full for too long, and still is.
    is_shut: bool,
}

fn accept_all(listener: &UnixListener, mut door: Door) {
    loop {
        match wait_readable([listener, door.shared.stop.descriptor()], None) {
            Ok([_, true]) | Err(_) => break,
            Ok([_, false]) => {}
        }
        if !door.has_room() {
            break;
        }
        match listener.accept() {
            Ok((stream, _)) if door.is_shut => refuse(stream),
            Ok((stream, _)) => door.admit(stream),
            // Gone before it was taken: the next turn sees what is left.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors: the client stays readable, so wait a little or spin.
            Err(_) => pause(&door.shared),
        }
    }
    let left = std::mem::take(&mut *locked(&door.clients));
    for (_, thread) in left {
        let _ = thread.join();
    }
}

/// Waits for the server's end, but not long.
fn pause(shared: &Shared) {
    // Whatever it says, the caller looks again.
    let _ = wait_readable([shared.stop.descriptor()], Some(&ACCEPT_PAUSE));
}

impl Door {
    /// Looks, and waits if need be, whether one more may come; else shuts the door. False at the
    /// server's end.
    fn has_room(&mut self) -> bool {
        let is_full = |clients: &Clients| locked(clients).len() >= CLIENTS_MAX;
        while is_full(&self.clients) && !self.is_shut {
            let stop = self.shared.stop.descriptor();
            match wait_readable([self.left.descriptor(), stop], Some(&ROOM_LIMIT)) {
                Ok([_, true]) => return false,
                // Whoever leaves after this is seen either in the map or by the flag.
                Ok([true, false]) => self.left.lower(),
                Ok([false, false]) | Err(_) => self.is_shut = true,
            }
        }
        self.is_shut = self.is_shut && is_full(&self.clients);
        true
    }

    fn admit(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(false).is_err() {
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        let connection = Connection::new(stream, Arc::clone(&self.shared));
        let (mine, left) = (Arc::clone(&self.clients), Arc::clone(&self.left));
        // The map is held until the handle is in it, so that a short-lived client cannot leave
        // first.
        let mut map = locked(&self.clients);
        let spawned = thread::Builder::new().name("udm-client".into()).spawn(move || {
            connection.run();
            locked(&mine).remove(&number);
            left.raise();
        });
        if let Ok(handle) = spawned {
            map.insert(number, handle);
        }
    }
}

fn refuse(mut stream: UnixStream) {
    let error = UserError::new(
        ErrorCode::TooManyClients,
        format!("{CLIENTS_MAX} clients are connected, which is the limit"),
    )
    .hint("end some of the programs that hold a connection, then try again");
    // It may not even listen; then it finds the connection closed.
    let _ = stream.write_all(&encode(&answer_of(Err(CallError::User(error)))));
}

/// The socket a command uses unless it is told otherwise.
///
/// `UDM_SOCKET`, else `udm/control.sock` in the user's runtime directory, else in `/run`.
pub fn default_socket(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(path) = set("UDM_SOCKET") {
        return PathBuf::from(path);
    }
    let base = set("XDG_RUNTIME_DIR").unwrap_or_else(|| "/run".to_owned());
    Path::new(&base).join("udm").join("control.sock")
}
