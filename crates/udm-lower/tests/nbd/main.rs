//! The NBD client over the real drivers: against a server that does as it is told (`server.rs`),
//! and against nbdkit and qemu-nbd (`others.rs`).
//!
//! Nothing sleeps: a test waits for bios, for what the server has seen, or for the state of the
//! link; deadlines are timers of the lane.
#![allow(clippy::unwrap_used, reason = "what fails in here fails its test")]

#[path = "../lanes/mod.rs"]
mod lanes;
mod others;
mod server;

use lanes::Lane;
use server::{ALL, Answer, DISC, FLUSH, READ, Script, Server, Style, TRIM, WRITE, ZEROES};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use udm_core::{BioBox, LinkState, LowerDevice};
use udm_driver::DriverChoice;
use udm_lower::LowerRegistry;
use udm_types::{BioFlags, Op, Status};

const NONE: BioFlags = BioFlags::empty();
const CHOICES: [DriverChoice; 2] = [DriverChoice::Uring, DriverChoice::Portable];

/// A server, a device over it, and a lane with the device's part.
struct Rig {
    lane: Lane,
    device: Arc<dyn LowerDevice>,
    registry: LowerRegistry,
    name: String,
    server: Option<Server>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new(choice: DriverChoice, options: &str, script: Script) -> Option<Rig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let server = Some(Server::start(&path, script));
        let name = format!("nbd+unix:///disk?socket={}{options}", path.display());
        let registry = LowerRegistry::new(1);
        let device = registry.open(&name, false).unwrap().lower.unwrap().device;
        let lane = Lane::open(0, choice, &device)?;
        Some(Rig { lane, device, registry, name, server, path, _folder: folder })
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    fn link(&self) -> LinkState {
        self.registry.link(&self.name).unwrap()
    }

    fn status(&mut self, op: Op, flags: BioFlags, sector: u64, len_sectors: u64) -> Status {
        self.lane.one(op, flags, sector, len_sectors, 7).status
    }

    /// Turns the lane until it has a connection.
    fn wait_until_up(&mut self) {
        let device = Arc::clone(&self.device);
        self.lane.turn_until(|| device.link().unwrap().is_up());
    }

    /// Submits a bio and turns until the server holds so many answers back.
    fn hang(&mut self, op: Op, sector: u64, len_sectors: u64, held: usize) {
        let bio = self.lane.bio(op, NONE, sector, len_sectors, 9);
        self.lane.submit(bio);
        let server = self.server.as_ref().unwrap();
        self.lane.turn_until(|| server.held_count() >= held);
    }
}

fn on_both_drivers(options: &str, script: &Script, test: impl Fn(Rig)) {
    for choice in CHOICES {
        if let Some(rig) = Rig::new(choice, options, script.clone()) {
            test(rig);
        }
    }
}

fn byte_of(bio: &BioBox, at: u64) -> u8 {
    let mut byte = [0];
    bio.payload.copy_out(at, &mut byte);
    byte[0]
}

fn is_all(bio: &BioBox, byte: u8) -> bool {
    let mut bytes = vec![0; bio.payload.len_bytes() as usize];
    bio.payload.copy_out(0, &mut bytes);
    bytes.iter().all(|&seen| seen == byte)
}

