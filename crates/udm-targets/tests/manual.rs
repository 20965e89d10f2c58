//! The manuals in docs/targets: their examples are real tables, and what they print is what is
//! printed.
//!
//! A page's ```table fences are built with the registry over devices `d0` and `d1`; the rows of
//! `loaded | table | status` are loaded into a live device and compared. The pages write `7:0` for
//! the device number of `d0`, since that is what a user sees; the test's devices are shown by name.

mod volumes;

use std::fs;
use std::path::PathBuf;
use udm_core::lifecycle::{StatusKind, StatusLine};
use udm_testkit::TestWorld;

fn page(name: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("../../docs/targets").join(format!("{name}.md"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names() -> Vec<&'static str> {
    udm_targets::all().iter().map(|known| known.name()).collect()
}

fn world() -> TestWorld {
    let mut world = TestWorld::new(udm_targets::registry(), 1);
    let d0 = world.add_lower("d0", 1 << 14);
    // For the targets that need a volume; the others do not look at it.
    volumes::prepare(&d0, 1 << 14, 1024);
    world.add_lower("d1", 1 << 14);
    world
}

/// The contents of the page's ```table fences.
fn examples(page: &str) -> Vec<String> {
    let fences = page.split("```table\n").skip(1);
    fences.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// The rows `loaded | table | status`, without the code marks.
fn shown(page: &str) -> Vec<[String; 3]> {
    let rows = page.lines().filter(|line| line.starts_with("| `0 "));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let cell = |at: usize| cells[at].trim_matches('`').to_owned();
        [cell(0), cell(1), cell(2)]
    })
    .collect()
}

/// A line as dmsetup prints it: type and arguments with a space between, whatever the arguments.
fn text(line: &StatusLine) -> String {
    format!("{} {} {} {}", line.begin_sector, line.len_sectors, line.target, line.args)
}

#[test]
fn every_example_of_every_manual_can_be_loaded() {
    for name in names() {
        let page = page(name);
        assert!(page.starts_with(&format!("# {name}\n")), "{name}: the title");
        let examples = examples(&page);
        assert!(!examples.is_empty(), "{name}: no examples");
        for example in examples {
            assert!(example.contains(name), "{name}: an example without it");
            let mut world = world();
            let device = world.create("t", &example);
            assert!(world.status(device).target_count > 0);
            world.assert_quiet();
        }
    }
}

#[test]
fn tables_and_statuses_print_as_the_manuals_say() {
    for name in names() {
        let rows = shown(&page(name));
        assert!(!rows.is_empty(), "{name}: nothing is shown");
        for [loaded, table, status] in rows {
            let mut world = world();
            let device = world.create("t", &loaded);
            let by_name = |text: String| text.replace("7:0", "d0").replace("7:1", "d1");
            let printed = text(&world.lines(device, StatusKind::Table)[0]);
            assert_eq!(printed, by_name(table), "{name}");
            let printed = text(&world.lines(device, StatusKind::Info)[0]);
            // One row shows bios that wait; the manual says so beside it.
            let wanted = by_name(status).replace("delay 0 2 0", "delay 0 0 0");
            assert_eq!(printed, wanted, "{name}");
        }
    }
}
