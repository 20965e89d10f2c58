//! `udm bench failover`: how long I/O pauses when the path in use dies.
//!
//! A multipath device with two groups of one path each runs under a verified load on every lane.
//! Each round kills the path that takes the I/O and looks at the longest time without a completion
//! on a lane, from the last one before the death: that is the time to the next completed I/O and
//! a little more. Then the path is mended, reinstated, and the other one is the next to die.
//!
//! In process the paths are mapped devices over one piece of memory, and death is a table swap to
//! the error target. Over NBD they are udm daemons of their own over one file, and death is
//! SIGKILL. Both serve the same data, so that the load can tell if anything was lost. The servers
//! run the portable driver: a killed process that used `io_uring` keeps its sockets until the
//! kernel has taken the ring down (35 to 170 ms where this was written), and for so long the path
//! is silent and not dead. What is measured here is what happens after its death.
//!
//! The tricky case is the end of a round: only when the target shows the path failed *and* further
//! I/Os have ended has the pause been seen whole.

use super::pauses::Pauses;
use super::verify::{self, LoadBoard, VerifyResult};
use super::{BenchError, FailoverArgs, FailoverPaths};
use crate::runtime::{Runtime, RuntimeConfig};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use udm_control::Client;
use udm_control::api;
use udm_core::lifecycle::{DeviceKey, Reply, Request, StatusKind, SuspendOptions};
use udm_types::{DeviceId, Sector};

const DEVICE_SECTORS: Sector = 1 << 15;
const DEVICE_BLOCKS: u64 = DEVICE_SECTORS / 8;
const DEVICE: &str = "failover";
/// A step of a round that takes longer has gone wrong.
const STEP_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize)]
struct FailoverReport {
    schema_version: u32,
    lanes: usize,
    driver: String,
    depth: u32,
    runs: Vec<FailoverRun>,
}

#[derive(Debug, Serialize)]
struct FailoverRun {
    paths: &'static str,
    deaths: u32,
    ios: u64,
    errors: u64,
    mismatches: u64,
    pause_us: Pauses,
}

pub(super) fn run(args: &FailoverArgs) -> Result<(), BenchError> {
    let mut report = FailoverReport {
        schema_version: 1,
        lanes: args.lanes,
        driver: String::new(),
        depth: args.depth,
        runs: Vec::new(),
    };
    for kind in [FailoverPaths::InProcess, FailoverPaths::Nbd] {
        if args.only.is_some_and(|only| only != kind) {
            continue;
        }
        let config = RuntimeConfig {
            lanes: args.lanes,
            driver: args.driver.into(),
            ..RuntimeConfig::default()
        };
        let runtime = Runtime::start(&config)?;
        report.lanes = runtime.lane_count();
        report.driver = runtime.driver().name.into();
        report.runs.push(match kind {
            FailoverPaths::InProcess => {
                let paths = [Mapped::make(&runtime, "a")?, Mapped::make(&runtime, "b")?];
                measure(&runtime, args, "in_process", paths)?
            }
            FailoverPaths::Nbd => {
                let dir = tempfile::Builder::new().prefix("udm-failover-").tempdir()?;
                let paths = [Server::make(dir.path(), "a")?, Server::make(dir.path(), "b")?];
                measure(&runtime, args, "nbd", paths)?
            }
        });
    }
    print(args, &report)
}

/// A path that can die.
trait Mortal {
    /// As a table names it.
    fn device(&self) -> String;
    fn kill(&mut self, runtime: &Runtime) -> Result<(), BenchError>;
    /// Usable again when it returns.
    fn mend(&mut self, runtime: &Runtime) -> Result<(), BenchError>;
}

/// A mapped device over memory that both paths share.
struct Mapped {
    name: &'static str,
}

const MEMORY: &str = "mem:16M:failover";

impl Mapped {
    fn make(runtime: &Runtime, name: &'static str) -> Result<Mapped, BenchError> {
        runtime.create(name, None, &format!("0 {DEVICE_SECTORS} linear {MEMORY} 0"), false)?;
        Ok(Mapped { name })
    }

