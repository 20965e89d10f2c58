//! The data that is compressed: what people keep on disks, made from what this machine has.
//!
//! | name | what it is |
//! |---|---|
//! | `ext4` | an ext4 image of every n-th file of this machine's `/usr` |
//! | `text` | the sources of Linux as Debian packs them, file after file; else those of crates |
//! | `sqlite` | a database of orders with random keys, written by `sqlite3` |
//!
//! Rules. A file is made once for a run and then only read. Which files go in is decided by sorted
//! paths, so the same machine makes the same data twice (but for the database's random keys).
//!
//! The tricky case is an image with much free space: its zeroes would compress without end and say
//! nothing. So the image is only as large as its files need.

use super::Bench;
use crate::steps::Failed;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files of the tree, about.
const TREE_BYTES: u64 = 256 << 20;
/// Longer files are left out: a single one would be the corpus.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// What has the sources of Linux, as a package and as an archive.
const LINUX_PACKAGE: &str = "linux-source-6.1";
/// Text, at most.
const TEXT_BYTES_MAX: u64 = 256 << 20;
const TREES: [&str; 3] = ["/usr/bin", "/usr/lib", "/usr/share"];
const ORDERS: &str = "\
    CREATE TABLE orders (id TEXT PRIMARY KEY, customer TEXT, placed TEXT, state TEXT, cents INTEGER, note TEXT);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 700000)
    INSERT INTO orders SELECT
      lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-' || hex(randomblob(2)) || '-' ||
        hex(randomblob(2)) || '-' || hex(randomblob(6))),
      'customer-' || abs(random() % 50000), datetime(1700000000 + i * 37, 'unixepoch'),
      CASE abs(random() % 4) WHEN 0 THEN 'open' WHEN 1 THEN 'paid' WHEN 2 THEN 'shipped' ELSE 'returned' END,
      abs(random() % 100000), 'order number ' || i || ', please deliver to the back door'
    FROM n;";

/// A kind of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Corpus {
    Ext4,
    Text,
    Sqlite,
}

impl Corpus {
    pub(super) const ALL: [Corpus; 3] = [Corpus::Ext4, Corpus::Text, Corpus::Sqlite];

    pub(super) fn name(self) -> &'static str {
        match self {
            Corpus::Ext4 => "ext4",
            Corpus::Text => "text",
            Corpus::Sqlite => "sqlite",
        }
    }

    /// The file; made if it is not there yet. None if this machine cannot make it.
    pub(super) fn file(self, bench: &Bench<'_>) -> Result<Option<PathBuf>, Failed> {
        let path = bench.dir.join(format!("corpus.{}", self.name()));
        if path.is_file() {
            return Ok(Some(path));
        }
        super::super::progress(&format!("making {}", self.name()));
        let is_made = match self {
            Corpus::Ext4 => ext4(bench, &path),
            Corpus::Text => text(bench, &path),
            Corpus::Sqlite => sqlite(bench, &path),
        }?;
        super::super::progress("");
        Ok(is_made.then_some(path))
    }
}

fn ext4(bench: &Bench<'_>, path: &Path) -> Result<bool, Failed> {
    if !bench.has(&["mke2fs"], "the ext4 image") {
        return Ok(false);
    }
    let mut files = Vec::new();
    for tree in TREES {
        collect(Path::new(tree), &mut |_path| true, &mut files);
    }
    let all_bytes: u64 = files.iter().map(|(_, len)| len).sum();
    let step = all_bytes.div_ceil(TREE_BYTES).max(1) as usize;
    let stage = bench.dir.join("tree");
    let (mut staged_bytes, mut staged_files, mut folders) = (0, 0, BTreeSet::new());
    for (file, len) in files.iter().step_by(step) {
        let place = stage.join(file.strip_prefix("/").unwrap_or(file));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(Failed::to("make a folder"))?;
        }
        // A file that went away or may not be read is not needed.
        if fs::copy(file, &place).is_ok() {
            staged_bytes += len.next_multiple_of(4096);
            staged_files += 1;
            folders.extend(place.ancestors().skip(1).map(Path::to_owned));
        }
    }
    // Folders, inodes, the journal and tables: what mke2fs needs beside the files.
    let inodes = staged_files + folders.len() as u64 + 1000;
    let beside_bytes = folders.len() as u64 * 4096 + inodes * 256 + (16 << 20);
    let blocks = (staged_bytes + staged_bytes / 64 + beside_bytes) / 4096;
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-I", "256"]);
    command.args(["-J", "size=8", "-N", &inodes.to_string(), "-d"]).arg(&stage).arg(path);
    command.arg(blocks.to_string());
    must(&mut command)?;
    let _removed = fs::remove_dir_all(&stage);
    Ok(true)
}

