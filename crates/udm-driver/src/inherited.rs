//! Listening sockets that whoever started this process has made for it.
//!
//! A service manager passes them as descriptors from 3 on and says so in the environment; the
//! control side reads that and asks here for a socket by its number.
//!
//! Rules. What comes out is a copy that is closed on exec; the number itself stays open, for it is
//! still the manager's, and is marked not to reach programs that we start. Anything but a stream
//! socket that listens is refused.
//!
//! The tricky case is a wrong number: it might be a descriptor of our own. The caller only passes
//! numbers that the environment names, which were open before this process had any.
#![allow(unsafe_code)]

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{SocketAddrAny, SocketType, getsockname, sockopt};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use udm_lane::Errno;

/// The lowest number that is nobody's standard stream.
const NUMBER_MIN: RawFd = 3;

/// Where a socket that was passed on listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListensAt {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
    /// Somewhere without a name that clients could type.
    Unnamed,
}

/// Takes a copy of the listening socket with this number.
///
/// # Errors
/// `EBADF` if the number is not open or a standard stream's; `EINVAL` if it is no stream socket
/// that listens.
pub fn inherited_listener(number: RawFd) -> Result<(OwnedFd, ListensAt), Errno> {
    let errno = |error: rustix::io::Errno| Errno(error.raw_os_error());
    if number < NUMBER_MIN {
        return Err(errno(rustix::io::Errno::BADF));
    }
    // SAFETY: the number is only used in the two calls below, which answer EBADF if it is not
    // open. If it is, nobody here closes it: it was passed to this process and has no owner.
    let passed = unsafe { BorrowedFd::borrow_raw(number) };
    let socket = fcntl_dupfd_cloexec(passed, NUMBER_MIN).map_err(errno)?;
    fcntl_setfd(passed, FdFlags::CLOEXEC).map_err(errno)?;
    let listens = sockopt::socket_acceptconn(&socket) == Ok(true)
        && sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
    if !listens {
        return Err(errno(rustix::io::Errno::INVAL));
    }
    let at = getsockname(&socket).map_err(errno)?;
    Ok((socket, place_of(&at)))
}

fn place_of(at: &SocketAddrAny) -> ListensAt {
    if let Ok(found) = SocketAddr::try_from(at.clone()) {
        return ListensAt::Tcp(found);
    }
    let unix = rustix::net::SocketAddrUnix::try_from(at.clone()).ok();
    let path = unix.as_ref().and_then(|unix| unix.path_bytes());
    let path = path.and_then(|path| str::from_utf8(path).ok());
    path.map_or(ListensAt::Unnamed, |path| ListensAt::Unix(PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::{ListensAt, inherited_listener};
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn only_listening_sockets_are_taken() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.sock");
        let unix = UnixListener::bind(&path).expect("a socket");
        let (copy, at) = inherited_listener(unix.as_raw_fd()).expect("it listens");
        assert_eq!(at, ListensAt::Unix(path.clone()));
        drop(copy);
        UnixStream::connect(&path).expect("the one that was passed still listens");

        let tcp = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let (_copy, at) = inherited_listener(tcp.as_raw_fd()).expect("it listens");
        assert_eq!(at, ListensAt::Tcp(tcp.local_addr().expect("known")));

        let (one, _other) = UnixStream::pair().expect("sockets");
        assert!(inherited_listener(one.as_raw_fd()).is_err(), "connected");
        assert!(inherited_listener(0).is_err(), "a standard stream");
        assert!(inherited_listener(1_000_000).is_err(), "not open");
    }
}
