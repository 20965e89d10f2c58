//! The daemon, its devices and exports, and the files that rows compare with.
//!
//! All of it is in one folder that goes at the end. The exports are made once and stay: that
//! several front ends serve one device at the same time is part of what is tried.

use super::{Args, expect};
use crate::certificates;
use crate::soak::daemon::Daemon;
use crate::steps::{Failed, is_installed, release_udm};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of both devices.
pub(super) const LEN_BYTES: u64 = 64 << 20;

/// What rows work on.
pub(super) struct Place {
    pub(super) root: PathBuf,
    pub(super) udm: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) without_guest: bool,
    daemon: Daemon,
    /// Addresses of `disk` and of `second`.
    pub(super) uri: String,
    pub(super) second_uri: String,
    /// The same disk by TLS, if certificates could be made.
    pub(super) tls_uri: Option<String>,
    /// The disk of a virtual machine.
    pub(super) vhost_socket: String,
    /// The disk as a file, where this machine lets us mount.
    pub(super) file: String,
}

/// Whether a device can be mounted as a file here.
pub(super) fn can_mount() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists()
}

/// A program of somebody else, found also where administrators' programs are.
pub(super) fn outside(program: &str) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(program);
    command.env("PATH", path).stdin(std::process::Stdio::null());
    command
}

impl Place {
    pub(super) fn start(root: &Path, args: &Args) -> Result<Place, Failed> {
        let udm = release_udm(root, args.udm.as_ref())?;
        let dir = std::env::temp_dir().join(format!("udm-interop-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
        let daemon = Daemon::start(&udm, &dir)?;
        let path = |name: &str| dir.join(name).display().to_string();
        for device in ["disk", "second"] {
            let image = path(&format!("{device}.img"));
            let made = File::create(&image).and_then(|file| file.set_len(LEN_BYTES));
            made.map_err(Failed::to("make an image"))?;
            let table = format!("0 {} linear {image} 0", LEN_BYTES / 512);
            daemon.udm(&["create", device, "--table", &table])?;
        }
        let export = |device: &str, name: &str, options: &[&str]| {
            let socket = format!("unix:{}", path(&format!("{name}.sock")));
            let mut words = vec!["export", device, "--nbd", &socket, "--name", name];
            words.extend(options);
            daemon.udm(&words).map(|uri| uri.trim().to_owned())
        };
        let uri = export("disk", "disk", &[])?;
        let second_uri = export("second", "second", &[])?;
        let tls_uri = match is_installed(certificates::TOOL) {
            true => {
                certificates::make(&dir, "DNS:localhost")?;
                Some(export("disk", "secret", &["--tls-certificates", &path("")])?)
            }
            false => None,
        };
        let (vhost_socket, file) = (path("vhost.sock"), path("device"));
        daemon.udm(&["export", "disk", "--vhost-user", &vhost_socket, "--name", "vm"])?;
        if can_mount() {
            daemon.udm(&["export", "disk", "--fuse", &file, "--name", "file"])?;
        }
        let (root, without_guest) = (root.to_owned(), args.without_guest);
        let files = Place {
            root,
            udm,
            dir,
            without_guest,
            daemon,
            uri,
            second_uri,
            tls_uri,
            vhost_socket,
            file,
        };
        Ok(files)
    }

    /// A file of the folder.
    pub(super) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// What lies below a device.
    fn image(&self, device: &str) -> Result<File, Failed> {
        File::options()
            .read(true)
            .write(true)
            .open(self.path(&format!("{device}.img")))
            .map_err(Failed::to("open an image"))
    }

    /// A file of the device's size without a pattern, another for each seed.
    pub(super) fn random_file(&self, name: &str, seed: u64) -> Result<String, Failed> {
        let mut state = seed | 1;
        let words = (0..LEN_BYTES / 8).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        let path = self.path(name);
        fs::write(&path, words.collect::<Vec<u8>>()).map_err(Failed::to("write a file"))?;
        Ok(path)
    }

    /// Puts known bytes below the device, behind the back of all clients; the file they came from.
    pub(super) fn known_contents(&self, seed: u64) -> Result<String, Failed> {
        let path = self.random_file("known.raw", seed)?;
        let bytes = fs::read(&path).map_err(Failed::to("read a file"))?;
        let written = self.image("disk")?.write_all_at(&bytes, 0);
        written.map_err(Failed::to("fill the image"))?;
        Ok(path)
    }

    /// Fails unless a device's image is this file, byte for byte.
    pub(super) fn expect_image(&self, device: &str, file: &str) -> Result<(), Failed> {
        same(&self.path(&format!("{device}.img")), file)
    }

    /// Fails unless the disk's image holds this byte from `start` on.
    pub(super) fn expect_bytes(&self, start: u64, len: usize, byte: u8) -> Result<(), Failed> {
        let mut found = vec![!byte; len];
        let read = self.image("disk")?.read_exact_at(&mut found, start);
        read.map_err(Failed::to("read the image"))?;
        let is_so = found.iter().all(|found| *found == byte);
        expect(is_so, &format!("the image does not hold {byte:#04x} at {start}"))
    }

    /// Ends the daemon; fails if it has ended before, or a target broke its contract.
    pub(super) fn end(mut self) -> Result<(), Failed> {
        self.daemon.check_alive()?;
        for device in ["disk", "second"] {
            let done = self.daemon.done(device)?;
            let what = format!("{device}: {} errors, {} breaches", done.errors, done.breaches);
            expect(done.errors == 0 && done.breaches == 0, &what)?;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Fails if nothing is mounted there.
        let _ = rustix::mount::unmount(&*self.file, rustix::mount::UnmountFlags::DETACH);
        // It is ours; what cannot be removed is left to the operating system's cleaner.
        let _removed = fs::remove_dir_all(&self.dir);
    }
}

/// Fails unless two files are the same.
pub(super) fn same(one: &str, other: &str) -> Result<(), Failed> {
    let read = |path: &str| fs::read(path).map_err(Failed::to(format!("read {path}")));
    expect(read(one)? == read(other)?, &format!("{one} and {other} differ"))
}
