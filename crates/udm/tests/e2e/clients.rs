//! The quickstart with the tools people have: nbdinfo, qemu-img, qemu-io, nbdcopy, fio, mkfs.
//!
//! The example file itself is served, from a copy in an empty directory, as a fresh machine would.
//! A file system cannot be made on an NBD export without a kernel driver; so an image is made, sent
//! in, changed through the export, taken out and checked.

use super::common::UDM;
use super::outside::{Ended, Running, have, report, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const LEN_BYTES: u64 = 256 << 20;

/// `udm up` on the example.
struct Quickstart {
    dir: TempDir,
    child: Child,
    uri: String,
}

impl Quickstart {
    fn start() -> Quickstart {
        let dir = tempfile::tempdir().expect("temporary directory");
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart.toml");
        let copy = dir.path().join("quickstart.toml");
        std::fs::copy(example, &copy).expect("copied");
        let mut child = Command::new(UDM)
            .args(["--json", "up"])
            .arg(&copy)
            .env("UDM_SOCKET", dir.path().join("control.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("its output");
        let ready: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(ready["ready"], true);
        let uri = ready["exports"][0]["uri"].as_str().expect("an address").to_owned();
        Quickstart { dir, child, uri }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn end(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("signalled");
        let status = self.child.wait().expect("ended");
        assert!(status.success(), "{status}");
        let left: Vec<_> = std::fs::read_dir(self.dir.path().join("udm-quickstart"))
            .expect("the backing file's directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(left, ["disk.img"], "only the backing file stays");
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(ended: Ended) -> Value {
    serde_json::from_str(&ended.ok()).expect("JSON")
}

/// Bytes without a pattern, but the same each time.
fn random_file(path: &str, len_bytes: usize) {
    let mut bytes = vec![0; len_bytes];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn the_quickstart_tells_tools_what_it_is_and_ends_cleanly() {
    if !have(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let up = Quickstart::start();
    let told = json(run("nbdinfo", &["--json", &up.uri]));
    let export = &told["exports"][0];
    assert_eq!(told["protocol"], "newstyle-fixed");
    assert_eq!(told["structured"], true);
    assert_eq!(export["export-size"], LEN_BYTES);
    assert_eq!(export["export-name"], "disk");
    assert_eq!(export["is_read_only"], false);
    for flag in ["flush", "fua", "trim", "zero", "fast_zero", "df", "cache", "multi_conn"] {
        assert_eq!(export[format!("can_{flag}")], true, "{flag}: {export}");
    }
    assert_eq!(export["block_size_minimum"], 512);
    assert_eq!(export["contexts"][0], "base:allocation");
    let listed = json(run("nbdinfo", &["--json", "--list", &up.uri]));
    assert_eq!(listed["exports"][0]["export-name"], "disk");
    let extents = json(run("nbdinfo", &["--json", "--map", &up.uri]));
    assert_eq!(extents[0]["offset"], 0, "{extents}");
    let lengths = extents.as_array().expect("extents").iter().map(|extent| &extent["length"]);
    let covered: u64 = lengths.map(|length| length.as_u64().expect("a number")).sum();
    assert_eq!(covered, LEN_BYTES, "{extents}");
    let image = json(run("qemu-img", &["info", "--output=json", &up.uri]));
    assert_eq!(image["virtual-size"], LEN_BYTES);
    up.end();
}

#[test]
fn an_image_copied_in_and_out_is_the_same() {
    if !have(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let up = Quickstart::start();
    let (one, two, three) = (up.path("one.img"), up.path("two.img"), up.path("three.qcow2"));
    random_file(&one, 24 << 20);
    run("nbdcopy", &["--flush", &one, &up.uri]).ok();
    run("nbdcopy", &[&up.uri, &two]).ok();
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &up.uri, &three]).ok();
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &up.uri, &three]).ok();
    let sent = std::fs::read(&one).expect("read");
    let got = std::fs::read(&two).expect("read");
    assert_eq!(got.len() as u64, LEN_BYTES);
    assert!(got[..sent.len()] == sent[..], "the copy differs");
    assert!(got[sent.len()..].iter().all(|byte| *byte == 0), "beyond it there is nothing");
    up.end();
}

#[test]
fn a_file_system_lives_through_the_export() {
    if !have(&["mkfs.ext4", "e2fsck", "debugfs", "qemu-img", "qemu-io", "nbdcopy"]) {
        return;
    }
    let up = Quickstart::start();
    let (image, back, note) = (up.path("fs.img"), up.path("back.img"), up.path("note"));
    std::fs::File::create(&image).expect("created").set_len(LEN_BYTES).expect("sized");
    random_file(&note, 1 << 20);
    run("mkfs.ext4", &["-q", "-F", &image]).ok();
    run("debugfs", &["-w", "-R", &format!("write {note} note"), &image]).ok();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &up.uri]).ok();
    // The boot sectors are free for others in ext4; a write there must not hurt the rest.
    let writes = ["-f", "raw", "-c", "write -P 0x5a 0 512", "-c", "flush", "-c"];
    let reads = ["read -P 0x5a 0 512", up.uri.as_str()];
    let told = run("qemu-io", &[&writes[..], &reads].concat()).ok();
    assert!(!told.contains("verification failed"), "{told}");
    run("nbdcopy", &[&up.uri, &back]).ok();
    run("e2fsck", &["-fn", &back]).ok();
    let out = up.path("out");
    run("debugfs", &["-R", &format!("dump note {out}"), &back]).ok();
    let (sent, got) = (std::fs::read(&note), std::fs::read(&out));
    assert!(sent.expect("read") == got.expect("read"), "the file inside differs");
    up.end();
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have(&["fio"]) {
        return;
    }
    let up = Quickstart::start();
    let uri = format!("--uri={}", up.uri);
    let fio = Running::start(Command::new("fio").current_dir(up.dir.path()).args([
        "--name=v",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--blockalign=512",
        "--size=24M",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--output-format=json",
    ]));
    let told = report(&fio.wait().ok());
    assert_eq!(told["jobs"][0]["error"], 0);
    assert!(told["jobs"][0]["read"]["total_ios"].as_u64() > Some(0), "it has verified");
    up.end();
}
