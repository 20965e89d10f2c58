//! The judge judged: states that are legal, and one of each kind that is not.
//!
//! Three changes on four sectors are enough to tell prefixes from all else. The tricky case is a
//! value that was there twice: it must not make an illegal state look like a legal one.

use super::{Change, Durability, Oracle, What};
use crate::crash::stamp::{self, Style, Value};
use udm_types::Status;

fn change(request: u32, first: usize, len: usize) -> Change {
    Change { request, first, len, what: What::Data(Style::Dense) }
}

/// Changes 1 (sectors 0, 1), 2 (sector 1, 2) and 3 (zeroes on 0), each accepted and done.
fn three() -> Oracle {
    let mut oracle = Oracle::new(4, false);
    let zeroes = Change { what: What::Zeroes, ..change(3, 0, 1) };
    for (ticket, change) in [(1, change(1, 0, 2)), (2, change(2, 1, 2)), (3, zeroes)] {
        oracle.submit_change(ticket, change, Durability::default());
        oracle.accept(ticket).expect("open");
        oracle.done(ticket, Status::Ok, &[]).expect("accepted");
    }
    oracle
}

fn found(values: [Value; 4]) -> Vec<Option<Value>> {
    values.map(Some).to_vec()
}

fn data(request: u32, sector: usize) -> Value {
    stamp::data(request, sector, Style::Dense)
}

#[test]
fn every_prefix_is_legal_and_is_recognised() {
    let oracle = three();
    let states = [
        found([0, 0, 0, 0]),
        found([data(1, 0), data(1, 1), 0, 0]),
        found([data(1, 0), data(2, 1), data(2, 2), 0]),
        found([0, data(2, 1), data(2, 2), 0]),
    ];
    for (p, state) in states.iter().enumerate() {
        assert_eq!(oracle.judge(state, 0), Ok(p));
        assert_eq!(oracle.judge(state, p), Ok(p));
        assert!(oracle.judge(state, p + 1).is_err(), "less than promised");
    }
}

#[test]
fn a_request_half_there_or_out_of_order_is_no_prefix() {
    let oracle = three();
    for state in [
        found([data(1, 0), 0, 0, 0]),
        found([data(1, 0), data(2, 1), 0, 0]),
        found([0, data(2, 1), 0, 0]),
        found([data(1, 0), data(1, 1), 0, data(1, 3)]),
    ] {
        assert!(oracle.judge(&state, 0).is_err(), "{state:?}");
    }
    assert!(oracle.judge(&[None, Some(0), Some(0), Some(0)], 0).is_err(), "garbage");
}

#[test]
fn a_flush_covers_what_was_done_before_it_was_submitted() {
    let mut oracle = three();
    oracle.submit_flush(10);
    oracle.submit_change(4, change(4, 3, 1), Durability::default());
    oracle.accept(4).expect("open");
    oracle.done(4, Status::Ok, &[]).expect("accepted");
    oracle.done(10, Status::Ok, &[]).expect("open");
    assert_eq!((oracle.floor(true), oracle.floor(false)), (3, 3));
    oracle.submit_flush(11);
    oracle.done(11, Status::IoErr, &[]).expect("open");
    assert_eq!(oracle.floor(true), 3, "a failed flush promises nothing");
}

#[test]
fn a_preflush_covers_what_was_done_before_and_not_its_own_data() {
    let mut oracle = three();
    oracle.submit_change(4, change(4, 3, 1), Durability { fua: false, preflush: true });
    oracle.accept(4).expect("open");
    assert_eq!(oracle.floor(true), 0, "it is not done");
    oracle.done(4, Status::Ok, &[]).expect("accepted");
    assert_eq!(oracle.floor(true), 3);
    oracle.submit_change(5, change(5, 3, 1), Durability { fua: true, preflush: true });
    oracle.accept(5).expect("open");
    oracle.done(5, Status::Ok, &[]).expect("accepted");
    assert_eq!(oracle.floor(true), 5);
}

#[test]
fn nothing_comes_back_after_a_recovery() {
    let mut oracle = three();
    oracle.rebase(2);
    let state = found([data(1, 0), data(2, 1), data(2, 2), 0]);
    assert_eq!(oracle.judge(&state, 0), Ok(0));
    assert!(oracle.judge(&found([0, data(2, 1), data(2, 2), 0]), 0).is_err(), "change 3 is gone");
    assert!(oracle.judge(&found([data(1, 0), data(1, 1), 0, 0]), 0).is_err(), "so is the past");
}

#[test]
fn a_read_sees_what_was_there_while_it_ran() {
    let mut oracle = three();
    let mut old = [0; 512];
    stamp::write(data(1, 1), &mut old);
    oracle.submit_read(20, 1, 1);
    assert!(oracle.done(20, Status::Ok, &old).is_err(), "overwritten before the read began");
    oracle.submit_read(21, 1, 1);
    oracle.submit_change(5, change(5, 1, 1), Durability::default());
    oracle.accept(5).expect("open");
    let mut bytes = [0; 512];
    stamp::write(data(2, 1), &mut bytes);
    assert_eq!(oracle.done(21, Status::Ok, &bytes), Ok(()), "before");
    oracle.submit_read(22, 1, 1);
    stamp::write(data(5, 1), &mut bytes);
    assert_eq!(oracle.done(22, Status::Ok, &bytes), Ok(()), "after");
}

#[test]
fn answers_out_of_turn_are_found() {
    let mut oracle = three();
    assert!(oracle.done(1, Status::Ok, &[]).is_err(), "twice");
    assert!(oracle.accept(1).is_err());
    oracle.submit_change(6, change(6, 0, 1), Durability::default());
    oracle.accept(6).expect("open");
    assert!(oracle.accept(6).is_err(), "twice");
    oracle.submit_change(7, change(7, 0, 1), Durability::default());
    assert!(oracle.done(7, Status::Ok, &[]).is_err(), "never accepted");
}
