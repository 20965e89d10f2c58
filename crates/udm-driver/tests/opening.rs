//! Opening files and block devices: limits, creation, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, mknodat};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use udm_driver::{OpenOptions, open_file};
use udm_lane::{Buf, Errno};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_file_is_described() {
    let folder = folder();
    let path = folder.path().join("disk");
    fs::write(&path, vec![7; 10_000]).unwrap();
    let opened = open_file(&path, OpenOptions::default()).unwrap();
    assert_eq!(opened.len_bytes, 10_000);
    assert_eq!(opened.logical_block_bytes, 512);
    assert!(opened.physical_block_bytes.is_power_of_two());
    assert_eq!((opened.is_block_device, opened.major_minor), (false, None));
    assert_eq!((opened.read_only, opened.direct, opened.created), (false, false, false));
    let flags = fcntl_getfl(&opened.fd).unwrap();
    assert!(!flags.contains(OFlags::NONBLOCK), "the ring would not wait on such a descriptor");
    assert_eq!(fs::read(&path).unwrap(), vec![7; 10_000], "asking changes nothing");
}

#[test]
fn a_read_only_file_cannot_be_written() {
    let folder = folder();
    let path = folder.path().join("disk");
    fs::write(&path, [1; 512]).unwrap();
    let opened = open_file(&path, OpenOptions { read_only: true, ..Default::default() }).unwrap();
    assert!(opened.read_only && !opened.supports_discard);
    assert!(fs::File::from(opened.fd).write_at(&[2; 512], 0).is_err());
}

#[test]
fn a_missing_file_is_created_only_when_asked() {
    let folder = folder();
    let path = folder.path().join("disk");
    let error = open_file(&path, OpenOptions::default()).err();
    assert_eq!(error, Some(Errno(libc::ENOENT)));
    let options = OpenOptions { create_len: Some(1 << 30), ..Default::default() };
    let opened = open_file(&path, options).unwrap();
    assert!(opened.created);
    assert_eq!(opened.len_bytes, 1 << 30);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert_eq!(metadata.blocks(), 0, "the file is sparse");
    let again = open_file(&path, OpenOptions { create_len: Some(512), ..options }).unwrap();
    assert_eq!((again.created, again.len_bytes), (false, 1 << 30), "an existing file stays");
}

#[test]
fn a_file_that_cannot_have_its_length_is_removed_again() {
    let folder = folder();
    let path = folder.path().join("disk");
    let options = OpenOptions { create_len: Some(u64::MAX), ..Default::default() };
    assert!(open_file(&path, options).is_err());
    assert!(!path.exists());
}

#[test]
fn other_kinds_of_file_are_refused_without_hanging() {
    let folder = folder();
    let fifo = folder.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for path in [fifo.as_path(), Path::new("/dev/null")] {
        let error = open_file(path, OpenOptions::default()).err();
        assert_eq!(error, Some(Errno(libc::ENOTBLK)), "{path:?}");
    }
    let read_only = OpenOptions { read_only: true, ..Default::default() };
    assert_eq!(open_file(&fifo, read_only).err(), Some(Errno(libc::ENOTBLK)));
    assert_eq!(open_file(folder.path(), read_only).err(), Some(Errno(libc::ENOTBLK)));
}

#[test]
fn direct_alignment_is_enough_for_direct_reads() {
    let folder = folder();
    let path = folder.path().join("disk");
    fs::write(&path, vec![5; 64 << 10]).unwrap();
    let opened = match open_file(&path, OpenOptions { direct: true, ..Default::default() }) {
        Ok(opened) => opened,
        Err(Errno(libc::EINVAL)) => {
            eprintln!("skipped: this file system has no direct I/O");
            return;
        }
        Err(errno) => panic!("{errno:?}"),
    };
    let (logical, memory) = (opened.logical_block_bytes, opened.memory_align_bytes);
    assert!(logical >= 512 && logical.is_power_of_two() && memory <= 4_096);
    let file = fs::File::from(opened.fd);
    let mut buf = Buf::alloc(8_192);
    let slice = buf.get_mut().unwrap();
    let end = memory as usize + logical as usize;
    let read = file.read_at(&mut slice[memory as usize..end], u64::from(logical)).unwrap();
    assert_eq!(read, logical as usize);
    assert_eq!(slice[memory as usize..end], vec![5; logical as usize]);
}

#[test]
fn discard_is_reported_as_the_file_system_has_it() {
    let folder = folder();
    let path = folder.path().join("disk");
    fs::write(&path, vec![5; 64 << 10]).unwrap();
    let opened = open_file(&path, OpenOptions::default()).unwrap();
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    let real = rustix::fs::fallocate(&opened.fd, flags, 0, 4_096).is_ok();
    assert_eq!(opened.supports_discard, real);
}

#[test]
fn a_block_device_is_described_as_sysfs_has_it() {
    let mut checked = 0;
    for entry in fs::read_dir("/sys/class/block").into_iter().flatten().flatten() {
        let node = Path::new("/dev").join(entry.file_name());
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(entry.path().join(name)).ok()?.trim().parse().ok()
        };
        let read_only = OpenOptions { read_only: true, ..Default::default() };
        let Ok(opened) = open_file(&node, read_only) else { continue };
        let (Some(sectors), Some(logical), Some(physical)) = (
            number("size"),
            number("queue/logical_block_size"),
            number("queue/physical_block_size"),
        ) else {
            continue;
        };
        assert_eq!(opened.len_bytes, sectors * 512, "{node:?}");
        assert_eq!(u64::from(opened.logical_block_bytes), logical, "{node:?}");
        assert_eq!(u64::from(opened.physical_block_bytes), physical, "{node:?}");
        assert!(opened.is_block_device && opened.major_minor.is_some() && opened.read_only);
        checked += 1;
    }
    if checked == 0 {
        eprintln!("skipped: no block device that this user may read");
    }
}
