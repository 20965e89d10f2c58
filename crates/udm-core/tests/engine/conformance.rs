//! The battery that every target passes, on the test kit's probe for requests: what it asks of a
//! device must hold for a request-based one, too.

use udm_core::{ErrorCode, Registry};
use udm_testkit::conformance::{Bad, Case, Good, Kind, Ranged};
use udm_testkit::{conformance, request_probe_type};
use udm_types::Sector;

conformance!(rprobe, RequestProbeCase);

struct RequestProbeCase;

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
