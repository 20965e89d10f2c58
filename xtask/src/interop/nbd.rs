//! NBD clients: QEMU's tools, libnbd's, nbdkit's plugin, fio; in the clear and by TLS.
//!
//! Each row compares what a client did with the image below the device, or what it read with
//! the file that was put there; a client is never asked whether it was right.

use super::place::{LEN_BYTES, Place, same};
use super::{Row, expect, told};
use crate::steps::Failed;
use serde_json::Value;

pub(super) const ROWS: [Row; 10] = [
    Row {
        tool: "qemu-img",
        version: ["qemu-img", "--version"],
        needs: &[],
        mounts: false,
        what: "info; convert in, out to qcow2; compare",
        run: qemu_img,
    },
    Row {
        tool: "qemu-io",
        version: ["qemu-io", "--version"],
        needs: &[],
        mounts: false,
        what: "patterns written, read; FUA, flush, discard, zeroes",
        run: qemu_io,
    },
    Row {
        tool: "nbdcopy",
        version: ["nbdcopy", "--version"],
        needs: &[],
        mounts: false,
        what: "in, out, device to device, 4 connections",
        run: nbdcopy,
    },
    Row {
        tool: "nbdinfo",
        version: ["nbdinfo", "--version"],
        needs: &[],
        mounts: false,
        what: "--json, --list, --map, --size",
        run: nbdinfo,
    },
    Row {
        tool: "nbdkit nbd plugin",
        version: ["nbdkit", "--version"],
        needs: &["nbdcopy"],
        mounts: false,
        what: "copied out and in through it",
        run: nbdkit,
    },
    Row {
        tool: "nbdfuse",
        version: ["nbdfuse", "--version"],
        needs: &["nbdcopy"],
        mounts: true,
        what: "mounted, read, written, synced",
        run: nbdfuse,
    },
    Row {
        tool: "fio (nbd)",
        version: ["fio", "--version"],
        needs: &[],
        mounts: false,
        what: "random writes at depth 64 verified, fsync every 32",
        run: fio,
    },
    Row {
        tool: "libnbd by TLS",
        version: ["nbdinfo", "--version"],
        needs: &["nbdcopy", "openssl"],
        mounts: false,
        what: "nbdinfo, nbdcopy in and out; refused without TLS",
        run: libnbd_tls,
    },
    Row {
        tool: "qemu-img by TLS",
        version: ["qemu-img", "--version"],
        needs: &["openssl"],
        mounts: false,
        what: "compare with a file",
        run: qemu_tls,
    },
    Row {
        tool: "nbdkit nbd by TLS",
        version: ["nbdkit", "--version"],
        needs: &["nbdcopy", "openssl"],
        mounts: false,
        what: "copied out through it",
        run: nbdkit_tls,
    },
];

fn json(text: &str) -> Result<Value, Failed> {
    serde_json::from_str(text).map_err(Failed::to("read a tool's JSON"))
}

fn qemu_img(place: &Place) -> Result<(), Failed> {
    let uri = &*place.uri;
    let info = json(&told("qemu-img", &["info", "--output=json", uri])?)?;
    expect(info["virtual-size"] == LEN_BYTES, "qemu-img info tells another size")?;
    let sent = place.random_file("sent.raw", 11)?;
    let packed = place.path("packed.qcow2");
    told("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &sent, uri])?;
    place.expect_image("disk", &sent)?;
    told("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", uri, &packed])?;
    told("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", uri, &packed])?;
    told("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &sent, &packed]).map(drop)
}

