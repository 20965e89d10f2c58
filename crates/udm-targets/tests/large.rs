//! Large tables: twenty thousand lines are loaded, served, swapped and printed.
//!
//! What costs the square of the number of lines somewhere (limits, distinct devices, flush routes,
//! search of a sector) does not show with three lines; here it would take minutes.

use udm_core::lifecycle::StatusKind;
use udm_testkit::{Io, TestWorld};

const LINES: u64 = 20_000;

/// Lines of one sector in turn on two devices, every fourth of them of another type.
fn lines() -> String {
    let line = |index: u64| match index % 8 {
        3 => format!("{index} 1 zero"),
        7 => format!("{index} 1 striped 1 1 d{} {index}", index % 2),
        _ => format!("{index} 1 linear d{} {index}", index % 2),
    };
    (0..LINES).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn twenty_thousand_lines_are_served_swapped_and_printed() {
    let mut world = TestWorld::new(udm_targets::registry(), 2);
    let disks = [world.add_lower("d0", LINES), world.add_lower("d1", LINES)];
    let text = lines();
    let device = world.create("t", &text);
    assert_eq!(u64::from(world.status(device).target_count), LINES);
    // One bio over a thousand lines is cut into a thousand pieces.
    let sector = LINES / 2;
    assert!(world.io(device, Io::write_pattern(sector, 1000, 1)).status.is_ok());
    world.swap(device, &text, true);
    let read = world.io(device, Io::read(sector, 1000));
    assert!(read.status.is_ok());
    for (index, found) in read.bytes.chunks(512).enumerate() {
        let sector = sector + index as u64;
        let wanted = match sector % 8 {
            3 => vec![0; 512],
            _ => udm_testkit::pattern(sector, 1, 1),
        };
        assert!(found == wanted, "sector {sector}");
    }
    assert!(world.io(device, Io::flush()).status.is_ok());
    assert_eq!(disks.map(|disk| disk.flushes()), [1, 1], "once each, whatever the lines");
    let printed = world.lines(device, StatusKind::Table);
    assert_eq!(printed.len() as u64, LINES);
    assert_eq!(printed[15].args, "1 1 d1 15");
    world.remove(device);
    world.assert_quiet();
}

#[test]
fn a_thousand_idle_devices_let_every_lane_sleep() {
    let mut world = TestWorld::new(udm_targets::registry(), 2);
    world.add_lower("d0", 64);
    let kinds = [
        "linear d0 0",
        "striped 1 8 d0 0",
        "zero",
        "error",
        "delay d0 0 5",
        "flakey d0 0 1 1 2 random_read_corrupt 9",
    ];
    let mut devices = Vec::new();
    for index in 0..1000 {
        let kind = kinds[index % kinds.len()];
        devices.push(world.create(&format!("t{index}"), &format!("0 64 {kind}")));
    }
    for device in &devices[..12] {
        world.submit(0, *device, Io::read(0, 8));
        world.submit(1, *device, Io::flush());
    }
    world.settle();
    assert_eq!(world.pending(), 0);
    assert_eq!(world.next_deadline(), None, "no timer is set");
    for lane in 0..2 {
        assert!(!world.turn(lane), "there is nothing to do");
        assert!(world.probe(lane).is_asleep());
        assert_eq!(world.probe(lane).deadline(), None, "it sleeps until somebody wakes it");
    }
}