    fn swap(&self, runtime: &Runtime, target: &str) -> Result<(), BenchError> {
        let key = DeviceKey::Name(self.name.to_owned());
        runtime.load(&key, &format!("0 {DEVICE_SECTORS} {target}"), false)?;
        let options = SuspendOptions { noflush: true, ..SuspendOptions::default() };
        runtime.resume(&key, options)?;
        Ok(())
    }
}

impl Mortal for Mapped {
    fn device(&self) -> String {
        format!("dm:{}", self.name)
    }

    fn kill(&mut self, runtime: &Runtime) -> Result<(), BenchError> {
        self.swap(runtime, "error")
    }

    fn mend(&mut self, runtime: &Runtime) -> Result<(), BenchError> {
        self.swap(runtime, &format!("linear {MEMORY} 0"))
    }
}

/// A daemon of its own that serves a file which both paths share.
struct Server {
    dir: PathBuf,
    name: &'static str,
    child: Option<Child>,
}

impl Server {
    fn make(dir: &Path, name: &'static str) -> Result<Server, BenchError> {
        let image = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("image"))?;
        image.set_len(DEVICE_SECTORS * 512)?;
        let mut server = Server { dir: dir.to_owned(), name, child: None };
        server.start()?;
        Ok(server)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.name))
    }

    fn start(&mut self) -> Result<(), BenchError> {
        let control = self.dir.join(format!("{}.control", self.name));
        let child = Command::new(std::env::current_exe()?)
            .args(["daemon", "--lanes", "1", "--driver", "portable", "--socket"])
            .arg(&control)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        let mut client = None;
        wait_until("a server starts", || {
            client = Client::connect(&control).ok();
            Ok(client.is_some())
        })?;
        let mut client = client.ok_or("invariant: it was just connected")?;
        let image = self.dir.join("image").display().to_string();
        let device = api::Selector::name("d");
        client.call(&api::Create { name: "d".into(), uuid: None, minor: None })?;
        let table = format!("0 {DEVICE_SECTORS} linear {image} 0");
        client.call(&api::Load { device: device.clone(), table, read_only: false })?;
        client.call(&api::Resume { device: device.clone(), ..api::Resume::default() })?;
        let nbd = format!("unix:{}", self.socket().display());
        client.call(&api::Export { device, nbd: Some(nbd), ..api::Export::default() })?;
        Ok(())
    }
}

impl Mortal for Server {
    fn device(&self) -> String {
        format!("nbd+unix:///d?socket={}&reconnect=0.01-0.1", self.socket().display())
    }

