//! NBD exports: a listener on a lane, at a unix socket, a TCP port, or on a socket passed to us.
//!
//! The lane side (accepting, connections, draining) is `udm-front`'s; this file listens, starts
//! the listener actor and sends it orders.
//!
//! The tricky case is a restart right after `kill -9`: the kernel takes a ring down after its
//! process, so the dead daemon's sockets still listen for a moment. When exports are brought back,
//! a unix socket whose listener has died is replaced, and any other address is waited for
//! ([`Patience`]): a connection to it hangs up when it goes.

use super::address::Address;
use super::{DRAIN_LIMIT, Front, Patience, SizeNews, Start, passed, telling};
use crate::runtime::Runtime;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use udm_control::api::Tls;
use udm_control::errno;
use udm_core::LaneMessage;
use udm_core::error::{ErrorCode, ErrorKind, UserError};
use udm_driver::{
    ListensAt, SOCKET_MODE_DEFAULT, inherited_listener, listen_tcp, listen_unix, remove_orphan,
};
use udm_front::nbd::server::{Export, Listener, ListenerOrder};
use udm_front::nbd::tls::TlsSettings;
use udm_front::nbd::tls::credentials::Credentials;
use udm_lane::Errno;
use udm_types::{ActorId, LaneId};

/// How often to try for an old daemon's address. Each try but the last has waited for its end.
const OLD_DAEMON_TRIES: u32 = 3;

/// Where the listener lives; its connections are spread over all lanes.
const LANE: LaneId = LaneId(0);

/// An NBD export to be.
pub(super) struct Plan {
    address: Address,
    tls: Option<TlsSettings>,
}

impl Plan {
    /// Understands `unix:PATH`, `tcp:HOST:PORT` or `fd:NUMBER`, and reads the files of TLS.
    ///
    /// # Errors
    /// `BadAddress`, `TlsFiles`.
    pub(super) fn parse(address: &str, tls: Option<&Tls>) -> Result<Plan, UserError> {
        let address = Address::parse(address)?;
        Ok(Plan { address, tls: tls.map(settings).transpose()? })
    }
}

/// Reads the files of TLS.
fn settings(tls: &Tls) -> Result<TlsSettings, UserError> {
    let is_required = tls.required.unwrap_or(true);
    let verify_peer = tls.verify_peer.unwrap_or(false);
    let refuse = |what: &str| Err(UserError::new(ErrorCode::BadParameter, what));
    match (&tls.certificates, &tls.psk) {
        (Some(dir), None) => {
            Credentials { dir: PathBuf::from(dir), is_required, verify_peer }.load()
        }
        (None, Some(_)) if verify_peer => {
            refuse("tls: verify_peer is for certificates; a key says already who a client is")
        }
        (None, Some(file)) => with_keys(Path::new(file), is_required),
        (Some(_), Some(_)) | (None, None) => refuse("tls: give either certificates or psk"),
    }
}

#[cfg(feature = "tls-psk")]
fn with_keys(file: &Path, is_required: bool) -> Result<TlsSettings, UserError> {
    let keys = udm_front::nbd::tls::keys::SharedKeys::load(file)?;
    Ok(TlsSettings::with_keys(keys, is_required))
}

#[cfg(not(feature = "tls-psk"))]
fn with_keys(_file: &Path, _is_required: bool) -> Result<TlsSettings, UserError> {
    let what = "this udm was built without TLS by pre-shared keys";
    Err(UserError::new(ErrorCode::BadParameter, what)
        .hint("build it with the feature tls-psk, or use certificates"))
}

impl super::Plan for Plan {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn start(self: Box<Self>, start: Start<'_>) -> Result<Arc<dyn Front>, UserError> {
        let Listening { socket, address, reached } = listen(self.address, start.patience)?;
        let export = Export {
            name: start.name.to_owned(),
            device: start.device,
            description: String::new(),
            read_only: start.read_only,
        };
        let (tls, is_secured) = (self.tls.clone(), self.tls.is_some());
        let is_shared = matches!(address, Address::Passed(_));
        let lanes = start.lanes;
        let actor = start.runtime.spawn_actor(LANE, move || {
            let listener = Listener::new(socket, vec![export]).with_tls(tls);
            Box::new(listener.shared(is_shared).on_lanes(lanes))
        });
        let runtime = Arc::clone(start.runtime);
        Ok(Arc::new(NbdFront { runtime, address, reached, is_secured, actor }))
    }
}

/// A listener.
struct NbdFront {
    runtime: Arc<Runtime>,
    address: Address,
    /// Where clients reach it.
    reached: Address,
    is_secured: bool,
    actor: ActorId,
}

impl NbdFront {
    fn tell(&self, order: ListenerOrder) {
        self.runtime.send(LANE, LaneMessage::ToActor(self.actor, Box::new(order)));
    }
}

impl Front for NbdFront {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn uri(&self, name: &str) -> String {
        self.reached.uri(name, self.is_secured)
    }

    fn client_count(&self) -> u32 {
        let (sender, receiver) = channel();
        let answer = Box::new(move |count| {
            // The receiver waits below.
            let _ = sender.send(count);
        });
        self.tell(ListenerOrder::Count(answer));
        // A listener that has just ended drops the order, and has no connections.
        receiver.recv().map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
    }

    fn size_news(&self) -> SizeNews {
        // The protocol has no message for it.
        SizeNews::Ask
    }

