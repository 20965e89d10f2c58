//! The driver contract, checked on every driver by the same tests.
//!
//! Each file here holds plain functions that take a [`rig::Rig`]; `on_every_driver!` turns them
//! into one test per driver. Nothing sleeps: a test waits for a completion, for a thread to be
//! blocked, or for a clock to pass.
//!
//! io_uring runs twice: as this kernel has it, and as the oldest accepted kernel does.
//! A machine that forbids io_uring runs the portable half and says so.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod events;
mod refusal;
mod rig;
mod sockets;
mod storage;
mod storm;
mod waking;
mod writes;

/// One test a driver and function.
macro_rules! on_every_driver {
    ($($area:ident: $($name:ident),+ $(,)?;)+) => {
        mod io_uring {
            $(mod $area { $(
                #[test]
                fn $name() {
                    if let Some(rig) = crate::rig::Rig::uring() {
                        crate::$area::$name(rig);
                    }
                }
            )+ })+
        }
        mod oldest_io_uring {
            $(mod $area { $(
                #[test]
                fn $name() {
                    if let Some(rig) = crate::rig::Rig::oldest_uring() {
                        crate::$area::$name(rig);
                    }
                }
            )+ })+
        }
        mod portable {
            $(mod $area { $(
                #[test]
                fn $name() {
                    crate::$area::$name(crate::rig::Rig::portable());
                }
            )+ })+
        }
    };
}

on_every_driver! {
    storage:
        what_was_written_is_read,
        many_segments_make_one_transfer,
        a_read_at_the_end_is_short,
        dsync_and_sync_succeed,
        a_punched_range_reads_zero_and_frees_space,
        a_zeroed_range_reads_zero,
        a_wrong_descriptor_completes_with_its_errno,
        a_stale_handle_completes_with_ebadf,
        an_offset_past_the_signed_range_is_refused,
        an_empty_transfer_does_nothing,
        close_lets_operations_in_flight_finish,
        a_command_of_a_file_that_has_none_is_refused,
        memory_is_lent_to_devices_only,
        a_copy_at_once_copies_or_says_that_it_cannot,
        a_pipe_waits_for_its_data;
    sockets:
        bytes_go_both_ways,
        a_receive_waits_for_its_bytes,
        many_segments_are_sent_in_order,
        a_closed_peer_reads_as_zero_bytes,
        a_send_to_a_closed_peer_fails_without_a_signal,
        a_slow_peer_gets_every_byte,
        one_accept_takes_many_clients,
        tcp_clients_are_accepted_too,
        a_cancelled_accept_ends_once,
        shutdown_ends_a_pending_receive,
        shutdown_ends_a_pending_accept,
        a_cancelled_receive_ends_once_and_eats_nothing,
        a_cancel_of_something_unknown_changes_nothing,
        close_ends_a_pending_receive,
        a_non_blocking_socket_waits_like_any_other,
        a_connection_can_be_used_before_it_stands,
        a_connection_nobody_takes_says_so;
    events:
        every_ring_is_reported_and_an_idle_watch_is_silent,
        a_ring_before_the_watch_is_reported,
        a_cancelled_or_closed_watch_ends_once,
        a_signal_rings_and_reports_nothing,
        a_signal_just_before_a_close_still_rings;
    waking:
        a_wake_from_another_thread_ends_a_blocked_wait,
        a_wake_before_the_wait_is_not_lost,
        many_wakes_end_one_wait,
        a_deadline_ends_the_wait_and_never_early,
        a_past_deadline_never_blocks,
        a_completion_ends_a_wait_before_its_deadline,
        an_idle_driver_does_not_wake_up;
    storm:
        ten_thousand_operations_agree_with_a_byte_model,
        many_receives_outnumber_the_queue,
        more_completions_at_once_than_the_queue_holds,
        a_dropped_driver_finishes_writes_and_frees_its_memory,
        a_dropped_driver_closes_what_it_owned;
    writes:
        a_cancelled_write_ends_once_and_tells_the_truth,
        a_driver_dropped_amid_writes_finishes_them,
        plain_durable_and_scattered_writes_of_two_files_all_arrive;
}
