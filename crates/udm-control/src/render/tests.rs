//! The texts recorded from dmsetup 1.02.185 on a real kernel, against ours for the same devices.

use super::columns::{ColumnOptions, Needs, Row, columns, needs};
use super::{
    LineFilter, NameStyle, Node, Subject, TreeOptions, concise, deps, explained, failed_ioctl,
    info, lines, ls, ls_of_type, targets, tree, usage_of_table, version,
};
use crate::api::{Dependency, Device, Gauges, Line, SuspendState, TargetType};
use udm_core::error::{ErrorCode, UserError};
use udm_core::table::parse_table;

fn device(name: &str, minor: u32) -> Device {
    Device {
        name: name.to_owned(),
        major: 254,
        minor,
        live_present: true,
        target_count: 1,
        ..Device::default()
    }
}

fn line(begin_sector: u64, len_sectors: u64, target: &str, args: &str) -> Line {
    Line { begin_sector, len_sectors, target: target.to_owned(), args: args.to_owned() }
}

fn dep(major: u32, minor: u32) -> Dependency {
    Dependency { major: Some(major), minor: Some(minor), shown: format!("{major}:{minor}") }
}

fn none(_: u32, _: u32) -> Option<String> {
    None
}

#[test]
fn info_is_dmsetups_in_every_state() {
    let two = Device { target_count: 2, uuid: Some("uuid-two".into()), ..device("two", 1) };
    assert_eq!(
        info(&two, Some(&Gauges::default()), false),
        "Name:              two\nState:             ACTIVE\nRead Ahead:        256\n\
         Tables present:    LIVE\nOpen count:        0\nEvent number:      0\n\
         Major, minor:      254, 1\nNumber of targets: 2\nUUID: uuid-two\n\n"
    );
    let bare = Device { live_present: false, target_count: 0, suspended: true, ..device("t0", 0) };
    assert_eq!(
        info(&bare, None, false),
        "Name:              t0\nState:             SUSPENDED\nTables present:    None\n\
         Open count:        0\nEvent number:      0\nMajor, minor:      254, 0\n\
         Number of targets: 0\n\n"
    );
    let text = |device: Device| info(&device, None, false);
    let inactive = Device { live_present: false, inactive_present: true, ..device("t", 0) };
    assert!(text(inactive).contains("Read Ahead:        256\nTables present:    INACTIVE\n"));
    let both = Device { inactive_present: true, read_only: true, ..device("t", 0) };
    assert!(text(both).contains(
        "ACTIVE (READ-ONLY)\nRead Ahead:        256\nTables present:    LIVE & INACTIVE\n"
    ));
    let going = Device { deferred_remove: true, open_count: 1, ..device("t", 0) };
    assert!(text(going).contains("ACTIVE (DEFERRED REMOVE)\n"));
}

#[test]
fn a_suspend_in_progress_shows_its_reason_age_and_queues_after_dmsetups_lines() {
    let suspend = SuspendState {
        draining: true,
        noflush: true,
        reason: "array upgrade".into(),
        age_ms: 3250,
        deadline_ms: Some(5000),
    };
    let gauges = Gauges { in_flight: 3, held: 12, ..Gauges::default() };
    let draining = Device { suspend: Some(suspend), ..device("t0", 0) };
    let text = info(&draining, Some(&gauges), false);
    let ours = "Number of targets: 1\n\
        Suspend:           draining, 3.2 s, noflush, gives up after 5.0 s, reason: array upgrade\n\
        In flight, held:   3, 12\n\n";
    assert!(text.ends_with(ours), "{text}");
}