#[test]
fn every_operation_works_in_every_style() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        on_both_drivers("", &Script { style, ..Script::default() }, |mut rig| {
            assert_eq!(rig.status(Op::Write, NONE, 8, 64), Status::Ok);
            assert_eq!(rig.status(Op::Write, BioFlags::FUA, 1000, 1), Status::Ok);
            let read = rig.lane.one(Op::Read, NONE, 0, 80, 0xee);
            assert_eq!((read.status, byte_of(&read, 4095)), (Status::Ok, 0));
            assert_eq!((byte_of(&read, 4096), byte_of(&read, 72 * 512 - 1)), (7, 7));
            assert_eq!(byte_of(&read, 72 * 512), 0);
            assert_eq!(rig.status(Op::WriteZeroes, BioFlags::NO_UNMAP, 8, 8), Status::Ok);
            assert_eq!(rig.status(Op::Discard, NONE, 16, 8), Status::Ok);
            assert_eq!(rig.status(Op::Flush, NONE, 0, 0), Status::Ok);
            assert_eq!(rig.status(Op::Write, BioFlags::PREFLUSH, 0, 1), Status::Ok);
            assert!(is_all(&rig.lane.one(Op::Read, NONE, 24, 48, 1), 7));
            let seen: Vec<_> = rig.server().seen().iter().map(|s| (s.command, s.flags)).collect();
            let plen = if style == Style::Extended { 1 << 5 } else { 0 };
            assert_eq!(
                seen,
                [
                    (WRITE, plen),
                    (WRITE, plen | 1),
                    (READ, 0),
                    (ZEROES, 2),
                    (TRIM, 0),
                    (FLUSH, 0),
                    (FLUSH, 0),
                    (WRITE, plen),
                    (READ, 0)
                ]
            );
            rig.lane.close();
            let server = rig.server.as_ref().unwrap();
            while server.seen().last().unwrap().command != DISC {
                std::thread::yield_now();
            }
            assert_eq!(rig.link().lanes_open, 0);
        });
    }
}

#[test]
fn large_reads_and_writes_go_in_pieces_the_server_takes() {
    let script = Script { block_sizes: Some([512, 4096, 128 << 10]), ..Script::default() };
    on_both_drivers("", &script, |mut rig| {
        assert_eq!(rig.device.limits().max_sectors, 256);
        assert_eq!(rig.status(Op::Write, NONE, 1, 1001), Status::Ok);
        let read = rig.lane.one(Op::Read, NONE, 0, 1003, 1);
        assert_eq!((byte_of(&read, 511), byte_of(&read, 512)), (0, 7));
        assert_eq!((byte_of(&read, 1002 * 512 - 1), byte_of(&read, 1002 * 512)), (7, 0));
        let pieces = rig.server().seen();
        assert!(pieces.iter().all(|seen| seen.len <= 128 << 10), "{pieces:?}");
        assert_eq!(pieces.iter().map(|seen| seen.len).sum::<u64>(), (1001 + 1003) * 512);
        rig.lane.close();
    });
}

#[test]
fn requests_are_pipelined_and_answers_may_come_in_any_order() {
    on_both_drivers("&connections=2", &Script::default(), |mut rig| {
        for sector in 0..64 {
            let bio = rig.lane.bio(Op::Write, NONE, sector * 8, 8, sector as u8 + 1);
            rig.lane.submit(bio);
        }
        let mut done = 0;
        while done < 64 {
            done += rig.lane.turn().len();
        }
        // Two at a time take both connections as soon as both stand.
        while rig.server().seen().iter().all(|seen| seen.connection == 0) {
            for _ in 0..2 {
                let bio = rig.lane.bio(Op::Flush, NONE, 0, 0, 0);
                rig.lane.submit(bio);
            }
            let mut done = 0;
            while done < 2 {
                done += rig.lane.turn().len();
            }
        }
        rig.server().forget_seen();
        rig.server().script(|script| script.answer = Answer::Hold);
        for sector in 0..32 {
            let bio = rig.lane.bio(Op::Read, NONE, sector * 8, 8, 0);
            rig.lane.submit(bio);
        }
        let server = rig.server.as_ref().unwrap();
        rig.lane.turn_until(|| server.held_count() == 32);
        server.release();
        let mut read = Vec::new();
        while read.len() < 32 {
            read.extend(rig.lane.turn());
        }
        for bio in &read {
            assert_eq!(bio.status, Status::Ok);
            assert!(is_all(bio, (bio.sector / 8) as u8 + 1), "sector {}", bio.sector);
        }
        let first = server.seen().iter().filter(|seen| seen.connection == 0).count();
        assert_eq!(first, 16, "both connections are used alike");
        rig.lane.close();
    });
}

