//! The contract of a target: its type, its parsed table line, its instance on a lane.
//!
//! Three traits, three moments. A [`TargetType`] turns a table line into a [`TargetConfig`] (on the
//! control side, where opening devices may block). The config is shared by all lanes and prints the
//! line back; each lane asks it for its own [`Target`], which maps bios. Lanes share nothing in the
//! hot path; counters a target keeps are per lane and summed when somebody asks for status.
//!
//! Two styles. A mapping target answers `Remapped` and forgets the bio. A target with real work
//! (delay, compression) answers `Submitted`, owns the bio, and later calls [`TargetCx::dispatch`]
//! or [`TargetCx::complete`]. Choose the first whenever the answer is known at once. What such a
//! target may do besides (I/O of its own, computing in turns) is told in `target_cx.rs`.
//!
//! Rules. A target never blocks, never allocates on the mapping path, never touches data unless
//! that is its job, handles every operation by name (no `_` in a match over `Op`), and lets go of
//! held bios in `presuspend`. Every call goes through `engine/doorway.rs`, which checks it.
//!
//! What instances of one target on different lanes have to tell each other goes by note
//! ([`TargetCx::tell`]): a few words, in order, never lost while the table lives. State that must
//! be one has a home lane; the others keep copies.
//!
//! The tricky case is push-back. In a bio-based device `Requeue` is legal only while
//! [`TargetCx::noflush_suspending`]; at any other time the core turns it into an error for the
//! submitter. A request-based device has its own queue, so there it is legal at any time.

use crate::bio::{BioBox, Dest};
use crate::error::UserError;
use crate::table::{Args, BuildCx, DeviceRef};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use udm_types::{LaneId, OpSet, QueueLimits, Sector};

pub use crate::target_cx::TargetCx;

/// What `map` did with a bio.
///
/// Every variant holds at most the box, so that an answer travels in two registers: through memory
/// it cost several nanoseconds at every layer.
#[derive(Debug)]
pub enum Mapped {
    /// Its destination and sector are set; send it on.
    Remapped(BioBox),
    /// The target keeps it (or has already completed or dispatched it).
    Submitted,
    /// Push it back: the core holds it and maps it again after resume. Only under noflush. A
    /// request goes back into its queue and is mapped again soon; legal at any time.
    Requeue(BioBox),
    /// Push it back and map it again in 100 ms if it is a request; like `Requeue` for a bio.
    DelayRequeue(BioBox),
    /// Fail it with the status that stands in it (an I/O error if that is `Ok`).
    Kill(BioBox),
}

const _: () = assert!(size_of::<Mapped>() == 16 && size_of::<Ended>() == 16);

/// What `end_io` made of a completed bio.
#[derive(Debug)]
pub enum Ended {
    /// Finish with the status that stands in it (the target may have rewritten it).
    Done(BioBox),
    /// The target keeps it and will complete or dispatch it again.
    Incomplete,
    /// Push it back, as in [`Mapped::Requeue`].
    Requeue(BioBox),
    /// Push it back for 100 ms, as in [`Mapped::DelayRequeue`].
    DelayRequeue(BioBox),
}

/// What `preresume` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preresume {
    /// I/O may flow.
    Ready,
    /// Not yet: I/O of the target's own comes first. [`TargetCx::resume_ready`] says when, and
    /// whether it went well. Only with [`TargetTraits::own_work`].
    Later,
}

/// How the core hands I/O to a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MapMode {
    /// Every bio as it comes.
    #[default]
    Bio,
    /// Merged into requests first. Such a target is the only one of its table.
    Request,
    /// As the device does already, or bio if that is open.
    Either,
}

/// What a target can do and how the core should treat it. Fixed when the line is built.
#[derive(Clone, Debug)]
pub struct TargetTraits {
    /// Copies of an empty flush the target wants (0: it has nothing to flush).
    pub flush_bios: u32,
    /// Copies of a discard (0: unsupported).
    pub discard_bios: u32,
    /// Copies of a write-zeroes (0: unsupported).
    pub write_zeroes_bios: u32,
    /// Discards work even where the devices below cannot discard.
    pub discards_itself: bool,
    /// Write-zeroes work even where the devices below cannot zero.
    pub zeroes_itself: bool,
    /// It has volatile state of its own and takes flushes whatever is below.
    pub flushes_itself: bool,
    /// Flushes may skip `map` and go straight to each distinct device below.
    pub flush_bypasses_map: bool,
    /// Pieces never cross a multiple of this (relative to the target's begin); 0: no limit.
    pub max_io_len_sectors: Sector,
    /// The core must call `end_io`.
    pub wants_end_io: bool,
    /// Reads and writes go to this device at a constant distance, and nothing else happens to them.
    /// The core then adds the numbers itself instead of calling `map`; debug builds call `map`,
    /// too, and compare. Only for targets without `end_io`.
    pub shift: Option<Shift>,
    /// Whether bios are merged into requests before the target sees them.
    pub mode: MapMode,
    /// `table` shows state that changes: asks [`TargetConfig::live_table_args`] with the counters.
    pub live_table: bool,
    /// It does I/O or work of its own. A suspend of its device settles that, too, after the last
    /// bio ([`Target::settle`]); and its `preresume` may take a while ([`Preresume::Later`]).
    pub own_work: bool,
}