#[test]
fn columns_are_dmsetups_with_and_without_headings() {
    let rows = [
        Row {
            device: Device { open_count: 1, uuid: Some("LVM-abc".into()), ..device("t0", 0) },
            deps: vec![dep(1, 0)],
            users: vec![("vg-lv".into(), 254, 1)],
            ..Row::default()
        },
        Row {
            device: device("vg-lv", 1),
            deps: vec![dep(254, 0)],
            names: vec![(254, 0, "t0".into())],
            ..Row::default()
        },
    ];
    let report = |options: &ColumnOptions| columns(&rows, options).expect("fields exist");
    assert_eq!(
        report(&ColumnOptions::default()),
        "Name             Maj Min Stat Open Targ Event  UUID                            \n\
         t0               254   0 L--w    1    1      0 LVM-abc                         \n\
         vg-lv            254   1 L--w    0    1      0                                 \n"
    );
    let fields = "name,attr,tables_loaded,suspended,readonly,devno,segments,events,device_count,\
        device_ref_count,names_using_dev,devnos_using_dev";
    let wide = ColumnOptions { fields: Some(fields.into()), ..ColumnOptions::default() };
    assert_eq!(
        report(&wide),
        "Name             Stat Tables Suspended Read-only DevNo Targ Event  #Devs #Refs RefNames RefDevNos\n\
         t0               L--w Live   Active    Writeable 254:0    1      0     1     1 vg-lv    254:1    \n\
         vg-lv            L--w Live   Active    Writeable 254:1    1      0     1     0                   \n"
    );
    let bare = |fields: &str, separator: Option<&str>| ColumnOptions {
        fields: Some(fields.into()),
        noheadings: true,
        separator: separator.map(str::to_owned),
        ..ColumnOptions::default()
    };
    assert_eq!(
        report(&bare("name,major,minor,open,segments,events,uuid", None)),
        "t0:254:0:1:1:0:LVM-abc\nvg-lv:254:1:0:1:0:\n"
    );
    assert_eq!(
        report(&bare("name,vg_name,lv_name,subsystem", Some("|"))),
        "t0|t0||LVM\nvg-lv|||\n"
    );
    assert_eq!(report(&bare("devs_used,devnos_used", None)), ":1:0\nt0:254:0\n");
    let sorted = ColumnOptions {
        fields: Some("name,minor".into()),
        sort: Some("-minor".into()),
        ..ColumnOptions::default()
    };
    assert_eq!(
        report(&sorted),
        "Name             Min\nvg-lv              1\nt0                 0\n"
    );
    assert!(columns(&rows, &bare("nosuch", None)).is_err());
}

#[test]
fn attributes_show_tables_suspend_and_mode() {
    let row = Row {
        device: Device { inactive_present: true, suspended: true, ..device("lin0", 0) },
        ..Row::default()
    };
    let options = ColumnOptions {
        fields: Some("name,attr,suspended".into()),
        noheadings: true,
        ..ColumnOptions::default()
    };
    assert_eq!(columns(&[row], &options).expect("fields"), "lin0:LIsw:Suspended\n");
}

#[test]
fn tables_keep_the_trailing_space_and_the_empty_line() {
    let table = [line(0, 1024, "linear", "1:0 100"), line(1024, 1024, "zero", "")];
    let t0 = device("t0", 0);
    let plain = LineFilter::default();
    assert_eq!(lines(&t0, &table, plain), "0 1024 linear 1:0 100\n1024 1024 zero \n");
    let named = LineFilter { named: true, ..plain };
    assert_eq!(lines(&t0, &table, named), "t0: 0 1024 linear 1:0 100\nt0: 1024 1024 zero \n");
    let only = LineFilter { target: Some("zero"), named: false };
    assert_eq!(lines(&t0, &table, only), "1024 1024 zero \n");
    assert_eq!(lines(&t0, &[], plain), "\n");
    assert_eq!(lines(&t0, &[], named), "t0: \n");
    assert_eq!(lines(&t0, &[], only), "");
}

#[test]
fn concise_form_is_one_line_that_create_takes() {
    let t0 = Device { uuid: Some("u-0".into()), ..device("t0", 0) };
    let t1 = Device { read_only: true, ..device("t1", 1) };
    let text = concise(&[
        (t0, vec![line(0, 8, "zero", ""), line(8, 8, "error", "")]),
        (t1, vec![line(0, 8192, "linear", "1:0 0")]),
    ]);
    assert_eq!(text, "t0,u-0,0,rw,0 8 zero ,8 8 error ;t1,,1,ro,0 8192 linear 1:0 0\n");
}

#[test]
fn lists_have_dmsetups_tabs_and_brackets() {
    let devices = [device("t0", 0), device("vg-lv", 1)];
    assert_eq!(ls(&devices, NameStyle::DevNo), "t0\t(254:0)\nvg-lv\t(254:1)\n");
    assert_eq!(ls(&devices, NameStyle::DevName), "t0\t(t0)\nvg-lv\t(vg-lv)\n");
    assert_eq!(ls(&devices, NameStyle::BlkDevName), "t0\t(dm-0)\nvg-lv\t(dm-1)\n");
    assert_eq!(ls_of_type(&devices[..1]), "t0\t(254, 0)\n");
    let two = [dep(1, 1), dep(1, 0)];
    assert_eq!(
        deps(&devices[1], &two, true, NameStyle::DevNo, &none),
        "vg-lv: 2 dependencies\t: (1, 1) (1, 0)\n"
    );
    assert_eq!(deps(&devices[0], &[], false, NameStyle::DevNo, &none), "0 dependencies\t:\n");
    let linear = TargetType { name: "linear".into(), version: [1, 4, 0] };
    let origin = TargetType { name: "snapshot-origin".into(), version: [1, 9, 0] };
    assert_eq!(targets(&[origin, linear]), "snapshot-origin  v1.9.0\nlinear           v1.4.0\n");
    assert_eq!(
        version("1.02.185 (2022-05-18)", "4.48.0"),
        "Library version:   1.02.185 (2022-05-18)\nDriver version:    4.48.0\n"
    );
}

