//! The battery that every target passes, on the test kit's probe for requests and on its worker:
//! what it asks of a device must hold for a request-based one, too, and for one whose target does
//! everything by I/O of its own, on another lane.

use udm_core::{ErrorCode, Registry};
use udm_testkit::conformance::{Bad, Case, Good, Kind, Ranged};
use udm_testkit::{conformance, request_probe_type, worker_type};
use udm_types::{Sector, Status};

conformance!(rprobe, RequestProbeCase);
conformance!(worker, WorkerCase);

struct RequestProbeCase;
struct WorkerCase;

impl Case for RequestProbeCase {
    const TARGET: &'static str = "rprobe";
    const VERSION: [u32; 3] = [1, 0, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", 264)];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "d0 8";
    const STATUS: &'static str = "0";
    const KIND: Kind = Kind::Stores;
    const FLUSHED: &'static [&'static str] = &["d0"];
    const DISCARD: Ranged = Ranged::Passes;
    const WRITE_ZEROES: Ranged = Ranged::Passes;
    const SINGLETON: bool = true;
    const REQUEST_BASED: bool = true;
    const GOOD: &'static [Good] = &[Good { len_sectors: 8, args: "d0 0", printed: "d0 0" }];
    const BAD: &'static [Bad] =
        &[Bad { len_sectors: 8, args: "d0", code: ErrorCode::TooFewArgs, field: 5 }];

    fn registry() -> Registry {
        Registry::new([request_probe_type()])
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        ("d0", offset + 8)
    }
}

impl Case for WorkerCase {
    const TARGET: &'static str = "worker";
    const VERSION: [u32; 3] = [1, 0, 0];
    const DEVICES: &'static [(&'static str, Sector)] = &[("d0", 264)];
    const LEN_SECTORS: Sector = 256;
    const ARGS: &'static str = "d0 8 1 2";
    const STATUS: &'static str = "0 1 0 1 0 0";
    /// It pushes back what fails below while a noflush suspend is under way.
    const ABANDONED: Status = Status::Ok;
    const KIND: Kind = Kind::Stores;
    const FLUSHED: &'static [&'static str] = &["d0"];
    const DISCARD: Ranged = Ranged::Passes;
    const WRITE_ZEROES: Ranged = Ranged::Passes;
    const GOOD: &'static [Good] =
        &[Good { len_sectors: 8, args: "d0 0 1 3 5 6", printed: "d0 0 1 3 5 6" }];
    const BAD: &'static [Bad] =
        &[Bad { len_sectors: 8, args: "d0 0 1", code: ErrorCode::TooFewArgs, field: 7 }];

    fn registry() -> Registry {
        Registry::new([worker_type()])
    }

    fn place(offset: Sector) -> (&'static str, Sector) {
        ("d0", offset + 8)
    }
}
