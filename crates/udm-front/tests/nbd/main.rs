//! The NBD server on real lanes: clients of every style, both drivers, hostile ends.

mod certs;
mod client;
mod rig;
mod tls;

use client::{
    BLOCK_STATUS, CACHE, Client, DISC, FLUSH, READ, STYLES, Style, TRIM, WRITE, WRITE_ZEROES,
    greet, option,
};
use rig::{DEVICE, Rig};
use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc::channel;
use udm_driver::DriverChoice;
use udm_front::nbd::server::ListenerOrder;
use udm_types::{BioFlags, Op, Status};

const MIB: u64 = 1 << 20;
const FUA: u16 = 1;

/// 16 MiB of memory under a linear target.
const MEMORY: &str = "0 32768 linear mem:16M 0";

fn drivers() -> Vec<DriverChoice> {
    vec![DriverChoice::Auto, DriverChoice::Portable]
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

#[test]
fn every_command_in_every_style_on_every_driver() {
    for choice in drivers() {
        let rig = Rig::new(2, choice, MEMORY);
        let served = rig.serve(vec![rig.export(DEVICE, false)]);
        for style in STYLES {
            let mut client = Client::new(rig.connect(&served), style, DEVICE);
            assert_eq!(client.size_bytes, 16 * MIB);
            assert_eq!(client.flags & 0x80 != 0, style != Style::Simple, "DF");
            let data = pattern(style as u8, 8192);
            assert_eq!(client.write(0, 4096, &data), 0);
            assert_eq!(client.write(FUA, 1024, &data[..512]), 0);
            assert_eq!(client.ask(READ, 0, 4096, 8192).data, data);
            assert_eq!(client.ask(READ, 0, 1024, 512).data, data[..512]);
            assert_eq!(client.ask(FLUSH, 0, 0, 0).error, 0);
            assert_eq!(client.ask(CACHE, 0, 0, MIB).error, 0);
            assert_eq!(client.ask(WRITE_ZEROES, FUA | 2, 4096, 512).error, 0);
            assert_eq!(client.ask(READ, 0, 4096, 512).data, [0; 512]);
            assert_eq!(client.ask(TRIM, FUA, 4096, 4096).error, 0);
            assert_eq!(client.ask(WRITE_ZEROES, 16, 0, 16 * MIB).error, 0, "fast zero");
            assert_eq!(client.ask(READ, 0, 8192, 4096).data, [0; 4096]);
            let status = client.ask(BLOCK_STATUS, 0, 0, MIB);
            match style {
                Style::Simple => assert_eq!(status.error, 22),
                Style::Structured => assert_eq!(status.data, *b"\0\x10\0\0\0\0\0\0"),
                Style::Extended => {
                    assert_eq!(status.data, *b"\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\0");
                }
            }
            assert_eq!(client.ask(READ, 0, 16 * MIB, 512).error, 22, "beyond the end");
            assert_eq!(client.write(0, 16 * MIB, &data), 28, "beyond the end");
            assert_eq!(client.ask(READ, 0, 1, 512).error, 22, "unaligned");
            assert_eq!(client.ask(99, 0, 0, 512).error, 22, "unknown");
            let bytes = client.request(DISC, 0, 0, 0, 0);
            client.send(&bytes);
            assert!(client.ended_by_server());
        }
        rig.stop(&served, false);
    }
}

#[test]
fn payloads_of_every_size_survive() {
    for choice in drivers() {
        let rig = Rig::new(1, choice, MEMORY);
        let served = rig.serve(vec![rig.export(DEVICE, false)]);
        let mut client = Client::new(rig.connect(&served), Style::Structured, "");
        // Around the sizes at which payloads and replies get memory of their own.
        for kib in [4, 60, 64, 68, 128, 252, 256, 260, 1024, 4096, 16384] {
            let data = pattern(kib as u8, kib << 10);
            assert_eq!(client.write(0, 0, &data), 0);
            assert!(client.ask(READ, 0, 0, data.len() as u64).data == data, "{kib} KiB");
        }
    }
}

#[test]
fn a_pipelined_batch_is_answered_completely() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    for style in STYLES {
        let mut client = Client::new(rig.connect(&served), style, "");
        let mut stream = Vec::new();
        for cookie in 0..300_u64 {
            let data = pattern(cookie as u8, 4096);
            stream.extend(client.request(WRITE, 0, cookie, cookie * 4096, 4096));
            stream.extend(&data);
        }
        let mut writer = client.stream.try_clone().expect("a second handle");
        let sender = std::thread::spawn(move || writer.write_all(&stream));
        let mut seen = [false; 300];
        for _ in 0..300 {
            let reply = client.reply(0);
            assert_eq!(reply.error, 0);
            seen[reply.cookie as usize] = true;
        }
        assert!(seen.iter().all(|seen| *seen));
        sender.join().expect("no panic").expect("all sent");

        let reads: Vec<u8> = (0..300_u64)
            .flat_map(|cookie| client.request(READ, 0, cookie, cookie * 4096, 4096))
            .collect();
        client.send(&reads);
        for _ in 0..300 {
            let reply = client.reply(4096);
            assert!(reply.data == pattern(reply.cookie as u8, 4096), "{}", reply.cookie);
        }
    }
}

