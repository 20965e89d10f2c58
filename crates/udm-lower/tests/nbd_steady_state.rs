//! The NBD client at work allocates nothing: counted on the lane's thread.
//!
//! The server runs on threads of its own, whose allocations are not counted. One test only, since
//! the allocator belongs to the whole program.
#![allow(clippy::unwrap_used, reason = "what fails in here fails its test")]

#[allow(dead_code, reason = "other tests use more of it")]
mod lanes;
#[path = "nbd/server.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod server;

use lanes::Lane;
use server::{Script, Server, Style};
use udm_core::BioBox;
use udm_driver::DriverChoice;
use udm_lower::LowerRegistry;
use udm_testkit::{Counting, allocations_here};
use udm_types::{BioFlags, Op, Status};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KINDS: [(Op, u64); 6] = [
    (Op::Read, 8),
    (Op::Write, 8),
    (Op::Read, 256),
    (Op::Write, 256),
    (Op::WriteZeroes, 8),
    (Op::Flush, 0),
];

/// Takes a bio that is done and sends it off again.
fn round(lane: &mut Lane, count: usize) {
    for _ in 0..count {
        let mut bio: BioBox = lane.next_done();
        assert_eq!(bio.status, Status::Ok);
        let (op, flags, len) = (bio.op, bio.flags, bio.len_sectors);
        let sector = (bio.sector + 264) % 1024;
        bio.ask(op, flags, if op == Op::Flush { 0 } else { sector }, len);
        lane.submit(bio);
    }
}

#[test]
fn requests_in_steady_state_allocate_nothing() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        for choice in [DriverChoice::Uring, DriverChoice::Portable] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s");
            let _server = Server::start(&path, Script { style, ..Script::default() });
            let name = format!("nbd+unix:///?connections=2&socket={}", path.display());
            let registry = LowerRegistry::new(1);
            let device = registry.open(&name, false).unwrap().lower.unwrap().device;
            let Some(mut lane) = Lane::open(0, choice, &device) else { continue };
            for index in 0..30 {
                let (op, len) = KINDS[index % KINDS.len()];
                let bio = lane.bio(op, BioFlags::empty(), 0, len, 1);
                lane.submit(bio);
            }
            let found = (0..50).any(|_| {
                let before = allocations_here();
                round(&mut lane, 1000);
                allocations_here() == before
            });
            assert!(found, "{style:?} {choice:?}: no 1000 requests without an allocation");
            for _ in 0..30 {
                lane.next_done();
            }
            lane.close();
        }
    }
}
