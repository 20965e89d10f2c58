//! `cargo xtask bench vhost`: udm's vhost-user-blk server beside qemu-storage-daemon's.
//!
//! Both serve a null device, memory and a file; the load is an example of `udm-front`
//! (`vhost_load`), a virtual machine in miniature that treats both alike, and that reads the CPU
//! time of the server's process. Rounds are interleaved, server after server, so that what else
//! the machine does hits all alike; tables show medians.
//!
//! qemu-storage-daemon has no memory that stores, so a file in shared memory stands in for it.

use super::lab::{machine, median};
use super::progress;
use crate::soak::wait_until;
use crate::steps::{Failed, cargo, is_installed, release_udm, run as run_step, target_dir};
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

/// What explains the numbers, whatever they are this time.
const READING: &str = "
## How to read it

- **Depth 1** is the price of waking up: a kick wakes the server, a call wakes the guest, and both sides sleep in
  between, so it moves most with what else the machine does. Nothing in udm polls.
- **Four queues at depth 1** are served by one thread of qemu-storage-daemon, where one wake-up often finds requests
  of several queues; udm has them on two lanes, each woken by itself. That answers more at once and costs more for
  each.
- **Memory.** qemu-storage-daemon has none that stores; a file in shared memory stands in for it, and its reads and
  writes are system calls.
- **Batches** decide at depth 32 and above. Where client and server happen to run side by side, each finds a few
  requests at a time and sleeps again; where they take turns, each finds all. \"Read 1x32\" over the null device was
  0.24 us in one run and 1.03 us in another of the same programs.

## What was promised