#[test]
fn trees_nest_by_three_columns_and_list_what_is_below() {
    let t0 = Node {
        device: Device { open_count: 1, uuid: Some("LVM-abc".into()), ..device("t0", 0) },
        deps: vec![dep(1, 0)],
    };
    let lv = Node { device: device("vg-lv", 1), deps: vec![dep(254, 0)] };
    let nodes = [t0, lv];
    assert_eq!(
        tree(&nodes, TreeOptions::default()),
        "vg-lv (254:1)\n `-t0 (254:0)\n    `- (1:0)\n"
    );
    let all =
        TreeOptions { active: true, rw: true, open: true, uuid: true, ..TreeOptions::default() };
    assert_eq!(
        tree(&nodes, all),
        "vg-lv (254:1) [ACTIVE, RW, 0, ]\n `-t0 (254:0) [ACTIVE, RW, 1, LVM-abc]\n    `- (1:0)\n"
    );
    let forked = [Node { device: device("s", 0), deps: vec![dep(1, 1), dep(1, 0)] }];
    assert_eq!(tree(&forked, TreeOptions::default()), "s (254:0)\n |- (1:1)\n `- (1:0)\n");
    let inverted = TreeOptions { inverted: true, ..TreeOptions::default() };
    assert_eq!(tree(&nodes, inverted), " (1:0)\n `-t0 (254:0)\n    `-vg-lv (254:1)\n");
}

#[test]
fn failures_say_what_dmsetup_says_and_then_why() {
    let gap = UserError::new(ErrorCode::Gap, "a gap before this line").at_line(2).at_field(1);
    let created = Subject { name: "tried", number: Some((254, 0)), ..Subject::default() };
    assert_eq!(
        failed_ioctl("reload", &created, &gap),
        "device-mapper: reload ioctl on tried (254:0) failed: Invalid argument\n"
    );
    let taken = UserError::new(ErrorCode::UuidTaken, "taken");
    let t1 = Subject { name: "t1", uuid: "U-1", number: None };
    assert_eq!(
        failed_ioctl("create", &t1, &taken),
        "device-mapper: create ioctl on t1 U-1 failed: Device or resource busy\n"
    );
    let nope = Subject { name: "nope", ..Subject::default() };
    let missing = UserError::new(ErrorCode::NoSuchDevice, "no");
    assert_eq!(
        failed_ioctl("waitevent", &nope, &missing),
        "device-mapper: waitevent ioctl on nope  failed: No such device or address\n"
    );
    assert_eq!(
        explained(&gap.hint("close it")),
        "udm: line 2, field 1: a gap before this line [UDM-0105]\nudm: hint: close it\n"
    );
}

#[test]
fn table_text_that_dmsetup_itself_refuses_gets_its_words() {
    let refused = |text: &str, origin: &str| {
        let parsed = parse_table(text);
        usage_of_table(parsed.as_deref(), text, origin)
    };
    for text in ["zero", "0 zero", "0 8", "a 8 zero"] {
        assert_eq!(refused(text, "").as_deref(), Some("Invalid format on line 1 of table .\n"));
    }
    assert_eq!(
        refused("0 8 zero\n8 x zero", "on stdin").as_deref(),
        Some("Invalid format on line 2 of table on stdin.\n")
    );
    assert_eq!(
        refused("0 8 nosuchtargetwithaverylongname", "").as_deref(),
        Some("Target type name nosuchtargetwithaverylongname is too long.\n")
    );
    // Left to the kernel, which says: Invalid argument.
    for text in ["0 -1 zero", "0 18446744073709551616 zero", "0 8 nosuchtarget", "0 0 zero"] {
        assert_eq!(refused(text, ""), None, "{text}");
    }
}

#[test]
fn a_report_needs_only_what_its_fields_show() {
    let of = |fields: &str, sort: &str| {
        needs(&ColumnOptions {
            fields: Some(fields.into()),
            sort: Some(sort.into()),
            ..ColumnOptions::default()
        })
    };
    assert_eq!(needs(&ColumnOptions::default()), Needs { deps: false, gauges: false });
    assert_eq!(of("name,uuid", "minor"), Needs { deps: false, gauges: false });
    assert_eq!(of("+held", "minor"), Needs { deps: false, gauges: true });
    assert_eq!(of("name", "-device_count"), Needs { deps: true, gauges: false });
    assert_eq!(of("all", "name"), Needs { deps: true, gauges: true });
}
