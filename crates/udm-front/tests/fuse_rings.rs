//! FUSE over the lanes' rings where the kernel does not play along. Mounting needs root.

mod fuse_rig;
#[path = "nbd/rig.rs"]
#[allow(dead_code, reason = "the tests of NBD use more of it")]
mod rig;

use fuse_rig::{fresh, is_able, serve};
use rig::Rig;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;
use udm_driver::DriverChoice;
use udm_front::fuse::order::MountEvent;
use udm_testkit::fuse_way::{hold_way, over_rings};

/// Between the kernel's offer and our answer somebody may turn the switch.
#[test]
fn rings_that_are_switched_off_in_the_handshake_are_done_without() {
    if is_able() {
        over_rings(|| [1, 2].into_iter().for_each(switched_off));
    }
}

fn switched_off(lanes: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(lanes, DriverChoice::Auto, "0 32768 linear mem:16M 0");
    let (sender, events) = channel();
    let held = hold_way();
    let fresh = fresh(&folder.path().join("disk"));
    drop(held);
    let served = serve(&rig, fresh, &sender);
    assert_eq!(events.recv(), Ok(MountEvent::Ready { by_ring: true }), "as it was offered");
    assert_eq!(events.recv(), Ok(MountEvent::RingsRefused));
    let path = folder.path().join("disk");
    std::thread::scope(|scope| {
        for client in 0..8_u8 {
            let path = &path;
            scope.spawn(move || {
                let file = OpenOptions::new().read(true).write(true).open(path).expect("opens");
                for round in 0..20 {
                    let at = u64::from(client) * 700;
                    file.write_all_at(&[client + round; 700], at).expect("written");
                    let mut read = [0; 700];
                    file.read_exact_at(&mut read, at).expect("read");
                    assert!(read == [client + round; 700], "round {round}");
                }
            });
        }
    });
    drop(sender);
    served.end();
    assert_eq!(events.iter().last(), Some(MountEvent::Ended), "and nothing is left of it");
}
