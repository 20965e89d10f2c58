//! sd_notify: tells a service manager that the daemon is ready, or ending.
//!
//! One datagram to the socket that `NOTIFY_SOCKET` names, a path or (with a leading `@`) an
//! abstract name. Without the variable there is nobody to tell. A manager that does not listen is
//! its own problem, so errors are not reported: the daemon serves all the same.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends a state such as `READY=1`.
pub(super) fn notify(state: &str) {
    if let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) {
        let _ = send(name.as_encoded_bytes(), state);
    }
}

fn send(name: &[u8], state: &str) -> std::io::Result<()> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => {
            use std::os::unix::ffi::OsStrExt;
            SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?
        }
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::send;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_listening_manager_hears_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bind");
        send(path.as_os_str().as_encoded_bytes(), "READY=1").expect("sent");
        let mut bytes = [0; 16];
        let count = manager.recv(&mut bytes).expect("received");
        assert_eq!(&bytes[..count], b"READY=1");
    }
}
