//! dm statistics: what is counted where, and what a region may be.

use crate::rig::{noflush, status, world};
use udm_core::UserError;
use udm_core::error::ErrorKind;
use udm_testkit::{Io, TestWorld};
use udm_types::{DeviceId, Nanos, OpSet, Status};

fn ask(world: &mut TestWorld, dm: DeviceId, text: &str) -> Result<Option<String>, UserError> {
    let words: Vec<&str> = text.split(' ').collect();
    world.message(dm, 0, &words)
}

#[track_caller]
fn says(world: &mut TestWorld, dm: DeviceId, text: &str, expected: &str) {
    assert_eq!(ask(world, dm, text).unwrap().as_deref(), Some(expected), "{text}");
}

#[test]
fn bios_are_counted_in_the_areas_they_touch() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.io(dm, Io::write_pattern(0, 8, 1));
    says(&mut world, dm, "@stats_create - 100", "0");
    // Areas 0..100, 100..200, ... 500..512; this one lies in two.
    assert_eq!(world.io(dm, Io::write_pattern(96, 8, 1)).status, Status::Ok);
    assert_eq!(world.io(dm, Io::read(504, 8)).status, Status::Ok);
    // Begins where the one before ended, but the other way; then the same way.
    world.io(dm, Io::read(0, 8));
    world.io(dm, Io::read(8, 8));
    world.io(dm, Io::discard(200, 8));
    world.io(dm, Io::flush());
    says(
        &mut world,
        dm,
        "@stats_print 0",
        "0+100 2 1 16 0 1 0 4 0 0 0 0 0 0\n\
         100+100 0 0 0 0 1 0 4 0 0 0 0 0 0\n\
         200+100 0 0 0 0 1 0 8 0 0 0 0 0 0\n\
         300+100 0 0 0 0 0 0 0 0 0 0 0 0 0\n\
         400+100 0 0 0 0 0 0 0 0 0 0 0 0 0\n\
         500+100 1 0 8 0 0 0 0 0 0 0 0 0 0\n",
    );
    says(&mut world, dm, "@STATS_PRINT 0 1 1", "100+100 0 0 0 0 1 0 4 0 0 0 0 0 0\n");
    says(&mut world, dm, "@stats_print 0 6 -", "");
    says(&mut world, dm, "@stats_print_clear 0 - 1", "0+100 2 1 16 0 1 0 4 0 0 0 0 0 0\n");
    says(
        &mut world,
        dm,
        "@stats_print 0 0 2",
        "0+100 0 0 0 0 0 0 0 0 0 0 0 0 0\n100+100 0 0 0 0 1 0 4 0 0 0 0 0 0\n",
    );
    world.assert_quiet();
}

