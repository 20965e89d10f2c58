//! vhost-user-blk exports: a unix socket at which a virtual machine finds its disk.
//!
//! Everything that matters is `udm-front`'s; this file listens and starts its server. The socket
//! is its owner's alone: who may connect may read and write the disk.

use super::nbd::listen_at;
use super::{Front, SizeNews, Start, telling};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use udm_control::errno;
use udm_core::error::{ErrorCode, UserError};
use udm_front::vhost_user::server::{Disk, Server};
use udm_types::LaneId;

/// An export to be.
pub(super) struct Plan {
    path: PathBuf,
}

impl Plan {
    /// Understands a path, with or without `unix:` before it.
    ///
    /// # Errors
    /// `BadAddress`.
    pub(super) fn parse(address: &str) -> Result<Plan, UserError> {
        match address.strip_prefix("unix:").unwrap_or(address) {
            "" => Err(UserError::new(ErrorCode::BadAddress, "the path of the socket is missing")),
            path => Ok(Plan { path: PathBuf::from(path) }),
        }
    }
}

impl super::Plan for Plan {
    fn address(&self) -> String {
        self.path.display().to_string()
    }

    fn start(self: Box<Self>, start: Start<'_>) -> Result<Arc<dyn Front>, UserError> {
        let socket = listen_at(&self.path, start.patience)?;
        let lanes = (0..start.runtime.lane_count())
            // Fits: there are far fewer lanes.
            .map(|lane| start.runtime.mailbox(LaneId(lane as u16)))
            .collect();
        let disk = Disk {
            device: start.device,
            name: start.name.to_owned(),
            read_only: start.read_only,
            lanes: start.lanes,
        };
        let server = Server::start(socket, disk, lanes).map_err(|error| {
            errno::system(ErrorCode::ListenFailed, "start a vhost-user server", &error)
        })?;
        Ok(Arc::new(VhostUserFront { path: self.path, server }))
    }
}

/// A running server.
struct VhostUserFront {
    path: PathBuf,
    server: Server,
}

impl Front for VhostUserFront {
    fn address(&self) -> String {
        self.path.display().to_string()
    }

    fn uri(&self, _name: &str) -> String {
        let absolute = std::path::absolute(&self.path);
        absolute.unwrap_or_else(|_| self.path.clone()).display().to_string()
    }

    fn client_count(&self) -> u32 {
        self.server.clients()
    }

    fn size_news(&self) -> SizeNews {
        if self.server.tells_changes() { SizeNews::Told } else { SizeNews::Ask }
    }

    fn settle_size(&self, done: Sender<()>) {
        self.server.settle(telling(done));
    }

    fn stop(&self, cut: bool, done: Sender<()>) {
        self.server.stop(cut, telling(done));
    }

    fn clean_up(&self) {
        // Gone already, or in a directory that is: nothing is left to clean up.
        let _ = std::fs::remove_file(&self.path);
    }
}
