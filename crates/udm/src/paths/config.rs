//! How the paths of a device are looked after: what `up` files, `udm paths --check` and the state
//! file say.
//!
//! One set of words for all three. A span is `500ms`, `5s`, `2m` or `1h`, a plain number is
//! seconds. Everything has a default, so an empty section is a good one; what cannot work (an
//! interval of 0, a window without failures) is refused with the key's name in front.

use crate::cli::args::parse_span_ms;
use udm_control::api::PathPolicy;
use udm_core::error::{ErrorCode, UserError};
use udm_types::Nanos;

/// When I/O goes back to a better group that has recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failback {
    /// At once.
    Immediate,
    /// After the better group has been good for this long.
    After(Nanos),
    /// When the group's first path comes back, and not because somebody switched away from it.
    FollowOver,
    /// Never; somebody says `switch_group`.
    Manual,
}

/// What happens to I/O while no path is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPath {
    /// What the table and messages say.
    Table,
    /// It waits.
    Queue,
    /// It fails.
    Fail,
    /// It waits for so long, then fails until a path is back.
    QueueFor(Nanos),
}

/// When a path that flaps is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marginal {
    /// So many failures ...
    pub failures: u32,
    /// ... in this time ...
    pub window: Nanos,
    /// ... set the path aside for so long.
    pub hold: Nanos,
}

/// How paths are looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Between two checks of a failed path, and of a path that has just become good.
    pub interval: Nanos,
    /// What the interval of a good path grows to, doubling.
    pub interval_max: Nanos,
    /// A check without an answer for so long has failed.
    pub timeout: Nanos,
    /// Back to a better group.
    pub failback: Failback,
    /// Setting flapping paths aside; `None`: never.
    pub marginal: Option<Marginal>,
    /// With no path left.
    pub no_path: NoPath,
}

/// Longest span taken: a year. Longer ones are mistyped.
const SPAN_MS_MAX: u64 = 366 * 24 * 3_600_000;
/// Most failures counted for a path; more would be a mistyped span.
const FAILURES_MAX: u32 = 1_000;

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            interval: Nanos::from_secs(5),
            interval_max: Nanos::from_secs(20),
            timeout: Nanos::from_secs(10),
            failback: Failback::Immediate,
            marginal: None,
            no_path: NoPath::Table,
        }
    }
}

/// The policy these words mean.
///
/// # Errors
/// The key, and what it expects.
pub fn read(words: &PathPolicy) -> Result<Policy, (&'static str, String)> {
    let default = Policy::default();
    let interval = positive("check_interval", words.check_interval.as_deref())?;
    let interval = interval.unwrap_or(default.interval);
    let interval_max = positive("check_interval_max", words.check_interval_max.as_deref())?;
    if interval_max.is_some_and(|max| max < interval) {
        return Err(("check_interval_max", "it is below check_interval".into()));
    }
    let interval_max = interval_max.unwrap_or(Nanos(interval.0.saturating_mul(4)));
    let timeout = positive("check_timeout", words.check_timeout.as_deref())?;
    Ok(Policy {
        interval,
        interval_max,
        timeout: timeout.unwrap_or(default.timeout),
        failback: failback(words)?,
        marginal: marginal(words)?,
        no_path: no_path(words)?,
    })
}

fn failback(words: &PathPolicy) -> Result<Failback, (&'static str, String)> {
    match words.failback.as_deref() {
        None | Some("immediate") => Ok(Failback::Immediate),
        Some("manual") => Ok(Failback::Manual),
        Some("followover") => Ok(Failback::FollowOver),
        Some(text) => span(text).map(Failback::After).map_err(|_| {
            let expected = "expected immediate, manual, followover, or a span such as 10s";
            ("failback", format!("{expected}, found '{text}'"))
        }),
    }
}

fn marginal(words: &PathPolicy) -> Result<Option<Marginal>, (&'static str, String)> {
    let failures = words.marginal_failures.unwrap_or(0);
    let window = positive("marginal_window", words.marginal_window.as_deref())?;
    let hold = positive("marginal_hold", words.marginal_hold.as_deref())?;
    if failures == 0 {
        let lost = [(window, "marginal_window"), (hold, "marginal_hold")];
        return match lost.into_iter().find(|(span, _)| span.is_some()) {
            Some((_, key)) => Err((key, "it means nothing without marginal_failures".into())),
            None => Ok(None),
        };
    }
    if failures > FAILURES_MAX {
        return Err(("marginal_failures", format!("at most {FAILURES_MAX} are counted")));
    }
    let window = window.unwrap_or(Nanos::from_secs(60));
    Ok(Some(Marginal { failures, window, hold: hold.unwrap_or(Nanos::from_secs(300)) }))
}

