//! `cargo xtask bench fuse`: udm's FUSE export beside qemu-storage-daemon's and libnbd's nbdfuse.
//!
//! Each server serves the same thing (nothing at all, or a file in the page cache) as one file;
//! fio reads and writes 4 KiB at random through it with direct I/O; the CPU time of the server's
//! processes is read from `/proc`. All servers stay mounted for the whole run and rounds are
//! interleaved, so that what else the machine does hits all alike. Tables show medians.
//!
//! With one request at a time, most of the cost is to wake each other, and where the scheduler puts
//! server and client decides more than the server does; so that is also measured with both pinned,
//! to one processor and to two.
//!
//! The tricky case is nbdfuse, which is a client of an NBD server: both processes count, since
//! both are needed to have the file.

use super::lab::{Bench, Fio, fio_on_file, median};
use super::{nbd::cpu, progress};
use crate::fuse_rings::FuseRings;
use crate::steps::{Failed, is_installed, release_udm};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How to measure.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Rounds; the tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    seconds: f64,
    /// A udm that is built already, instead of a release build.
    #[arg(long, value_name = "PATH")]
    udm: Option<PathBuf>,
    /// Write the tables to this Markdown file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

const SIZE_BYTES: u64 = 256 << 20;
const START_MAX: Duration = Duration::from_secs(20);
const CASES: [(&str, u32); 6] = [
    ("randread", 1),
    ("randread", 32),
    ("randread", 128),
    ("randwrite", 1),
    ("randwrite", 32),
    ("randwrite", 128),
];

/// One request at a time, with the server on processor 0 and the client on this one.
const PINNED: [(&str, u32); 4] =
    [("randread", 0), ("randwrite", 0), ("randread", 1), ("randwrite", 1)];

/// What was measured of one server in one case: CPU of each I/O in microseconds, and thousand I/Os
/// a second, of each round.
type Cell = (Vec<f64>, Vec<f64>);

/// A server, mounted; ended on drop.
struct Server {
    name: &'static str,
    file: PathBuf,
    children: Vec<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Some end by themselves once unmounted; what has ended cannot be killed.
        let _ = rustix::mount::unmount(&self.file, rustix::mount::UnmountFlags::DETACH);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    fn start(
        name: &'static str,
        file: PathBuf,
        commands: &[Vec<String>],
    ) -> Result<Server, Failed> {
        File::create(&file).map_err(Failed::to("make a mount point"))?;
        let mut server = Server { name, file, children: Vec::new() };
        for words in commands {
            let child = Command::new(&words[0])
                .args(&words[1..])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            server.children.push(child.map_err(Failed::to(format!("start {}", words[0])))?);
            // The next one needs the socket of this one.
            let socket = words.iter().find(|word| word.ends_with(".sock"));
            if let Some(socket) = socket {
                await_that(name, || Path::new(socket).exists())?;
            }
        }
        Ok(server)
    }

    fn await_mount(&self) -> Result<(), Failed> {
        let is_there = || fs::metadata(&self.file).is_ok_and(|file| file.len() == SIZE_BYTES);
        await_that(self.name, is_there)
    }

    fn cpu_seconds(&self) -> Result<f64, Failed> {
        let of = |child: &Child| cpu::seconds(child.id());
        let all: Result<Vec<f64>, _> = self.children.iter().map(of).collect();
        Ok(all.map_err(Failed::to(format!("read the CPU time of {}", self.name)))?.iter().sum())
    }
}

