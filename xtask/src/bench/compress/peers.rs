//! Peers: the same data copied into and out of other things that compress.
//!
//! | who | written by | read by |
//! |---|---|---|
//! | udm, lz4 and zstd | `nbdcopy` into its NBD server | `nbdcopy` out of it |
//! | qcow2, zlib and zstd | `qemu-img convert -c` | `nbdcopy` out of `qemu-nbd` |
//! | nbdkit's filters gzip and xz | `gzip`, `xz` | `nbdcopy` out of `nbdkit` |
//! | btrfs, lzo and zstd, on a loop device | `cp` and `sync` | reading, mounted anew |
//!
//! All on files in one folder. What is not there is left out and named. Rounds of reading are
//! interleaved; writing is done once, since most of them can be written only once.
//!
//! The tricky case is what is compared: qcow2 can write compressed only once and in order, the
//! filters only read, btrfs is a file system in the kernel. CPU is that of the server, or of the
//! program that writes; of the kernel's own threads nobody can tell.

use super::corpus::{Corpus, must};
use super::{Bench, fio, median};
use crate::bench::progress;
use crate::soak::daemon::Daemon;
use crate::soak::wait_until;
use crate::steps::Failed;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Data, in bytes.
const DATA_BYTES: u64 = 128 << 20;
const DISK_BYTES: u64 = 1 << 30;
const START_MAX: Duration = Duration::from_secs(60);
const FIO_WORDS: [&str; 3] = ["--rw=randread", "--iodepth=32", "--numjobs=1"];

/// Somebody who has the data, and what it took.
struct Peer {
    name: String,
    write_s: f64,
    write_cpu_s: Option<f64>,
    used_bytes: u64,
    server: Server,
    /// Seconds by the clock, and of CPU time.
    reads: Vec<(f64, f64)>,
    random_iops: Vec<f64>,
}

/// Who answers reads.
enum Server {
    Udm {
        daemon: Daemon,
        uri: String,
    },
    Other {
        child: Child,
        uri: String,
    },
    /// The image of a file system; a read mounts it.
    Mount {
        image: PathBuf,
        options: String,
    },
}

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    if !bench.has(&["nbdcopy", "fio"], "peers") {
        return Ok(String::new());
    }
    let Some(corpus) = Corpus::Ext4.file(bench)? else { return Ok(String::new()) };
    let data = bench.dir.join("peers.raw");
    let mut part = File::open(corpus).map_err(Failed::to("open the data"))?.take(DATA_BYTES);
    let made = File::create(&data).and_then(|mut file| io::copy(&mut part, &mut file));
    let bytes = made.map_err(Failed::to("copy the data"))?;
    let mut peers = all(bench, &data)?;
    for round in 1..=bench.rounds {
        for peer in &mut peers {
            progress(&format!("peers: round {round} of {}, {}", bench.rounds, peer.name));
            peer.read(bench)?;
        }
    }
    progress("");
    Ok(table(bench, bytes, &peers))
}

fn all(bench: &Bench<'_>, data: &Path) -> Result<Vec<Peer>, Failed> {
    let mut peers = Vec::new();
    progress("peers: writing");
    for compressor in ["lz4", "zstd"] {
        peers.push(udm(bench, data, compressor)?);
    }
    if bench.has(&["qemu-img", "qemu-nbd"], "qcow2") {
        for compression in ["zlib", "zstd"] {
            peers.push(qcow2(bench, data, compression)?);
        }
    }
    for (filter, words) in [("gzip", &["-k"][..]), ("xz", &["-k", "-0", "--block-size=128KiB"])] {
        if bench.has(&["nbdkit", filter], filter) {
            peers.push(nbdkit(bench, data, filter, words)?);
        }
    }
    for algorithm in ["lzo", "zstd:1"] {
        match btrfs(bench, data, algorithm) {
            Ok(peer) => peers.push(peer),
            Err(why) => println!("left out: btrfs with {algorithm}: {why}"),
        }
    }
    Ok(peers)
}

