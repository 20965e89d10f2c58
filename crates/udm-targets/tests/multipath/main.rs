//! `multipath` beyond the battery, over fake devices and several lanes.
//!
//! `paths` (failover, groups, which errors count), `queueing` (what waits, suspends, swaps, time
//! limit), `requests` (request mode), `lanes` (one truth over lanes), `messages`, `texts` (status,
//! reports).

mod lanes;
mod messages;
mod paths;
mod queueing;
mod requests;
mod rig;
mod texts;
