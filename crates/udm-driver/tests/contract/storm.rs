//! Many operations at once, and a driver that is dropped in the middle of them.

use crate::rig::{Rig, bytes_of, pattern, payload_of, scattered, scratch_file};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use udm_lane::{Buf, DriverOp, FallocateKind, OpToken, Payload, Segment};

/// Operations in flight together: far more than a submission queue (1024) or completion queue
/// (4096) holds.
const OPS: usize = 10_000;
/// Each operation has its own piece of the file, since the order of overlapping ones is open.
const PIECE_BYTES: usize = 4_096;

/// What a random operation should have done to the model, or seen in it.
enum Expected {
    Changed,
    Bytes(Vec<u8>),
}

pub(crate) fn ten_thousand_operations_agree_with_a_byte_model(mut rig: Rig) {
    let file = scratch_file();
    file.set_len((OPS * PIECE_BYTES) as u64).unwrap();
    let check = file.try_clone().unwrap();
    let handle = rig.register(file);
    let mut model = vec![0_u8; OPS * PIECE_BYTES];
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..3_u64 {
        let mut expected: BTreeMap<OpToken, (u32, Expected)> = BTreeMap::new();
        for piece in 0..OPS {
            let start = random.usize(..PIECE_BYTES);
            let len = random.usize(1..=PIECE_BYTES - start);
            let range = piece * PIECE_BYTES + start..piece * PIECE_BYTES + start + len;
            let offset_bytes = range.start as u64;
            let (op, outcome) = match random.u8(..20) {
                0..9 => {
                    let bytes = pattern(round ^ piece as u64, len);
                    model[range].copy_from_slice(&bytes);
                    let payload = if random.bool() {
                        payload_of(&bytes)
                    } else {
                        scattered(&bytes, random.usize(100..2_000))
                    };
                    // Some are durable: slow ones amid fast ones.
                    let dsync = random.u16(..500) == 0;
                    let op = DriverOp::Write { handle, offset_bytes, payload, dsync };
                    (op, (len as u32, Expected::Changed))
                }
                9..18 => {
                    let payload = scattered(&vec![0; len], random.usize(100..5_000));
                    let seen = model[range].to_vec();
                    let op = DriverOp::Read { handle, offset_bytes, payload };
                    (op, (len as u32, Expected::Bytes(seen)))
                }
                _ => {
                    model[range].fill(0);
                    let kind = FallocateKind::PunchHole;
                    let len_bytes = len as u64;
                    let op = DriverOp::Fallocate { handle, kind, offset_bytes, len_bytes };
                    (op, (0, Expected::Changed))
                }
            };
            expected.insert(rig.submit(op), outcome);
        }
        for (token, (result, outcome)) in expected {
            let completion = rig.completion(token);
            assert!(!completion.more);
            assert_eq!(completion.result, Ok(result));
            match outcome {
                Expected::Changed => {}
                Expected::Bytes(bytes) => assert_eq!(bytes_of(&completion), bytes),
            }
            assert_eq!(rig.leftover(token), 0, "a second completion");
        }
    }
    let mut seen = vec![0; model.len()];
    check.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == model, "the file differs from the model");
}

pub(crate) fn many_receives_outnumber_the_queue(mut rig: Rig) {
    // Receives stay in flight for as long as their peers are quiet. They must not keep other
    // operations from starting.
    const CONNECTIONS: usize = 1_500;
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS {
        let (handle, peer) = rig.socket_pair();
        peers.push((rig.receive(handle, 8), peer));
    }
    let file = rig.register(scratch_file());
    let payload = payload_of(&[1; 512]);
    let op = DriverOp::Write { handle: file, offset_bytes: 0, payload, dsync: false };
    assert_eq!(rig.run(op), Ok(512));
    for (index, (_, peer)) in peers.iter_mut().enumerate() {
        peer.write_all(&index.to_le_bytes()).unwrap();
    }
    for (index, (token, _)) in peers.iter().enumerate() {
        assert_eq!(bytes_of(&rig.completion(*token)), index.to_le_bytes());
    }
}

pub(crate) fn more_completions_at_once_than_the_queue_holds(mut rig: Rig) {
    let (handle, peer) = rig.socket_pair();
    let tokens: Vec<OpToken> = (0..6_000).map(|_| rig.receive(handle, 8)).collect();
    rig.turn(Some(udm_types::Nanos::ZERO));
    drop(peer);
    for token in &tokens {
        assert_eq!(rig.result(*token), Ok(0));
    }
    for token in tokens {
        assert_eq!(rig.leftover(token), 0);
    }
}

pub(crate) fn a_dropped_driver_finishes_writes_and_frees_its_memory(mut rig: Rig) {
    let mut kept: Vec<Buf> = Vec::new();
    let mut sockets = Vec::new();
    for _ in 0..200 {
        let (ours, peer) = UnixStream::pair().unwrap();
        // Stays open, so that a receive still armed after the drop would get what comes then.
        let witness = ours.try_clone().unwrap();
        let handle = rig.register(ours);
        let buf = Buf::alloc(4_096);
        kept.push(buf.clone());
        rig.submit(DriverOp::Recv { handle, segment: Segment::whole(buf) });
        sockets.push((peer, witness));
    }
    rig.turn(Some(udm_types::Nanos::ZERO));
    let file = scratch_file();
    let check = file.try_clone().unwrap();
    let handle = rig.register(file);
    for index in 0..2_000_u64 {
        let buf = Buf::alloc(4_096);
        buf.fill(0, 4_096, 1 + index as u8 % 100);
        kept.push(buf.clone());
        let offset_bytes = index * 4_096;
        let half = |start| Segment { buf: buf.clone(), offset_bytes: start, len_bytes: 2_048 };
        let mut payload = Payload::from(half(0));
        payload.push(half(2_048));
        rig.submit(DriverOp::Write { handle, offset_bytes, payload, dsync: false });
    }
    drop(rig);
    for index in 0..2_000_u64 {
        let mut seen = [0; 4_096];
        check.read_exact_at(&mut seen, index * 4_096).unwrap();
        assert_eq!(seen, [1 + index as u8 % 100; 4_096], "write {index} was lost by the drop");
    }
    for (peer, _) in &mut sockets {
        peer.write_all(&[0xEE; 64]).unwrap();
    }
    for (index, (peer, mut witness)) in sockets.into_iter().enumerate() {
        drop(peer);
        let mut seen = Vec::new();
        witness.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, [0xEE; 64], "receive {index} has outlived its driver");
    }
    for (index, buf) in kept.iter_mut().enumerate() {
        let bytes = buf.get_mut().expect("the driver still holds the memory");
        assert!(!bytes.contains(&0xEE), "buffer {index} was written after the drop");
    }
}

pub(crate) fn a_dropped_driver_closes_what_it_owned(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    let token = rig.receive(handle, 100);
    assert_eq!(rig.leftover(token), 0);
    let waker = rig.driver.waker();
    drop(rig);
    let mut seen = Vec::new();
    assert_eq!(peer.read_to_end(&mut seen).unwrap(), 0);
    waker.wake();
}