    fn stop(&self, cut: bool, done: Sender<()>) {
        self.tell(ListenerOrder::Stop { cut, done: telling(done) });
    }

    fn clean_up(&self) {
        if let Address::Unix(path) = &self.address {
            // Gone already, or in a directory that is: nothing is left to clean up.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens at a unix socket.
///
/// # Errors
/// `ListenFailed`.
pub(super) fn listen_at(path: &Path, patience: Patience) -> Result<OwnedFd, UserError> {
    listen(Address::Unix(path.to_owned()), patience).map(|listening| listening.socket)
}

/// A socket that listens.
struct Listening {
    socket: OwnedFd,
    /// The address as its user would write it again, with the port that was taken for port 0.
    address: Address,
    /// Where clients reach it; another one only for a socket that was passed to us.
    reached: Address,
}

impl Listening {
    fn at(socket: OwnedFd, address: Address) -> Listening {
        Listening { socket, reached: address.clone(), address }
    }
}

/// Takes over a socket that was passed to this process.
fn take_passed(word: &str) -> Result<Listening, UserError> {
    let address = Address::Passed(word.to_owned());
    let (socket, at) = inherited_listener(passed::number_of(word)?).map_err(|errno| {
        let error = io::Error::from_raw_os_error(errno.0);
        errno::system(ErrorCode::ListenFailed, &format!("listen on {address}"), &error)
            .hint("it has to be a stream socket that listens")
    })?;
    let reached = match at {
        ListensAt::Unix(path) => Address::Unix(path),
        ListensAt::Tcp(at) => Address::Tcp(at.ip().to_string(), at.port()),
        ListensAt::Unnamed => address.clone(),
    };
    Ok(Listening { socket, address, reached })
}

/// Listens.
fn listen(address: Address, patience: Patience) -> Result<Listening, UserError> {
    if let Address::Unix(path) = &address
        && let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty())
        && !parent.is_dir()
    {
        return Err(UserError::new(
            ErrorCode::ListenFailed,
            format!("listen on {address}: there is no directory {}", parent.display()),
        )
        .of_kind(ErrorKind::NoEntry));
    }
    let found = match &address {
        Address::Unix(_) => None,
        Address::Tcp(host, port) => Some(Address::look_up(host, *port)?),
        Address::Passed(word) => return take_passed(word),
    };
    let mut tries_left = match patience {
        Patience::None => 0,
        Patience::OldDaemon => OLD_DAEMON_TRIES,
    };
    loop {
        match listen_once(&address, found) {
            Ok((socket, port)) => {
                let bound = match (address, port) {
                    (Address::Tcp(host, _), Some(port)) => Address::Tcp(host, port),
                    (other, _) => other,
                };
                return Ok(Listening::at(socket, bound));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries_left > 0 => {
                // Still there when the time is over: then it is no dead daemon.
                let is_free = is_orphan_removed(&address) || await_end(&address, found);
                tries_left = if is_free { tries_left - 1 } else { 0 };
            }
            Err(error) => {
                let what = format!("listen on {address}");
                let refused = errno::system(ErrorCode::ListenFailed, &what, &error);
                return Err(match (&address, error.kind()) {
                    (Address::Tcp(_, ..1024), io::ErrorKind::PermissionDenied) => {
                        refused.hint("ports below 1024 need root, or CAP_NET_BIND_SERVICE")
                    }
                    _ => refused,
                });
            }
        }
    }
}

fn listen_once(address: &Address, found: Option<SocketAddr>) -> io::Result<(OwnedFd, Option<u16>)> {
    let system = |errno: Errno| io::Error::from_raw_os_error(errno.0);
    match (address, found) {
        (Address::Unix(path), _) => {
            let socket = listen_unix(path, SOCKET_MODE_DEFAULT).map_err(system)?;
            Ok((socket, None))
        }
        (Address::Tcp(..), Some(found)) => {
            let (socket, bound) = listen_tcp(found).map_err(system)?;
            Ok((socket, Some(bound.port())))
        }
        (Address::Tcp(..), None) | (Address::Passed(_), _) => {
            Err(io::ErrorKind::AddrNotAvailable.into())
        }
    }
}

/// Frees an address of an old daemon that has died, where that can be told.
fn is_orphan_removed(address: &Address) -> bool {
    match address {
        Address::Unix(path) => remove_orphan(path),
        Address::Tcp(..) | Address::Passed(_) => false,
    }
}

/// Waits until whoever listens at an address hangs up. False if [`DRAIN_LIMIT`] passes before.
fn await_end(address: &Address, found: Option<SocketAddr>) -> bool {
    let connection: Option<OwnedFd> = match address {
        Address::Unix(path) => UnixStream::connect(path).ok().map(OwnedFd::from),
        Address::Tcp(..) | Address::Passed(_) => found
            .and_then(|found| TcpStream::connect_timeout(&found, DRAIN_LIMIT).ok())
            .map(OwnedFd::from),
    };
    // Refused: it has gone meanwhile.
    let Some(connection) = connection else { return true };
    let mut polled = [PollFd::new(&connection, PollFlags::empty())];
    let span = Timespec { tv_sec: DRAIN_LIMIT.as_secs() as i64, tv_nsec: 0 };
    // An error (a signal, say) is worth another try; the tries are counted.
    poll(&mut polled, Some(&span)) != Ok(0)
}
