//! `cargo xtask soak fuse`: kill -9 of a daemon whose device is in use as a file.
//!
//! What writers do and what has to hold is in `kills.rs`; here is what a file is to them. Every
//! second writer writes at odd places, which the front end makes whole blocks of.
//!
//! With `--rings` requests come by io_uring: the switch for it is on for as long as the soak runs.
//!
//! The tricky case is a writer between two lives of the daemon: where the file was mounted there is
//! an empty file for a moment. A file is taken for the device only if it has its size.

use super::kills::{self, Disk, Front, Place, SIZE_BYTES, Write};
use crate::fuse_rings::FuseRings;
use crate::steps::Failed;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const FRONT: Front = Front {
    name: "fuse",
    export: |place| vec!["--fuse".to_owned(), place.path("device").display().to_string()],
    takes_odd_places: true,
    depth: 1,
};

/// How to soak.
#[derive(clap::Args)]
// Clap groups arguments by the structure's name, which both have.
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    kills: kills::Args,
    /// Over io_uring, which needs Linux 6.14.
    #[arg(long)]
    rings: bool,
}

impl Args {
    /// The short form, by each way.
    pub(super) fn short(rings: bool) -> Args {
        Args { kills: kills::Args::short(), rings }
    }
}

/// Soaks, and says what was done.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("mounting needs root and /dev/fuse here; not checked: fuse soak");
        return Ok(());
    }
    let switched = FuseRings::switch(args.rings)?;
    if args.rings && switched.is_none() {
        println!("this kernel has no FUSE over io_uring; not checked: fuse soak over it");
        return Ok(());
    }
    kills::run::<Mounted>(root, &args.kills, &FRONT, |place| {
        // Whatever is still mounted there; fails if nothing is.
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(place.path("device"), flags);
    })
}

/// The device as a file.
struct Mounted(File);

impl Disk for Mounted {
    fn open(place: &Place) -> io::Result<Mounted> {
        let file = OpenOptions::new().read(true).write(true).open(place.path("device"))?;
        if file.metadata()?.len() != SIZE_BYTES {
            return Err(io::Error::new(io::ErrorKind::NotFound, "nothing is mounted"));
        }
        Ok(Mounted(file))
    }

    fn read(&mut self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(to, at)
    }

    fn write(&mut self, writes: &[Write], acknowledged: &mut dyn FnMut(usize)) -> io::Result<()> {
        for (nth, (at, bytes)) in writes.iter().enumerate() {
            self.0.write_all_at(bytes, *at)?;
            acknowledged(nth);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    /// ENOTCONN, ECONNABORTED; while the kernel takes rings down also ECANCELED.
    fn is_death(error: &io::Error) -> bool {
        use rustix::io::Errno;
        matches!(
            Errno::from_io_error(error),
            Some(Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED)
        )
    }
}
