//! A flush reaches the disk: seen from below, in the system calls of the daemon.
//!
//! The daemon runs under strace with the portable driver, whose I/O is plain system calls (those of
//! io_uring are not visible there; `udm-driver`'s contract tests look after them). The order in
//! the trace is the proof: data is written, then synced, on each device below, and only then comes
//! the reply, after which the trace is read.

use super::common::{Place, UDM};
use super::nbd::{FUA, NbdClient};
use super::outside::{Running, have, run, until};
use std::process::Command;

/// How often something was synced, by descriptor number, in order.
fn syncs(trace: &str) -> Vec<String> {
    let name_at = |line: &str| line.find("fdatasync(").or_else(|| line.find("fsync("));
    trace
        .lines()
        .filter_map(|line| {
            let call = &line[name_at(line)?..];
            let inner = call.split_once('(')?.1;
            let end = inner.find(|c: char| !c.is_ascii_digit()).unwrap_or(inner.len());
            Some(inner[..end].to_owned())
        })
        .collect()
}

#[test]
fn a_flush_syncs_every_device_below_before_its_reply() {
    if !have(&["strace"]) {
        return;
    }
    if run("strace", &["-qq", "-o", "/dev/null", "true"]).code != Some(0) {
        eprintln!("not checked: tracing is refused here");
        return;
    }
    let place = Place::new();
    let trace = place.text("trace");
    let calls = "trace=fsync,fdatasync,pwrite64,pwritev,pwritev2";
    // -D: the daemon is our child and the tracer goes when it goes.
    let mut daemon = Running::start(
        Command::new("strace")
            .args(["-D", "-f", "-qq", "-o", &trace, "-e", calls, UDM])
            .args(["daemon", "--driver", "portable", "--lanes", "2"])
            .env("UDM_SOCKET", place.path("control.sock")),
    );
    until("the daemon answers", || {
        assert!(daemon.is_running(), "the daemon has ended");
        (place.udm(&["ls"]).code == Some(0)).then_some(())
    });
    let (one, two) = (place.file("one.img", 1 << 20), place.file("two.img", 1 << 20));
    let table = format!("0 4096 striped 2 8 {one} 0 {two} 0");
    place.udm(&["create", "v", "--table", &table]).ok();
    place.udm(&["export", "v", "--nbd", &format!("unix:{}", place.text("nbd.sock"))]).ok();
    let mut client = NbdClient::connect(&place.path("nbd.sock"), "v").expect("connected");
    let read = || std::fs::read_to_string(&trace).expect("the trace");
    client.write(0, &[7; 8192], 0).expect("connected").expect("written");
    let before = syncs(&read()).len();
    client.flush().expect("connected").expect("flushed");
    // The tracer writes a line when the call returns, which may be after the reply got here.
    let synced = until("both files are synced", || {
        let mut synced = syncs(&read()).split_off(before);
        synced.sort_unstable();
        synced.dedup();
        (synced.len() >= 2).then_some(synced)
    });
    assert_eq!(synced.len(), 2, "each file once: {synced:?}");
    let before = syncs(&read()).len();
    client.write(0, &[8; 4096], FUA).expect("connected").expect("written");
    until("a FUA write is synced or written through", || {
        let trace = read();
        (syncs(&trace).len() > before || trace.contains("RWF_DSYNC")).then_some(())
    });
}
