//! `cargo xtask bench vhost`: udm's vhost-user-blk server beside qemu-storage-daemon's.
//!
//! Both serve a null device, memory and a file; the load is an example of `udm-front`
//! (`vhost_load`), a virtual machine in miniature that treats both alike, and that reads the CPU
//! time of the server's process. Rounds are interleaved, server after server, so that what else
//! the machine does hits all alike; tables show medians. Everything on one queue is measured twice:
//! where the kernel puts client and server, and with both on one processor, where they take turns.
//! `floor` measures what no server can do without.
//!
//! qemu-storage-daemon has no memory that stores, so a file in shared memory stands in for it.

mod floor;
mod report;

use super::lab::median;
use super::progress;
use crate::soak::wait_until;
use crate::steps::{Failed, cargo, is_installed, release_udm, run as run_step, target_dir};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a server may take to accept.
const START_MAX: Duration = Duration::from_secs(10);
/// Queues and depth of each.
const CASES: [(u32, u32); 6] = [(1, 1), (1, 32), (1, 128), (4, 1), (4, 32), (4, 128)];
const PLACEMENTS: [Placement; 2] = [Placement::Anywhere, Placement::OneProcessor];

/// The peer over nothing: what a floor is compared with.
const NULL_PEER: &str = "qemu-storage-daemon, null";
const MEMORY_PEER: &str = "qemu-storage-daemon, file in memory";
const FILE_PEER: &str = "qemu-storage-daemon, file";

/// Where client and server run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// Where the kernel puts them.
    Anywhere,
    /// Both on one processor: each sleeps while the other works.
    OneProcessor,
}

/// The processors there are.
struct Processors {
    all: CpuSet,
    one: CpuSet,
    /// Another one; the same if there is only one.
    other: CpuSet,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
struct Case {
    what: &'static str,
    queues: u32,
    depth: u32,
    placement: Placement,
}

/// How to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; the tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    seconds: f64,
    /// Size of each device in MiB.
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    size_mib: u64,
    /// Measure only servers whose name contains this; may be repeated.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// The udm to measure; a release build if left out.
    #[arg(long, value_name = "FILE")]
    udm: Option<PathBuf>,
    /// The load generator (`vhost_load`); a release build if left out.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Write the tables to this Markdown file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// A server that runs.
struct Server {
    name: &'static str,
    /// Whom it is compared with; nobody for a peer.
    peer: Option<&'static str>,
    child: Child,
    socket: PathBuf,
    /// One cell a case: CPU microseconds for an I/O, and thousand I/Os a second, of each round.
    cells: Vec<Vec<(f64, f64)>>,
}

struct Bench<'a> {
    args: &'a Args,
    udm: PathBuf,
    load: PathBuf,
    dir: PathBuf,
    processors: Processors,
}

