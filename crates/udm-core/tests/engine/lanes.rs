//! A lane itself: tasks that do I/O, mailboxes that are full, timers, devices opened bare.

use crate::rig::world;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use udm_core::LaneMessage;
use udm_core::engine::MAILBOX_CAPACITY;
use udm_lane::{Buf, Payload};
use udm_testkit::pattern;
use udm_types::{LaneId, OpSet, Status};

fn payload(bytes: &[u8]) -> Payload {
    let payload = Payload::from_buf(Buf::alloc(bytes.len()));
    payload.copy_in(0, bytes);
    payload
}

#[test]
fn a_task_writes_flushes_and_reads_back() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 64");
    let io = world.engine(1).async_io();
    let ended = Rc::new(Cell::new(false));
    let end = Rc::clone(&ended);
    world.engine(1).spawn_task(async move {
        let data = pattern(8, 16, 5);
        let (status, _) = io.write(dm, 8, payload(&data)).await;
        assert_eq!(status, Status::Ok);
        assert_eq!(io.flush(dm).await.0, Status::Ok);
        let (status, read) = io.read(dm, 8, payload(&vec![0; data.len()])).await;
        let mut back = vec![0; data.len()];
        read.copy_out(0, &mut back);
        assert!(status.is_ok() && back == data);
        assert_eq!(io.read(dm, 510, payload(&[0; 2048])).await.0, Status::IoErr);
        end.set(true);
    });
    world.run();
    assert!(ended.get());
    assert_eq!(world.lower("d0").bytes(72, 16), pattern(8, 16, 5));
    assert_eq!(world.lower("d0").flushes(), 1);
    assert_eq!((world.census().in_flight, world.census().bios_lost), (0, 0));
}

#[test]
fn a_task_that_stops_waiting_does_not_get_somebody_elses_result() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.lower("d0").hold(OpSet::READ);
    world.lower("d0").set_bytes(0, &pattern(0, 16, 1));
    let io = world.engine(0).async_io();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&seen);
    world.engine(0).spawn_task(async move {
        let mut first = Some(io.read(dm, 0, payload(&[0; 512])));
        // Looks once, so that it is under way, and gives it up.
        std::future::poll_fn(|cx| {
            let future = first.take().expect("polled once");
            assert!(pin!(future).poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        for sector in [1, 2] {
            let (status, read) = io.read(dm, sector, payload(&[0; 512])).await;
            let mut back = vec![0; 512];
            read.copy_out(0, &mut back);
            log.borrow_mut().push((sector, status, back));
        }
    });
    world.run();
    assert_eq!(world.lower("d0").held().len(), 2, "the one given up cannot be recalled");
    assert!(world.lower("d0").release(0));
    world.run();
    assert!(seen.borrow().is_empty(), "its end is nobody's");
    world.lower("d0").flow();
    world.run();
    let wanted: Vec<_> = [1, 2].map(|sector| (sector, Status::Ok, pattern(sector, 1, 1))).into();
    assert_eq!(*seen.borrow(), wanted);
    assert_eq!((world.census().in_flight, world.census().bios_lost), (0, 0));
}

#[test]
fn a_full_mailbox_delays_messages_and_loses_none() {
    let mut world = world();
    let count = MAILBOX_CAPACITY * 3;
    let seen = Arc::new(Mutex::new(Vec::new()));
    for number in 0..count {
        let seen = Arc::clone(&seen);
        let run = move |_: &mut udm_core::Engine| seen.lock().unwrap().push(number);
        world.engine(0).send(LaneId(1), LaneMessage::Run(Box::new(run)));
    }
    assert!(world.engine(0).has_work(), "what did not fit is kept");
    world.run();
    assert!(seen.lock().unwrap().iter().copied().eq(0..count), "all of them, in order");
    world.assert_quiet();
}

#[test]
fn a_device_is_removed_while_a_task_reads_from_it() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    let io = world.engine(1).async_io();
    let ended = Rc::new(Cell::new(Status::Ok));
    let end = Rc::clone(&ended);
    world.suspend(dm, true);
    world.engine(1).spawn_task(async move {
        end.set(io.read(dm, 0, payload(&[0; 512])).await.0);
    });
    world.run();
    assert_eq!(world.census().held, 1);
    world.remove(dm);
    assert_eq!(ended.get(), Status::Offline);
}