fn qemu_io(place: &Place) -> Result<(), Failed> {
    place.known_contents(12)?;
    let orders = [
        "write -P 0x5a 512 512",
        "write -f -P 0xa5 1M 64k",
        "flush",
        "read -P 0x5a 512 512",
        "read -P 0xa5 1M 64k",
        "write -z 2M 1M",
        "read -P 0 2M 1M",
        "discard 4M 1M",
        "aio_write -P 0x11 8M 4k",
        "aio_write -P 0x22 9M 4k",
        "aio_flush",
        "read -P 0x22 9M 4k",
    ];
    let mut words = vec!["-f", "raw"];
    orders.iter().for_each(|order| words.extend(["-c", order]));
    words.push(&place.uri);
    let said = told("qemu-io", &words)?;
    let is_well = !said.contains("failed") && !said.contains("rror");
    expect(is_well, &format!("qemu-io says: {said}"))?;
    place.expect_bytes(512, 512, 0x5a)?;
    place.expect_bytes(1 << 20, 64 << 10, 0xa5)?;
    place.expect_bytes(2 << 20, 1 << 20, 0)?;
    place.expect_bytes(8 << 20, 4096, 0x11)?;
    place.expect_bytes(9 << 20, 4096, 0x22)
}

fn nbdcopy(place: &Place) -> Result<(), Failed> {
    let (sent, got) = (place.random_file("sent.raw", 13)?, place.path("got.raw"));
    told("nbdcopy", &["--flush", "--connections=4", &sent, &place.uri])?;
    place.expect_image("disk", &sent)?;
    told("nbdcopy", &["--connections=4", &place.uri, &got])?;
    same(&sent, &got)?;
    told("nbdcopy", &["--flush", &place.uri, &place.second_uri])?;
    place.expect_image("second", &sent)
}

fn nbdinfo(place: &Place) -> Result<(), Failed> {
    let uri = &*place.uri;
    let info = json(&told("nbdinfo", &["--json", uri])?)?;
    let export = &info["exports"][0];
    expect(info["protocol"] == "newstyle-fixed", "another protocol")?;
    expect(export["export-size"] == LEN_BYTES, "another size")?;
    for flag in ["flush", "fua", "trim", "zero", "fast_zero", "df", "cache", "multi_conn"] {
        expect(export[format!("can_{flag}")] == true, &format!("no {flag}"))?;
    }
    let list = json(&told("nbdinfo", &["--json", "--list", uri])?)?;
    let exports = list["exports"].as_array().cloned().unwrap_or_default();
    expect(exports.iter().any(|found| found["export-name"] == "disk"), "not in the list")?;
    let map = json(&told("nbdinfo", &["--json", "--map", uri])?)?;
    let extents = map.as_array().cloned().unwrap_or_default();
    let covered: u64 = extents.iter().filter_map(|extent| extent["length"].as_u64()).sum();
    expect(covered == LEN_BYTES, "the map does not cover the device")?;
    let size = told("nbdinfo", &["--size", uri])?;
    expect(size.trim() == LEN_BYTES.to_string(), "--size tells another size")
}

/// nbdkit runs a command while it serves, and ends with it; `$uri` is its own address.
fn through_nbdkit(options: &[&str], copy: &str) -> Result<(), Failed> {
    let mut words = vec!["-U", "-", "nbd"];
    words.extend(options);
    words.extend(["--run", copy]);
    told("nbdkit", &words).map(drop)
}

fn nbdkit(place: &Place) -> Result<(), Failed> {
    let (known, got) = (place.known_contents(14)?, place.path("got.raw"));
    let from = format!("uri={}", place.uri);
    through_nbdkit(&[&from], &format!("nbdcopy \"$uri\" {got}"))?;
    same(&known, &got)?;
    let sent = place.random_file("sent.raw", 15)?;
    through_nbdkit(&[&from, "shared=true"], &format!("nbdcopy --flush {sent} \"$uri\""))?;
    place.expect_image("disk", &sent)
}