At least twice the I/Os of qemu-storage-daemon for a CPU-second, everywhere, and SPDK's 0.5 us at depth 32 without
polling (SPDK measured on another day on a machine of this kind; its core is taken all the time). Over memory the first is
kept. Over a file it is kept but for depth 1, where writes reach 1.2 to 1.5. Over the null device it depends on batches, and
so on who runs where: with client and server on a processor each and nobody else on the machine it is kept on four queues
at depth 128, nearly kept at 32 (1.7 to 1.9), and not kept on one queue (1.0 to 1.6) and at depth 1 (0.9 to 1.5), where
two wake-ups are nearly all there is; on a busy machine it was kept from depth 128 on (2.7 to 3.2). qemu's thread polls for a
moment before it sleeps, ours does not. The second is kept over the null device on four queues, and missed on one
(0.8 us, on a busy machine 0.3 to 1.0); over memory an I/O costs 1 to 2 us, most of it the copy.
";

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
    let bench = Bench { args, udm, load, dir };
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
        for server in &servers {
            progress(&format!("filling {}", server.name));
            self.load(server, (1, 1), "fill")?;
        }
        let cases: Vec<_> = ["read", "write"]
            .iter()
            .flat_map(|what| CASES.iter().map(move |case| (*what, *case)))
            .collect();
        for round in 1..=self.args.rounds {
            for (index, (what, case)) in cases.iter().enumerate() {
                for server in &mut servers {
                    progress(&format!("round {round}, {what} {case:?}, {}", server.name));
                    let told = self.load(server, *case, what)?;
                    let number = |name: &str| told[name].as_f64().unwrap_or(f64::NAN);
                    let (ios, cpu_s, seconds) = (number("ios"), number("cpu_s"), number("seconds"));
                    server.cells.resize(cases.len(), Vec::new());
                    server.cells[index].push((cpu_s / ios * 1e6, ios / seconds / 1e3));
                }
            }
        }
        progress("");
        let names: Vec<String> = cases
            .iter()
            .map(|(what, (queues, depth))| format!("{what} {queues}x{depth}"))
            .collect();
        Ok(self.page(&names, &servers))
    }

    fn servers(&self, shared: &Path) -> Result<Vec<Server>, Failed> {
        let size = self.args.size_mib << 20;
        let file = |name: &str| self.dir.join(name).display().to_string();
        for path in [Path::new(&file("udm.img")), Path::new(&file("qsd.img")), shared] {
            let made = File::create(path).and_then(|made| made.set_len(size));
            made.map_err(Failed::to(format!("make {}", path.display())))?;
        }
        let below = format!("driver=file,node-name=n,filename={}", shared.display());
        let in_file = format!("driver=file,node-name=n,filename={}", file("qsd.img"));
        let null = format!("driver=null-co,node-name=n,size={size}");
        let all = [
            ("udm, null", format!("null:{size}")),
            ("qemu-storage-daemon, null", null),
            ("udm, memory", format!("mem:{size}")),
            ("qemu-storage-daemon, file in memory", below),
            ("udm, file", file("udm.img")),
            ("qemu-storage-daemon, file", in_file),
        ];
        let wanted = |name: &str| {
            self.args.only.is_empty() || self.args.only.iter().any(|only| name.contains(&**only))
        };
        let mut servers = Vec::new();
        for (index, (name, backing)) in all.into_iter().enumerate() {
            if !wanted(name) {
                continue;
            }
            let socket = self.dir.join(format!("{index}.sock"));
            if name.starts_with("udm") {
                servers.push(self.udm(name, &backing, socket, size)?);
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
        let server = Server { name, child, socket, cells: Vec::new() };
        await_socket(&control)?;
        let table = format!("0 {} linear {below} 0", size / 512);
        let path = server.socket.display().to_string();
        for words in [["create", "d", "--table", &table], ["export", "d", "--vhost-user", &path]] {
            let mut command = Command::new(&self.udm);
            let status = command.args(words).env("UDM_SOCKET", &control).stdout(Stdio::null());
            let status = status.status().map_err(Failed::to("run udm"))?;
            if !status.success() {
                return Err(Failed::new(format!("udm {}: {status}", words.join(" "))));
            }
        }
        Ok(server)
    }

    fn load(
        &self,
        server: &Server,
        (queues, depth): (u32, u32),
        what: &str,
    ) -> Result<Value, Failed> {
        let output = Command::new(&self.load)
            .arg(&server.socket)
            .args([server.child.id(), queues, depth].map(|number| number.to_string()))
            .args([&self.args.seconds.to_string(), what, &self.args.size_mib.to_string()])
            .stdin(Stdio::null())
            .output()
            .map_err(Failed::to("run the load"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(Failed::new(format!("{what} {queues}x{depth} of {}: {why}", server.name)));
        }
        if what == "fill" {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout).map_err(Failed::to("read what the load printed"))
    }

    fn page(&self, names: &[String], servers: &[Server]) -> String {
        let mut page = introduction(self.args);
        let cells = |server: &Server, pick: fn(&(f64, f64)) -> f64| -> Vec<f64> {
            server.cells.iter().map(|cell| median(cell.iter().map(pick).collect())).collect()
        };
        let mut table = |title: &str, rows: Vec<(String, Vec<f64>)>| {
            page += &format!("\n## {title}\n\n| server | {} |\n|---|", names.join(" | "));
            page += &"--:|".repeat(names.len());
            for (name, numbers) in rows {
                let numbers: Vec<_> = numbers.iter().map(|one| format!("{one:.2}")).collect();
                page += &format!("\n| {name} | {} |", numbers.join(" | "));
            }
            page += "\n";
        };
        let rows = |pick| {
            servers.iter().map(|server| (server.name.to_owned(), cells(server, pick))).collect()
        };
        table("Server CPU, microseconds for an I/O (lower is better)", rows(|cell| cell.0));
        table("Thousand I/Os a second (higher is better)", rows(|cell| cell.1));
        let ratios = servers.chunks(2).filter_map(|pair| {
            let [ours, theirs] = pair else { return None };
            let (ours_us, theirs_us) = (cells(ours, |cell| cell.0), cells(theirs, |cell| cell.0));
            let ratios = ours_us.iter().zip(theirs_us).map(|(ours, theirs)| theirs / ours);
            Some((format!("{} : {}", theirs.name, ours.name), ratios.collect()))
        });
        table("I/Os for a CPU-second, udm's over the peer's", ratios.collect());
        page + READING
    }
}

fn introduction(args: &Args) -> String {
    format!(
        "# vhost-user-blk servers side by side\n\n\
         Written by `cargo xtask bench vhost --write docs/benchmarks/vhost-user.md`: 4 KiB random \
         I/O by our own client\n(`crates/udm-front/examples/vhost_load.rs`: split rings, indirect \
         descriptors, event index), device of {} MiB\nwritten once before, medians of {} \
         interleaved rounds of {} s. CPU is that of all threads of the\nserver's process, in user \
         and kernel. \"read 4x32\" is reads on 4 queues with 32 requests outstanding on\neach. \
         Files are in the page cache.\n\n{}",
        args.size_mib,
        args.rounds,
        args.seconds,
        machine()
    )
}

fn storage_daemon(name: &'static str, blockdev: &str, socket: PathBuf) -> Result<Server, Failed> {
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},writable=on,num-queues=4",
        socket.display()
    );
    let mut command = Command::new("qemu-storage-daemon");
    let child = start(command.args(["--blockdev", blockdev, "--export", &export]))?;
    let server = Server { name, child, socket, cells: Vec::new() };
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