#[test]
fn errors_of_the_server_become_statuses() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        on_both_drivers("", &Script { style, ..Script::default() }, |mut rig| {
            for (code, status) in [
                (1, Status::ReadOnly),
                (5, Status::IoErr),
                (12, Status::Resource),
                (22, Status::Invalid),
                (28, Status::NoSpace),
                (95, Status::NotSupported),
                (4711, Status::IoErr),
            ] {
                rig.server().script(|script| script.answer = Answer::Error(code));
                assert_eq!(rig.status(Op::Read, NONE, 0, 8), status);
                assert_eq!(rig.status(Op::Write, NONE, 0, 8), status);
            }
            assert!(rig.link().is_up(), "errors are answers");
            rig.server().script(|script| script.answer = Answer::Error(108));
            assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Transport);
            rig.server().script(|script| script.answer = Answer::Serve);
            rig.wait_until_up();
            assert_eq!(rig.server().connection_count(), 2);
            assert_eq!(rig.link().last_error.unwrap(), "the server is shutting down");
            assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Ok);
            rig.lane.close();
        });
    }
}

#[test]
fn what_the_export_cannot_do_is_done_otherwise_or_refused() {
    // Flush only: no FUA, trim or write-zeroes.
    on_both_drivers("", &Script { flags: 1 | 1 << 2, ..Script::default() }, |mut rig| {
        let limits = rig.device.limits();
        assert_eq!(limits.max_discard_sectors, 0);
        assert_eq!(rig.status(Op::Write, NONE, 0, 2048), Status::Ok);
        rig.server().forget_seen();
        assert_eq!(rig.status(Op::Write, BioFlags::FUA, 0, 8), Status::Ok);
        assert_eq!(rig.status(Op::WriteZeroes, BioFlags::FUA, 8, 1024), Status::Ok);
        assert_eq!(rig.status(Op::Discard, NONE, 0, 8), Status::NotSupported);
        let commands: Vec<_> = rig.server().seen().iter().map(|s| (s.command, s.flags)).collect();
        let (write, flush) = ((WRITE, 0), (FLUSH, 0));
        assert_eq!(commands, [write, flush, write, write, flush]);
        let read = rig.lane.one(Op::Read, NONE, 0, 2048, 1);
        assert_eq!((byte_of(&read, 4095), byte_of(&read, 4096)), (7, 0));
        assert_eq!((byte_of(&read, 1032 * 512 - 1), byte_of(&read, 1032 * 512)), (0, 7));
        rig.lane.close();
    });
    // Nothing at all: a flush has nothing to do.
    on_both_drivers("", &Script { flags: 1, ..Script::default() }, |mut rig| {
        assert_eq!(rig.status(Op::Flush, NONE, 0, 0), Status::Ok);
        assert_eq!(rig.status(Op::Write, BioFlags::PREFLUSH | BioFlags::FUA, 0, 8), Status::Ok);
        let commands: Vec<_> = rig.server().seen().iter().map(|seen| seen.command).collect();
        assert_eq!(commands, [WRITE]);
        rig.lane.close();
    });
}

#[test]
fn a_server_that_dies_fails_what_is_in_flight_at_once_and_comes_back() {
    on_both_drivers("&reconnect=0.01-0.02", &Script::default(), |mut rig| {
        assert_eq!(rig.status(Op::Write, NONE, 0, 8), Status::Ok);
        rig.server().script(|script| script.answer = Answer::Hold);
        rig.hang(Op::Read, 0, 8, 1);
        rig.hang(Op::Write, 8, 2048 - 8, 2);
        rig.server = None;
        let mut done = Vec::new();
        while done.len() < 2 {
            done.extend(rig.lane.turn());
        }
        assert!(done.iter().all(|bio| bio.status == Status::Transport));
        assert!(!rig.link().is_up());
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Transport, "refused at once");
        assert_eq!(rig.status(Op::Flush, NONE, 0, 0), Status::Transport);
        assert!(rig.link().next_try_at.is_some());
        let failures = rig.link().failures;
        let device = Arc::clone(&rig.device);
        rig.lane.turn_until(|| device.link().unwrap().failures > failures + 2);
        let why = rig.link().last_error.unwrap();
        assert!(why.contains("there is no socket"), "{why}");
        rig.server = Some(Server::start(&rig.path, Script::default()));
        rig.wait_until_up();
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Ok);
        rig.lane.close();
    });
}

