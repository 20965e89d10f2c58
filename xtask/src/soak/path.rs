//! A path: an NBD server over the image, on a unix socket, that can be killed and started again.
//!
//! Killed means SIGKILL: nobody says goodbye to the client. The server's own requests have ended
//! when its socket closes (the kernel closes it after the last thread has left its last write), so
//! no late write can follow. That would not hold for a server that is stopped and goes on later;
//! such a server needs fencing, and is not part of this soak.

use crate::steps::{Failed, is_installed};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a server may take to accept.
const START_MAX: Duration = Duration::from_secs(20);

/// Whose server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nbdkit,
    Qemu,
}

impl Kind {
    /// The two kinds for two paths, of what is installed.
    pub(super) fn pair() -> Option<[Kind; 2]> {
        match (is_installed("nbdkit"), is_installed("qemu-nbd")) {
            (true, true) => Some([Kind::Nbdkit, Kind::Qemu]),
            (true, false) => Some([Kind::Nbdkit; 2]),
            (false, true) => Some([Kind::Qemu; 2]),
            (false, false) => None,
        }
    }
}

/// One path.
pub(super) struct PathServer {
    pub(super) name: &'static str,
    kind: Kind,
    image: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl PathServer {
    /// A path that is not started yet.
    pub(super) fn new(name: &'static str, kind: Kind, image: &Path, dir: &Path) -> PathServer {
        PathServer {
            name,
            kind,
            image: image.to_owned(),
            socket: dir.join(format!("{name}.sock")),
            log: dir.join(format!("{name}.log")),
            child: None,
        }
    }

    /// As a table names it.
    pub(super) fn device(&self) -> String {
        format!("nbd+unix:///?socket={}&reconnect=0.05-0.5", self.socket.display())
    }

    pub(super) fn is_up(&self) -> bool {
        self.child.is_some()
    }

    /// Starts it and waits until it accepts.
    pub(super) fn start(&mut self) -> Result<(), Failed> {
        if self.is_up() {
            return Ok(());
        }
        // What a killed server left; if it cannot be removed, listening fails and says so.
        let _gone = std::fs::remove_file(&self.socket);
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(Failed::to("open a log"))?;
        let (socket, image) = (self.socket.display(), self.image.display());
        let line = match self.kind {
            Kind::Nbdkit => format!("nbdkit -f -U {socket} file {image}"),
            Kind::Qemu => format!(
                "qemu-nbd -t -e 64 -k {socket} --image-opts \
                 driver=raw,file.driver=file,file.locking=off,file.filename={image}"
            ),
        };
        let words: Vec<&str> = line.split(' ').collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(Failed::to(format!("start {}", words[0])))?;
        self.child = Some(child);
        let what = format!("path {} accepts", self.name);
        super::wait_until(&what, START_MAX, || {
            let child = self.child.as_mut().expect("invariant: it was just started");
            if let Some(status) = child.try_wait().map_err(Failed::to("ask for a child's end"))? {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                return Err(Failed::new(format!("path {} ended ({status}): {log}", self.name)));
            }
            Ok(UnixStream::connect(&self.socket).is_ok())
        })
    }

    /// SIGKILL, and its end.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if it has ended by itself.
            let _ended = child.kill();
            let _status = child.wait();
        }
    }
}

impl Drop for PathServer {
    fn drop(&mut self) {
        self.kill();
    }
}
