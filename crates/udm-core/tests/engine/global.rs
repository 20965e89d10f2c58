//! What belongs to the whole daemon or to a device's number alone: the global event number,
//! geometry.

use crate::rig::{accepted, key, refused, remove, world};
use udm_core::ErrorCode;
use udm_core::lifecycle::{Geometry, Reply, Request, SuspendOptions};
use udm_testkit::TestWorld;
use udm_types::{DmName, DmUuid};

fn number(world: &mut TestWorld) -> u32 {
    match world.request(Request::GlobalEvent) {
        Ok(Reply::Number(number)) => number,
        other => panic!("no number: {other:?}"),
    }
}

#[test]
fn the_global_number_grows_with_everything_a_poll_should_see_and_nothing_else() {
    let mut world = world();
    let mut last = number(&mut world);
    let mut grown = |world: &mut TestWorld| {
        let now = number(world);
        std::mem::replace(&mut last, now) != now
    };
    let dm = world.create("t", "0 512 plain d0 0");
    assert!(grown(&mut world));
    world.load(dm, "0 512 plain d1 0");
    accepted(Some(world.request(Request::Clear { device: key(dm) })));
    world.suspend(dm, true);
    world.resume(dm);
    assert!(!grown(&mut world), "nothing has changed but the inactive slot");
    world.load(dm, "0 512 lab d1 0");
    world.resume(dm);
    assert!(grown(&mut world), "a swap");
    world.message(dm, 0, &["event"]).unwrap();
    assert!(grown(&mut world), "a target's event");
    let name = DmName::new("u").unwrap();
    accepted(Some(world.request(Request::Rename { device: key(dm), name: name.clone() })));
    assert!(grown(&mut world), "a rename");
    refused(Some(world.request(Request::Rename { device: key(dm), name })));
    let uuid = DmUuid::new("x").unwrap();
    let options = SuspendOptions::default();
    let wait = world.start(|ticket| Request::Resume { device: key(dm), options, ticket });
    accepted(world.answer(wait));
    assert!(!grown(&mut world), "a refused rename, and a resume of what runs");
    accepted(Some(world.request(Request::SetUuid { device: key(dm), uuid })));
    assert!(grown(&mut world), "a uuid");
    assert_eq!(remove(&mut world, dm, false), None);
    assert!(grown(&mut world), "a removal");
    world.assert_quiet();
}

#[test]
fn who_waits_for_the_global_number_gets_it_or_is_cancelled() {
    let mut world = world();
    let event_nr = number(&mut world);
    let first = world.start(|ticket| Request::WaitGlobal { event_nr, ticket });
    let second = world.start(|ticket| Request::WaitGlobal { event_nr, ticket });
    accepted(Some(world.request(Request::Cancel { ticket: second.number() })));
    assert_eq!(refused(world.answer(second)), ErrorCode::SuspendCancelled);
    assert!(world.answer(first).is_none(), "nothing has happened");
    world.create("t", "0 512 plain d0 0");
    let woken = world.answer(first);
    assert!(matches!(woken, Some(Ok(Reply::Number(now))) if now != event_nr), "{woken:?}");
    // It differs already.
    let late = world.start(|ticket| Request::WaitGlobal { event_nr, ticket });
    accepted(world.answer(late));
}

#[test]
fn a_geometry_stays_until_the_size_changes() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    let geometry = Geometry { cylinders: 4, heads: 16, sectors: 8, start_sector: 512 };
    let set = |geometry| Request::SetGeometry { device: key(dm), geometry };
    accepted(Some(world.request(set(geometry))));
    let beyond = Geometry { start_sector: 513, ..geometry };
    assert_eq!(refused(Some(world.request(set(beyond)))), ErrorCode::BadParameter);
    world.load(dm, "0 512 plain d1 0");
    world.resume(dm);
    assert_eq!(world.status(dm).geometry, Some(geometry));
    world.load(dm, "0 256 plain d1 0");
    world.resume(dm);
    assert_eq!(world.status(dm).geometry, None);
    world.assert_quiet();
}