fn await_that(name: &str, is_true: impl Fn() -> bool) -> Result<(), Failed> {
    let begin = Instant::now();
    while !is_true() {
        if begin.elapsed() > START_MAX {
            return Err(Failed::new(format!("{name} does not serve")));
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

/// Measures everything and prints it.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() || !is_installed("fio") {
        return Err(Failed::new("bench fuse needs root, to mount, and fio"));
    }
    let udm = release_udm(root, args.udm.as_ref())?;
    let dir = std::env::temp_dir().join(format!("udm-bench-fuse-{}", std::process::id()));
    let (rounds, seconds) = (args.rounds, args.seconds);
    let bench = Bench { root, udm, dir: dir.clone(), rounds, seconds };
    let page = Bench::in_folder(&dir, || measure_all(&bench))?;
    println!("{page}");
    match &args.write {
        Some(file) => fs::write(root.join(file), page).map_err(Failed::to("write the page")),
        None => Ok(()),
    }
}

fn measure_all(bench: &Bench<'_>) -> Result<String, Failed> {
    let mut page = introduction(bench);
    let names: Vec<String> =
        CASES.iter().map(|(rw, depth)| format!("{} {depth}", &rw["rand".len()..])).collect();
    for (backing, is_file) in [("nothing behind it", false), ("a file in the page cache", true)] {
        let servers = servers(bench, is_file)?;
        let cells = rounds(bench, &servers, backing, CASES.len(), |server, case| {
            measure(bench, server, CASES[case], &[])
        })?;
        page += &format!("\n## With {backing}: server CPU, microseconds for an I/O\n\n");
        page += &table(&servers, &names, &cells, cpu_of);
        page += &format!("\n## With {backing}: thousand I/Os a second\n\n");
        let speed = |cell: &Cell| format!("{:.0}", median(cell.1.clone()));
        page += &table(&servers, &names, &cells, speed);
        if !is_file && bench.has(&["taskset"], "one request at a time, pinned") {
            page += &pinned(bench, &servers)?;
        }
    }
    Ok(page)
}

fn cpu_of(cell: &Cell) -> String {
    format!("{:.2}", median(cell.0.clone()))
}

/// Measures all cases of all servers, interleaved.
fn rounds(
    bench: &Bench<'_>,
    servers: &[Server],
    what: &str,
    cases: usize,
    measure: impl Fn(&Server, usize) -> Result<(f64, f64), Failed>,
) -> Result<Vec<Vec<Cell>>, Failed> {
    let mut cells = vec![vec![(Vec::new(), Vec::new()); cases]; servers.len()];
    for round in 1..=bench.rounds {
        for case in 0..cases {
            for (server, cells) in servers.iter().zip(&mut cells) {
                progress(&format!("round {round}, {what}, case {}, {}", case + 1, server.name));
                let (cpu_us, iops) = measure(server, case)?;
                cells[case].0.push(cpu_us);
                cells[case].1.push(iops / 1000.0);
            }
        }
    }
    progress("");
    Ok(cells)
}

/// One request at a time, with server and client where they are put.
fn pinned(bench: &Bench<'_>, servers: &[Server]) -> Result<String, Failed> {
    for child in servers.iter().flat_map(|server| &server.children) {
        let id = child.id().to_string();
        let mut taskset = Command::new("taskset");
        taskset.args(["-a", "-c", "-p", "0", &id]).stdout(Stdio::null()).stdin(Stdio::null());
        let status = taskset.status().map_err(Failed::to("run taskset"))?;
        if !status.success() {
            return Err(Failed::new("taskset cannot pin a server"));
        }
    }
    let cells = rounds(bench, servers, "pinned", PINNED.len(), |server, case| {
        let (rw, processor) = PINNED[case];
        measure(bench, server, (rw, 1), &[format!("--cpus_allowed={processor}")])
    })?;
    let names = PINNED.map(|(rw, processor)| {
        let place = if processor == 0 { "one processor" } else { "two" };
        format!("{} 1, {place}", &rw["rand".len()..])
    });
    let title = "One request at a time, pinned, with nothing behind it";
    let table = table(servers, &names, &cells, cpu_of);
    Ok(format!("\n## {title}: server CPU, microseconds for an I/O\n\n{table}"))
}

fn measure(
    bench: &Bench<'_>,
    server: &Server,
    case: (&str, u32),
    more: &[String],
) -> Result<(f64, f64), Failed> {
    let before = server.cpu_seconds()?;
    let Fio { ios, iops, .. } = fio_on_file(bench, &server.file, case, more)?;
    let used = server.cpu_seconds()? - before;
    Ok((used * 1e6 / ios.max(1.0), iops))
}

fn servers(bench: &Bench<'_>, is_file: bool) -> Result<Vec<Server>, Failed> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let place = |name: &str| bench.dir.join(name);
    let kind = if is_file { "file" } else { "null" };
    let disk = |name: &str| -> Result<String, Failed> {
        let path = place(&format!("{name}.img"));
        // Written once, so that nobody answers from a hole.
        let bytes = vec![7; SIZE_BYTES as usize];
        fs::write(&path, bytes).map_err(Failed::to("make a disk"))?;
        Ok(path.display().to_string())
    };
    let mut servers = Vec::new();
    for way in [Way::Reads, Way::Rings] {
        let by_rings = matches!(way, Way::Rings);
        let switched = FuseRings::switch(by_rings)?;
        if by_rings && switched.is_none() {
            println!("this kernel has no FUSE over io_uring; not measured");
            continue;
        }
        let image = if is_file { Some(disk(way.place())?) } else { None };
        let server = our_own(bench, way, kind, image)?;
        server.await_mount()?;
        drop(switched);
        servers.push(server);
    }
    if bench.has(&["qemu-storage-daemon"], "qemu-storage-daemon") {
        let node = match is_file {
            true => format!("driver=file,node-name=n,filename={}", disk("q")?),
            false => format!("driver=null-co,node-name=n,size={SIZE_BYTES}"),
        };
        let file = place(&format!("q-{kind}"));
        let line = format!(
            "qemu-storage-daemon --blockdev {node} \
             --export fuse,id=e,node-name=n,writable=on,mountpoint={}",
            file.display()
        );
        servers.push(Server::start("qemu-storage-daemon", file, &[words(&line)])?);
    }
    if bench.has(&["nbdkit", "nbdfuse"], "nbdfuse") {
        let file = place(&format!("n-{kind}"));
        let socket = place(&format!("{kind}.sock"));
        let socket = socket.display();
        let plugin = match is_file {
            true => format!("file {}", disk("n")?),
            false => format!("null {SIZE_BYTES}"),
        };
        let server = format!("nbdkit -f -U {socket} {plugin}");
        let client = format!("nbdfuse {} --unix {socket}", file.display());
        servers.push(Server::start("nbdfuse, nbdkit", file, &[words(&server), words(&client)])?);
    }
    servers.iter().try_for_each(Server::await_mount)?;
    Ok(servers)
}

/// How requests reach our server.
#[derive(Clone, Copy)]
enum Way {
    Reads,
    Rings,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Reads => "udm",
            Way::Rings => "udm, io_uring",
        }
    }

    /// What its files are called.
    fn place(self) -> &'static str {
        match self {
            Way::Reads => "u",
            Way::Rings => "r",
        }
    }
}

