//! The device as the kernel sees it: nbdfuse makes a file of the export, losetup a block device of
//! the file, and ext4 is mounted on that, with discards.
//!
//! ```text
//! ext4 -> /dev/loopN -> nbdfuse/volume -> NBD socket -> udm
//! ```
//!
//! Rules. It is taken down in the opposite order, also when half of it has died: nbdfuse first
//! then, so that nothing in the kernel waits for it. What cannot be taken down is a finding of an
//! orderly end, and is left alone otherwise.

use super::outside::{code, run};
use crate::soak::wait_until;
use crate::steps::Failed;
use std::fs::{File, create_dir_all};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the file may take to appear.
const START_MAX: Duration = Duration::from_secs(20);

/// A device in the kernel.
pub(super) struct Front {
    dir: PathBuf,
    fuse: Child,
    loop_device: Option<String>,
    is_mounted: bool,
}

impl Front {
    /// Brings the export to the kernel.
    pub(super) fn open(dir: &Path, uri: &str) -> Result<Front, Failed> {
        let folder = dir.join("fuse");
        for folder in [&folder, &dir.join("mounted")] {
            create_dir_all(folder).map_err(Failed::to("make a folder"))?;
        }
        let log = File::create(dir.join("nbdfuse.log")).map_err(Failed::to("make a log"))?;
        let file = folder.join("volume");
        let fuse = Command::new("nbdfuse")
            .arg(&file)
            .arg(uri)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(Failed::to("start nbdfuse"))?;
        let mut front = Front { dir: dir.to_owned(), fuse, loop_device: None, is_mounted: false };
        wait_until("nbdfuse has its file", START_MAX, || {
            match front.fuse.try_wait().map_err(Failed::to("ask for a child's end"))? {
                None => Ok(file.exists()),
                Some(status) => Err(Failed::new(format!("nbdfuse has ended: {status}"))),
            }
        })?;
        let device = run(dir, &["losetup", "--find", "--show", &file.display().to_string()])?;
        front.loop_device = Some(device.trim().to_owned());
        Ok(front)
    }

    /// The block device.
    pub(super) fn device(&self) -> &str {
        self.loop_device.as_deref().unwrap_or_default()
    }

    /// Mounts the file system; the kernel replays its journal.
    pub(super) fn mount(&mut self) -> Result<PathBuf, Failed> {
        let point = self.dir.join("mounted");
        run(&self.dir, &["mount", "-o", "discard", self.device(), &point.display().to_string()])?;
        self.is_mounted = true;
        Ok(point)
    }

    /// Nobody gets an answer from the device any more.
    pub(super) fn cut_off(&mut self) {
        // Nothing in the kernel waits for a file whose server is gone. Fails if it has ended.
        let _killed = self.fuse.kill();
        let _status = self.fuse.wait();
    }

    /// Takes it down in order; every step has to succeed.
    pub(super) fn close(mut self) -> Result<(), Failed> {
        if std::mem::take(&mut self.is_mounted) {
            run(&self.dir, &["umount", &self.dir.join("mounted").display().to_string()])?;
        }
        match self.loop_device.take() {
            Some(device) => run(&self.dir, &["losetup", "--detach", &device]).map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.cut_off();
        let gone = |words: &[&str]| drop(code(&self.dir, words));
        if self.is_mounted {
            gone(&["umount", &self.dir.join("mounted").display().to_string()]);
        }
        if let Some(device) = &self.loop_device {
            gone(&["losetup", "--detach", device]);
        }
        gone(&["umount", &self.dir.join("fuse").display().to_string()]);
    }
}