/// Measures and prints, or writes a page.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let udm = release_udm(root, args.udm.as_ref())?;
    let load = match &args.load {
        Some(load) => load.clone(),
        None => {
            let example =
                ["build", "--quiet", "--release", "-p", "udm-front", "--example", "vhost_load"];
            run_step(root, &mut cargo(&example))?;
            target_dir(root).join("release/examples/vhost_load")
        }
    };
    let dir = std::env::temp_dir().join(format!("udm-bench-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let shared = PathBuf::from("/dev/shm").join(format!("udm-bench-{}.img", std::process::id()));
    let bench = Bench { args, udm, load, dir, processors: Processors::find()? };
    let page = bench.measure(&shared);
    // They are ours; what cannot be removed is left to the operating system's cleaner.
    let _removed = (fs::remove_dir_all(&bench.dir), fs::remove_file(&shared));
    let page = page?;
    println!("{page}");
    match &args.write {
        Some(path) => fs::write(root.join(path), page).map_err(Failed::to("write the page")),
        None => Ok(()),
    }
}

impl Bench<'_> {
    fn measure(&self, shared: &Path) -> Result<String, Failed> {
        let mut servers = self.servers(shared)?;
        let cases = cases();
        for server in &servers {
            progress(&format!("filling {}", server.name));
            self.load(server, &cases[0], "fill")?;
        }
        let mut floors = PLACEMENTS.map(|placement| (placement, Vec::new()));
        for round in 1..=self.args.rounds {
            for (placement, floor) in &mut floors {
                progress(&format!("round {round}, the floor"));
                let span = Duration::from_secs_f64(self.args.seconds);
                floor.push(floor::measure(self.processors.apart(*placement), span)?);
            }
            for (index, case) in cases.iter().enumerate() {
                for server in &mut servers {
                    progress(&format!("round {round}, {case:?}, {}", server.name));
                    let told = self.load(server, case, case.what)?;
                    let number = |name: &str| told[name].as_f64().unwrap_or(f64::NAN);
                    let (ios, cpu_s, seconds) = (number("ios"), number("cpu_s"), number("seconds"));
                    server.cells.resize(cases.len(), Vec::new());
                    server.cells[index].push((cpu_s / ios * 1e6, ios / seconds / 1e3));
                }
            }
        }
        progress("");
        let mut page = report::introduction(self.args);
        for (placement, floor) in floors {
            page += &report::section(placement, &cases, &servers, median(floor));
        }
        Ok(page + report::READING)
    }

    fn servers(&self, shared: &Path) -> Result<Vec<Server>, Failed> {
        let size = self.args.size_mib << 20;
        let file = |name: &str| self.dir.join(name).display().to_string();
        let files = ["udm.img", "one.img", "qsd.img"].map(|name| self.dir.join(name));
        for path in files.iter().map(PathBuf::as_path).chain([shared]) {
            let made = File::create(path).and_then(|made| made.set_len(size));
            made.map_err(Failed::to(format!("make {}", path.display())))?;
        }
        let below = format!("driver=file,node-name=n,filename={}", shared.display());
        let in_file = format!("driver=file,node-name=n,filename={}", file("qsd.img"));
        let null = format!("driver=null-co,node-name=n,size={size}");
        let all = [
            ("udm, null", Some(NULL_PEER), format!("null:{size}")),
            ("udm on one lane, null", Some(NULL_PEER), format!("null:{size}")),
            (NULL_PEER, None, null),
            ("udm, memory", Some(MEMORY_PEER), format!("mem:{size}")),
            ("udm on one lane, memory", Some(MEMORY_PEER), format!("mem:{size}")),
            (MEMORY_PEER, None, below),
            ("udm, file", Some(FILE_PEER), file("udm.img")),
            ("udm on one lane, file", Some(FILE_PEER), file("one.img")),
            (FILE_PEER, None, in_file),
        ];
        let wanted = |name: &str| {
            self.args.only.is_empty() || self.args.only.iter().any(|only| name.contains(&**only))
        };
        let mut servers = Vec::new();
        for (index, (name, peer, backing)) in all.into_iter().enumerate() {
            if !wanted(name) {
                continue;
            }
            let socket = self.dir.join(format!("{index}.sock"));
            if peer.is_some() {
                let mut server = self.udm(name, &backing, socket, size)?;
                server.peer = peer;
                servers.push(server);
            } else if is_installed("qemu-storage-daemon") {
                servers.push(storage_daemon(name, &backing, socket)?);
            } else {
                println!("qemu-storage-daemon is not installed; left out: {name}");
            }
        }
        Ok(servers)
    }

    /// A daemon, a device of one linear target over the backing, an export.
    fn udm(
        &self,
        name: &'static str,
        below: &str,
        socket: PathBuf,
        size: u64,
    ) -> Result<Server, Failed> {
        let control = socket.with_extension("control");
        let child = start(Command::new(&self.udm).arg("daemon").arg("--socket").arg(&control))?;
        let server = Server { name, peer: None, child, socket, cells: Vec::new() };
        await_socket(&control)?;
        let table = format!("0 {} linear {below} 0", size / 512);
        let path = server.socket.display().to_string();
        let lanes: &[&str] = if name.contains("one lane") { &["--lanes", "1"] } else { &[] };
        let export = [&["export", "d", "--vhost-user", &path], lanes].concat();
        for words in [&["create", "d", "--table", &table][..], &export] {
            let mut command = Command::new(&self.udm);
            let status = command.args(words).env("UDM_SOCKET", &control).stdout(Stdio::null());
            let status = status.status().map_err(Failed::to("run udm"))?;
            if !status.success() {
                return Err(Failed::new(format!("udm {}: {status}", words.join(" "))));
            }
        }
        Ok(server)
    }

    fn load(&self, server: &Server, case: &Case, what: &str) -> Result<Value, Failed> {
        let cpus = self.processors.of(case.placement);
        server.place(cpus)?;
        // The load inherits this thread's place.
        place(None, cpus)?;
        let output = Command::new(&self.load)
            .arg(&server.socket)
            .args([server.child.id(), case.queues, case.depth].map(|number| number.to_string()))
            .args([&self.args.seconds.to_string(), what, &self.args.size_mib.to_string()])
            .stdin(Stdio::null())
            .output();
        place(None, &self.processors.all)?;
        let output = output.map_err(Failed::to("run the load"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(Failed::new(format!("{case:?} of {}: {why}", server.name)));
        }
        if what == "fill" {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout).map_err(Failed::to("read what the load printed"))
    }
}

/// Reads and writes wherever the kernel likes, then what is on one queue on one processor.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for placement in PLACEMENTS {
        for what in ["read", "write"] {
            for (queues, depth) in CASES {
                if placement == Placement::Anywhere || queues == 1 {
                    all.push(Case { what, queues, depth, placement });
                }
            }
        }
    }
    all
}

