//! Files: reads, writes, durability calls, holes, and the errors of wrong descriptors.

use crate::rig::{Rig, bytes_of, pattern, payload_of, scattered, scratch_file};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use udm_lane::{Buf, CopyWay, DriverOp, Errno, FallocateKind, Handle, OpToken, Payload, RawHandle};
use udm_types::Nanos;

fn write(handle: Handle, offset_bytes: u64, bytes: &[u8], dsync: bool) -> DriverOp {
    DriverOp::Write { handle, offset_bytes, payload: payload_of(bytes), dsync }
}

fn read(handle: Handle, offset_bytes: u64, len_bytes: usize) -> DriverOp {
    DriverOp::Read { handle, offset_bytes, payload: Payload::from_buf(Buf::alloc(len_bytes)) }
}

pub(crate) fn what_was_written_is_read(mut rig: Rig) {
    let file = scratch_file();
    let check = file.try_clone().unwrap();
    let handle = rig.register(file);
    let bytes = pattern(1, 10_000);
    assert_eq!(rig.run(write(handle, 12_345, &bytes, false)), Ok(10_000));
    assert_eq!(rig.read(handle, 12_345, 10_000), bytes);
    let mut seen = vec![0; 10_000];
    check.read_exact_at(&mut seen, 12_345).unwrap();
    assert_eq!(seen, bytes);
}

pub(crate) fn many_segments_make_one_transfer(mut rig: Rig) {
    let handle = rig.register(scratch_file());
    let bytes = pattern(2, 5_000);
    for piece_bytes in [4_999, 1_700, 77] {
        let payload = scattered(&bytes, piece_bytes);
        let op = DriverOp::Write { handle, offset_bytes: 513, payload, dsync: false };
        assert_eq!(rig.run(op), Ok(5_000));
        assert_eq!(rig.read(handle, 513, 5_000), bytes);
        let payload = scattered(&[0; 5_000], piece_bytes);
        let token = rig.submit(DriverOp::Read { handle, offset_bytes: 513, payload });
        let completion = rig.completion(token);
        assert_eq!(bytes_of(&completion), bytes, "pieces of {piece_bytes}");
    }
}

pub(crate) fn a_read_at_the_end_is_short(mut rig: Rig) {
    let file = scratch_file();
    file.write_all_at(&[7; 1_000], 0).unwrap();
    let handle = rig.register(file);
    assert_eq!(rig.run(read(handle, 600, 4_096)), Ok(400));
    assert_eq!(rig.run(read(handle, 1_000, 4_096)), Ok(0));
    assert_eq!(rig.run(read(handle, 1 << 40, 4_096)), Ok(0));
}

pub(crate) fn dsync_and_sync_succeed(mut rig: Rig) {
    let handle = rig.register(scratch_file());
    let bytes = pattern(3, 4_096);
    assert_eq!(rig.run(write(handle, 0, &bytes, true)), Ok(4_096));
    let payload = scattered(&bytes, 1_000);
    let op = DriverOp::Write { handle, offset_bytes: 4_096, payload, dsync: true };
    assert_eq!(rig.run(op), Ok(4_096));
    assert_eq!(rig.run(DriverOp::Sync { handle }), Ok(0));
    // A sync that cannot work says so, which shows that one was really asked for.
    let (socket, _peer) = rig.socket_pair();
    assert_eq!(rig.run(DriverOp::Sync { handle: socket }), Err(Errno(libc::EINVAL)));
}

pub(crate) fn a_punched_range_reads_zero_and_frees_space(mut rig: Rig) {
    let file = scratch_file();
    let check = file.try_clone().unwrap();
    let handle = rig.register(file);
    let bytes = pattern(4, 256 << 10);
    assert_eq!(rig.run(write(handle, 0, &bytes, true)), Ok(256 << 10));
    let blocks_before = check.metadata().unwrap().blocks();
    let (offset_bytes, len_bytes) = (64 << 10, 128 << 10);
    let kind = FallocateKind::PunchHole;
    assert_eq!(rig.run(DriverOp::Fallocate { handle, kind, offset_bytes, len_bytes }), Ok(0));
    let mut expected = bytes;
    expected[64 << 10..192 << 10].fill(0);
    assert_eq!(rig.read(handle, 0, 256 << 10), expected);
    let metadata = check.metadata().unwrap();
    assert!(metadata.blocks() < blocks_before, "the space must be given back");
    assert_eq!(metadata.len(), 256 << 10, "the length must stay");
}

