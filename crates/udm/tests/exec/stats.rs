//! dmstats, unmodified, on a device that does I/O.

use crate::common::{Place, Ran, Writer};
use crate::{dmsetup, exec, has};

fn dmstats(place: &Place, args: &[&str]) -> Ran {
    let args: Vec<&str> = ["dmstats"].iter().chain(args).copied().collect();
    exec(place, &args).output().expect("ran").into()
}

#[test]
fn regions_are_created_listed_reported_and_deleted() {
    if !has("dmstats") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let disk = place.file("disk.img", 8 << 20);
    dmsetup(&place, &["create", "a", "--table", &format!("0 16384 linear {disk} 0")]).ok();
    let socket = place.path("a.sock");
    place.udm(&["export", "a", "--nbd", &format!("unix:{}", place.text("a.sock"))]).ok();
    let made = dmstats(&place, &["create", "a"]).ok();
    assert_eq!(made, "a: Created new region with 1 area(s) as region ID 0\n");
    let made = dmstats(&place, &["create", "--areas", "2", "--bounds", "10ms,20ms", "a"]).ok();
    assert_eq!(made, "a: Created new region with 2 area(s) as region ID 1\n");
    assert_eq!(Writer::start(&socket, "a").error(), 0);
    let printed = dmsetup(&place, &["message", "a", "0", "@stats_print", "0"]).ok();
    assert!(printed.starts_with("0+16384 0 0 0 0 1 0 8 "), "{printed}");
    let report = [
        "report",
        "--area",
        "--noheadings",
        "-o",
        "region_id,area_id,area_start,writes_per_sec,write_size_per_sec",
        "a",
    ];
    let report = dmstats(&place, &report).ok();
    assert_eq!(report.lines().count(), 3, "{report}");
    let listed = dmstats(&place, &["list", "--noheadings", "-o", "region_id,area_count,hist_bins"]);
    assert_eq!(listed.ok(), "0:1:0\n1:2:3\n");
    assert!(dmstats(&place, &["print", "--regionid", "1", "a"]).ok().contains("0+8192 "));
    assert_eq!(dmstats(&place, &["clear", "--regionid", "0", "a"]).code, Some(0));
    dmstats(&place, &["delete", "--regionid", "0", "a"]).ok();
    dmstats(&place, &["delete", "--allregions", "a"]).ok();
    assert_eq!(dmsetup(&place, &["message", "a", "0", "@stats_list"]).ok(), "");
    // Every column there is, statistics included.
    dmsetup(&place, &["info", "-c", "-o", "all"]).ok();
}