/// A remap that is one addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// Where bios go.
    pub dest: Dest,
    /// The sector there that the target's first sector becomes.
    pub start_sector: Sector,
}

impl Default for TargetTraits {
    fn default() -> Self {
        TargetTraits {
            flush_bios: 1,
            discard_bios: 1,
            write_zeroes_bios: 1,
            discards_itself: false,
            zeroes_itself: false,
            flushes_itself: false,
            flush_bypasses_map: false,
            max_io_len_sectors: 0,
            wants_end_io: false,
            shift: None,
            mode: MapMode::Bio,
            live_table: false,
            own_work: false,
        }
    }
}

/// Features of a target type that bind a whole table.
#[derive(Clone, Copy, Debug, Default)]
pub struct TypeFeatures {
    /// It must be the only target of its table.
    pub singleton: bool,
    /// A device that has it keeps it (only the same type, or a wildcard, may replace it).
    pub immutable: bool,
    /// It refuses read-only tables.
    pub always_writable: bool,
    /// It may stand in for any type (`error`).
    pub wildcard: bool,
}

/// A kind of target: `linear`, `striped`, ...
pub trait TargetType: Send + Sync {
    /// The word in table lines.
    fn name(&self) -> &'static str;
    /// Version as `dmsetup targets` shows it.
    fn version(&self) -> [u32; 3];
    /// Rules for whole tables.
    fn features(&self) -> TypeFeatures {
        TypeFeatures::default()
    }
    /// Turns the arguments of a table line into a config. May open devices through `cx`.
    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError>;
}

/// Part of a device that a target uses.
#[derive(Clone, Debug)]
pub struct DeviceUse {
    /// The device.
    pub device: DeviceRef,
    /// First sector used.
    pub start_sector: Sector,
    /// Sectors used.
    pub len_sectors: Sector,
}

/// A parsed table line, shared by all lanes.
pub trait TargetConfig: Send + Sync {
    /// What the target can do.
    fn traits(&self) -> TargetTraits;
    /// The devices below, in table order, with the range used of each.
    fn devices(&self) -> Vec<DeviceUse>;
    /// Adjusts the limits stacked from the devices.
    fn io_hints(&self, limits: &mut QueueLimits) {
        let _ = limits;
    }
    /// The arguments as `dmsetup table` prints them.
    fn table_args(&self) -> String;
    /// The arguments of the live table as `dmsetup table` prints them, if they show state that
    /// changes ([`TargetTraits::live_table`]); `counters` are summed over the lanes.
    fn live_table_args(&self, counters: &[u64]) -> String {
        let _ = counters;
        self.table_args()
    }
    /// The arguments as `dmsetup status` prints them; `counters` are summed over the lanes.
    fn status_args(&self, counters: &[u64]) -> String {
        let _ = counters;
        String::new()
    }
    /// True if a message asks only for what the counters of all lanes say. It is then answered by
    /// [`TargetConfig::report`] and reaches no instance.
    fn is_report(&self, words: &[String]) -> bool {
        let _ = words;
        false
    }
    /// Answers a message of that kind; `counters` are summed over the lanes.
    fn report(&self, words: &[String], counters: &[u64]) -> Result<String, UserError> {
        let _ = counters;
        Err(UserError::unknown_message(words))
    }
    /// Makes the instance of one lane.
    fn instantiate(&self, lane: LaneId) -> Box<dyn Target>;
}

/// A target at work on one lane.
pub trait Target {
    /// Says where a bio goes. `bio.sector` is relative to the mapped device; subtract
    /// [`TargetCx::begin_sector`] for the offset in the target. The bio lies inside the target.
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped;

