//! Every target against the battery: one case, one line.
//!
//! A case says what the manual in docs/targets promises, in a form the battery can check: good and
//! bad lines, where each sector lands, which devices a flush must reach, what a discard does. The
//! argument lines follow what Linux's own targets accept and refuse; where udm differs on purpose
//! (overflowing numbers, words left over) the manual says so under "Differences from the kernel".

mod volumes;

use udm_core::{ErrorCode, Registry};
use udm_testkit::conformance::{Bad, Case, Good, Kind, Ranged};
use udm_testkit::{MemLower, conformance};
use udm_types::{Sector, Status};

conformance!(linear, LinearCase);
conformance!(striped, StripedCase);
conformance!(striped_odd_chunk, StripedOddCase);
conformance!(zero, ZeroCase);
conformance!(error, ErrorCase);
conformance!(delay, DelayCase);
conformance!(flakey, FlakeyCase);
conformance!(multipath, MultipathCase);
conformance!(compress, CompressCase);
conformance!(insitu_comp, InsituCase);
conformance!(multipath_requests, MultipathRequestCase);

const fn good(len_sectors: Sector, args: &'static str, printed: &'static str) -> Good {
    Good { len_sectors, args, printed }
}

const fn bad(len_sectors: Sector, args: &'static str, code: ErrorCode, field: u32) -> Bad {
    Bad { len_sectors, args, code, field }
}

use ErrorCode::{BadArgument, BadNumber, DeviceNotFound, RangeOverflow, TooFewArgs, TooManyArgs};

struct LinearCase;

impl Case for LinearCase {
    const TARGET: &'static str = "linear";
    const VERSION: [u32; 3] = [1, 5, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", 272)];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "d0 16";
    const STATUS: &'static str = "";
    const KIND: Kind = Kind::Stores;
    const FLUSHED: &'static [&'static str] = &["d0"];
    const DISCARD: Ranged = Ranged::Passes;
    const WRITE_ZEROES: Ranged = Ranged::Passes;
    const GOOD: &'static [Good] =
        &[good(8, "d0 0", "d0 0"), good(8, "d0 010", "d0 10"), good(272, "d0 0", "d0 0")];
    const BAD: &'static [Bad] = &[
        bad(8, "", TooFewArgs, 4),
        bad(8, "d0", TooFewArgs, 5),
        bad(8, "d0 0 1", TooManyArgs, 6),
        bad(8, "d0 -1", BadNumber, 5),
        bad(8, "d0 +1", BadNumber, 5),
        bad(8, "d0 x", BadNumber, 5),
        bad(8, "d0 0x10", BadNumber, 5),
        bad(8, "d0 8x", BadNumber, 5),
        bad(8, "d0 18446744073709551616", RangeOverflow, 5),
        bad(8, "d0 18014398509481984", BadArgument, 5),
        bad(8, "nope 0", DeviceNotFound, 4),
    ];

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        ("d0", 16 + offset)
    }
}

struct StripedCase;

