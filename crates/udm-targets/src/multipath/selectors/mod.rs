//! Path selectors: which path of a priority group the next I/O takes. One file each.
//!
//! Two halves. A [`SelectorConfig`] is the part of a table line, shared by all lanes; it parses and
//! prints. A [`PathSelector`] works on one lane and balances what *that lane* sends; lanes never
//! ask each other. Both speak of paths by their place in the group, from 0.
//!
//! Rules. A selector keeps a list of the paths it may choose (the *order*); `fail_path` takes one
//! out, `reinstate_path` puts it back, and the callers see to it that neither happens twice. It
//! answers `None` exactly if the order is empty. All arithmetic is on integers and all ties have a
//! rule, so the same calls give the same choices. What is under way on each path ([`Load`]) is
//! counted by the group, for all selectors alike; `end_io` is called once for every `start_io`.
//!
//! The tricky case is speed: a choice is made for every I/O, so lanes hold the enum [`Selector`]
//! and not a box, and only selectors that learn ([`PathSelector::learns`]) hear of single I/Os.

mod historical_service_time;
mod io_affinity;
mod latency;
mod order;
mod queue_length;
mod round_robin;
mod service_time;

use super::counters::PathView;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use udm_core::table::Args;
use udm_core::{ErrorCode, UserError};
use udm_types::{LaneId, Nanos};

/// Names of all selectors, for messages.
pub(crate) const NAMES: &str =
    "round-robin, queue-length, service-time, historical-service-time, io-affinity, latency";

/// Words a selector reports about a path on a lane; what they mean is its own affair.
pub(crate) const WORDS: usize = 6;

/// Most words a selector or a path may have (the kernel's limit).
const WORDS_MAX: u32 = 1024;

/// What is under way on a path of the group, from this lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) ios: u64,
    pub(crate) bytes: u64,
}

/// An I/O on its way back, as a selector sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    /// Bytes, as they were at the start.
    pub(crate) bytes: u64,
    /// When it was sent down the path.
    pub(crate) started: Nanos,
    /// Now.
    pub(crate) now: Nanos,
    /// What is still under way on its path.
    pub(crate) left: Load,
}

/// A selector at work on one lane, for one group.
pub(crate) trait PathSelector {
    /// The path for `bytes` more; `None` if every path has failed.
    fn select(&mut self, bytes: u64, loads: &[Load], lane: LaneId, now: Nanos) -> Option<u32>;
    /// It wants to hear of the start and end of I/Os; what is under way it is told anyway.
    fn learns(&self) -> bool {
        false
    }
    /// An I/O goes down `path`, on which `load` was under way.
    fn start_io(&mut self, path: u32, load: Load, now: Nanos) {
        let _ = (path, load, now);
    }
    /// An I/O came back, however it ended.
    fn end_io(&mut self, path: u32, io: Finished) {
        let _ = (path, io);
    }
    /// The path must not be chosen any more.
    fn fail_path(&mut self, path: u32);
    /// The path may be chosen again.
    fn reinstate_path(&mut self, path: u32);
    /// What is known about a path, for status and `explain`.
    fn words(&self, path: u32, load: Load) -> [u64; WORDS] {
        let _ = path;
        [load.ios, load.bytes, 0, 0, 0, 0]
    }
    /// A count of the whole selector, for status.
    fn own_count(&self) -> u64 {
        0
    }
}

/// Any selector.
pub(crate) enum Selector {
    RoundRobin(round_robin::RoundRobin),
    QueueLength(queue_length::QueueLength),
    ServiceTime(service_time::ServiceTime),
    HistoricalServiceTime(historical_service_time::HistoricalServiceTime),
    IoAffinity(io_affinity::IoAffinity),
    Latency(latency::Latency),
}

macro_rules! each {
    ($selector:expr, $it:ident => $call:expr) => {
        match $selector {
            Selector::RoundRobin($it) => $call,
            Selector::QueueLength($it) => $call,
            Selector::ServiceTime($it) => $call,
            Selector::HistoricalServiceTime($it) => $call,
            Selector::IoAffinity($it) => $call,
            Selector::Latency($it) => $call,
        }
    };
}

