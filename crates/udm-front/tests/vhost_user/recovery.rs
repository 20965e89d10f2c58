//! Requests in flight when a server or a connection goes: done by the next one, answered once.

use crate::client::{IN, Machine, OUT, Shape};
use crate::rig::Rig;
use crate::{MEMORY, end, machine, pattern, serve, stop};
use std::collections::BTreeSet;
use udm_driver::DriverChoice;

/// Fills slots with writes to sectors of their own and shows them to the device.
fn start_writes(machine: &mut Machine, slots: std::ops::Range<u16>) {
    let queue = &mut machine.queues[0];
    for slot in slots {
        queue.memory.write(queue.data_at(slot), &pattern(usize::from(slot), 4096));
        queue.transfer(slot, OUT, u64::from(slot) * 8, 4096);
    }
    queue.expose();
}

fn expect_answers(machine: &mut Machine, slots: std::ops::Range<u16>) {
    let queue = &mut machine.queues[0];
    let mut missing: BTreeSet<u16> = slots.collect();
    while !missing.is_empty() {
        let (slot, _) = queue.next_used();
        assert_eq!(queue.status(slot), 0);
        assert!(missing.remove(&slot), "request {slot} was answered twice");
    }
    assert_eq!(queue.take_used(), None, "nothing was answered twice");
}

fn expect_data(machine: &mut Machine, slots: std::ops::Range<u16>) {
    for slot in slots {
        let seen = machine.queues[0].read(u64::from(slot) * 8, 4096);
        assert_eq!(seen, pattern(usize::from(slot), 4096));
    }
}

#[test]
fn what_a_dead_server_had_taken_is_done_by_the_next() {
    let rig = Rig::new(2, DriverChoice::Auto, MEMORY);
    let first = serve(&rig, false);
    let (mut machine, link) = machine(&first, Shape { slot_bytes: 4096, ..Shape::SMALL });
    start_writes(&mut machine, 0..10);
    expect_answers(&mut machine, 0..10);
    rig.suspend(true);
    start_writes(&mut machine, 10..30);
    rig.wait_for(|lanes| lanes.iter().map(|lane| lane.held).sum::<u64>() == 20);
    // The server is gone with 20 requests taken; the guest offers some more meanwhile.
    stop(first, true);
    drop(link);
    start_writes(&mut machine, 30..40);
    // Another one, on other lanes: nothing of the first one's state is there.
    let other = Rig::new(1, DriverChoice::Auto, MEMORY);
    let second = serve(&other, false);
    let link = machine.connect(&second.path);
    expect_answers(&mut machine, 10..40);
    expect_data(&mut machine, 10..40);
    assert_eq!(machine.queues[0].used_idx(), machine.queues[0].next_avail);
    rig.resume(true);
    rig.wait_for(|lanes| lanes.iter().all(|lane| lane.held + lane.in_flight == 0));
    drop(link);
    end(second);
}

#[test]
fn a_lost_connection_is_taken_up_where_it_was() {
    let rig = Rig::new(2, DriverChoice::Auto, MEMORY);
    let served = serve(&rig, false);
    let shape = Shape { slot_bytes: 4096, ..Shape::SMALL };
    let (mut machine, mut link) = machine(&served, shape);
    for round in 0..20_u16 {
        start_writes(&mut machine, 0..40);
        // Some are answered, some taken, some not yet.
        drop(link);
        link = machine.connect(&served.path);
        expect_answers(&mut machine, 0..40);
        expect_data(&mut machine, round..round + 1);
    }
    drop(link);
    end(served);
}

#[test]
fn a_queue_that_is_stopped_and_started_goes_on() {
    use vhost::VhostBackend;
    use vhost::vhost_user::VhostUserFrontend;
    let rig = Rig::new(2, DriverChoice::Auto, MEMORY);
    let served = serve(&rig, false);
    let (mut machine, mut link) = machine(&served, Shape { slot_bytes: 4096, ..Shape::SMALL });
    for round in 0..10 {
        start_writes(&mut machine, 0..20);
        if round % 2 == 0 {
            let base = link.frontend.get_vring_base(0).expect("an index");
            assert_eq!(base as u16, machine.queues[0].used_idx(), "all that was taken is answered");
            machine.start_queue(&mut link.frontend, 0).expect("it starts");
        } else {
            link.frontend.set_vring_enable(0, false).expect("it stops");
            link.frontend.set_vring_enable(0, true).expect("it starts");
        }
        expect_answers(&mut machine, 0..20);
    }
    expect_data(&mut machine, 0..20);
    // Memory may change under a running queue.
    let mut more = machine.region();
    more.guest_phys_addr += 1 << 32;
    more.userspace_addr += 1 << 32;
    link.frontend.set_mem_table(&[machine.region(), more]).expect("memory");
    assert_eq!(machine.queues[0].run(0, IN, 0, &[0; 512]), 0);
    drop(link);
    end(served);
}