impl Case for StripedCase {
    const TARGET: &'static str = "striped";
    const VERSION: [u32; 3] = [1, 7, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", 128), ("d1", 192)];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "2 8 d0 0 d1 64";
    const STATUS: &'static str = "2 d0 d1 1 AA";
    const KIND: Kind = Kind::Stores;
    const FLUSHED: &'static [&'static str] = &["d0", "d1"];
    const DISCARD: Ranged = Ranged::Passes;
    const WRITE_ZEROES: Ranged = Ranged::Passes;
    const GOOD: &'static [Good] = &[
        good(64, "1 16 d0 32", "1 16 d0 32"),
        good(96, "2 3 d0 0 d1 64", "2 3 d0 0 d1 64"),
        good(96, "3 32 d0 0 d1 64 d0 32", "3 32 d0 0 d1 64 d0 32"),
    ];
    const BAD: &'static [Bad] = &[
        bad(64, "", TooFewArgs, 4),
        bad(64, "2", TooFewArgs, 5),
        bad(64, "2 8 d0 0", TooFewArgs, 8),
        bad(64, "2 8 d0 0 d1", TooFewArgs, 9),
        bad(64, "2 8 d0 0 d1 0 9", TooManyArgs, 10),
        bad(64, "0 8 d0 0", BadArgument, 4),
        bad(64, "2 0 d0 0 d1 0", BadArgument, 5),
        bad(64, "2 7 d0 0 d1 0", BadArgument, 5),
        bad(64, "2 12 d0 0 d1 0", BadArgument, 5),
        bad(64, "3 8 d0 0 d1 0 d0 8", BadArgument, 4),
        bad(63, "2 8 d0 0 d1 0", BadArgument, 4),
        bad(64, "2 8 d0 0 nope 0", DeviceNotFound, 8),
        bad(64, "2 8 d0 0 d1 x", BadNumber, 9),
        bad(64, "x 8 d0 0 d1 0", BadNumber, 4),
        bad(64, "-2 8 d0 0 d1 0", BadNumber, 4),
        bad(64, "4294967296 8 d0 0", BadArgument, 4),
        bad(64, "2 4294967304 d0 0 d1 0", BadArgument, 5),
    ];

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        let sector = offset / 16 * 8 + offset % 8;
        if (offset / 8).is_multiple_of(2) { ("d0", sector) } else { ("d1", 64 + sector) }
    }
}

/// Three legs, two of them on one device, and a chunk that is no power of two.
struct StripedOddCase;

impl Case for StripedOddCase {
    const TARGET: &'static str = "striped";
    const VERSION: [u32; 3] = [1, 7, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", 200), ("d1", 96)];
    const LEN_SECTORS: Sector = 288;
    const ARGS: &'static str = "3 24 d0 0 d1 0 d0 104";
    const STATUS: &'static str = "3 d0 d1 d0 1 AAA";
    const KIND: Kind = Kind::Stores;
    const FLUSHED: &'static [&'static str] = &["d0", "d1"];
    const DISCARD: Ranged = Ranged::Passes;
    const WRITE_ZEROES: Ranged = Ranged::Passes;
    const GOOD: &'static [Good] = &[];
    const BAD: &'static [Bad] = &[bad(288, "3 24 d0 0 d1 0", TooFewArgs, 10)];

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        let sector = offset / 72 * 24 + offset % 24;
        match offset / 24 % 3 {
            0 => ("d0", sector),
            1 => ("d1", sector),
            _ => ("d0", 104 + sector),
        }
    }
}

struct ZeroCase;

impl Case for ZeroCase {
    const TARGET: &'static str = "zero";
    const VERSION: [u32; 3] = [1, 2, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "";
    const STATUS: &'static str = "";
    const KIND: Kind = Kind::Zeroes;
    const FLUSHED: &'static [&'static str] = &[];
    const DISCARD: Ranged = Ranged::Drops;
    const WRITE_ZEROES: Ranged = Ranged::Refuses;
    const GOOD: &'static [Good] = &[];
    const BAD: &'static [Bad] = &[bad(8, "1", TooManyArgs, 4), bad(8, "d0 0", TooManyArgs, 4)];

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(_offset: Sector) -> (&'static str, Sector) {
        unreachable!("zero keeps nothing")
    }
}

struct ErrorCase;

impl Case for ErrorCase {
    const TARGET: &'static str = "error";
    const VERSION: [u32; 3] = [1, 7, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", 264)];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "d0 8";
    const STATUS: &'static str = "";
    const KIND: Kind = Kind::Fails(Status::IoErr);
    const FLUSHED: &'static [&'static str] = &[];
    const DISCARD: Ranged = Ranged::Fails(Status::IoErr);
    const WRITE_ZEROES: Ranged = Ranged::Refuses;
    const GOOD: &'static [Good] =
        &[good(8, "", ""), good(8, "1", ""), good(8, "d0 0", ""), good(8, "a b c", "")];
    const BAD: &'static [Bad] =
        &[bad(8, "nope 0", DeviceNotFound, 4), bad(8, "d0 x", BadNumber, 5)];

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(_offset: Sector) -> (&'static str, Sector) {
        unreachable!("error keeps nothing")
    }
}