impl PathSelector for Selector {
    #[inline(always)]
    fn select(&mut self, bytes: u64, loads: &[Load], lane: LaneId, now: Nanos) -> Option<u32> {
        // The usual one by a comparison that is guessed right: a jump through a table waits for the
        // loads of selector and table, several nanoseconds an I/O.
        if let Selector::ServiceTime(it) = self {
            return it.select(bytes, loads, lane, now);
        }
        self.select_by_table(bytes, loads, lane, now)
    }

    fn learns(&self) -> bool {
        each!(self, it => it.learns())
    }

    #[inline(never)]
    fn start_io(&mut self, path: u32, load: Load, now: Nanos) {
        each!(self, it => it.start_io(path, load, now));
    }

    #[inline(never)]
    fn end_io(&mut self, path: u32, io: Finished) {
        each!(self, it => it.end_io(path, io));
    }

    fn fail_path(&mut self, path: u32) {
        each!(self, it => it.fail_path(path));
    }

    fn reinstate_path(&mut self, path: u32) {
        each!(self, it => it.reinstate_path(path));
    }

    fn words(&self, path: u32, load: Load) -> [u64; WORDS] {
        each!(self, it => it.words(path, load))
    }

    fn own_count(&self) -> u64 {
        each!(self, it => it.own_count())
    }
}

impl Selector {
    #[inline(never)]
    fn select_by_table(
        &mut self,
        bytes: u64,
        loads: &[Load],
        lane: LaneId,
        now: Nanos,
    ) -> Option<u32> {
        each!(self, it => it.select(bytes, loads, lane, now))
    }
}

/// A selector as a table line has it, with its arguments and those of its paths.
pub(crate) trait SelectorConfig: Send + Sync {
    /// Its word in table lines.
    fn name(&self) -> &'static str;
    /// Takes the arguments of one more path.
    fn add_path(&mut self, words: &mut WordGroup<'_, '_>) -> Result<(), UserError>;
    /// Its own arguments with their count, as table and status print them.
    fn own_words(&self) -> String {
        String::from("0 ")
    }
    /// How many words a path has in the table.
    fn table_words(&self) -> usize;
    /// How many words a path has in the status.
    fn info_words(&self) -> usize;
    /// Prints a path's words of the table, each with a space behind it.
    fn print_table(&self, path: usize, text: &mut String);
    /// Prints a path's words of the status, each with a space behind it.
    fn print_info(&self, path: usize, view: &PathView<'_>, text: &mut String);
    /// What it knows of a path on one lane, in words for people; empty if nothing.
    fn explain(&self, path: usize, words: &[u64]) -> String {
        let _ = (path, words);
        String::new()
    }
    /// Makes the selector of one lane; all paths may be chosen.
    fn start(&self) -> Selector;
}

/// A counted group of words: at most so many may be taken.
pub(crate) struct WordGroup<'w, 'a> {
    args: &'w mut Args<'a>,
    left: usize,
    count: usize,
}

impl<'w, 'a> WordGroup<'w, 'a> {
    /// The next `count` words of the line.
    pub(crate) fn new(args: &'w mut Args<'a>, count: usize) -> WordGroup<'w, 'a> {
        WordGroup { args, left: count, count }
    }

    /// How many there were.
    fn count(&self) -> usize {
        self.count
    }

    /// A word, if one is left.
    fn word(&mut self, what: &str) -> Result<Option<&'a str>, UserError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.args.word(what).map(Some)
    }

    /// A number, if a word is left.
    fn number(&mut self, what: &str, min: u32, max: u32) -> Result<Option<u32>, UserError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.args.number32(what, min..=max).map(Some)
    }

    /// Takes what is left without looking at it.
    pub(crate) fn skip(&mut self) -> Result<(), UserError> {
        while self.word("an argument")?.is_some() {}
        Ok(())
    }

    /// At most `max` words may be there.
    fn expect_at_most(&self, max: usize, whose: &str) -> Result<(), UserError> {
        if self.count <= max {
            return Ok(());
        }
        let count = self.count;
        Err(self.refuse(format!("{whose}: incorrect number of arguments ({count} words)")))
    }

    /// An error at the word last taken.
    fn refuse(&self, message: String) -> UserError {
        self.args.bad(message)
    }
}

