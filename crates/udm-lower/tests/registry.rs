//! The registry on real files: what opens, what is shared, and what a refusal says.

#![allow(clippy::unwrap_used, reason = "what fails in here fails its test")]

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use udm_core::{DeviceRef, ErrorCode, ErrorKind, UserError};
use udm_lower::LowerRegistry;
use udm_types::{DeviceFeatures, LowerId, OpSet};

fn registry() -> LowerRegistry {
    LowerRegistry::new(2)
}

fn make_file(folder: &Path, name: &str, len_bytes: u64) -> String {
    let path = folder.join(name);
    std::fs::File::create(&path).unwrap().set_len(len_bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn id(device: &DeviceRef) -> LowerId {
    device.lower.as_ref().expect("it is a lower device").id
}

fn refused(registry: &LowerRegistry, name: &str) -> UserError {
    registry.open(name, false).expect_err(name)
}

#[test]
fn a_file_is_described_and_shared_by_inode_while_it_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry();
    let path = make_file(folder.path(), "disk", (1 << 20) + 700);
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();

    let first = registry.open(&path, false).unwrap();
    assert_eq!(first.len_sectors, 2049, "the last incomplete sector is left out");
    assert_eq!((first.shown.as_str(), first.number), (path.as_str(), None));
    assert_eq!(first.limits.features, DeviceFeatures::WRITE_CACHE | DeviceFeatures::FUA);
    assert_eq!(first.limits.logical_block_bytes, 512);
    assert!(first.limits.ops().contains(OpSet::WRITE | OpSet::WRITE_ZEROES));

    let again = registry.open(link.to_str().unwrap(), false).unwrap();
    assert_eq!(id(&again), id(&first));
    assert_eq!(again.shown, link.to_str().unwrap(), "shown as this user wrote it");
    let prefixed = registry.open(&format!("file:{path}"), false).unwrap();
    assert_eq!(id(&prefixed), id(&first));
    let read_only = registry.open(&path, true).unwrap();
    assert_ne!(id(&read_only), id(&first));
    assert_eq!(read_only.limits.ops(), OpSet::READ | OpSet::FLUSH);

    let number = id(&first);
    drop((first, again));
    assert_eq!(id(&registry.open(&path, false).unwrap()), number, "still open by another name");
    drop(prefixed);
    let other = make_file(folder.path(), "other", 4096);
    assert_eq!(id(&registry.open(&other, false).unwrap()), number, "the number is free again");
}

#[test]
fn a_file_that_has_grown_or_shrunk_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry();
    let path = make_file(folder.path(), "disk", 4096);
    let device = registry.open(&path, false).unwrap().lower.unwrap().device;
    for (len_bytes, len_sectors) in [(8192, 16), (1024, 2)] {
        std::fs::File::options().write(true).open(&path).unwrap().set_len(len_bytes).unwrap();
        assert_eq!(device.len_sectors(), len_sectors);
        assert_eq!(registry.open(&path, false).unwrap().len_sectors, len_sectors);
    }
}

#[test]
fn a_replaced_file_is_another_device() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry();
    let path = make_file(folder.path(), "disk", 4096);
    let old = registry.open(&path, false).unwrap();
    std::fs::rename(make_file(folder.path(), "new", 8192), &path).unwrap();
    let new = registry.open(&path, false).unwrap();
    assert_ne!(id(&old), id(&new));
    assert_eq!((old.len_sectors, new.len_sectors), (8, 16));
}

#[test]
fn direct_is_another_device_and_tells_its_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry();
    let path = make_file(folder.path(), "disk", (64 << 10) + 512);
    let buffered = registry.open(&path, false).unwrap();
    match registry.open(&format!("direct:{path}"), false) {
        Ok(direct) => {
            assert_ne!(id(&direct), id(&buffered));
            let block = u64::from(direct.limits.logical_block_bytes);
            assert!(block.is_power_of_two() && block >= 512);
            assert_eq!(direct.len_sectors * 512 % block, 0);
        }
        // Some file systems have no O_DIRECT; then the error says what to write instead.
        Err(error) => assert!(error.hint_text().contains("without direct:"), "{error}"),
    }
}