impl Processors {
    /// Those this process may use.
    fn find() -> Result<Processors, Failed> {
        let all = sched_getaffinity(None).map_err(|errno| Failed::new(errno.to_string()))?;
        let mut each = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).map(|cpu| {
            let mut set = CpuSet::new();
            set.set(cpu);
            set
        });
        let one = each.next().ok_or_else(|| Failed::new("no processor to run on"))?;
        let other = each.next().unwrap_or(one);
        Ok(Processors { all, one, other })
    }

    /// For two threads that pass something to and fro: what the kernel does with them at depth 1
    /// as long as it has idle processors, or one after the other.
    fn apart(&self, placement: Placement) -> [&CpuSet; 2] {
        match placement {
            Placement::Anywhere => [&self.one, &self.other],
            Placement::OneProcessor => [&self.one, &self.one],
        }
    }

    fn of(&self, placement: Placement) -> &CpuSet {
        match placement {
            Placement::Anywhere => &self.all,
            Placement::OneProcessor => &self.one,
        }
    }
}

fn place(thread: Option<Pid>, cpus: &CpuSet) -> Result<(), Failed> {
    let placed = sched_setaffinity(thread, cpus);
    placed.map_err(|errno| Failed::new(format!("choosing processors: {errno}")))
}

impl Server {
    /// Moves all its threads; those it starts later follow.
    fn place(&self, cpus: &CpuSet) -> Result<(), Failed> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        for task in tasks.map_err(Failed::to("list a server's threads"))? {
            let name = task.map_err(Failed::to("list a server's threads"))?.file_name();
            let thread = name.to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            // One that ends meanwhile needs no place.
            let _placed = thread.map(|thread| place(Some(thread), cpus));
        }
        Ok(())
    }
}

fn storage_daemon(name: &'static str, blockdev: &str, socket: PathBuf) -> Result<Server, Failed> {
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},writable=on,num-queues=4",
        socket.display()
    );
    let mut command = Command::new("qemu-storage-daemon");
    let child = start(command.args(["--blockdev", blockdev, "--export", &export]))?;
    let server = Server { name, peer: None, child, socket, cells: Vec::new() };
    await_socket(&server.socket)?;
    Ok(server)
}

fn start(command: &mut Command) -> Result<Child, Failed> {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
    quiet.spawn().map_err(Failed::to("start a server"))
}

fn await_socket(path: &Path) -> Result<(), Failed> {
    wait_until("a server accepts", START_MAX, || Ok(UnixStream::connect(path).is_ok()))
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process has already ended, which is what is wanted.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