#[test]
fn a_connection_that_breaks_once_is_made_again_at_once() {
    // With a pause of an hour only the attempt without a pause can be what succeeds.
    on_both_drivers("&reconnect=3600-3600", &Script::default(), |mut rig| {
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Ok);
        rig.server().script(|script| script.answer = Answer::HangUp);
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Transport);
        rig.server().script(|script| script.answer = Answer::Serve);
        rig.wait_until_up();
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Ok);
        // One that hangs up on every request is not called in a circle.
        rig.server().script(|script| script.answer = Answer::HangUp);
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Transport);
        rig.wait_until_up();
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Transport);
        assert!(rig.link().next_try_at.is_some());
        assert_eq!(rig.server().connection_count(), 3);
        rig.lane.close();
    });
}

#[test]
fn a_stalled_server_is_noticed_and_its_late_answers_are_for_nobody() {
    on_both_drivers("&timeout=0.05&reconnect=0.01-0.01", &Script::default(), |mut rig| {
        assert_eq!(rig.status(Op::Write, NONE, 0, 2048), Status::Ok);
        rig.server().script(|script| script.answer = Answer::Hold);
        rig.hang(Op::Read, 0, 8, 1);
        rig.hang(Op::Read, 0, 1024, 2);
        let mut done = Vec::new();
        while done.len() < 2 {
            done.extend(rig.lane.turn());
        }
        assert!(done.iter().all(|bio| bio.status == Status::Timeout));
        assert_eq!(rig.link().last_error.unwrap(), "no answer for 50 ms");
        rig.server().script(|script| script.answer = Answer::Serve);
        rig.wait_until_up();
        // The old answers come now, while new requests of the same slots are under way.
        done.iter().for_each(|bio| bio.payload.fill(0, bio.payload.len_bytes(), 3));
        let bio = rig.lane.bio(Op::Read, NONE, 2040, 8, 0);
        rig.lane.submit(bio);
        rig.server().release();
        let fresh = rig.lane.turn().pop().unwrap();
        assert_eq!((fresh.status, is_all(&fresh, 7)), (Status::Ok, true));
        assert!(done.iter().all(|bio| is_all(bio, 3)), "nobody writes into an answered bio");
        rig.lane.close();
    });
}

#[test]
fn an_export_that_came_back_smaller_stays_failing_and_a_larger_one_is_fine() {
    on_both_drivers("&reconnect=0.005-0.005", &Script::default(), |mut rig| {
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Ok);
        rig.server().script(|script| script.size_bytes = 1 << 19);
        rig.server().cut();
        let device = Arc::clone(&rig.device);
        rig.lane.turn_until(|| device.link().unwrap().is_misfit);
        let why = rig.link().last_error.unwrap();
        assert_eq!(why, "the export shrank from 2048 to 1024 sectors; load a table that fits");
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Transport);
        assert_eq!(rig.device.len_sectors(), 2048);
        // A table that is loaded now gets a device of the new size.
        let small = rig.registry.open(&rig.name, false).unwrap();
        assert_eq!(small.len_sectors, 1024);
        drop(small);
        rig.server().script(|script| script.size_bytes = 1 << 21);
        rig.wait_until_up();
        assert_eq!((rig.device.len_sectors(), rig.link().is_misfit), (4096, false));
        assert_eq!(rig.status(Op::Read, NONE, 4088, 8), Status::Ok);
        assert_eq!(rig.status(Op::Read, NONE, 4089, 8), Status::IoErr);
        rig.server().script(|script| script.flags = ALL | 2);
        rig.server().cut();
        rig.lane.turn_until(|| device.link().unwrap().is_misfit);
        assert_eq!(rig.link().last_error.unwrap(), "the export is read-only now");
        rig.lane.close();
    });
}