fn table(bench: &Bench<'_>, bytes: u64, peers: &[Peer]) -> String {
    let mb_per_s = |seconds: f64| bytes as f64 / 1e6 / seconds;
    let mut text = format!(
        "\n## Peers\n\n{} MiB of the ext4 image, copied in once and out in {} interleaved rounds (medians), on files of one \
        file system, mostly in the page cache. MB a second by the clock; CPU seconds of the server, or of the program that \
        compresses. Random reads of 4 KiB at depth 32.\n\nqcow2 can be written compressed only once and in order; what is \
        overwritten is kept uncompressed. nbdkit's filters only read (gzip unpacks the whole file when a client comes). \
        btrfs is in the kernel: no CPU time and no random reads are comparable.\n\n| who | written, MB/s | CPU | ratio | \
        read, MB/s | CPU | random reads a second |\n|---|--:|--:|--:|--:|--:|--:|\n",
        bytes >> 20,
        bench.rounds
    );
    let known = |seconds: Option<f64>| seconds.map_or("-".to_owned(), |s| format!("{s:.2} s"));
    for peer in peers {
        let read_s = median(peer.reads.iter().map(|(wall_s, _)| *wall_s).collect());
        let read_cpu_s = median(peer.reads.iter().map(|(_, cpu_s)| *cpu_s).collect());
        let is_kernel = matches!(peer.server, Server::Mount { .. });
        let random = match peer.random_iops.is_empty() {
            true => "-".to_owned(),
            false => format!("{:.0}", median(peer.random_iops.clone())),
        };
        text += &format!(
            "| {} | {:.0} | {} | {:.2} | {:.0} | {} | {random} |\n",
            peer.name,
            mb_per_s(peer.write_s),
            known(peer.write_cpu_s),
            bytes as f64 / peer.used_bytes.max(1) as f64,
            mb_per_s(read_s),
            known((!is_kernel).then_some(read_cpu_s)),
        );
    }
    text
}

impl Peer {
    fn new(name: String, write: (f64, Option<f64>), used_bytes: u64, server: Server) -> Peer {
        let (write_s, write_cpu_s) = write;
        let (reads, random_iops) = (Vec::new(), Vec::new());
        Peer { name, write_s, write_cpu_s, used_bytes, server, reads, random_iops }
    }

    /// One round.
    fn read(&mut self, bench: &Bench<'_>) -> Result<(), Failed> {
        let (uri, pid) = match &self.server {
            Server::Udm { daemon, uri } => (uri, daemon.pid()),
            Server::Other { child, uri } => (uri, child.id()),
            Server::Mount { image, options } => {
                self.reads.push((read_mounted(bench, image, options)?, 0.0));
                return Ok(());
            }
        };
        let (begin, before) = (Instant::now(), cpu_s(pid));
        must(Command::new("nbdcopy").args(["--connections=1", uri, "null:"]))?;
        self.reads.push((begin.elapsed().as_secs_f64(), cpu_s(pid) - before));
        self.random_iops.push(fio(bench, uri, &FIO_WORDS)?.iops);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Server::Other { child, .. } = self {
            // Both fail only if it has ended by itself.
            let _ended = child.kill();
            let _status = child.wait();
        }
    }
}

/// What a file takes, holes not counted.
fn used_bytes(path: &Path) -> Result<u64, Failed> {
    let found = fs::metadata(path).map_err(Failed::to("look at a disk"))?;
    Ok(found.blocks() * 512)
}

fn sparse(path: &Path) -> Result<(), Failed> {
    let made = File::create(path).and_then(|file| file.set_len(DISK_BYTES));
    made.map_err(Failed::to("make a disk"))
}

fn udm(bench: &Bench<'_>, data: &Path, compressor: &str) -> Result<Peer, Failed> {
    let bytes = fs::metadata(data).map_err(Failed::to("look at the data"))?.len();
    let dir = bench.dir.join(format!("udm-{compressor}"));
    fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let disk = dir.join("disk.img");
    sparse(&disk)?;
    let (shown, size) = (disk.display().to_string(), bytes.to_string());
    let words = ["compress", "format", &shown, "--size", &size, "--compressor", compressor];
    must(Command::new(&bench.udm).args(words))?;
    let daemon = Daemon::start(&bench.udm, &dir)?;
    daemon.udm(&["create", "disk", "--table", &format!("0 {} compress {shown}", bytes / 512)])?;
    let address = format!("unix:{}", dir.join("disk.sock").display());
    let uri = daemon.udm(&["export", "disk", "--nbd", &address])?.trim().to_owned();
    let (begin, before) = (Instant::now(), cpu_s(daemon.pid()));
    let data = data.display().to_string();
    must(Command::new("nbdcopy").args(["--connections=1", "--flush", &data, &uri]))?;
    let write = (begin.elapsed().as_secs_f64(), Some(cpu_s(daemon.pid()) - before));
    let server = Server::Udm { daemon, uri };
    Ok(Peer::new(format!("udm, {compressor}"), write, used_bytes(&disk)?, server))
}

/// Runs a program that writes, with its time and CPU time.
fn timed(command: &mut Command) -> Result<(f64, Option<f64>), Failed> {
    let (begin, before) = (Instant::now(), ticks_s("self", 13));
    must(command)?;
    Ok((begin.elapsed().as_secs_f64(), Some(ticks_s("self", 13) - before)))
}

