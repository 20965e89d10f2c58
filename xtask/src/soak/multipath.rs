//! `cargo xtask soak multipath`: two real NBD servers over one image below multipath.
//!
//! A daemon serves a multipath device with `queue_if_no_path` over NBD; fio writes and verifies
//! through it. Meanwhile the servers are killed and started again at random, tables are reloaded
//! under noflush, and now and then both servers are dead and I/O has to wait. In the end nothing
//! may have failed, nothing may differ, and a file system that went through it is clean. Half of
//! the time the device is bio-based, half request-based.

use super::chaos::{Chaos, Counts, DEVICE, Random};
use super::daemon::Daemon;
use super::load::{Load, Order};
use super::path::{Kind, PathServer};
use super::{file_system, pause};
use crate::steps::{Failed, is_ci, is_installed, release_udm};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How to soak.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long, both modes together.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seed of the actions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Size of the device in MiB.
    #[arg(long, default_value_t = 48, value_name = "MIB")]
    size_mib: u64,
    /// Only this queue mode: bio or rq.
    #[arg(long)]
    mode: Option<String>,
    /// A udm that is built already, instead of a release build.
    #[arg(long, value_name = "PATH")]
    udm: Option<PathBuf>,
}

impl Args {
    /// The short form: half a minute, as a check that the long one would begin well.
    pub(super) fn short() -> Args {
        Args { minutes: 0.5, seed: 1, size_mib: 24, mode: None, udm: None }
    }
}

/// Soaks, and says what was done.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let Some(kinds) = Kind::pair().filter(|_| is_installed("fio")) else {
        println!("fio, or both nbdkit and qemu-nbd, are missing; not checked: multipath soak");
        return match is_ci() {
            true => Err(Failed::new("tools are missing, and CI=true asks for all of them")),
            false => Ok(()),
        };
    };
    let modes: Vec<&'static str> = ["bio", "rq"]
        .into_iter()
        .filter(|mode| args.mode.as_deref().is_none_or(|wanted| wanted == *mode))
        .collect();
    if modes.is_empty() {
        return Err(Failed::new("--mode: expected bio or rq"));
    }
    let udm = release_udm(root, args.udm.as_ref())?;
    let span = Duration::from_secs_f64(args.minutes * 60.0 / modes.len() as f64);
    for mode in modes {
        let dir = std::env::temp_dir().join(format!("udm-soak-{mode}-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
        let soak = Soak { udm: &udm, dir: dir.clone(), kinds, mode, span, args };
        let counts = soak.run().map_err(|failed| {
            Failed::new(format!("{mode} mode, seed {}: {failed}; see {}", args.seed, dir.display()))
        })?;
        println!("{mode} mode: {counts}");
        // It is ours; what cannot be removed is left to the operating system's cleaner.
        let _removed = fs::remove_dir_all(&dir);
    }
    Ok(())
}

/// One run.
struct Soak<'a> {
    udm: &'a Path,
    dir: PathBuf,
    kinds: [Kind; 2],
    mode: &'static str,
    span: Duration,
    args: &'a Args,
}

impl Soak<'_> {
    fn run(&self) -> Result<Counts, Failed> {
        let len_bytes = self.args.size_mib << 20;
        let image = self.dir.join("image");
        let made = File::create(&image).and_then(|file| file.set_len(len_bytes));
        made.map_err(Failed::to("make the image"))?;
        let path = |name, kind| PathServer::new(name, kind, &image, &self.dir);
        let mut chaos = Chaos {
            daemon: Daemon::start(self.udm, &self.dir)?,
            paths: [path("a", self.kinds[0]), path("b", self.kinds[1])],
            spare: path("spare", self.kinds[0]),
            random: Random::new(self.args.seed),
            counts: Counts::default(),
            mode: self.mode,
            len_sectors: len_bytes / 512,
        };
        chaos.set_up()?;
        let socket = self.dir.join("disk.sock");
        let address = format!("unix:{}", socket.display());
        let uri = chaos.daemon.udm(&["export", DEVICE, "--nbd", &address])?.trim().to_owned();
        let passes = self.verified(&mut chaos, &uri)?;
        chaos.settle()?;
        file_system::run(&mut chaos, &uri, &self.dir)?;
        chaos.settle()?;
        println!("{} mode: {passes} passes of fio, every block verified", self.mode);
        Ok(chaos.counts)
    }

    /// fio on both halves of the device, under abuse, until the time is up.
    fn verified(&self, chaos: &mut Chaos, uri: &str) -> Result<u64, Failed> {
        let half_mib = self.args.size_mib / 2;
        let mut loads: Vec<Load> = (0..2)
            .map(|half| {
                let order = Order {
                    uri: uri.to_owned(),
                    offset_mib: half * half_mib,
                    size_mib: half_mib,
                    dir: self.dir.clone(),
                };
                Load::start(order, self.args.seed * 1_000_000 + half * 500_000)
            })
            .collect();
        let begin = Instant::now();
        while begin.elapsed() < self.span {
            chaos.act()?;
            for load in &mut loads {
                load.check()?;
            }
        }
        chaos.settle()?;
        pause(Duration::from_millis(100));
        loads.iter_mut().map(Load::finish).sum()
    }
}