#[test]
fn a_server_that_breaks_the_protocol_is_left_and_the_reason_kept() {
    let chunk = |kind: u16, flags: u16, body: &[u8]| {
        let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend(body);
        Answer::Raw(bytes, 8)
    };
    let at = |offset: u64| [&offset.to_be_bytes()[..], &[1; 512]].concat();
    on_both_drivers("&reconnect=0.005-0.005", &Script::default(), |mut rig| {
        for (answer, part) in [
            (Answer::Raw(vec![0; 16], 8), "magic"),
            (chunk(0, 1, b""), "before all its data"),
            (chunk(1, 1, &at(0)), "before all its data"),
            (chunk(1, 0, &at(1 << 40)), "outside"),
            (chunk(1, 0, &at(u64::MAX)), "outside"),
            (chunk(7, 0, b""), "did not ask"),
            (chunk((1 << 15) + 1, 1, b"abc"), "malformed"),
        ] {
            assert_eq!(rig.status(Op::Flush, NONE, 0, 0), Status::Ok, "{part}");
            rig.server().script(|script| script.answer = answer);
            let bio = rig.lane.one(Op::Read, NONE, 0, 8, 0);
            assert_eq!(bio.status, Status::Transport, "{part}");
            let why = rig.link().last_error.unwrap();
            assert!(why.contains("broke the protocol") && why.contains(part), "{why}");
            rig.server().script(|script| script.answer = Answer::Serve);
            rig.wait_until_up();
        }
        rig.lane.close();
    });
}

#[test]
fn an_abort_answers_at_once_and_fences_until_the_server_has_spoken() {
    on_both_drivers("", &Script::default(), |mut rig| {
        rig.server().script(|script| script.answer = Answer::Hold);
        rig.hang(Op::Read, 0, 1024, 1);
        rig.lane.abort(|_| true);
        assert_eq!(rig.lane.done().pop().unwrap().status, Status::Timeout);
        // A read changes nothing: no fence.
        rig.hang(Op::Write, 0, 8, 2);
        rig.hang(Op::Read, 8, 8, 3);
        rig.lane.abort(|bio| bio.op == Op::Write);
        assert_eq!(rig.lane.done().pop().unwrap().status, Status::Timeout);
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Offline);
        rig.server().script(|script| script.answer = Answer::Serve);
        rig.server().release();
        let read = rig.lane.turn().pop().unwrap();
        assert_eq!((read.sector, read.status), (8, Status::Ok));
        // Its answer came after that of the read, on the same connection.
        let mut again = rig.lane.one(Op::Read, NONE, 0, 8, 0);
        while again.status == Status::Offline {
            rig.lane.step(false);
            again = rig.lane.one(Op::Read, NONE, 0, 8, 0);
        }
        assert_eq!((again.status, is_all(&again, 9)), (Status::Ok, true));
        // A fence also ends with its connection.
        rig.server().script(|script| script.answer = Answer::Hold);
        rig.hang(Op::Write, 0, 8, 1);
        rig.lane.abort(|_| true);
        assert_eq!(rig.lane.done().pop().unwrap().status, Status::Timeout);
        assert_eq!(rig.status(Op::Flush, NONE, 0, 0), Status::Offline);
        rig.server().script(|script| script.answer = Answer::Serve);
        rig.server().cut();
        let device = Arc::clone(&rig.device);
        rig.lane.turn_until(|| device.link().unwrap().failures > 0);
        rig.wait_until_up();
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Ok);
        rig.lane.close();
    });
}

#[test]
fn a_failed_flush_is_told_on_every_lane() {
    let Some(mut rig) = Rig::new(DriverChoice::Portable, "", Script::default()) else { return };
    let mut other = Lane::open(1, DriverChoice::Portable, &rig.device).unwrap();
    assert_eq!(other.one(Op::Flush, NONE, 0, 0, 0).status, Status::Ok);
    rig.server().script(|script| script.answer = Answer::Error(5));
    assert_eq!(rig.status(Op::Flush, NONE, 0, 0), Status::IoErr);
    rig.server().script(|script| script.answer = Answer::Serve);
    assert_eq!(other.one(Op::Flush, NONE, 0, 0, 0).status, Status::IoErr);
    assert_eq!(other.one(Op::Flush, NONE, 0, 0, 0).status, Status::Ok);
    assert_eq!(rig.status(Op::Flush, NONE, 0, 0), Status::Ok);
    other.close();
    rig.lane.close();
}

