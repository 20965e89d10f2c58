//! A parsed `multipath` line: what all lanes share.
//!
//! Made by `table.rs`; gives each lane its instance (`map.rs`) and prints table, status and reports
//! from the counters of all lanes. It never changes; what messages change lives on the lanes.
//!
//! The tricky case is the mode: whether the device is bio-based or request-based is decided here,
//! by `queue_mode`, and the core holds every later table of the device to it.

use super::counters::{Layout, Snapshot};
use super::map::Multipath;
use super::selectors::SelectorConfig;
use super::{explain, report, status, table};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use udm_core::table::DeviceRef;
use udm_core::target::{DeviceUse, MapMode, TargetConfig, TargetTraits};
use udm_core::{Target, UserError};
use udm_types::{LaneId, Sector};

/// How I/O reaches the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum QueueMode {
    /// Every bio as it comes.
    Bio,
    /// Merged into requests (`rq`, `mq`).
    #[default]
    Request,
}

/// The feature words.
#[derive(Clone, Debug, Default)]
pub(super) struct Features {
    pub(super) queue_if_no_path: bool,
    /// 0 if not given. Kept to be printed: without hardware handlers nothing is retried.
    pub(super) pg_init_retries: u32,
    /// Kept to be printed, like the retries.
    pub(super) pg_init_delay_ms: Option<u32>,
    pub(super) queue_mode: QueueMode,
}

/// A priority group.
pub(super) struct GroupConfig {
    pub(super) selector: Box<dyn SelectorConfig>,
    /// Its first path, among all paths.
    pub(super) first: usize,
    /// How many it has.
    pub(super) count: usize,
}

/// A path.
pub(super) struct PathConfig {
    pub(super) device: DeviceRef,
    /// The device as the table line named it.
    pub(super) written: String,
    pub(super) group: usize,
}

/// A parsed line.
pub(super) struct MultipathConfig {
    pub(super) features: Features,
    pub(super) groups: Vec<GroupConfig>,
    /// All paths, group by group.
    pub(super) paths: Vec<PathConfig>,
    /// The group to begin with, if the line names one.
    pub(super) initial: Option<usize>,
    pub(super) layout: Layout,
    pub(super) len_sectors: Sector,
}

impl MultipathConfig {
    /// The paths of a group.
    pub(super) fn paths_of(&self, group: &GroupConfig) -> &[PathConfig] {
        &self.paths[group.first..group.first + group.count]
    }

    fn snapshot<'a>(&self, counters: &'a [u64]) -> Snapshot<'a> {
        Snapshot::new(self.layout, counters)
    }
}

impl TargetConfig for MultipathConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits {
            wants_end_io: true,
            live_table: true,
            mode: match self.features.queue_mode {
                QueueMode::Bio => MapMode::Bio,
                QueueMode::Request => MapMode::Request,
            },
            ..TargetTraits::default()
        }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        let part = |path: &PathConfig| DeviceUse {
            device: path.device.clone(),
            start_sector: 0,
            len_sectors: self.len_sectors,
        };
        self.paths.iter().map(part).collect()
    }

    fn table_args(&self) -> String {
        table::print(self, &self.snapshot(&[]))
    }

    fn live_table_args(&self, counters: &[u64]) -> String {
        table::print(self, &self.snapshot(counters))
    }

    fn status_args(&self, counters: &[u64]) -> String {
        status::print(self, &self.snapshot(counters))
    }

    fn is_report(&self, words: &[String]) -> bool {
        matches!(words, [word] if word == "explain" || word == "paths")
    }

    fn report(&self, words: &[String], counters: &[u64]) -> Result<String, UserError> {
        let snapshot = self.snapshot(counters);
        match words.first().map(String::as_str) {
            Some("explain") => Ok(explain::print(self, &snapshot)),
            Some("paths") => Ok(report::print(self, &snapshot)),
            Some(_) | None => Err(UserError::unknown_message(words)),
        }
    }

    fn instantiate(&self, lane: LaneId) -> Box<dyn Target> {
        Box::new(Multipath::new(self, lane))
    }
}