pub(crate) fn a_zeroed_range_reads_zero(mut rig: Rig) {
    let file = scratch_file();
    let check = file.try_clone().unwrap();
    let handle = rig.register(file);
    let bytes = pattern(5, 64 << 10);
    assert_eq!(rig.run(write(handle, 0, &bytes, false)), Ok(64 << 10));
    let (offset_bytes, len_bytes, kind) = (1_000, 30_000, FallocateKind::ZeroRange);
    let result = rig.run(DriverOp::Fallocate { handle, kind, offset_bytes, len_bytes });
    if result == Err(Errno(libc::EOPNOTSUPP)) {
        // Some file systems cannot; then the kernel must say the same when asked directly.
        let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a call on a descriptor that `check` keeps open, without any memory.
        let direct = unsafe { libc::fallocate(check.as_raw_fd(), mode, 1_000, 30_000) };
        assert_eq!(direct, -1, "the driver refused what the file system can");
        return;
    }
    assert_eq!(result, Ok(0));
    let mut expected = bytes;
    expected[1_000..31_000].fill(0);
    assert_eq!(rig.read(handle, 0, 64 << 10), expected);
}

pub(crate) fn a_wrong_descriptor_completes_with_its_errno(mut rig: Rig) {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let read_only = rig.register(File::open("/proc/self/exe").unwrap());
    assert_eq!(rig.run(write(read_only, 0, &[1; 512], false)), Err(Errno(libc::EBADF)));
    let directory = rig.register(File::open(path).unwrap());
    assert_eq!(rig.run(read(directory, 0, 512)), Err(Errno(libc::EISDIR)));
    let file = rig.register(scratch_file());
    let token = rig.receive(file, 512);
    assert_eq!(rig.result(token), Err(Errno(libc::ENOTSOCK)));
    let token = rig.send(file, &[1; 10]);
    assert_eq!(rig.result(token), Err(Errno(libc::ENOTSOCK)));
    assert_eq!(rig.run(DriverOp::Accept { handle: file }), Err(Errno(libc::ENOTSOCK)));
    assert_eq!(rig.driver.register(RawHandle(-1)), Err(Errno(libc::EBADF)));
}

pub(crate) fn a_stale_handle_completes_with_ebadf(mut rig: Rig) {
    let first = rig.register(scratch_file());
    rig.driver.close(first);
    let second = rig.register(scratch_file());
    let token = rig.submit(write(first, 0, &[1; 512], false));
    let completion = rig.completion(token);
    assert_eq!(completion.result, Err(Errno(libc::EBADF)));
    assert_eq!(completion.payload.len_bytes(), 512, "the memory comes back");
    assert_eq!(rig.run(read(second, 0, 512)), Ok(0), "nothing may reach the next file");
    assert_eq!(rig.run(read(Handle(9_999), 0, 512)), Err(Errno(libc::EBADF)));
    rig.driver.close(first);
    rig.driver.shutdown(first);
    assert_eq!(rig.run(read(second, 0, 512)), Ok(0), "a stale close may not close the next file");
}

pub(crate) fn an_offset_past_the_signed_range_is_refused(mut rig: Rig) {
    let handle = rig.register(scratch_file());
    for offset_bytes in [u64::MAX, 1 << 63] {
        let result = rig.run(write(handle, offset_bytes, &[1; 512], false));
        assert_eq!(result, Err(Errno(libc::EINVAL)));
        assert_eq!(rig.run(read(handle, offset_bytes, 512)), Err(Errno(libc::EINVAL)));
    }
    let (kind, offset_bytes, len_bytes) = (FallocateKind::PunchHole, 512, u64::MAX);
    let op = DriverOp::Fallocate { handle, kind, offset_bytes, len_bytes };
    assert_eq!(rig.run(op), Err(Errno(libc::EINVAL)));
    assert_eq!(rig.run(read(handle, 0, 512)), Ok(0), "nothing was written anywhere");
}

pub(crate) fn an_empty_transfer_does_nothing(mut rig: Rig) {
    let handle = rig.register(scratch_file());
    let payload = Payload::empty();
    let op = DriverOp::Write { handle, offset_bytes: 0, payload, dsync: false };
    assert_eq!(rig.run(op), Ok(0));
    let op = DriverOp::Read { handle, offset_bytes: 0, payload: Payload::empty() };
    assert_eq!(rig.run(op), Ok(0));
}