fn no_path(words: &PathPolicy) -> Result<NoPath, (&'static str, String)> {
    match words.no_path.as_deref() {
        None | Some("table") => Ok(NoPath::Table),
        Some("queue") => Ok(NoPath::Queue),
        Some("fail") => Ok(NoPath::Fail),
        Some(text) => span(text).map(NoPath::QueueFor).map_err(|_| {
            let expected = "expected table, queue, fail, or a span such as 60s";
            ("no_path", format!("{expected}, found '{text}'"))
        }),
    }
}

/// The policy of a caller of the control interface.
///
/// # Errors
/// `BadParameter` with the key.
pub fn policy_of(words: &PathPolicy) -> Result<Policy, UserError> {
    read(words)
        .map_err(|(key, what)| UserError::new(ErrorCode::BadParameter, format!("{key}: {what}")))
}

fn span(text: &str) -> Result<Nanos, String> {
    let span_ms = parse_span_ms(text)?;
    if span_ms == 0 || span_ms > SPAN_MS_MAX {
        return Err(format!("expected a span between 1ms and a year, found '{text}'"));
    }
    Ok(Nanos::from_millis(span_ms))
}

fn positive(
    key: &'static str,
    text: Option<&str>,
) -> Result<Option<Nanos>, (&'static str, String)> {
    text.map(span).transpose().map_err(|what| (key, what))
}

#[cfg(test)]
mod tests {
    use super::{Failback, Marginal, NoPath, PathPolicy, Policy, read};
    use udm_types::Nanos;

    fn words(set: impl FnOnce(&mut PathPolicy)) -> PathPolicy {
        let mut words = PathPolicy::default();
        set(&mut words);
        words
    }

    #[test]
    fn no_words_are_the_default() {
        assert_eq!(read(&PathPolicy::default()), Ok(Policy::default()));
    }

    #[test]
    fn every_word_is_taken() {
        let all = PathPolicy {
            check_interval: Some("500ms".into()),
            check_interval_max: Some("2s".into()),
            check_timeout: Some("3".into()),
            failback: Some("10s".into()),
            marginal_failures: Some(4),
            marginal_window: Some("1m".into()),
            marginal_hold: Some("1h".into()),
            no_path: Some("90s".into()),
        };
        let expected = Policy {
            interval: Nanos::from_millis(500),
            interval_max: Nanos::from_secs(2),
            timeout: Nanos::from_secs(3),
            failback: Failback::After(Nanos::from_secs(10)),
            marginal: Some(Marginal {
                failures: 4,
                window: Nanos::from_secs(60),
                hold: Nanos::from_secs(3600),
            }),
            no_path: NoPath::QueueFor(Nanos::from_secs(90)),
        };
        assert_eq!(read(&all), Ok(expected));
        for (word, meant) in [
            ("immediate", Failback::Immediate),
            ("manual", Failback::Manual),
            ("followover", Failback::FollowOver),
        ] {
            let policy = read(&words(|w| w.failback = Some(word.into()))).expect(word);
            assert_eq!(policy.failback, meant);
        }
        for (word, meant) in
            [("table", NoPath::Table), ("queue", NoPath::Queue), ("fail", NoPath::Fail)]
        {
            let policy = read(&words(|w| w.no_path = Some(word.into()))).expect(word);
            assert_eq!(policy.no_path, meant);
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_key() {
        let refused = |set: fn(&mut PathPolicy)| read(&words(set)).expect_err("refused").0;
        assert_eq!(refused(|w| w.check_interval = Some("0".into())), "check_interval");
        assert_eq!(refused(|w| w.check_interval = Some("5 parsecs".into())), "check_interval");
        assert_eq!(refused(|w| w.check_interval_max = Some("1s".into())), "check_interval_max");
        assert_eq!(refused(|w| w.check_timeout = Some("400000000".into())), "check_timeout");
        assert_eq!(refused(|w| w.failback = Some("soon".into())), "failback");
        assert_eq!(refused(|w| w.marginal_hold = Some("1m".into())), "marginal_hold");
        assert_eq!(refused(|w| w.marginal_failures = Some(5_000)), "marginal_failures");
        assert_eq!(refused(|w| w.no_path = Some("never".into())), "no_path");
    }
}
