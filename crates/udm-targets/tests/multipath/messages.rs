//! Messages: what is refused and how, names of devices, what a suspended device takes.

use crate::rig::{TWO_GROUPS, events, info, one_group, table, tell, world, write};
use udm_core::{ErrorCode, ErrorKind};

#[test]
fn wrong_messages_are_refused_and_change_nothing() {
    let (mut world, dm) = world(2, TWO_GROUPS);
    let before = (info(&mut world, dm), table(&mut world, dm));
    for (words, code) in [
        ("nosuch", ErrorCode::UnknownMessage),
        ("nosuch x", ErrorCode::UnknownMessage),
        ("queue_if_no_path x", ErrorCode::BadMessage),
        ("fail_if_no_path x", ErrorCode::BadMessage),
        ("fail_path", ErrorCode::BadMessage),
        ("fail_path d0 x", ErrorCode::BadMessage),
        ("fail_path d9", ErrorCode::BadMessage),
        ("reinstate_path", ErrorCode::BadMessage),
        ("reinstate_path 1:99", ErrorCode::BadMessage),
        ("switch_group", ErrorCode::BadMessage),
        ("switch_group 0", ErrorCode::BadMessage),
        ("switch_group 3", ErrorCode::BadMessage),
        ("switch_group x", ErrorCode::BadMessage),
        ("switch_group -1", ErrorCode::BadMessage),
        ("switch_group +1", ErrorCode::BadMessage),
        ("disable_group 3", ErrorCode::BadMessage),
        ("enable_group 99999999999", ErrorCode::BadMessage),
        ("queue_if_no_path_timeout_secs", ErrorCode::BadMessage),
        ("queue_if_no_path_timeout_secs x", ErrorCode::BadMessage),
        ("explain x", ErrorCode::UnknownMessage),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let error = world.message(dm, 0, &words).expect_err("it is wrong");
        assert_eq!((error.code(), error.kind()), (code, ErrorKind::Invalid), "{words:?}");
    }
    assert_eq!((info(&mut world, dm), table(&mut world, dm)), before);
    assert_eq!(events(&mut world, dm), 0);
    world.assert_quiet();
}

#[test]
fn a_suspended_device_takes_only_what_changes_no_path() {
    let (mut world, dm) = world(2, TWO_GROUPS);
    for noflush in [false, true] {
        world.suspend(dm, noflush);
        for words in [
            "fail_path d0",
            "reinstate_path d0",
            "switch_group 1",
            "disable_group 1",
            "enable_group 1",
            "queue_if_no_path",
            "fail_if_no_path",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            let error = world.message(dm, 0, &words).expect_err("it is suspended");
            assert_eq!((error.code(), error.kind()), (ErrorCode::Suspended, ErrorKind::Busy));
        }
        tell(&mut world, dm, "queue_if_no_path_timeout_secs 7");
        assert!(world.message(dm, 0, &["explain"]).is_ok_and(|text| text.is_some()));
        assert!(world.message(dm, 0, &["paths"]).is_ok_and(|text| text.is_some()));
        world.resume(dm);
    }
    tell(&mut world, dm, "fail_path d0");
    assert_eq!(events(&mut world, dm), 1);
    world.assert_quiet();
}

#[test]
fn what_is_so_already_raises_no_event() {
    let (mut world, dm) = world(2, &one_group("", "d0 d1"));
    tell(&mut world, dm, "reinstate_path d0");
    assert_eq!(events(&mut world, dm), 0);
    tell(&mut world, dm, "fail_path d0");
    tell(&mut world, dm, "fail_path d0");
    assert_eq!(events(&mut world, dm), 1);
    tell(&mut world, dm, "Reinstate_Path d0");
    tell(&mut world, dm, "reinstate_path d0");
    assert_eq!(events(&mut world, dm), 2);
    assert_eq!(info(&mut world, dm), "2 1 0 0 1 1 E 0 2 0 d0 A 1 d1 A 0 ");
    tell(&mut world, dm, "QUEUE_IF_NO_PATH");
    assert_eq!(events(&mut world, dm), 2, "queueing raises none");
}

#[test]
fn a_mapped_device_below_is_known_by_each_of_its_names() {
    let (mut world, _) = world(1, TWO_GROUPS);
    world.create("below", "0 512 linear d2 0");
    let dm = world.create("m", &crate::rig::line(&one_group("", "dm:below d0")));
    for name in ["dm:below", "/dev/mapper/below"] {
        tell(&mut world, dm, &format!("fail_path {name}"));
        assert!(info(&mut world, dm).contains(" F "), "{name}");
        tell(&mut world, dm, &format!("reinstate_path {name}"));
        assert!(!info(&mut world, dm).contains(" F "), "{name}");
    }
    let shown = table(&mut world, dm);
    let number = shown.split(' ').find(|word| word.contains(':')).expect("shown by number");
    tell(&mut world, dm, &format!("fail_path {number}"));
    assert!(info(&mut world, dm).contains(" F "), "{number}");
    assert!(world.io(dm, write(0)).status.is_ok());
}
