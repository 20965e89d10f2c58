//! How many descriptors the process may have open: all that it is allowed to.
//!
//! Every lane opens every file below a device by itself, and each NBD client is one more, so the
//! usual soft limit of 1,024 is a few hundred devices. The soft limit is low for programs that use
//! `select`, which we do not; raising it to the hard one is what servers do.
//!
//! Called by what serves (`daemon`, `up`), never by the library, since a program that embeds the
//! engine decides about its own limits, and not by `run`, whose child would inherit it. It must
//! not fail: with fewer descriptors all still works,
//! and who meets the limit is told so when opening a device.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one.
pub(crate) fn allow_all() {
    let now = getrlimit(Resource::Nofile);
    if now.current == now.maximum {
        return;
    }
    // Refused only if the limit changed between the two calls; then it is as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        let lower = Rlimit { current: Some(256), maximum: before.maximum };
        setrlimit(Resource::Nofile, lower).expect("lowering is always allowed");
        allow_all();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.current, before.maximum);
    }
}