#[test]
fn what_cannot_be_opened_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let name = format!("nbd+unix:///disk?socket={}", path.display());
    let registry = LowerRegistry::new(1);
    let error = registry.open(&name, false).unwrap_err();
    assert!(error.message().contains("there is no socket"), "{}", error.message());
    let server = Server::start(&path, Script { flags: ALL | 2, ..Script::default() });
    let error = registry.open(&name, false).unwrap_err();
    assert!(error.message().contains("the export is read-only"), "{}", error.message());
    let device = registry.open(&name, true).unwrap();
    assert!(device.limits.read_only);
    assert_eq!(registry.open(&name, true).unwrap().dest, device.dest, "found open");
    server.script(|script| script.size_bytes = 511);
    let error = registry.open(&name, true).map(|_| ());
    assert_eq!(error, Ok(()), "what is open need not be asked again");
    drop(device);
    let error = registry.open(&name, true).unwrap_err();
    assert!(error.message().contains("less than one block"), "{}", error.message());
}

#[test]
fn a_part_that_was_let_go_connects_again_for_the_next_table() {
    on_both_drivers("", &Script::default(), |mut rig| {
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Ok);
        rig.lane.let_go();
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Ok);
        assert_eq!(rig.server().connection_count(), 2);
        rig.lane.close();
    });
}

/// Two lanes of a server that wants one connection; the second asks the first.
fn two_lanes(choice: DriverChoice, options: &str) -> Option<(Rig, Lane)> {
    let script = Script { flags: ALL & !(1 << 8), ..Script::default() };
    let rig = Rig::new(choice, options, script)?;
    let other = Lane::open(1, choice, &rig.device)?;
    Some((rig, other))
}