    /// Sees a bio on its way back, with `bio.sector` restored. Called only with `wants_end_io`.
    fn end_io(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Ended {
        let _ = cx;
        Ended::Done(bio)
    }

    /// A suspend begins: let go of held bios (dispatch, complete, or requeue under noflush).
    fn presuspend(&mut self, cx: &mut TargetCx<'_>) {
        let _ = cx;
    }
    /// The suspend was abandoned; `settle` may have been called since.
    fn presuspend_undo(&mut self, cx: &mut TargetCx<'_>) {
        let _ = cx;
    }
    /// A suspend goes on: no bio of the device is in flight on any lane, and none will come. What
    /// remains to be done before it is over (a last flush) is done now; the core waits until no I/O
    /// and no work of the target's own is left. Only with [`TargetTraits::own_work`].
    fn settle(&mut self, cx: &mut TargetCx<'_>) {
        let _ = cx;
    }
    /// Nothing is in flight on any lane, and the target has no work of its own left; it may begin
    /// none before `preresume`.
    fn postsuspend(&mut self, cx: &mut TargetCx<'_>) {
        let _ = cx;
    }
    /// The table goes live; an error leaves the device suspended. Called again for each try: one
    /// that was given up, or failed, or ended well before another lane's failed.
    fn preresume(&mut self, cx: &mut TargetCx<'_>) -> Result<Preresume, UserError> {
        let _ = cx;
        Ok(Preresume::Ready)
    }
    /// Nobody waits any more for the end of a `preresume` that answered `Later`: stop it. What is
    /// under way may end by itself; the device stays suspended.
    fn resume_given_up(&mut self, cx: &mut TargetCx<'_>) {
        let _ = cx;
    }
    /// I/O flows again.
    fn resume(&mut self, cx: &mut TargetCx<'_>) {
        let _ = cx;
    }
    /// A timer set with [`TargetCx::set_timer`] fired.
    fn on_timer(&mut self, token: u64, cx: &mut TargetCx<'_>) {
        let _ = (token, cx);
    }
    /// The instance of this target on lane `from` (which may be this one) told this one something
    /// with [`TargetCx::tell`]. The table may be live, suspended, or not live yet.
    fn on_note(&mut self, from: LaneId, note: [u64; 3], cx: &mut TargetCx<'_>) {
        let _ = (from, note, cx);
    }
    /// An I/O started with [`TargetCx::submit_own`] has ended; `bio.status` is its result. Recycle
    /// it or submit it again.
    fn on_own_bio(&mut self, tag: u64, bio: BioBox, cx: &mut TargetCx<'_>) {
        debug_assert!(false, "a target that starts I/O of its own takes it back");
        let _ = tag;
        cx.recycle(bio);
    }
    /// The turn asked for with [`TargetCx::want_turn`]: at most about 50 us of computing.
    fn on_turn(&mut self, cx: &mut TargetCx<'_>) {
        let _ = cx;
    }
    /// The instance of this target on another lane (`bio.home()`) handed a bio over. This one owns
    /// it now; completing or pushing it back sends it home.
    fn on_handed(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) {
        debug_assert!(false, "a target that hands bios over takes them, too");
        cx.complete(bio, udm_types::Status::IoErr);
    }
    /// Adds this lane's counters to `sum`, which starts empty on the first lane.
    fn add_counters(&self, sum: &mut Vec<u64>) {
        let _ = sum;
    }
    /// A message from the user, delivered to every lane; lane 0's answer is shown.
    fn message(
        &mut self,
        words: &[String],
        cx: &mut TargetCx<'_>,
    ) -> Result<Option<String>, UserError> {
        let _ = cx;
        Err(UserError::unknown_message(words))
    }
}

/// Operations a target accepts, from its traits.
pub(crate) fn ops_of(traits: &TargetTraits) -> OpSet {
    let mut ops = OpSet::READ | OpSet::WRITE | OpSet::FLUSH;
    ops.set(OpSet::DISCARD, traits.discard_bios > 0);
    ops.set(OpSet::WRITE_ZEROES, traits.write_zeroes_bios > 0);
    ops
}

/// A convenience for mapping targets: offset translation onto one device.
pub fn remap_linear(
    mut bio: BioBox,
    cx: &TargetCx<'_>,
    dest: Dest,
    start_sector: Sector,
) -> Mapped {
    let sector = start_sector.wrapping_add(bio.sector.wrapping_sub(cx.begin_sector()));
    bio.remap(dest, sector);
    Mapped::Remapped(bio)
}
