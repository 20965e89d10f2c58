//! Tests of `udm compress`: files, locks, signatures, words.

use super::device::{Device, Purpose};
use super::{CompressArgs, CompressTool, run, size_text, uuid_text};
use crate::cli::{Failure, Output};
use clap::Parser;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A command line of its own, so that only the tools' part is parsed.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: CompressArgs,
}

fn image(place: &tempfile::TempDir, len_bytes: u64) -> PathBuf {
    let path = place.path().join("image");
    std::fs::File::create(&path).expect("created").set_len(len_bytes).expect("sized");
    path
}

fn tool(words: &[&str], path: &Path) -> Result<serde_json::Value, Failure> {
    let path = path.to_str().expect("text");
    let words = [&["compress"], words, &[path]].concat();
    let line = Line::try_parse_from(words).expect("parses");
    let output = &mut Output::new(true);
    run(&line.args, output)?;
    Ok(output.take_json())
}

fn code(failure: Failure) -> &'static str {
    failure.error.map_or("none", |error| error.code().as_str())
}

#[test]
fn a_file_is_formatted_once_and_checked() {
    let place = tempfile::tempdir().expect("folder");
    let path = image(&place, 32 << 20);
    let made = tool(&["format", "--size", "100M", "--compressor", "zstd:3"], &path);
    let made = made.expect("formatted");
    assert_eq!(made["volume"]["logical_sectors"], 204_800);
    assert_eq!(
        (&made["volume"]["level"], &made["volume"]["segment_bytes"]),
        (&3.into(), &(1 << 20).into())
    );
    let checked = tool(&["check"], &path).expect("sound");
    assert_eq!(checked["check"]["sound"], true);
    assert_eq!(checked["check"]["findings"], serde_json::json!([]));
    assert_eq!(code(tool(&["format"], &path).expect_err("refused")), "UDM-0701");
    let again = tool(&["format", "--force"], &path).expect("formatted");
    assert_ne!(again["volume"]["uuid"], made["volume"]["uuid"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let place = tempfile::tempdir().expect("folder");
    let path = image(&place, 32 << 20);
    let planned = tool(&["format", "--dry-run"], &path).expect("planned");
    assert_eq!(planned["volume"]["dry_run"], true);
    assert!(std::fs::read(&path).expect("read").iter().all(|byte| *byte == 0));
}

#[test]
fn damage_is_told_with_exit_code_1() {
    let place = tempfile::tempdir().expect("folder");
    let path = image(&place, 32 << 20);
    tool(&["format"], &path).expect("formatted");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    // Checkpoint 1 is in the second slot.
    file.write_all_at(b"x", 16384 + 100).expect("written");
    file.write_all_at(b"x", 8192 + 4096 + 4096 + 100).expect("written");
    let failure = tool(&["check", "--quick"], &path).expect_err("damaged");
    assert_eq!((failure.exit, failure.error.is_none()), (1, true));
}

#[test]
fn a_volume_is_described_dumped_and_mended() {
    let place = tempfile::tempdir().expect("folder");
    let path = image(&place, 32 << 20);
    assert_eq!(code(tool(&["stat"], &path).expect_err("nothing")), "UDM-0702");
    let made = tool(&["format"], &path).expect("formatted");
    let stat = tool(&["stat"], &path).expect("described");
    assert_eq!(stat["stat"]["uuid"], made["volume"]["uuid"]);
    assert_eq!(stat["stat"]["used_segments"], 0);
    let dump = tool(&["dump", "--segments", "--map", "--log"], &path).expect("dumped");
    let kinds: Vec<_> =
        dump["dump"].as_array().expect("items").iter().map(|i| &i["kind"]).collect();
    assert_eq!(kinds, ["superblock", "checkpoint"]);
    let idle = tool(&["repair"], &path).expect("sound");
    assert_eq!(idle["repair"]["wrote"], false);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.write_all_at(b"x", 100).expect("written");
    assert_eq!(tool(&["repair"], &path).expect_err("not touched").exit, 1);
    let mended = tool(&["repair", "--write"], &path).expect("mended");
    assert_eq!(
        (&mended["repair"]["wrote"], &mended["repair"]["checkpoint"]),
        (&true.into(), &2.into())
    );
    let checked = tool(&["check"], &path).expect("sound");
    assert_eq!(checked["check"]["checkpoint"], 2);
}

#[test]
fn an_ancestors_volume_becomes_an_image() {
    let place = tempfile::tempdir().expect("folder");
    let path = image(&place, 1 << 20);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    // Version 1, one block of metadata, 250 of data, lzo; block 2 is stored as it is, block 3 lost.
    for (at, word) in (0..).step_by(8).zip([0x1065_26c2_0650_6c09_u64, 1, 1, 250]) {
        file.write_all_at(&word.to_le_bytes(), at).expect("written");
    }
    let bits: u32 = 8 << 10 | 1 << 15;
    file.write_all_at(&bits.to_le_bytes(), 4096).expect("written");
    file.write_all_at(&[7; 4096], 4 * 4096).expect("written");
    file.write_all_at(&[0xff; 512], 5 * 4096).expect("written");
    let found = tool(&["import", "--dry-run"], &path).expect("found");
    assert_eq!(found["import"]["logical_sectors"], 2000);
    let to = place.path().join("out");
    let to_text = to.to_str().expect("text");
    assert_eq!(tool(&["import", "--to", to_text], &path).expect_err("a loss").exit, 1);
    let out = std::fs::read(&to).expect("read");
    assert_eq!((out.len(), &out[2 * 4096..3 * 4096]), (250 * 4096, &[7; 4096][..]));
    assert!(out[..8192].iter().chain(&out[3 * 4096..]).all(|byte| *byte == 0));
    let refused = tool(&["import", "--to", to_text], &path).expect_err("it exists");
    assert_eq!(code(refused), "UDM-0116");
    assert_eq!(code(tool(&["import", "--dry-run"], &to).expect_err("none")), "UDM-0702");
}

#[test]
fn what_is_in_use_is_left_alone() {
    let place = tempfile::tempdir().expect("folder");
    let path = image(&place, 32 << 20);
    let held = Device::open(&path, Purpose::Look).expect("opened");
    assert_eq!(code(tool(&["check"], &path).expect_err("in use")), "UDM-0116");
    drop(held);
    assert!(tool(&["check"], &path).is_err());
    assert_eq!(code(tool(&["check"], &place.path().join("none")).expect_err("none")), "UDM-0115");
    assert!(tool(&["check"], place.path()).is_err());
}

#[test]
fn sizes_that_do_not_fit_are_explained() {
    let place = tempfile::tempdir().expect("folder");
    let path = image(&place, 1 << 20);
    assert_eq!(code(tool(&["format"], &path).expect_err("small")), "UDM-0703");
    let path = image(&place, 32 << 20);
    assert_eq!(code(tool(&["format", "--segment", "3M"], &path).expect_err("odd")), "UDM-0703");
    assert_eq!(code(tool(&["format", "--size", "512"], &path).expect_err("odd")), "UDM-0703");
}

#[test]
fn compressors_are_parsed() {
    let parse = |name: &str| {
        let line = Line::try_parse_from(["compress", "format", "--compressor", name, "x"]).ok()?;
        match line.args.tool {
            CompressTool::Format(args) => Some((args.compressor.0.name(), args.compressor.1)),
            CompressTool::Check(_)
            | CompressTool::Repair(_)
            | CompressTool::Import(_)
            | CompressTool::Dump(_)
            | CompressTool::Stat(_) => None,
        }
    };
    assert_eq!(parse("zstd"), Some(("zstd", 0)));
    assert_eq!(parse("zstd:-3"), Some(("zstd", -3)));
    assert_eq!(parse("lz4"), Some(("lz4", 0)));
    for bad in ["zstd:23", "lz4:1", "lzo", "zstd:", "zstd:x"] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn sizes_and_uuids_are_readable() {
    assert_eq!(size_text(4096), "4.00 KiB");
    assert_eq!(size_text(60 << 20), "60.0 MiB");
    assert_eq!(size_text(1000 << 30), "1000 GiB");
    assert_eq!(uuid_text(&[0xab; 16]), "abababab-abab-abab-abab-abababababab");
}