fn nbdfuse(place: &Place) -> Result<(), Failed> {
    use std::os::unix::fs::FileExt;
    let known = place.known_contents(16)?;
    let file = place.path("nbdfuse");
    std::fs::File::create(&file).map_err(Failed::to("make a mount point"))?;
    let mut child = super::place::outside("nbdfuse")
        .args([&file, &place.uri])
        .stderr(std::process::Stdio::null())
        .spawn()
        .map_err(Failed::to("start nbdfuse"))?;
    let use_it = || {
        crate::soak::wait_until("nbdfuse mounts", std::time::Duration::from_secs(20), || {
            Ok(std::fs::metadata(&file).is_ok_and(|found| found.len() == LEN_BYTES))
        })?;
        same(&file, &known)?;
        let opened = std::fs::File::options().write(true).open(&file);
        let opened = opened.map_err(Failed::to("open nbdfuse's file"))?;
        let written = opened.write_all_at(&[0x77; 8192], 3 << 20);
        written.and_then(|()| opened.sync_all()).map_err(Failed::to("write by nbdfuse"))?;
        place.expect_bytes(3 << 20, 8192, 0x77)
    };
    let outcome = use_it();
    // What could not be mounted cannot be unmounted; nbdfuse ends when it is unmounted.
    let _ = rustix::mount::unmount(&*file, rustix::mount::UnmountFlags::DETACH);
    let _ended = child.kill();
    let _status = child.wait();
    outcome
}

fn fio(place: &Place) -> Result<(), Failed> {
    let uri = format!("--uri={}", place.uri);
    verified_by_fio(&["--ioengine=nbd", &uri])
}

/// fio writes a quarter of the device at random at depth 64, reads it back and compares.
pub(super) fn verified_by_fio(words: &[&str]) -> Result<(), Failed> {
    const COMMON: [&str; 11] = [
        "--name=v",
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--blockalign=4k",
        "--size=16M",
        "--iodepth=64",
        "--fsync=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--output-format=json",
    ];
    let said = told("fio", &[&COMMON[..], words].concat())?;
    let begin = said.find("\n{").map_or(0, |at| at + 1);
    let end = said.rfind('}').map_or(said.len(), |at| at + 1);
    let job = &json(&said[begin..end])?["jobs"][0];
    expect(job["error"] == 0, "fio tells an error")?;
    let verified = job["read"]["total_ios"].as_u64() > Some(0);
    expect(verified, "fio has verified nothing")
}

fn tls_address(place: &Place) -> Result<String, Failed> {
    let none = || Failed::new("no export with TLS");
    let address = place.tls_uri.as_ref().ok_or_else(none)?;
    Ok(format!("{address}&tls-certificates={}&tls-hostname=localhost", place.dir.display()))
}

fn libnbd_tls(place: &Place) -> Result<(), Failed> {
    let address = tls_address(place)?;
    let info = json(&told("nbdinfo", &["--json", &address])?)?;
    expect(info["TLS"] == true, "nbdinfo sees no TLS")?;
    let (sent, got) = (place.random_file("sent.raw", 17)?, place.path("got.raw"));
    told("nbdcopy", &["--flush", &sent, &address])?;
    place.expect_image("disk", &sent)?;
    told("nbdcopy", &[&address, &got])?;
    same(&sent, &got)?;
    let plain = place.tls_uri.as_deref().unwrap_or_default().replacen("nbds", "nbd", 1);
    expect(told("nbdinfo", &["--size", &plain]).is_err(), "it is served without TLS, too")
}

fn qemu_tls(place: &Place) -> Result<(), Failed> {
    let known = place.known_contents(18)?;
    let (dir, socket) = (place.path(""), place.path("secret.sock"));
    let credentials = format!("tls-creds-x509,id=tls,dir={dir},endpoint=client,verify-peer=yes");
    let server = format!(
        "driver=nbd,export=secret,server.type=unix,server.path={socket},tls-creds=tls,\
         tls-hostname=localhost"
    );
    let known = format!("driver=raw,file.driver=file,file.filename={known}");
    let words = ["compare", "--image-opts", "--object", &credentials, &server, &known];
    told("qemu-img", &words).map(drop)
}

fn nbdkit_tls(place: &Place) -> Result<(), Failed> {
    let (known, got) = (place.known_contents(19)?, place.path("got.raw"));
    let socket = format!("socket={}", place.path("secret.sock"));
    let certificates = format!("tls-certificates={}", place.dir.display());
    // The plugin cannot be told which name to expect behind a unix socket.
    let options = [&*socket, "export=secret", "tls=require", &certificates, "tls-verify=false"];
    through_nbdkit(&options, &format!("nbdcopy \"$uri\" {got}"))?;
    same(&known, &got)
}