/// CPU time of a process, of threads that have ended, too: nbdkit has one for each connection.
fn cpu_s(pid: u32) -> f64 {
    ticks_s(&pid.to_string(), 11)
}

/// Two neighbouring fields of a process's `stat`, user and system time, in seconds: behind the name
/// the 11th and 12th are its own, the 13th and 14th those of programs it has waited for.
fn ticks_s(pid: &str, field: usize) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A name may have spaces; what follows its bracket has none.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(field).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

fn qcow2(bench: &Bench<'_>, data: &Path, compression: &str) -> Result<Peer, Failed> {
    let image = bench.dir.join(format!("{compression}.qcow2"));
    let options = format!("compression_type={compression}");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options]);
    let write = timed(convert.arg(data).arg(&image))?;
    let socket = bench.dir.join(format!("qcow2-{compression}.sock"));
    let mut serve = Command::new("qemu-nbd");
    serve.args(["-r", "-t", "-f", "qcow2", "-k"]).arg(&socket).arg(&image);
    let server = start(&mut serve, &socket)?;
    Ok(Peer::new(format!("qcow2, {compression}"), write, used_bytes(&image)?, server))
}

fn nbdkit(bench: &Bench<'_>, data: &Path, filter: &str, words: &[&str]) -> Result<Peer, Failed> {
    let write = timed(Command::new(filter).args(words).arg(data))?;
    let suffix = if filter == "gzip" { "gz" } else { filter };
    let packed = data.with_extension(format!("raw.{suffix}"));
    let socket = bench.dir.join(format!("{filter}.sock"));
    let mut serve = Command::new("nbdkit");
    serve.args(["-f", "-r", "-U"]).arg(&socket).arg(format!("--filter={filter}"));
    let server = start(serve.arg("file").arg(&packed), &socket)?;
    Ok(Peer::new(format!("nbdkit, {filter}"), write, used_bytes(&packed)?, server))
}

fn start(command: &mut Command, socket: &Path) -> Result<Server, Failed> {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = quiet.spawn().map_err(Failed::to("start a server"))?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let server = Server::Other { child, uri };
    wait_until("a server accepts", START_MAX, || Ok(UnixStream::connect(socket).is_ok()))?;
    Ok(server)
}

fn btrfs(bench: &Bench<'_>, data: &Path, algorithm: &str) -> Result<Peer, Failed> {
    if !bench.has(&["mkfs.btrfs", "mount"], "btrfs") {
        return Err(Failed::new("its tools are missing"));
    }
    let image = bench.dir.join(format!("{}.btrfs", algorithm.replace(':', "-")));
    sparse(&image)?;
    must(Command::new("mkfs.btrfs").args(["-q", "-m", "single"]).arg(&image))?;
    let empty_bytes = used_bytes(&image)?;
    let options = format!("loop,compress={algorithm}");
    let mount = Mounted::new(bench, &image, &options)?;
    let begin = Instant::now();
    must(Command::new("cp").arg("--reflink=never").arg(data).arg(mount.dir.join("data")))?;
    must(Command::new("sync").arg("-f").arg(&mount.dir))?;
    let write_s = begin.elapsed().as_secs_f64();
    drop(mount);
    let used = used_bytes(&image)?.saturating_sub(empty_bytes);
    let server = Server::Mount { image, options };
    Ok(Peer::new(format!("btrfs, {algorithm}"), (write_s, None), used, server))
}

fn read_mounted(bench: &Bench<'_>, image: &Path, options: &str) -> Result<f64, Failed> {
    let mount = Mounted::new(bench, image, options)?;
    let mut room = vec![0; 1 << 20];
    let begin = Instant::now();
    let file = File::open(mount.dir.join("data"));
    let mut file = file.map_err(Failed::to("open the data on btrfs"))?;
    while file.read(&mut room).map_err(Failed::to("read the data on btrfs"))? > 0 {
        std::hint::black_box(&room);
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// A mounted image, until it is dropped.
struct Mounted {
    dir: PathBuf,
}

impl Mounted {
    fn new(bench: &Bench<'_>, image: &Path, options: &str) -> Result<Mounted, Failed> {
        let dir = bench.dir.join("mount");
        fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
        must(Command::new("mount").args(["-t", "btrfs", "-o", options]).arg(image).arg(&dir))?;
        Ok(Mounted { dir })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // If it fails the folder stays, and the operating system says why.
        let _unmounted = Command::new("umount").arg(&self.dir).status();
    }
}