pub(crate) fn close_lets_operations_in_flight_finish(mut rig: Rig) {
    let file = scratch_file();
    let check = file.try_clone().unwrap();
    let handle = rig.register(file);
    let tokens: Vec<OpToken> = (0..100)
        .map(|index| rig.submit(write(handle, index * 4_096, &pattern(index, 4_096), false)))
        .collect();
    rig.driver.close(handle);
    // Takes over the closed file's place if the driver gives it away too early.
    let next = rig.register(scratch_file());
    for token in tokens {
        assert_eq!(rig.result(token), Ok(4_096));
    }
    for index in 0..100 {
        let mut seen = vec![0; 4_096];
        check.read_exact_at(&mut seen, index * 4_096).unwrap();
        assert_eq!(seen, pattern(index, 4_096));
    }
    assert_eq!(rig.run(read(next, 0, 512)), Ok(0));
}

pub(crate) fn a_pipe_waits_for_its_data(mut rig: Rig) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let handle = rig.register(reader);
    let token = rig.submit(read(handle, 0, 100));
    assert_eq!(rig.leftover(token), 0);
    writer.write_all(b"hello").unwrap();
    let completion = rig.completion(token);
    assert_eq!(bytes_of(&completion), b"hello");
    drop(writer);
    assert_eq!(rig.run(read(handle, 0, 100)), Ok(0));
    assert!(rig.driver.now() > Nanos::ZERO);
}

pub(crate) fn a_command_of_a_file_that_has_none_is_refused(mut rig: Rig) {
    let handle = rig.register(scratch_file());
    let refused = rig.run(DriverOp::Command {
        handle,
        code: 0xC010_7520,
        words: [0; 8],
        memory: Payload::empty(),
    });
    assert!(refused.is_err(), "{refused:?}");
    // The file is as it was.
    assert_eq!(rig.run(write(handle, 0, b"still", false)), Ok(5));
    rig.driver.close(handle);
    let late = rig.run(DriverOp::Command {
        handle,
        code: 0xC010_7520,
        words: [0; 8],
        memory: Payload::empty(),
    });
    assert_eq!(late, Err(Errno(libc::EBADF)));
}

pub(crate) fn memory_is_lent_to_devices_only(mut rig: Rig) {
    let handle = rig.register(scratch_file());
    let memory = payload_of(&[0; 288]);
    let refused = rig.run(DriverOp::Lend { handle, queue: 0, memory });
    assert!(refused.is_err(), "{refused:?}");
    let refused = rig.run(DriverOp::Exchange { handle, queue: 0, message: 7 });
    assert!(refused.is_err(), "{refused:?}");
    // The file is as it was.
    assert_eq!(rig.run(write(handle, 0, b"still", false)), Ok(5));
    rig.driver.close(handle);
    let late = rig.run(DriverOp::Exchange { handle, queue: 0, message: 7 });
    assert_eq!(late, Err(Errno(libc::EBADF)));
}

pub(crate) fn a_copy_at_once_copies_or_says_that_it_cannot(mut rig: Rig) {
    let file = scratch_file();
    let check = file.try_clone().unwrap();
    let handle = rig.register(file);
    let bytes = pattern(9, 5_000);
    let copied = rig.driver.copy_now(handle, 513, &scattered(&bytes, 1_700), CopyWay::In);
    if rig.driver.name() == "portable" {
        return assert_eq!(copied, Err(Errno(libc::ENOSYS)));
    }
    assert_eq!(copied, Ok(5_000));
    let mut seen = vec![0; 5_000];
    check.read_exact_at(&mut seen, 513).unwrap();
    assert_eq!(seen, bytes);
    let payload = Payload::from_buf(Buf::alloc(5_000));
    assert_eq!(rig.driver.copy_now(handle, 513, &payload, CopyWay::Out), Ok(5_000));
    payload.copy_out(0, &mut seen);
    assert_eq!(seen, bytes);
    let beyond = rig.driver.copy_now(handle, u64::MAX, &payload, CopyWay::Out);
    assert_eq!(beyond, Err(Errno(libc::EINVAL)));
    rig.driver.close(handle);
    let late = rig.driver.copy_now(handle, 0, &payload, CopyWay::Out);
    assert_eq!(late, Err(Errno(libc::EBADF)));
}
