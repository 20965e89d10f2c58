//! The paths of multipath devices on the wire: how they are looked after, and how they are.
//!
//! A policy travels in its users' own words (`5s`, `immediate`), so that what a command was given
//! is what the daemon reads, reports mistakes in, and keeps.

use serde::{Deserialize, Serialize};

/// How the paths of a device are looked after; what is left out has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathPolicy {
    /// Between two checks of a failed path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_interval: Option<String>,
    /// What the interval of a good path grows to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_interval_max: Option<String>,
    /// A check without an answer for so long has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_timeout: Option<String>,
    /// `immediate`, `manual`, `followover` or a span.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failback: Option<String>,
    /// Failures that set a path aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marginal_failures: Option<u32>,
    /// The time they are counted in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marginal_window: Option<String>,
    /// How long the path is set aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marginal_hold: Option<String>,
    /// `table`, `queue`, `fail` or a span.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_path: Option<String>,
}

/// A path of a multipath device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Name of the device.
    pub device: String,
    /// Its priority group, counted from 1; the first is the best.
    pub group: u32,
    /// `current`, `enabled` or `disabled`.
    pub group_state: String,
    /// The path, as the table names it.
    pub path: String,
    /// `active`, `failed`, `marginal` or `checking`.
    pub state: String,
    /// How often it failed since the table was loaded.
    pub fail_count: u64,
    /// I/Os that ended on it.
    pub ios: u64,
    /// Of those, path errors.
    pub errors: u64,
    /// I/Os on it now.
    pub in_flight: u64,
    /// Half of its I/Os took no longer, in microseconds.
    pub latency_p50_us: Option<u64>,
    /// 99 of 100 took no longer.
    pub latency_p99_us: Option<u64>,
    /// Its paths are checked.
    pub is_checked: bool,
    /// Why it last failed.
    pub last_error: Option<String>,
    /// So long ago the last check ended.
    pub last_check_ms: Option<u64>,
    /// It was good.
    pub last_check_good: Option<bool>,
    /// So long until the next begins.
    pub next_check_ms: Option<u64>,
}