struct DelayCase;

impl Case for DelayCase {
    const TARGET: &'static str = "delay";
    const VERSION: [u32; 3] = [1, 5, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", 264)];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "d0 8 5 d0 8 7";
    const STATUS: &'static str = "0 0 0";
    const KIND: Kind = Kind::Stores;
    const FLUSHED: &'static [&'static str] = &["d0"];
    const DISCARD: Ranged = Ranged::Passes;
    const WRITE_ZEROES: Ranged = Ranged::Refuses;
    const GOOD: &'static [Good] = &[
        good(8, "d0 0 5", "d0 0 5"),
        good(8, "d0 0 0 d0 8 300", "d0 0 0 d0 8 300"),
        good(8, "d0 0 5 d0 8 7 d0 16 9", "d0 0 5 d0 8 7 d0 16 9"),
        good(8, "d0 0 4294967295", "d0 0 4294967295"),
    ];
    const BAD: &'static [Bad] = &[
        bad(8, "", TooFewArgs, 4),
        bad(8, "d0 0", TooFewArgs, 6),
        bad(8, "d0 0 5 d0", TooFewArgs, 8),
        bad(8, "d0 0 5 d0 0 5 d0 0 5 d0", TooManyArgs, 13),
        bad(8, "d0 0 x", BadNumber, 6),
        bad(8, "d0 x 5", BadNumber, 5),
        bad(8, "d0 0 -5", BadNumber, 6),
        bad(8, "d0 0 5000000000", BadArgument, 6),
        bad(8, "nope 0 5", DeviceNotFound, 4),
        bad(8, "d0 0 5 nope 0 5", DeviceNotFound, 7),
        bad(8, "d0 0 5 d0 0 5 d0 0 x", BadNumber, 12),
    ];

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        ("d0", 8 + offset)
    }
}

/// Up for as long as the battery's clock runs; what happens while down is tested in `flakey.rs`.
struct FlakeyCase;