#[test]
fn requests_cut_at_every_byte_are_understood() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut client = Client::new(rig.connect(&served), Style::Extended, "");
    let mut bytes = client.request(WRITE, 0, 1, 512, 512);
    bytes.extend(pattern(9, 512));
    bytes.extend(client.request(READ, 0, 2, 512, 512));
    for byte in bytes {
        client.send(&[byte]);
    }
    assert_eq!(client.reply(0).error, 0);
    assert_eq!(client.reply(512).data, pattern(9, 512));
}

#[test]
fn connections_share_the_device_across_lanes() {
    let rig = Rig::new(2, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut clients: Vec<Client<_>> =
        (0..4).map(|_| Client::new(rig.connect(&served), Style::Simple, "")).collect();
    rig.wait_for(|lanes| lanes.iter().all(|lane| lane.actors >= 2));
    for (index, client) in clients.iter_mut().enumerate() {
        assert_ne!(client.flags & 0x100, 0, "CAN_MULTI_CONN");
        assert_eq!(client.write(0, index as u64 * 4096, &[index as u8 + 1; 4096]), 0);
    }
    for client in &mut clients {
        for index in 0..4_u64 {
            let data = client.ask(READ, 0, index * 4096, 4096).data;
            assert!(data.iter().all(|byte| u64::from(*byte) == index + 1));
        }
    }
    drop(clients);
    rig.wait_for(|lanes| lanes.iter().map(|lane| lane.actors).sum::<usize>() == 1);
}

#[test]
fn a_read_only_export_and_several_names() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export("rw", false), rig.export("ro", true)]);
    let mut stream = rig.connect(&served);
    greet(&mut stream);
    let listed = option(&mut stream, 3, b"");
    assert_eq!(listed.len(), 3);
    assert_eq!(listed[1].1, b"\0\0\0\x02roa test");
    drop(stream);
    let mut client = Client::new(rig.connect(&served), Style::Structured, "ro");
    assert_ne!(client.flags & 2, 0, "READ_ONLY");
    assert_eq!(client.write(0, 0, &[1; 512]), 1);
    assert_eq!(client.ask(TRIM, 0, 0, 512).error, 1);
    assert_eq!(client.ask(READ, 0, 0, 512).error, 0);
}

#[test]
fn a_protocol_breach_costs_that_connection_only() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut other = Client::new(rig.connect(&served), Style::Simple, "");
    for garbage in [&[0xff_u8; 28][..], &[0; 64]] {
        let mut client = Client::new(rig.connect(&served), Style::Simple, "");
        client.send(garbage);
        assert!(client.ended_by_server());
    }
    let mut client = Client::new(rig.connect(&served), Style::Simple, "");
    let too_long = client.request(WRITE, 0, 1, 0, 33 * MIB);
    client.send(&too_long);
    assert!(client.ended_by_server());
    assert_eq!(other.ask(READ, 0, 0, 512).error, 0);
    // A client that only opens and leaves, or leaves within a request.
    drop(rig.connect(&served));
    let mut client = Client::new(rig.connect(&served), Style::Simple, "");
    let mut half = client.request(WRITE, 0, 1, 0, 4096);
    half.extend([1; 100]);
    client.send(&half);
    drop(client);
    rig.wait_for(|lanes| lanes[0].actors == 2);
    assert_eq!(other.ask(READ, 0, 0, 512).data, [0; 512], "half a write is no write");
}

#[test]
fn requests_wait_for_a_resume_and_lose_nothing() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut client = Client::new(rig.connect(&served), Style::Simple, "");
    rig.suspend(true);
    for cookie in 0..50_u64 {
        let mut bytes = client.request(WRITE, 0, cookie, cookie * 512, 512);
        bytes.extend([cookie as u8; 512]);
        client.send(&bytes);
    }
    rig.wait_for(|lanes| lanes[0].held == 50);
    rig.resume(false);
    for _ in 0..50 {
        assert_eq!(client.reply(0).error, 0);
    }
    for cookie in 0..50_u64 {
        assert_eq!(client.ask(READ, 0, cookie * 512, 512).data, [cookie as u8; 512]);
    }
}