    fn kill(&mut self, _runtime: &Runtime) -> Result<(), BenchError> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn mend(&mut self, runtime: &Runtime) -> Result<(), BenchError> {
        self.start()?;
        // Every link of the device: the other path's is up already.
        wait_until("a path reconnects", || {
            let device = DeviceKey::Name(DEVICE.to_owned());
            let Reply::Table { table: Some(table), .. } =
                runtime.request(Request::LiveTable { device })?
            else {
                return Err("the bench device has no table".into());
            };
            let links = table.lowers.iter().filter_map(|lower| lower.device.link());
            Ok(links.into_iter().all(|link| link.is_up()))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if it has ended by itself.
            let _ended = child.kill();
            let _status = child.wait();
        }
    }
}

fn measure(
    runtime: &Runtime,
    args: &FailoverArgs,
    name: &'static str,
    mut paths: [impl Mortal; 2],
) -> Result<FailoverRun, BenchError> {
    let groups: Vec<String> =
        paths.iter().map(|path| format!("service-time 0 1 2 {} 1 1", path.device())).collect();
    let table = format!(
        "0 {DEVICE_SECTORS} multipath 3 queue_if_no_path queue_mode bio 0 2 1 {}",
        groups.join(" ")
    );
    let device = runtime.create(DEVICE, None, &table, false)?.id;
    let board = Arc::new(LoadBoard::default());
    let loads = verify::start(runtime, (device, DEVICE_BLOCKS), args.depth, &board);
    let flow = Flow { runtime, board: &board, ahead: 4 * u64::from(args.depth) + 256 };
    flow.goes_on()?;
    for round in 0..args.rounds {
        let path = &mut paths[round as usize % 2];
        board.window.fetch_add(1, Ordering::Relaxed);
        path.kill(runtime)?;
        wait_until("the target notices", || Ok(failed_paths(runtime, device)? == 1))?;
        flow.goes_on()?;
        board.window.fetch_add(1, Ordering::Relaxed);
        path.mend(runtime)?;
        let words = vec!["reinstate_path".to_owned(), path.device()];
        message(runtime, device, words)?;
        flow.goes_on()?;
    }
    board.stop.store(true, Ordering::Relaxed);
    let results: Vec<VerifyResult> = loads.iter().collect();
    let windows = results.iter().flat_map(|result| &result.windows);
    // Odd windows have a death in them, even ones a mending.
    let deaths = windows.filter(|(window, _)| window % 2 == 1);
    let pause_us = Pauses::of(deaths.map(|(_, pause_ns)| *pause_ns))?;
    Ok(FailoverRun {
        paths: name,
        deaths: args.rounds,
        ios: board.ios.load(Ordering::Relaxed),
        errors: board.errors.load(Ordering::Relaxed),
        mismatches: board.mismatches.load(Ordering::Relaxed),
        pause_us,
    })
}

/// The load as the killer sees it.
struct Flow<'a> {
    runtime: &'a Runtime,
    board: &'a LoadBoard,
    /// I/Os that must end to be sure that some began after the question.
    ahead: u64,
}

impl Flow<'_> {
    fn goes_on(&self) -> Result<(), BenchError> {
        let ahead = self.ahead * self.runtime.lane_count() as u64;
        let wanted = self.board.ios.load(Ordering::Relaxed) + ahead;
        wait_until("I/O goes on", || Ok(self.board.ios.load(Ordering::Relaxed) >= wanted))
    }
}

fn failed_paths(runtime: &Runtime, device: DeviceId) -> Result<usize, BenchError> {
    let key = DeviceKey::Id(device);
    let request = Request::TableStatus { device: key, inactive: false, kind: StatusKind::Info };
    let Reply::Lines { lines, .. } = runtime.request(request)? else {
        return Err("no status lines".into());
    };
    let view = lines.first().and_then(|line| crate::paths::view::View::read(&line.args, ""));
    let view = view.ok_or("the status of multipath cannot be read")?;
    Ok(view.paths().filter(|path| !path.is_active).count())
}

fn message(runtime: &Runtime, device: DeviceId, words: Vec<String>) -> Result<(), BenchError> {
    runtime.request(Request::Message { device: DeviceKey::Id(device), sector: 0, words })?;
    Ok(())
}

fn wait_until(
    what: &str,
    mut is_true: impl FnMut() -> Result<bool, BenchError>,
) -> Result<(), BenchError> {
    let begin = Instant::now();
    while !is_true()? {
        if begin.elapsed() > STEP_MAX {
            return Err(format!("{what}: not within {} s", STEP_MAX.as_secs()).into());
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(())
}

fn print(args: &FailoverArgs, report: &FailoverReport) -> Result<(), BenchError> {
    if args.json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        println!("{} lane(s), {}, depth {}", report.lanes, report.driver, report.depth);
        for run in &report.runs {
            let FailoverRun { paths, deaths, ios, errors, mismatches, pause_us } = run;
            let Pauses { p50, p99, max } = pause_us;
            println!("{paths}: {deaths} deaths under {ios} verified I/Os");
            println!("  to the next completed I/O: {p50:.0} us p50, {p99:.0} p99, {max:.0} max");
            println!("  {errors} errors, {mismatches} mismatches");
        }
    }
    if report.runs.iter().any(|run| run.errors + run.mismatches > 0) {
        return Err("I/O was lost or damaged".into());
    }
    Ok(())
}