impl Case for FlakeyCase {
    const TARGET: &'static str = "flakey";
    const VERSION: [u32; 3] = [1, 5, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", 272)];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "d0 16 4294967295 0";
    const STATUS: &'static str = "";
    const KIND: Kind = Kind::Stores;
    const FLUSHED: &'static [&'static str] = &["d0"];
    const DISCARD: Ranged = Ranged::Passes;
    const WRITE_ZEROES: Ranged = Ranged::Refuses;
    const GOOD: &'static [Good] = &[
        good(8, "d0 0 1 0", "d0 0 1 0 2 error_reads error_writes"),
        good(8, "d0 0 0 1 0", "d0 0 0 1 2 error_reads error_writes"),
        good(8, "d0 0 1 1 1 DROP_Writes", "d0 0 1 1 1 drop_writes"),
        good(8, "d0 0 1 1 1 error_reads", "d0 0 1 1 1 error_reads"),
        good(
            8,
            "d0 0 1 1 6 corrupt_bio_byte 32 r 1 0 drop_writes",
            "d0 0 1 1 6 drop_writes corrupt_bio_byte 32 r 1 0",
        ),
        good(
            8,
            "d0 0 1 1 6 error_reads corrupt_bio_byte 224 w 255 4294967295",
            "d0 0 1 1 6 error_reads corrupt_bio_byte 224 w 255 4294967295",
        ),
        good(
            8,
            "d0 0 1 1 2 random_read_corrupt 1000000000",
            "d0 0 1 1 2 random_read_corrupt 1000000000",
        ),
        good(
            8,
            "d0 0 1 1 4 random_write_corrupt 7 random_read_corrupt 8",
            "d0 0 1 1 4 random_read_corrupt 8 random_write_corrupt 7",
        ),
        good(8, "d0 0 1 1 2 random_write_corrupt 0", "d0 0 1 1 2 error_reads error_writes"),
        good(8, "d0 0 1 1 3 random_write_corrupt 0 drop_writes", "d0 0 1 1 1 drop_writes"),
    ];
    const BAD: &'static [Bad] = &[
        bad(8, "", TooFewArgs, 4),
        bad(8, "d0 0 1", TooFewArgs, 7),
        bad(8, "d0 0 0 0", BadArgument, 7),
        bad(8, "d0 0 4294967295 1", BadArgument, 7),
        bad(8, "d0 0 4294967296 1", BadArgument, 6),
        bad(8, "d0 0 x 1", BadNumber, 6),
        bad(8, "d0 0 1 y", BadNumber, 7),
        bad(8, "nope 0 1 1", DeviceNotFound, 4),
        bad(8, "d0 0 1 1 1 nosuch", BadArgument, 9),
        bad(8, "d0 0 1 1 2 drop_writes", BadArgument, 8),
        bad(8, "d0 0 1 1 12", BadArgument, 8),
        bad(8, "d0 0 1 1 1 drop_writes more", TooManyArgs, 10),
        bad(8, "d0 0 1 1 2 drop_writes error_writes", BadArgument, 10),
        bad(8, "d0 0 1 1 2 error_writes drop_writes", BadArgument, 10),
        bad(8, "d0 0 1 1 2 drop_writes drop_writes", BadArgument, 10),
        bad(8, "d0 0 1 1 2 error_reads error_reads", BadArgument, 10),
        bad(8, "d0 0 1 1 5 corrupt_bio_byte 1 x 1 0", BadArgument, 11),
        bad(8, "d0 0 1 1 5 corrupt_bio_byte 0 w 1 0", BadArgument, 10),
        bad(8, "d0 0 1 1 5 corrupt_bio_byte 1 w 256 0", BadArgument, 12),
        bad(8, "d0 0 1 1 5 corrupt_bio_byte 1 w 1 4294967296", BadArgument, 13),
        bad(8, "d0 0 1 1 3 corrupt_bio_byte 1 w", BadArgument, 9),
        bad(8, "d0 0 1 1 6 corrupt_bio_byte 32 w 1 0 drop_writes", BadArgument, 14),
        bad(8, "d0 0 1 1 6 error_writes corrupt_bio_byte 32 w 1 0", BadArgument, 10),
        bad(8, "d0 0 1 1 6 error_reads corrupt_bio_byte 32 r 1 0", BadArgument, 10),
        bad(8, "d0 0 1 1 3 error_reads random_read_corrupt 1", BadArgument, 10),
        bad(8, "d0 0 1 1 3 drop_writes random_write_corrupt 1", BadArgument, 10),
        bad(8, "d0 0 1 1 2 random_read_corrupt 1000000001", BadArgument, 10),
        bad(8, "d0 0 1 1 1 random_read_corrupt", BadArgument, 9),
    ];

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        ("d0", 16 + offset)
    }
}

/// Two paths to one device, in bio mode. What becomes of paths is tested in `multipath/`.
struct MultipathCase;

