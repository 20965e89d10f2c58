//! The battery every target passes. One line enrols a target:
//!
//! ```text
//! udm_testkit::conformance!(linear, LinearCase);
//! ```
//!
//! makes a module `linear` with one test for each check below. The type after the comma is the
//! target's [`Case`]: which lines are good and which are bad, and what the line `LEN_SECTORS TARGET
//! ARGS` promises: where each sector lands, which devices a flush must reach, what a discard does.
//!
//! The checks are in `arguments.rs` (text), `ranges.rs` (data, split, ends, discards),
//! `flushes.rs`, `suspends.rs` (drain, push-back, swaps) and `limits.rs`. They know nothing of a
//! target but its case; [`Bench`] is what they share.
//!
//! A case's starts and lengths are multiples of 8 sectors, so that the same line also fits devices
//! of 4 KiB blocks, and its devices are exactly as large as the line needs.

mod arguments;
mod bench;
mod flushes;
mod limits;
mod ranges;
mod suspends;

pub use arguments::{
    bad_arguments_are_refused_with_code_line_and_field, good_lines_print_and_parse_back,
    the_status_of_a_fresh_table_is_as_documented, the_type_is_registered,
    unknown_messages_are_refused,
};
pub use bench::Bench;
pub use flushes::{
    a_failed_flush_is_reported, a_flush_reaches_every_device_below,
    a_preflush_comes_before_the_data, an_ordered_write_keeps_its_place,
    fua_is_kept_on_the_way_down,
};
pub use limits::{
    a_device_below_that_is_too_small_is_refused, a_read_only_device_below_is_refused,
    a_read_only_table_refuses_writes, the_block_size_below_reaches_the_top,
};
pub use ranges::{
    an_error_below_keeps_its_status, bios_at_and_beyond_the_end, data_lands_where_the_case_says,
    discards_do_what_the_case_says, large_bios_are_split_at_every_border,
    operations_the_devices_cannot_do_are_refused, write_zeroes_does_what_the_case_says,
};
pub use suspends::{
    a_barrier_that_is_pushed_back_keeps_its_place, a_flush_that_is_pushed_back_is_repeated_whole,
    a_flushing_suspend_drains, a_noflush_suspend_drains, a_noflush_suspend_needs_no_clock,
    a_push_back_beside_the_target_replays_only_its_piece,
    a_suspend_with_a_deadline_ends_although_the_device_below_hangs,
    resuming_and_suspending_twice_is_harmless, suspends_of_the_devices_below_are_only_a_pause,
    table_swaps_under_io_lose_nothing,
};

use crate::mem_lower::MemLower;
use udm_core::{ErrorCode, Registry};
use udm_types::{Sector, Status};

/// What a target does with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keeps it, at the place [`Case::place`] says.
    Stores,
    /// Keeps it in a form of its own: what is below is its own business, and writes may be done
    /// before they are there. What the checks cannot see of it, its own tests must.
    Transforms,
    /// Reads zeroes and forgets writes.
    Zeroes,
    /// Fails every read and write.
    Fails(Status),
}

/// What a target does with a discard or write-zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranged {
    /// Passes it on: each sector to the place [`Case::place`] says, once.
    Passes,
    /// Completes it and does nothing.
    Drops,
    /// Takes it, and fails it.
    Fails(Status),
    /// Does not offer it.
    Refuses,
}

/// A line that must be accepted.
#[derive(Clone, Copy, Debug)]
pub struct Good {
    /// Its length.
    pub len_sectors: Sector,
    /// Its arguments.
    pub args: &'static str,
    /// What `table` prints for them.
    pub printed: &'static str,
}

/// A line that must be refused.
#[derive(Clone, Copy, Debug)]
pub struct Bad {
    /// Its length.
    pub len_sectors: Sector,
    /// Its arguments.
    pub args: &'static str,
    /// With which code.
    pub code: ErrorCode,
    /// At which field; START is 1, the first argument 4.
    pub field: u32,
}

