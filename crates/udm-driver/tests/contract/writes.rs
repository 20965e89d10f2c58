//! Writes into the page cache, which the drivers hand to other threads: cancelled, dropped in
//! the middle, mixed with durable ones.

use crate::rig::{Rig, payload_of, scattered, scratch_file};
use std::fs::File;
use std::os::unix::fs::FileExt;
use udm_lane::{Buf, DriverOp, Errno, Handle, OpToken, Payload};
use udm_types::Nanos;

const BLOCK_BYTES: u64 = 4_096;

fn block(index: u64) -> [u8; BLOCK_BYTES as usize] {
    [1 + (index % 100) as u8; BLOCK_BYTES as usize]
}

fn write(handle: Handle, index: u64, dsync: bool) -> DriverOp {
    let offset_bytes = index * BLOCK_BYTES;
    DriverOp::Write { handle, offset_bytes, payload: payload_of(&block(index)), dsync }
}

fn holds_block(file: &File, index: u64) -> bool {
    let mut seen = [0; BLOCK_BYTES as usize];
    file.read_exact_at(&mut seen, index * BLOCK_BYTES).is_ok() && seen == block(index)
}

pub(crate) fn a_cancelled_write_ends_once_and_tells_the_truth(mut rig: Rig) {
    let file = scratch_file();
    file.set_len(200 * BLOCK_BYTES).unwrap();
    let check = file.try_clone().unwrap();
    let handle = rig.register(file);
    let tokens: Vec<OpToken> =
        (0..200).map(|index| rig.submit(write(handle, index, false))).collect();
    // Half of them before anything has begun, half of them while it runs.
    tokens[..100].iter().for_each(|&token| rig.driver.cancel(token));
    rig.turn(Some(Nanos::ZERO));
    tokens[100..].iter().for_each(|&token| rig.driver.cancel(token));
    let mut ended_early = Vec::new();
    for (index, token) in (0..).zip(tokens) {
        let completion = rig.completion(token);
        assert_eq!(completion.payload.len_bytes(), BLOCK_BYTES, "the memory comes back");
        match completion.result {
            Ok(done) => {
                assert_eq!((u64::from(done), holds_block(&check, index)), (BLOCK_BYTES, true))
            }
            Err(errno) => {
                assert_eq!(errno, Errno(libc::ECANCELED));
                ended_early.push(index);
            }
        }
        assert_eq!(rig.leftover(token), 0, "a second completion");
    }
    assert_eq!(rig.run(write(handle, 300, false)), Ok(BLOCK_BYTES as u32), "the file goes on");
    drop(rig);
    for index in ended_early {
        let mut seen = [9; BLOCK_BYTES as usize];
        check.read_exact_at(&mut seen, index * BLOCK_BYTES).unwrap();
        assert!(seen.iter().all(|&byte| byte == 0), "write {index} was cancelled, then done");
    }
}

pub(crate) fn a_driver_dropped_amid_writes_finishes_them(mut rig: Rig) {
    let file = scratch_file();
    let check = file.try_clone().unwrap();
    let handle = rig.register(file);
    let mut kept: Vec<Buf> = Vec::new();
    for index in 0..1_000 {
        let buf = Buf::alloc(BLOCK_BYTES as usize);
        buf.copy_in(0, &block(index));
        kept.push(buf.clone());
        let (offset_bytes, payload) = (index * BLOCK_BYTES, Payload::from_buf(buf));
        rig.submit(DriverOp::Write { handle, offset_bytes, payload, dsync: index % 250 == 0 });
        if index % 300 == 0 {
            // These have begun when the rest is submitted; the last ones never see a turn.
            rig.turn(Some(Nanos::ZERO));
        }
    }
    rig.driver.close(handle);
    drop(rig);
    for index in 0..1_000 {
        assert!(holds_block(&check, index), "write {index} was lost by the drop");
    }
    for buf in &mut kept {
        assert!(buf.get_mut().is_some(), "the driver still holds the memory");
    }
}

pub(crate) fn plain_durable_and_scattered_writes_of_two_files_all_arrive(mut rig: Rig) {
    let files = [scratch_file(), scratch_file()];
    let checks = files.each_ref().map(|file| file.try_clone().unwrap());
    let handles = files.map(|file| rig.register(file));
    let mut tokens = Vec::new();
    for index in 0..300 {
        let handle = handles[index as usize % 2];
        let op = if index % 3 == 0 {
            let payload = scattered(&block(index), 700);
            DriverOp::Write { handle, offset_bytes: index * BLOCK_BYTES, payload, dsync: false }
        } else {
            write(handle, index, index % 50 == 1)
        };
        tokens.push(rig.submit(op));
        if index % 7 == 0 {
            rig.turn(Some(Nanos::ZERO));
        }
    }
    for (index, token) in (0..).zip(tokens) {
        assert_eq!(rig.result(token), Ok(BLOCK_BYTES as u32));
        assert!(holds_block(&checks[index as usize % 2], index), "block {index}");
    }
}