impl Case for MultipathCase {
    const TARGET: &'static str = "multipath";
    const VERSION: [u32; 3] = [1, 15, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", 256)];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "2 queue_mode bio 0 1 1 queue-length 0 2 0 d0 d0";
    const STATUS: &'static str = "2 1 0 0 1 1 E 0 2 1 d0 A 0 0 d0 A 0 0 ";
    const KIND: Kind = Kind::Stores;
    const FLUSHED: &'static [&'static str] = &["d0"];
    const DISCARD: Ranged = Ranged::Passes;
    const WRITE_ZEROES: Ranged = Ranged::Passes;
    const SINGLETON: bool = true;
    const ERRORS_KEPT: &'static [Status] = &[
        Status::Medium,
        Status::NoSpace,
        Status::Target,
        Status::NotSupported,
        Status::Reservation,
        Status::Protection,
    ];
    const ABANDONED: Status = Status::IoErr;
    const HEALED_BY: &'static [&'static [&'static str]] = &[&["reinstate_path", "d0"]];
    const GOOD: &'static [Good] = &[
        good(8, "0 0 0 0", "0 0 0 0 "),
        good(8, "1 queue_if_no_path 0 0 0", "1 queue_if_no_path 0 0 0 "),
        good(
            8,
            "8 queue_if_no_path retain_attached_hw_handler pg_init_retries 50 \
             pg_init_delay_msecs 0 QUEUE_MODE Bio 0 1 1 round-robin 0 1 0 d0",
            "7 queue_if_no_path pg_init_retries 50 pg_init_delay_msecs 0 queue_mode bio \
             0 1 1 round-robin 0 1 1 d0 1 ",
        ),
        good(
            8,
            "2 queue_mode mq 3 alua x y 1 2 round-robin 2 a b 1 1 d0 1000",
            "0 0 1 1 round-robin 0 1 1 d0 1 ",
        ),
        good(
            8,
            "0 0 2 2 service-time 0 1 2 d0 0 100 latency 1 64 2 1 d0 1 d0 1",
            "0 0 2 2 service-time 0 1 2 d0 0 100 latency 2 64 3 2 1 d0 0 d0 0 ",
        ),
        good(
            8,
            "0 0 1 1 historical-service-time 1 900 1 0 d0",
            "0 0 1 1 historical-service-time 2 900 0 1 1 d0 0 ",
        ),
        good(
            8,
            "0 0 1 1 io-affinity 0 2 1 d0 0000000f d0 00000001,0000001F",
            "0 0 1 1 io-affinity 0 2 1 d0 f d0 1,0000001f ",
        ),
    ];
    const BAD: &'static [Bad] = &[
        bad(8, "", TooFewArgs, 4),
        bad(8, "0", TooFewArgs, 5),
        bad(8, "0 0", TooFewArgs, 6),
        bad(8, "0 0 0", TooFewArgs, 7),
        bad(8, "x 0 0 0", BadNumber, 4),
        bad(8, "9 0 0 0", BadArgument, 4),
        bad(8, "1", BadArgument, 4),
        bad(8, "1 nosuch 0 0 0", BadArgument, 5),
        bad(8, "1 pg_init_retries 0 0 0", BadArgument, 5),
        bad(8, "2 pg_init_retries 0 0 0 0", BadArgument, 6),
        bad(8, "2 pg_init_retries 51 0 0 0", BadArgument, 6),
        bad(8, "2 pg_init_delay_msecs 60001 0 0 0", BadArgument, 6),
        bad(8, "2 queue_mode fast 0 0 0", BadArgument, 6),
        bad(8, "0 5 0 0", BadArgument, 5),
        bad(8, "0 1025 0 0", BadArgument, 5),
        bad(8, "0 0 1025 0", BadArgument, 6),
        bad(8, "0 0 0 1", BadArgument, 7),
        bad(8, "0 0 1 0 round-robin 0 1 0 d0", BadArgument, 7),
        bad(8, "0 0 1 1", BadArgument, 7),
        bad(8, "0 0 1 1 round-robin", BadArgument, 8),
        bad(8, "0 0 1 1 nosuch 0 1 0 d0", BadArgument, 8),
        bad(8, "0 0 1 1 round-robin 9 1 0 d0", BadArgument, 9),
        bad(8, "0 0 1 1 round-robin 0", TooFewArgs, 10),
        bad(8, "0 0 1 1 round-robin 0 0 0", BadArgument, 10),
        bad(8, "0 0 1 1 round-robin 0 1", TooFewArgs, 11),
        bad(8, "0 0 1 1 round-robin 0 1 1 d0", BadArgument, 11),
        bad(8, "0 0 1 1 round-robin 0 2 0 d0", BadArgument, 12),
        bad(8, "0 0 1 1 round-robin 0 1 0 nope", DeviceNotFound, 12),
        bad(8, "0 0 1 1 round-robin 0 1 1 d0 x", BadNumber, 13),
        bad(8, "0 0 1 1 round-robin 0 1 2 d0 1 1", BadArgument, 12),
        bad(8, "0 0 1 1 queue-length 0 1 2 d0 1 1", BadArgument, 12),
        bad(8, "0 0 1 1 service-time 0 1 2 d0 1 101", BadArgument, 14),
        bad(8, "0 0 1 1 service-time 0 1 3 d0 1 1 1", BadArgument, 12),
        bad(8, "0 0 1 1 historical-service-time 1 1024 1 0 d0", BadArgument, 10),
        bad(8, "0 0 1 1 historical-service-time 3 1 2 3 1 0 d0", BadArgument, 9),
        bad(8, "0 0 1 1 io-affinity 0 1 0 d0", BadArgument, 12),
        bad(8, "0 0 1 1 io-affinity 0 1 1 d0 x", BadNumber, 13),
        bad(8, "0 0 1 1 io-affinity 0 1 1 d0 0", BadArgument, 13),
        bad(8, "0 0 1 1 io-affinity 0 2 1 d0 1 d0 1", BadArgument, 15),
        bad(8, "0 0 1 1 latency 1 1 1 0 d0", BadArgument, 10),
        bad(8, "0 0 1 1 latency 2 64 9 1 0 d0", BadArgument, 11),
        bad(8, "0 0 2 1 round-robin 0 1 0 d0", BadArgument, 12),
        bad(8, "0 0 1 1 round-robin 0 1 0 d0 extra", BadArgument, 13),
    ];

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        ("d0", offset)
    }
}

