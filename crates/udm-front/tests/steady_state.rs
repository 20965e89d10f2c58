//! A connection at work allocates nothing: counted by the allocator of this test program.
//!
//! Lanes and client share the allocator, and the client allocates nothing either, so a window of
//! many requests without any allocation has to come soon after the start.
//! One test only, since other tests of the program would be counted, too.

#[path = "nbd/client.rs"]
#[allow(dead_code, reason = "the server's tests use more of it")]
mod client;
#[path = "nbd/rig.rs"]
#[allow(dead_code, reason = "the server's tests use more of it")]
mod rig;

use client::{Client, FLUSH, READ, STYLES, TRIM, WRITE, WRITE_ZEROES};
use rig::Rig;
use std::io::{Read, Write};
use udm_driver::DriverChoice;
use udm_testkit::{Counting, allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A batch: what to send, and how many bytes the replies have.
struct Batch {
    requests: Vec<u8>,
    replies: Vec<u8>,
}

/// Requests of every kind and of all memory paths: small, gathered in place, with memory of
/// their own.
fn batch<S: Read + Write>(client: &Client<S>, head_bytes: usize, read_head_bytes: usize) -> Batch {
    let (mut requests, mut reply_bytes) = (Vec::new(), 0);
    for index in 0..32_u64 {
        let len: u64 = if index % 16 == 7 { 128 << 10 } else { 4096 };
        let at = index * 4096;
        requests.extend(client.request(WRITE, 0, index, at, len));
        requests.extend(vec![index as u8; len as usize]);
        requests.extend(client.request(READ, 0, index, at, len));
        reply_bytes += head_bytes + read_head_bytes + len as usize;
    }
    for (command, len) in [(FLUSH, 0), (TRIM, 4096), (WRITE_ZEROES, 4096)] {
        requests.extend(client.request(command, 1, 99, 0, len));
        reply_bytes += head_bytes;
    }
    Batch { requests, replies: vec![0; reply_bytes] }
}

#[test]
fn requests_in_steady_state_allocate_nothing() {
    let rig = Rig::new(1, DriverChoice::Auto, "0 32768 linear mem:16M 0");
    let served = rig.serve(vec![rig.export("vol", false)]);
    for style in STYLES {
        let mut client = Client::new(rig.connect(&served), style, "");
        let heads = match style {
            client::Style::Simple => (16, 16),
            client::Style::Structured => (20, 28),
            client::Style::Extended => (32, 40),
        };
        let mut batch = batch(&client, heads.0, heads.1);
        let found = (0..50).any(|_| {
            let before = allocations();
            for _ in 0..100 {
                client.stream.write_all(&batch.requests).expect("the server listens");
                client.stream.read_exact(&mut batch.replies).expect("the server answers");
            }
            allocations() == before
        });
        assert!(found, "{style:?}: no 6700 requests in a row without an allocation");
    }
}
