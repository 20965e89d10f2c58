//! Which descriptors were passed to this process, and under which names.
//!
//! A service manager sets `LISTEN_PID` to the process it means, `LISTEN_FDS` to the count of
//! sockets, which begin at descriptor 3, and `LISTEN_FDNAMES` to their names with colons between.
//! Users write `fd:3` or `fd:NAME`.
//!
//! The tricky case is a variable that was meant for a parent: without our own process number the
//! rest means nothing, and the numbers may be anybody's.

use udm_core::error::{ErrorCode, ErrorKind, UserError};

/// The first descriptor that is passed.
const FIRST: i32 = 3;
/// More than any unit has; a larger count is no count.
const COUNT_MAX: i32 = 1024;

/// The descriptor of a word: a number, or a name.
///
/// # Errors
/// `BadAddress` if nothing was passed, or not this.
pub(super) fn number_of(word: &str) -> Result<i32, UserError> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let [pid, count, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(variable);
    find(word, std::process::id(), [&pid, &count, &names])
}

fn find(word: &str, us: u32, [pid, count, names]: [&str; 3]) -> Result<i32, UserError> {
    let wrong = |what: String| {
        UserError::new(ErrorCode::BadAddress, format!("fd:{word}: {what}"))
            .of_kind(ErrorKind::NoEntry)
            .hint("the process that serves has to be started with sockets, as by systemd")
    };
    let is_ours = pid.parse() == Ok(us);
    let count = count.parse().ok().filter(|count| is_ours && (1..=COUNT_MAX).contains(count));
    let Some(count) = count else {
        return Err(wrong("no sockets were passed to this process (LISTEN_FDS)".to_owned()));
    };
    let by_name = names.split(':').take(count as usize).position(|name| name == word);
    let found = match word.parse::<i32>() {
        Ok(number) => Some(number).filter(|number| (FIRST..FIRST + count).contains(number)),
        // Fits: there are few names.
        Err(_) => by_name.map(|at| FIRST + at as i32),
    };
    found.ok_or_else(|| {
        let last = FIRST + count - 1;
        wrong(format!("passed were the descriptors {FIRST} to {last}, names: '{names}'"))
    })
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn numbers_and_names_lead_to_descriptors() {
        let passed = ["7", "2", "disk:other"];
        for (word, number) in [("3", 3), ("4", 4), ("disk", 3), ("other", 4)] {
            assert_eq!(find(word, 7, passed).expect("passed"), number);
        }
        for word in ["2", "5", "-1", "nobody", ""] {
            assert!(find(word, 7, passed).is_err(), "{word}");
        }
        assert!(find("3", 8, passed).is_err(), "meant for another process");
        for count in ["", "0", "-3", "many", "100000"] {
            assert!(find("3", 7, ["7", count, ""]).is_err(), "{count}");
        }
    }
}