/// The same paths in request mode.
struct MultipathRequestCase;

impl Case for MultipathRequestCase {
    const TARGET: &'static str = MultipathCase::TARGET;
    const VERSION: [u32; 3] = MultipathCase::VERSION;
    const DEVICES: &'static [(&'static str, Sector)] = MultipathCase::DEVICES;
    const LEN_SECTORS: Sector = MultipathCase::LEN_SECTORS;
    const ARGS: &'static str = "0 0 1 1 queue-length 0 2 0 d0 d0";
    const STATUS: &'static str = MultipathCase::STATUS;
    const KIND: Kind = MultipathCase::KIND;
    const FLUSHED: &'static [&'static str] = MultipathCase::FLUSHED;
    const DISCARD: Ranged = MultipathCase::DISCARD;
    const WRITE_ZEROES: Ranged = MultipathCase::WRITE_ZEROES;
    const SINGLETON: bool = true;
    const REQUEST_BASED: bool = true;
    const ERRORS_KEPT: &'static [Status] = MultipathCase::ERRORS_KEPT;
    const ABANDONED: Status = MultipathCase::ABANDONED;
    const HEALED_BY: &'static [&'static [&'static str]] = MultipathCase::HEALED_BY;
    const GOOD: &'static [Good] = MultipathCase::GOOD;
    const BAD: &'static [Bad] = MultipathCase::BAD;

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        MultipathCase::place(offset)
    }
}

struct CompressCase;

/// The device of the compress cases: superblocks, checkpoints, map, some 30 segments of 64 KiB.
const VOLUME_SECTORS: Sector = 4400;
/// The volumes' logical size.
const LOGICAL_SECTORS: Sector = 512;