/// What the battery has to know of a target.
pub trait Case {
    /// Its word in table lines.
    const TARGET: &'static str;
    /// Its version.
    const VERSION: [u32; 3];
    /// Lower devices there are: name and size, exactly what the line needs.
    const DEVICES: &'static [(&'static str, Sector)];
    /// Length of the line the checks use.
    const LEN_SECTORS: Sector;
    /// Arguments of the line the checks use.
    const ARGS: &'static str;
    /// What `status` prints while nothing has happened.
    const STATUS: &'static str;
    /// What it does with data.
    const KIND: Kind;
    /// Devices that every flush must reach.
    const FLUSHED: &'static [&'static str];
    /// What a discard does.
    const DISCARD: Ranged;
    /// What a write-zeroes does.
    const WRITE_ZEROES: Ranged;
    /// Lines that must be accepted.
    const GOOD: &'static [Good];
    /// Lines that must be refused.
    const BAD: &'static [Bad];
    /// It must be the only line of its table, and only its like may replace it.
    const SINGLETON: bool = false;
    /// The line maps requests, so devices below it must do that, too.
    const REQUEST_BASED: bool = false;
    /// Errors below that reach the submitter as they are. An error must leave no trace but what
    /// [`Case::HEALED_BY`] removes.
    const ERRORS_KEPT: &'static [Status] =
        &[Status::Medium, Status::NoSpace, Status::Transport, Status::Target];
    /// What becomes of I/O that a suspend abandons below.
    const ABANDONED: Status = Status::Timeout;
    /// Messages that make everything as new after errors below.
    const HEALED_BY: &'static [&'static [&'static str]] = &[];

    /// Makes a new device ready for the line.
    fn prepare(device: &MemLower) {
        let _ = device;
    }

    /// A registry that has the type.
    fn registry() -> Registry;

    /// Where a sector of the line is kept. Only asked if it stores.
    fn place(offset: Sector) -> (&'static str, Sector);
}

/// Runs the whole battery on a target: `conformance!(linear, LinearCase)` makes a module of tests.
#[macro_export]
macro_rules! conformance {
    ($module:ident, $case:ident) => {
        $crate::conformance!(
            @tests $module, $case;
            the_type_is_registered,
            bad_arguments_are_refused_with_code_line_and_field,
            good_lines_print_and_parse_back,
            the_status_of_a_fresh_table_is_as_documented,
            unknown_messages_are_refused,
            data_lands_where_the_case_says,
            large_bios_are_split_at_every_border,
            bios_at_and_beyond_the_end,
            an_error_below_keeps_its_status,
            operations_the_devices_cannot_do_are_refused,
            discards_do_what_the_case_says,
            write_zeroes_does_what_the_case_says,
            a_flush_reaches_every_device_below,
            a_failed_flush_is_reported,
            a_preflush_comes_before_the_data,
            fua_is_kept_on_the_way_down,
            an_ordered_write_keeps_its_place,
            a_flushing_suspend_drains,
            a_noflush_suspend_drains,
            a_noflush_suspend_needs_no_clock,
            a_push_back_beside_the_target_replays_only_its_piece,
            a_flush_that_is_pushed_back_is_repeated_whole,
            a_barrier_that_is_pushed_back_keeps_its_place,
            resuming_and_suspending_twice_is_harmless,
            table_swaps_under_io_lose_nothing,
            a_suspend_with_a_deadline_ends_although_the_device_below_hangs,
            suspends_of_the_devices_below_are_only_a_pause,
            the_block_size_below_reaches_the_top,
            a_device_below_that_is_too_small_is_refused,
            a_read_only_device_below_is_refused,
            a_read_only_table_refuses_writes,
        );
    };
    (@tests $module:ident, $case:ident; $($check:ident,)*) => {
        mod $module {
            $(
                #[test]
                fn $check() {
                    $crate::conformance::$check::<super::$case>();
                }
            )*
        }
    };
}