#[test]
fn a_client_that_dies_while_the_device_is_suspended_leaves_nothing() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut client = Client::new(rig.connect(&served), Style::Simple, "");
    rig.suspend(false);
    for cookie in 0..10 {
        let bytes = client.request(READ, 0, cookie, 0, 4096);
        client.send(&bytes);
        let mut bytes = client.request(WRITE, 0, cookie, 8192, 128 << 10);
        bytes.extend(vec![1; 128 << 10]);
        client.send(&bytes);
    }
    rig.wait_for(|lanes| lanes[0].held == 20);
    drop(client);
    // The stop is not held up by bios that may wait for hours.
    rig.stop(&served, true);
    assert_eq!(rig.census()[0].held, 20);
    rig.resume(false);
    rig.wait_for(|lanes| lanes[0].actors == 0 && lanes[0].held == 0);
    assert_eq!(rig.census()[0].bios_lost, 0);
}

#[test]
fn back_pressure_bounds_a_client_that_never_stops() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut client = Client::new(rig.connect(&served), Style::Simple, "");
    rig.suspend(true);
    let mut writer = client.stream.try_clone().expect("a second handle");
    let one = client.request(READ, 0, 5, 0, 512);
    let sender = std::thread::spawn(move || {
        for _ in 0..10_000 {
            writer.write_all(&one).expect("the server listens in the end");
        }
    });
    rig.wait_for(|lanes| lanes[0].held == 256);
    rig.resume(false);
    for _ in 0..10_000 {
        assert_eq!(client.reply(512).data.len(), 512);
        assert!(rig.lanes_hold_at_most(256));
    }
    sender.join().expect("all sent");
}

#[test]
fn a_graceful_stop_answers_what_is_under_way() {
    let rig = Rig::new(2, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut client = Client::new(rig.connect(&served), Style::Simple, "");
    rig.suspend(true);
    let bytes = client.request(READ, 0, 1, 0, 512);
    client.send(&bytes);
    rig.wait_for(|lanes| lanes.iter().map(|lane| lane.held).sum::<u64>() == 1);
    let (out, done) = channel();
    let done_box = Box::new(move || out.send(()).expect("the test waits"));
    rig.order(&served, ListenerOrder::Stop { cut: false, done: done_box });
    rig.census();
    assert!(done.try_recv().is_err(), "a request is under way");
    rig.resume(false);
    done.recv().expect("stopped");
    assert_eq!(client.reply(512).error, 0);
    assert!(client.ended_by_server());
    assert!(std::os::unix::net::UnixStream::connect(&served.path).is_err(), "nobody listens");
}

#[test]
fn an_export_that_is_taken_away_ends_its_connections_only() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export("keep", false), rig.export("drop", false)]);
    let mut kept = Client::new(rig.connect(&served), Style::Simple, "keep");
    let dropped = Client::new(rig.connect(&served), Style::Simple, "drop");
    rig.order(&served, ListenerOrder::SetExports(vec![rig.export("keep", false)]));
    assert!(dropped.ended_by_server());
    assert_eq!(kept.ask(READ, 0, 0, 512).error, 0);
    let (out, count) = channel();
    let answer = Box::new(move |count| out.send(count).expect("the test waits"));
    rig.order(&served, ListenerOrder::Count(answer));
    assert_eq!(count.recv(), Ok(1));
}

#[test]
fn a_resize_reaches_old_and_new_connections() {
    let rig = Rig::new(2, DriverChoice::Auto, "0 2048 linear mem:16M:disk 0");
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut old = Client::new(rig.connect(&served), Style::Simple, "");
    assert_eq!(old.size_bytes, MIB);
    assert_eq!(old.ask(READ, 0, MIB, 512).error, 22);
    rig.load("0 4096 linear mem:16M:disk 0");
    rig.resume(true);
    let new = Client::new(rig.connect(&served), Style::Simple, "");
    assert_eq!(new.size_bytes, 2 * MIB);
    assert_eq!(old.ask(READ, 0, MIB, 512).error, 0, "the new end holds for it too");
    rig.load("0 2048 linear mem:16M:disk 0");
    rig.resume(true);
    assert_eq!(old.ask(READ, 0, MIB, 512).error, 22);
}

#[test]
fn errors_below_are_errors_of_the_request_not_of_the_connection() {
    let rig = Rig::new(1, DriverChoice::Auto, "0 2048 linear mem:1M 0\n2048 2048 error");
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    for style in STYLES {
        let mut client = Client::new(rig.connect(&served), style, "");
        assert_eq!(client.ask(READ, 0, MIB, 4096).error, 5);
        assert_eq!(client.write(0, MIB, &[1; 4096]), 5);
        assert_eq!(client.write(0, MIB, &vec![1; 256 << 10]), 5);
        assert_eq!(client.ask(READ, 0, MIB, 256 << 10).error, 5);
        assert_eq!(client.ask(READ, 0, 0, 4096).error, 0);
    }
}