/// A daemon of ours with a linear device, exported.
fn our_own(
    bench: &Bench<'_>,
    way: Way,
    kind: &str,
    disk: Option<String>,
) -> Result<Server, Failed> {
    let place = format!("{}-{kind}", way.place());
    let file = bench.dir.join(&place);
    let socket = bench.dir.join(format!("{place}.sock")).display().to_string();
    let udm = bench.udm.display().to_string();
    let daemon = ["daemon", "--socket", &socket].map(str::to_owned);
    let words = [vec![udm], daemon.to_vec()].concat();
    let server = Server::start(way.name(), file.clone(), &[words])?;
    let below = disk.unwrap_or_else(|| format!("null:{SIZE_BYTES}"));
    let table = format!("0 {} linear {below} 0", SIZE_BYTES / 512);
    bench.json(&["--socket", &socket, "--json", "create", "d", "--table", &table])?;
    let file = file.display().to_string();
    bench.json(&["--socket", &socket, "--json", "export", "d", "--fuse", &file])?;
    Ok(server)
}

fn table(
    servers: &[Server],
    names: &[String],
    cells: &[Vec<Cell>],
    show: impl Fn(&Cell) -> String,
) -> String {
    let rule = "--:|".repeat(names.len());
    let mut text = format!("| server | {} |\n|---|{rule}\n", names.join(" | "));
    for (server, cells) in servers.iter().zip(cells) {
        let row: Vec<String> = cells.iter().map(&show).collect();
        text += &format!("| {} | {} |\n", server.name, row.join(" | "));
    }
    text
}

fn introduction(bench: &Bench<'_>) -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "# FUSE servers side by side\n\n\
         Written by `cargo xtask bench fuse --write docs/benchmarks/fuse.md`: a device of 256 MiB as\n\
         one file, 4 KiB random direct I/O by fio (libaio), medians of {} interleaved rounds of {} s. CPU is\n\
         that of all threads of the server's processes, in user and kernel; for nbdfuse also those of\n\
         the NBD server it needs. \"udm, io_uring\" is a mount made while\n\
         `/sys/module/fuse/parameters/enable_uring` was on. \"read 32\" is reads with 32 requests outstanding. Pinned means: the\n\
         server on processor 0, the client there too or on another one; unpinned figures for one\n\
         request at a time depend on where the scheduler puts both.\n\n\
         Machine: {} cores, Linux {}. Load average at the start (1, 5, 15 minutes): {}.\n",
        bench.rounds,
        bench.seconds,
        std::thread::available_parallelism().map_or(1, usize::from),
        kernel.trim(),
        load.join(" ")
    )
}