#[test]
fn memory_is_shared_by_name_only_and_its_size_must_agree() {
    let registry = registry();
    let one = registry.open("mem:1M", false).unwrap();
    let two = registry.open("mem:1M", false).unwrap();
    assert_ne!(id(&one), id(&two));
    assert_eq!((one.shown.as_str(), one.len_sectors), ("mem:1M", 2048));
    assert!(one.limits.features.is_empty(), "no cache, nothing to flush");

    let named = registry.open("mem:1M:disk", false).unwrap();
    assert_eq!(id(&registry.open("mem:1024K:disk", false).unwrap()), id(&named));
    let reader = registry.open("mem:1M:disk", true).unwrap();
    assert!(id(&reader) != id(&named) && reader.limits.read_only);
    let error = refused(&registry, "mem:2M:disk");
    assert_eq!(error.code(), ErrorCode::BadArgument);
    assert!(error.hint_text().contains("mem:1048576:disk"), "{error}");
    drop(named);
    assert!(registry.open("mem:2M:disk", false).is_err(), "a reader still holds it");
    drop(reader);
    assert_eq!(registry.open("mem:2M:disk", false).unwrap().len_sectors, 4096);
    assert_eq!(refused(&registry, "mem:1000000T").code(), ErrorCode::DeviceOpen);
}

#[test]
fn null_has_the_size_it_was_given() {
    let null = registry().open("null:8191T", true).unwrap();
    assert_eq!(null.len_sectors, 8191 << 31);
    assert!(null.limits.read_only && null.limits.features.is_empty());
}

#[test]
fn a_missing_file_is_named_with_the_nearest_one() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry();
    make_file(folder.path(), "disk-a.img", 4096);
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let error = refused(&registry, &at("disk-a.imh"));
    assert_eq!((error.code(), error.kind()), (ErrorCode::DeviceNotFound, ErrorKind::NoEntry));
    assert!(error.hint_text().contains("disk-a.img"), "{error}");
    let error = refused(&registry, &at("something else"));
    assert!(error.hint_text().contains("truncate"), "{error}");
    let error = refused(&registry, &at("nowhere/disk"));
    assert!(error.hint_text().contains("nowhere"), "{error}");
    assert!(!Path::new(&at("disk-a.imh")).exists(), "opening creates nothing");
}

#[test]
fn a_number_that_no_device_has_is_refused() {
    // 4095 is the last major number; no driver has it.
    let error = refused(&registry(), "4095:1");
    assert_eq!((error.code(), error.kind()), (ErrorCode::DeviceNotFound, ErrorKind::NoDevice));
}

#[test]
fn what_holds_no_blocks_is_refused_without_hanging() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let fifo = folder.path().join("fifo");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(status.success());
    for path in [folder.path(), &socket, &fifo, Path::new("/dev/null"), Path::new("/dev/zero")] {
        let error = refused(&registry, path.to_str().unwrap());
        assert_eq!(error.code(), ErrorCode::NotBlockDevice, "{}", path.display());
        assert_eq!(error.kind(), ErrorKind::NotBlock);
    }
}

#[test]
fn a_file_below_one_block_is_too_small() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry();
    for len_bytes in [0, 511] {
        let path = make_file(folder.path(), "small", len_bytes);
        assert_eq!(refused(&registry, &path).code(), ErrorCode::DeviceTooSmall);
    }
}

#[test]
fn a_file_that_may_only_be_read_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry();
    let path = make_file(folder.path(), "disk", 4096);
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&path, permissions).unwrap();
    match std::fs::File::options().write(true).open(&path) {
        // The superuser may write anyway, and so may the registry.
        Ok(_) => assert!(registry.open(&path, false).is_ok()),
        Err(_) => {
            let error = refused(&registry, &path);
            assert_eq!((error.code(), error.kind()), (ErrorCode::DeviceOpen, ErrorKind::Access));
            assert!(error.hint_text().contains("--readonly"), "{error}");
        }
    }
    assert!(registry.open(&path, true).unwrap().limits.read_only);
}

#[test]
fn many_files_come_and_go_without_leaving_entries_or_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry();
    let open_descriptors = || std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0);
    let kept = registry.open(&make_file(folder.path(), "kept", 4096), false).unwrap();
    let before = open_descriptors();
    for round in 0..300 {
        let path = make_file(folder.path(), &format!("disk{round}"), 4096);
        let device = registry.open(&path, false).unwrap();
        assert_eq!(id(&device).0, id(&kept).0 + 1);
        drop(device);
        std::fs::remove_file(path).unwrap();
    }
    // Other tests of this process open files too, but not hundreds at a time.
    assert!(open_descriptors() < before + 100);
}