/// The sources of Linux where Debian's package of them can be had, else those of crates.
fn text(bench: &Bench<'_>, path: &Path) -> Result<bool, Failed> {
    Ok(linux_text(bench, path)? || crates_text(path)?)
}

/// The beginning of Linux as one text, file after file, as the package's archive has them.
fn linux_text(bench: &Bench<'_>, path: &Path) -> Result<bool, Failed> {
    if !bench.has(&["apt-get", "dpkg-deb", "tar", "xz"], "the sources of Linux") {
        return Ok(false);
    }
    let stage = bench.dir.join("linux");
    fs::create_dir_all(&stage).map_err(Failed::to("make a folder"))?;
    let fetch = Command::new("apt-get")
        .args(["download", "-qq", LINUX_PACKAGE])
        .current_dir(&stage)
        .stderr(Stdio::null())
        .status();
    let mut fetched = fs::read_dir(&stage).map_err(Failed::to("read a folder"))?;
    let package = fetched.next().and_then(Result::ok).map(|entry| entry.path());
    let (true, Some(package)) = (fetch.is_ok_and(|it| it.success()), package) else {
        println!("Debian's {LINUX_PACKAGE} cannot be had; the sources of crates instead");
        return Ok(false);
    };
    must(Command::new("dpkg-deb").arg("-x").arg(package).arg(stage.join("x")))?;
    let archive = stage.join(format!("x/usr/src/{LINUX_PACKAGE}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.arg("-xJOf").arg(archive).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut tar = tar.spawn().map_err(Failed::to("run tar"))?;
    let mut out = File::create(path).map_err(Failed::to("make the text"))?;
    let len = match tar.stdout.take() {
        Some(text) => io::copy(&mut text.take(TEXT_BYTES_MAX), &mut out),
        None => Ok(0),
    };
    // It would write on; we have enough.
    let _ended = tar.kill().and_then(|()| tar.wait());
    let _removed = fs::remove_dir_all(&stage);
    Ok(len.map_err(Failed::to("write the text"))? > 0)
}

fn crates_text(path: &Path) -> Result<bool, Failed> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let Some(sources) = home.map(|home| home.join("registry/src")).filter(|dir| dir.is_dir())
    else {
        println!("no sources of crates are there; left out: text");
        return Ok(false);
    };
    let mut files = Vec::new();
    let is_text = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("rs" | "c" | "h" | "md" | "toml" | "S" | "txt" | "json"))
    };
    collect(&sources, &mut { is_text }, &mut files);
    let mut out = File::create(path).map_err(Failed::to("make the text"))?;
    let mut len = 0;
    for (file, file_len) in &files {
        if len + file_len > TEXT_BYTES_MAX {
            break;
        }
        let mut source = File::open(file).map_err(Failed::to("read a source"))?;
        len += io::copy(&mut source, &mut out).map_err(Failed::to("write the text"))?;
    }
    Ok(len > 0)
}

fn sqlite(bench: &Bench<'_>, path: &Path) -> Result<bool, Failed> {
    if !bench.has(&["sqlite3"], "the database") {
        return Ok(false);
    }
    let mut child = Command::new("sqlite3")
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(Failed::to("start sqlite3"))?;
    if let Some(mut input) = child.stdin.take() {
        let script = format!("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;\n{ORDERS}\n");
        input.write_all(script.as_bytes()).map_err(Failed::to("tell sqlite3"))?;
    }
    let status = child.wait().map_err(Failed::to("wait for sqlite3"))?;
    if status.success() { Ok(true) } else { Err(Failed::new(format!("sqlite3: {status}"))) }
}

/// All ordinary files below a folder with their lengths, by path.
fn collect(dir: &Path, wanted: &mut dyn FnMut(&Path) -> bool, files: &mut Vec<(PathBuf, u64)>) {
    let mut folders = vec![dir.to_owned()];
    let first = files.len();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // Links are not followed: their files come by themselves.
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            if found.is_dir() {
                folders.push(path);
            } else if found.is_file() && found.len() <= FILE_BYTES_MAX && wanted(&path) {
                files.push((path, found.len()));
            }
        }
    }
    files[first..].sort();
}

/// Runs a program that has to work, with its output kept for the error.
pub(super) fn must(command: &mut Command) -> Result<(), Failed> {
    let output = command.stdin(Stdio::null()).output();
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output.map_err(Failed::to(format!("run {name}")))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failed::new(format!("{name}: {}: {why}", output.status)))
}