impl Case for CompressCase {
    const TARGET: &'static str = "compress";
    const VERSION: [u32; 3] = [1, 0, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", VOLUME_SECTORS)];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "d0 3 writethrough max_extent 3";
    const STATUS: &'static str = "0 0 0 2/33 0 0 0 0 0 ok";
    const KIND: Kind = Kind::Transforms;
    const FLUSHED: &'static [&'static str] = &["d0"];
    const DISCARD: Ranged = Ranged::Drops;
    const WRITE_ZEROES: Ranged = Ranged::Drops;
    const GOOD: &'static [Good] = &[
        good(8, "d0", "d0"),
        good(8, "d0 0", "d0"),
        good(512, "d0 2 writeback 7", "d0 2 writeback 7"),
        good(8, "d0 2 compressor zstd:-3", "d0 2 compressor zstd:-3"),
        good(8, "d0 2 compressor none", "d0 2 compressor none"),
        good(
            8,
            "d0 12 workers 2 cache_mb 3 delta_mb 4 no_discard_passdown error_if_no_space \
             max_extent 2 compressor lz4",
            "d0 12 compressor lz4 max_extent 2 delta_mb 4 cache_mb 3 workers 2 \
             no_discard_passdown error_if_no_space",
        ),
        good(8, "d0 2 queue_if_no_space 9", "d0 2 queue_if_no_space 9"),
        good(8, "d0 1 discard_passdown", "d0 1 discard_passdown"),
        good(8, "d0 2 error_if_no_space punch", "d0 2 punch error_if_no_space"),
    ];
    const BAD: &'static [Bad] = &[
        bad(8, "", TooFewArgs, 4),
        bad(8, "nope", DeviceNotFound, 4),
        bad(8, "d0 x", BadNumber, 5),
        bad(8, "d0 2 writethrough", BadArgument, 5),
        bad(8, "d0 0 writethrough", BadArgument, 5),
        bad(8, "d0 1 writeback", TooFewArgs, 7),
        bad(8, "d0 2 writeback 0", BadArgument, 7),
        bad(8, "d0 1 wrong", BadArgument, 6),
        bad(8, "d0 2 compressor lzo", BadArgument, 7),
        bad(8, "d0 2 compressor lz4:1", BadArgument, 7),
        bad(8, "d0 2 compressor zstd:99", BadArgument, 7),
        bad(8, "d0 2 max_extent 16", BadArgument, 7),
        bad(8, "d0 3 writethrough writeback 5", BadArgument, 8),
        bad(8, "d0 2 error_if_no_space error_if_no_space", BadArgument, 7),
        bad(8, "d0 2 workers 0", BadArgument, 7),
    ];

    fn prepare(device: &MemLower) {
        if device.name() == "d0" {
            volumes::prepare(device, VOLUME_SECTORS, LOGICAL_SECTORS);
        }
    }

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(_offset: Sector) -> (&'static str, Sector) {
        unreachable!("nobody knows where a compress target keeps a sector")
    }
}

struct InsituCase;

impl Case for InsituCase {
    const TARGET: &'static str = "insitu-comp";
    const VERSION: [u32; 3] = [1, 0, 0];
    const DEVICES: &'static [(&'static str, Sector)] = CompressCase::DEVICES;
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "d0 writeback 5";
    const STATUS: &'static str = CompressCase::STATUS;
    const KIND: Kind = CompressCase::KIND;
    const FLUSHED: &'static [&'static str] = CompressCase::FLUSHED;
    const DISCARD: Ranged = CompressCase::DISCARD;
    const WRITE_ZEROES: Ranged = CompressCase::WRITE_ZEROES;
    const GOOD: &'static [Good] = &[
        good(8, "d0", "d0 writeback 5"),
        good(8, "d0 writeback 9", "d0 writeback 9"),
        good(8, "d0 writethrough", "d0 writethrough"),
    ];
    const BAD: &'static [Bad] = &[
        bad(8, "", TooFewArgs, 4),
        bad(8, "d0 writeback", TooFewArgs, 6),
        bad(8, "d0 writeback x", BadNumber, 6),
        bad(8, "d0 sideways", BadArgument, 5),
        bad(8, "d0 writethrough 5", TooManyArgs, 6),
    ];

    fn prepare(device: &MemLower) {
        CompressCase::prepare(device);
    }

    fn registry() -> Registry {
        udm_targets::registry()
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        CompressCase::place(offset)
    }
}