/// Takes a selector and its arguments: `NAME COUNT {WORD}`.
pub(crate) fn parse(args: &mut Args<'_>) -> Result<Box<dyn SelectorConfig>, UserError> {
    let name = args.word("the path selector")?;
    let known = matches!(
        name,
        "round-robin"
            | "queue-length"
            | "service-time"
            | "historical-service-time"
            | "io-affinity"
            | "latency"
    );
    if !known {
        return Err(args
            .bad(format!("unknown path selector type '{name}'"))
            .hint(format!("selectors: {NAMES}")));
    }
    let count = count_of_words(args, "the number of path selector args", WORDS_MAX)?;
    let mut words = WordGroup::new(args, count);
    let config: Box<dyn SelectorConfig> = match name {
        "round-robin" => Box::new(round_robin::Config::default()),
        "queue-length" => Box::new(queue_length::Config::default()),
        "service-time" => Box::new(service_time::Config::default()),
        "historical-service-time" => Box::new(historical_service_time::Config::parse(&mut words)?),
        "io-affinity" => Box::new(io_affinity::Config::default()),
        _ => Box::new(latency::Config::parse(&mut words)?),
    };
    words.skip()?;
    Ok(config)
}

/// Takes a count of words, which must follow.
pub(crate) fn count_of_words(
    args: &mut Args<'_>,
    what: &str,
    max: u32,
) -> Result<usize, UserError> {
    let count = args.number32(what, 0..=max)? as usize;
    if count > args.left() {
        return Err(args.previous(UserError::new(
            ErrorCode::BadArgument,
            format!("{what}: {count} words announced, {} follow", args.left()),
        )));
    }
    Ok(count)
}

/// Takes the repeat count that most selectors have for a path. Above 1 it has meant 1 for years.
fn repeat_of(words: &mut WordGroup<'_, '_>) -> Result<u32, UserError> {
    Ok(words.number("the repeat count", 0, u32::MAX)?.unwrap_or(1).min(1))
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the selectors' own tests share.

    use super::{Finished, Load, PathSelector};
    use alloc::vec;
    use alloc::vec::Vec;
    use udm_types::{LaneId, Nanos};

    /// A selector with the loads that its group counts.
    pub(crate) struct Rig<S> {
        pub(crate) it: S,
        pub(crate) loads: Vec<Load>,
    }

    impl<S: PathSelector> Rig<S> {
        pub(crate) fn new(it: S, paths: usize) -> Rig<S> {
            Rig { it, loads: vec![Load::default(); paths] }
        }

        /// Chooses and starts an I/O at a time.
        pub(crate) fn send(&mut self, bytes: u64, at_ns: u64) -> Option<u32> {
            let path = self.it.select(bytes, &self.loads, LaneId(0), Nanos(at_ns))?;
            self.start(path, bytes, at_ns);
            Some(path)
        }

        /// Starts an I/O on a path.
        pub(crate) fn start(&mut self, path: u32, bytes: u64, at_ns: u64) {
            let load = &mut self.loads[path as usize];
            self.it.start_io(path, *load, Nanos(at_ns));
            load.ios += 1;
            load.bytes += bytes;
        }

        /// Ends an I/O.
        pub(crate) fn end(&mut self, path: u32, bytes: u64, from_ns: u64, to_ns: u64) {
            let load = &mut self.loads[path as usize];
            load.ios -= 1;
            load.bytes -= bytes;
            let (started, now) = (Nanos(from_ns), Nanos(to_ns));
            self.it.end_io(path, Finished { bytes, started, now, left: *load });
        }

        /// The places of several I/Os, all sent at once.
        pub(crate) fn sent(&mut self, bytes: u64, times: usize, at_ns: u64) -> Vec<u32> {
            (0..times).filter_map(|_| self.send(bytes, at_ns)).collect()
        }
    }
}