#[test]
fn tcp_is_served_like_a_unix_socket() {
    for choice in drivers() {
        let rig = Rig::new(2, choice, MEMORY);
        let address = rig.serve_tcp(vec![rig.export(DEVICE, false)]);
        let stream = TcpStream::connect(address).expect("somebody listens");
        let mut client = Client::new(stream, Style::Extended, "");
        let data = pattern(3, 1 << 20);
        assert_eq!(client.write(0, 512, &data), 0);
        assert!(client.ask(READ, 0, 512, 1 << 20).data == data);
        let bytes = client.request(DISC, 0, 0, 0, 0);
        client.send(&bytes);
        assert!(client.ended_by_server());
    }
}

#[test]
fn a_client_that_does_not_read_is_bounded_and_can_be_cut() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let client = Client::new(rig.connect(&served), Style::Simple, "");
    let mut writer = client.stream.try_clone().expect("a second handle");
    let one = client.request(READ, 0, 5, 0, MIB);
    // 200 GiB of replies that nobody reads: the writer is stopped by its full socket.
    let sender = std::thread::spawn(move || {
        let sent = (0..200_000).take_while(|_| writer.write_all(&one).is_ok()).count();
        assert!(sent < 200_000, "the server took everything");
    });
    let mut other = Client::new(rig.connect(&served), Style::Simple, "");
    assert_eq!(other.ask(READ, 0, 0, 4096).error, 0, "others are served meanwhile");
    rig.stop(&served, true);
    sender.join().expect("the cut ends it");
    rig.wait_for(|lanes| lanes[0].actors == 0);
}

#[test]
fn flush_fua_and_the_other_flags_reach_the_device() {
    let rig = Rig::new(1, DriverChoice::Auto, "0 32768 linear recorder 0");
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut client = Client::new(rig.connect(&served), Style::Structured, "");
    let none = BioFlags::empty();
    assert_eq!(client.write(0, 512, &[1; 1024]), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0).error, 0);
    assert_eq!(rig.recorder.take(), [(Op::Write, none, 1, 2), (Op::Flush, none, 0, 0)]);
    assert_eq!(client.write(FUA, 0, &[1; 512]), 0);
    assert_eq!(rig.recorder.take(), [(Op::Write, BioFlags::FUA, 0, 1)]);
    assert_eq!(client.ask(TRIM, FUA, 0, 4096).error, 0);
    assert_eq!(rig.recorder.take(), [(Op::Discard, none, 0, 8), (Op::Flush, none, 0, 0)]);
    assert_eq!(client.ask(WRITE_ZEROES, 2 | FUA, 0, 4096).error, 0);
    let kept = BioFlags::NO_UNMAP;
    assert_eq!(rig.recorder.take(), [(Op::WriteZeroes, kept, 0, 8), (Op::Flush, none, 0, 0)]);
    assert_eq!(client.ask(CACHE, FUA, 0, 4096).error, 0);
    assert_eq!(rig.recorder.take(), [], "a hint costs nothing");
}

#[test]
fn failures_keep_their_meaning() {
    let rig = Rig::new(1, DriverChoice::Auto, "0 32768 linear recorder 0");
    let served = rig.serve(vec![rig.export(DEVICE, false)]);
    let mut client = Client::new(rig.connect(&served), Style::Structured, "");
    rig.recorder.answer(Op::WriteZeroes, Status::NotSupported);
    assert_eq!(client.ask(WRITE_ZEROES, 16, 0, 512).error, 95, "fast zero may say so");
    assert_eq!(client.ask(WRITE_ZEROES, 0, 0, 512).error, 22, "others may not");
    rig.recorder.answer(Op::Write, Status::NoSpace);
    assert_eq!(client.write(0, 0, &[1; 512]), 28);
    rig.recorder.take();
    rig.recorder.answer(Op::Discard, Status::IoErr);
    assert_eq!(client.ask(TRIM, FUA, 0, 512).error, 5);
    assert_eq!(rig.recorder.take().len(), 1, "no flush after a failure");
    rig.recorder.answer(Op::Flush, Status::IoErr);
    rig.recorder.answer(Op::Discard, Status::Ok);
    assert_eq!(client.ask(FLUSH, 0, 0, 0).error, 5, "a failed flush is reported");
    assert_eq!(client.ask(TRIM, FUA, 0, 512).error, 5, "so is one that had to follow");
}