/// Turns both lanes until the second has answered.
fn ask_other(rig: &mut Rig, other: &mut Lane, bio: BioBox) -> BioBox {
    other.submit(bio);
    loop {
        other.step(false);
        rig.lane.step(false);
        if let Some(bio) = other.done().pop() {
            return bio;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_server_without_multi_conn_gets_one_connection_for_all_lanes() {
    for choice in CHOICES {
        let Some((mut rig, mut other)) = two_lanes(choice, "&connections=4") else { return };
        for round in 0..20 {
            let write = other.bio(Op::Write, BioFlags::FUA, round * 8, 8, 5);
            assert_eq!(ask_other(&mut rig, &mut other, write).status, Status::Ok);
            assert!(is_all(&rig.lane.one(Op::Read, NONE, round * 8, 8, 0), 5));
            let read = other.bio(Op::Read, NONE, round * 8, 128, 1);
            let read = ask_other(&mut rig, &mut other, read);
            assert_eq!((byte_of(&read, 4095), byte_of(&read, 4096)), (5, 0));
            let flush = other.bio(Op::Flush, NONE, 0, 0, 0);
            assert_eq!(ask_other(&mut rig, &mut other, flush).status, Status::Ok);
        }
        rig.server().script(|script| script.answer = Answer::Error(28));
        let write = other.bio(Op::Write, NONE, 0, 8, 5);
        assert_eq!(ask_other(&mut rig, &mut other, write).status, Status::NoSpace);
        assert_eq!(rig.server().connection_count(), 1);
        // An abort where the bio is: it is answered there, and the fence holds until home knows.
        rig.server().script(|script| script.answer = Answer::Hold);
        let write = other.bio(Op::Write, NONE, 0, 8, 6);
        other.submit(write);
        while rig.server().held_count() == 0 {
            other.step(false);
            rig.lane.step(false);
        }
        other.abort(|_| true);
        assert_eq!(other.done().pop().unwrap().status, Status::Timeout);
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Offline);
        rig.server().script(|script| script.answer = Answer::Serve);
        rig.server().release();
        while rig.status(Op::Flush, NONE, 0, 0) == Status::Offline {
            rig.lane.step(false);
            other.step(false);
        }
        other.close();
        rig.lane.close();
        assert_eq!(rig.server().connection_count(), 1);
    }
}

#[test]
fn the_one_connection_breaks_for_all_and_another_lane_takes_it_over() {
    for choice in CHOICES {
        let options = "&reconnect=0.005-0.005";
        let Some((mut rig, mut other)) = two_lanes(choice, options) else { return };
        rig.server().script(|script| script.answer = Answer::HangUp);
        let read = other.bio(Op::Read, NONE, 0, 8, 1);
        assert_eq!(ask_other(&mut rig, &mut other, read).status, Status::Transport);
        rig.server().script(|script| script.answer = Answer::Serve);
        rig.wait_until_up();
        // The home lane's part goes; the other becomes home with its next bio.
        rig.lane.close();
        let mut read = other.one(Op::Read, NONE, 0, 8, 1);
        while read.status == Status::Transport {
            read = other.one(Op::Read, NONE, 0, 8, 1);
        }
        assert_eq!((read.status, is_all(&read, 0)), (Status::Ok, true));
        other.close();
    }
}

/// Passes one connection after the other on to a unix socket; the port.
fn tcp_door(to: PathBuf, connections: usize) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for tcp in listener.incoming().take(connections) {
            let (mut tcp, mut unix) = (tcp.unwrap(), UnixStream::connect(&to).unwrap());
            let (mut back, mut forth) = (tcp.try_clone().unwrap(), unix.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut unix, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
            let _ = std::io::copy(&mut tcp, &mut forth);
            let _ = forth.shutdown(Shutdown::Both);
        }
    });
    port
}

#[test]
fn tcp_works_like_a_unix_socket_and_a_door_that_closes_is_a_path_error() {
    for choice in CHOICES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let server = Server::start(&path, Script::default());
        let name = format!("nbd://localhost:{}/disk?reconnect=0.005-0.01", tcp_door(path, 2));
        let registry = LowerRegistry::new(1);
        let device = registry.open(&name, false).unwrap().lower.unwrap().device;
        let Some(mut lane) = Lane::open(0, choice, &device) else { continue };
        assert_eq!(lane.one(Op::Write, NONE, 0, 1024, 7).status, Status::Ok);
        assert!(is_all(&lane.one(Op::Read, NONE, 0, 1024, 1), 7));
        server.cut();
        lane.turn_until(|| device.link().unwrap().failures > 0);
        lane.turn_until(|| device.link().unwrap().is_up());
        assert!(is_all(&lane.one(Op::Read, NONE, 0, 1024, 1), 7));
        // The door takes two. Who comes while it closes is cut off, who comes later finds nobody.
        server.cut();
        lane.turn_until(|| {
            let why = device.link().unwrap().last_error.unwrap_or_default();
            why.contains("refused") || why.contains("nobody listens")
        });
        assert_eq!(lane.one(Op::Read, NONE, 0, 8, 1).status, Status::Transport);
        lane.close();
    }
}

#[test]
fn a_server_that_accepts_and_says_nothing_does_not_hold_anybody_up() {
    on_both_drivers("&timeout=0.02&reconnect=0.005-0.005", &Script::default(), |mut rig| {
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Ok);
        rig.server().script(|script| script.silent = true);
        rig.server().cut();
        let device = Arc::clone(&rig.device);
        rig.lane.turn_until(|| device.link().unwrap().failures > 2);
        assert_eq!(rig.link().last_error.unwrap(), "the server does not answer");
        assert_eq!(rig.status(Op::Read, NONE, 0, 8), Status::Transport);
        rig.server().script(|script| script.silent = false);
        rig.wait_until_up();
        rig.lane.close();
    });
}
