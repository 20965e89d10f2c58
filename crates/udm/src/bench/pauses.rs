//! How long I/O paused, as percentiles: what swaps, failovers and the demo print.
//!
//! A pause is the longest time without a completion on a lane, within a window that whoever changes
//! something announces (`verify.rs`). Nothing here measures.
//!
//! The tricky case is a run without pauses: its percentiles are 0.

use super::BenchError;
use hdrhistogram::Histogram;
use serde::Serialize;

/// Percentiles of pauses, in microseconds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Pauses {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Pauses {
    /// Of pauses in nanoseconds.
    pub(crate) fn of(pauses_ns: impl IntoIterator<Item = u64>) -> Result<Pauses, BenchError> {
        let mut histogram: Histogram<u64> = Histogram::new_with_bounds(1, 600_000_000_000, 3)?;
        for pause_ns in pauses_ns {
            histogram.saturating_record(pause_ns);
        }
        let us = |ns: u64| ns as f64 / 1e3;
        Ok(Pauses {
            p50: us(histogram.value_at_quantile(0.5)),
            p99: us(histogram.value_at_quantile(0.99)),
            max: us(histogram.max()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Pauses;

    #[test]
    fn pauses_are_percentiles_in_microseconds() {
        let pauses = Pauses::of((1..=100).map(|us| us * 1_000)).expect("bounds are right");
        let near = |value: f64, wanted: f64| (value - wanted).abs() < wanted / 500.0;
        assert!(near(pauses.p50, 50.0) && near(pauses.p99, 99.0) && near(pauses.max, 100.0));
        assert_eq!(Pauses::of([]).expect("bounds are right").max, 0.0);
    }
}