#[test]
fn time_passes_for_what_is_under_way_also_through_a_swap() {
    let mut world = world();
    let dm = world.create("t", "0 512 probe d0 0");
    world.message(dm, 0, &["hold"]).unwrap();
    // Under way before the region: neither its start nor its end counts.
    let before = world.submit(0, dm, Io::read(0, 8));
    world.run();
    says(&mut world, dm, "@stats_create - /1 2 precise_timestamps histogram:1000,2000", "0");
    says(&mut world, dm, "@stats_create 8+8 8 prog aux", "1");
    let held = [0, 1].map(|lane| world.submit(lane, dm, Io::write_pattern(8, 8, 1)));
    world.run();
    world.advance(Nanos::from_millis(3));
    let under_way = ask(&mut world, dm, "@stats_print 1").unwrap().unwrap();
    // Both lanes were busy for 3 ms: busy times are added.
    assert_eq!(under_way, "8+8 0 0 0 0 0 0 0 0 2 6 6 0 6\n");
    world.load(dm, "0 512 plain d1 0");
    world.suspend(dm, true);
    let pushed_back = ask(&mut world, dm, "@stats_print 1").unwrap().unwrap();
    assert_eq!(pushed_back, "8+8 0 0 0 0 0 0 0 0 0 6 6 0 6\n");
    world.resume(dm);
    world.run();
    for ticket in held.into_iter().chain([before]) {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    let text = ask(&mut world, dm, "@stats_print 0").unwrap().unwrap();
    assert!(text.starts_with("0+512 0 0 0 0 2 0 16 6000000 0 6000000 "), "{text}");
    assert!(text.ends_with(" 0:0:2\n"), "{text}");
    says(&mut world, dm, "@stats_clear 0", "");
    let cleared = "0+512 0 0 0 0 0 0 0 0 0 0 0 0 0 0:0:0\n";
    says(&mut world, dm, "@stats_print 0", cleared);
    says(
        &mut world,
        dm,
        "@stats_list",
        "0: 0+512 512 - - precise_timestamps histogram:1000,2000\n1: 8+8 8 prog aux\n",
    );
    says(&mut world, dm, "@stats_list prog", "1: 8+8 8 prog aux\n");
    assert_eq!(ask(&mut world, dm, "@stats_set_aux 1 new").unwrap(), None);
    assert_eq!(ask(&mut world, dm, "@stats_delete 0").unwrap(), None);
    says(&mut world, dm, "@stats_list", "1: 8+8 8 prog new\n");
    says(&mut world, dm, "@stats_create 0+8 8", "0");
    world.assert_quiet();
}

#[test]
fn failures_and_requests_are_counted_and_nothing_stays_under_way() {
    for table in ["0 512 plain d0 0", "0 512 rprobe d0 0", "0 512 probe d0 0"] {
        let mut world = world();
        let dm = world.create("t", table);
        says(&mut world, dm, "@stats_create - /1", "0");
        world.lower("d0").fail(0..512, OpSet::WRITE, Status::IoErr);
        assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::IoErr, "{table}");
        world.suspend(dm, true);
        let held = world.submit(0, dm, Io::read(0, 8));
        world.run();
        world.resume(dm);
        world.run();
        assert_eq!(status(&mut world, held), Status::Ok, "{table}");
        let text = ask(&mut world, dm, "@stats_print 0").unwrap().unwrap();
        assert!(text.starts_with("0+512 1 0 8 0 1 0 8 0 0 "), "{table}: {text}");
        assert_eq!(ask(&mut world, dm, "@stats_delete 0").unwrap(), None);
        // The short way is open again.
        assert_eq!(world.io(dm, Io::read(0, 8)).status, Status::Ok);
        world.assert_quiet();
    }
}

#[test]
fn a_region_needs_no_table_and_its_words_are_checked() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.start_suspend(dm, noflush());
    world.run();
    for bad in [
        "@stats_create",
        "@stats_create -",
        "@stats_create - 0",
        "@stats_create - /0",
        "@stats_create - x",
        "@stats_create 8 8",
        "@stats_create 8+0 8",
        "@stats_create 18446744073709551615+1 8",
        "@stats_create - 8 1",
        "@stats_create - 8 1 what",
        "@stats_create - 8 1 histogram:2,1",
        "@stats_create - 8 1 histogram:",
        "@stats_create - 8 2 histogram:1 histogram:2",
        "@stats_create - 8 a b c",
        "@stats_print x",
        "@stats_print 0 1",
        "@stats_list a b",
        "@stats_nothing",
        "@other",
    ] {
        let error = ask(&mut world, dm, bad).expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
    }
    for missing in ["@stats_print 0", "@stats_delete 0", "@stats_clear 0", "@stats_set_aux 0 x"] {
        let error = ask(&mut world, dm, missing).expect_err(missing);
        assert_eq!(error.kind(), ErrorKind::NoEntry, "{missing}");
    }
    let error = ask(&mut world, dm, "@stats_create 0+99999999 1").expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Overflow);
    // Beyond the end is allowed; so is a range for which there is no device yet.
    says(&mut world, dm, "@stats_create 1000+8 8", "0");
    says(&mut world, dm, "@stats_print 0", "1000+8 0 0 0 0 0 0 0 0 0 0 0 0 0\n");
}
