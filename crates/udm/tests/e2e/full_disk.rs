//! A full disk behind a write: the client hears ENOSPC, and everything else goes on.
//!
//! The disk is a tiny tmpfs in a mount namespace of the daemon's own, so that it is gone with the
//! daemon and nobody else sees it. That takes root, or user namespaces; where both are refused the
//! test says so.

use super::common::Place;
use super::nbd::{NO_SPACE, NbdClient};
use super::outside::{Running, have, run, until};
use super::verified::Verified;
use std::process::Command;

const STEP_BYTES: u64 = 64 << 10;

#[test]
fn a_full_disk_is_enospc_for_its_writer_and_nothing_for_others() {
    if !have(&["unshare", "mount"]) {
        return;
    }
    let flags = ["-m", "-rm"].into_iter().find(|flags| {
        run("unshare", &[flags, "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]).code == Some(0)
    });
    let Some(flags) = flags else {
        eprintln!("not checked: no tmpfs may be mounted here, not even in a namespace");
        return;
    };
    let place = Place::new();
    std::fs::create_dir(place.path("small")).expect("created");
    let script = "mount -t tmpfs -o size=1m none \"$0\" && truncate -s 64M \"$0/disk.img\" \
                  && exec \"$1\" daemon";
    let mut daemon = Running::start(
        Command::new("unshare")
            .args([flags, "sh", "-c", script, &place.text("small"), super::common::UDM])
            .env("UDM_SOCKET", place.path("control.sock")),
    );
    until("the daemon answers", || {
        assert!(daemon.is_running(), "the daemon has ended");
        place.path("control.sock").exists().then(|| place.udm(&["ls"]).code == Some(0))
    });
    let disk = place.text("small") + "/disk.img";
    let ok = |args: &[&str]| place.udm(args).ok();
    ok(&["create", "full", "--table", &format!("0 131072 linear {disk} 0")]);
    ok(&["create", "other", "--table", "0 4096 linear mem:2M 0"]);
    ok(&["export", "full", "--nbd", &format!("unix:{}", place.text("full.sock"))]);
    ok(&["export", "other", "--nbd", &format!("unix:{}", place.text("other.sock"))]);
    let verified = Verified::start(&place.path("other.sock"), "other");
    let mut client = NbdClient::connect(&place.path("full.sock"), "full").expect("connected");
    let bytes = vec![0xA5; usize::try_from(STEP_BYTES).expect("small")];
    let first_refused = (0..64)
        .find(|step| {
            let answer = client.write(step * STEP_BYTES, &bytes, 0).expect("connected");
            assert!(matches!(answer, Ok(_) | Err(NO_SPACE)), "{answer:?}");
            answer.is_err()
        })
        .expect("a megabyte does not hold four");
    assert!(first_refused > 4, "there was room for more");
    verified.goes_on();
    let read = client.read(0, bytes.len()).expect("connected").expect("read");
    assert!(read == bytes, "what was written before is there");
    client.flush().expect("connected").expect("flushed");
    assert!(daemon.is_running());
    verified.end();
    ok(&["unexport", "full"]);
    ok(&["remove", "full"]);
}
