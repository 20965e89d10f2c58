//! Banned calls and types, found in the tokens of the source.
//!
//! Each ban says where it holds and what to write instead. Comments and strings are not tokens
//! here, so a rule may be talked about.
//!
//! "Pure" crates are those the simulator runs: whatever they do must follow from their inputs, so
//! clock, threads and hash order are banned there, in their tests too. In the crates that touch
//! the world the clock belongs to the drivers and the binary; a front or a lower device asks its
//! lane for the time.

use super::{Finding, Sources};

/// Crates whose behaviour must follow from their inputs alone.
pub(crate) const PURE: [&str; 7] =
    ["udm-types", "udm-lane", "udm-core", "udm-meta", "udm-targets", "udm-testkit", "udm-sim"];
/// Crates that may read the clock.
const CLOCK: [&str; 4] = ["udm-driver", "udm-control", "udm", "udm-preload"];

/// Where a ban holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Everywhere,
    OutsideTests,
    /// In the pure crates, tests included.
    Pure,
    /// In all crates but those of [`CLOCK`]; tests of crates that are not pure are free.
    NoClock,
}

struct Ban {
    rule: &'static str,
    tokens: &'static [&'static str],
    place: Where,
    instead: &'static str,
}

const LATER: &str = "write it now, or leave it out; an issue is the place for what comes later";
const WAIT: &str = "wait for the thing itself: a message, a completion, a readable descriptor";
const CLOCK_INSTEAD: &str = "take the time as an argument, or ask the lane's driver";
const ORDER: &str = "use BTreeMap or BTreeSet: hash order differs from run to run";

const BANS: [Ban; 17] = [
    ban("unfinished", &["todo", "!"], Where::Everywhere, LATER),
    ban("unfinished", &["unimplemented", "!"], Where::Everywhere, LATER),
    ban("leftover", &["dbg", "!"], Where::Everywhere, "remove it"),
    ban("ignored-test", &["#", "[", "ignore"], Where::Everywhere, "mend the test or delete it"),
    ban("sleep", &["thread", ":", ":", "sleep"], Where::Everywhere, WAIT),
    ban("sleep", &["sleep", "(", "Duration"], Where::Everywhere, WAIT),
    ban("sleep", &["nanosleep", "("], Where::Everywhere, WAIT),
    ban(
        "unwrap",
        &[".", "unwrap", "(", ")"],
        Where::OutsideTests,
        "return the error, or use expect(\"invariant: ...\") and name why it cannot happen",
    ),
    ban("clock", &["Instant", ":", ":", "now"], Where::NoClock, CLOCK_INSTEAD),
    ban("clock", &["SystemTime", ":", ":", "now"], Where::NoClock, CLOCK_INSTEAD),
    ban("hash-order", &["HashMap"], Where::Pure, ORDER),
    ban("hash-order", &["HashSet"], Where::Pure, ORDER),
    ban("hash-order", &["RandomState"], Where::Pure, ORDER),
    ban("threads", &["thread", ":", ":", "spawn"], Where::Pure, "a lane or a task does the work"),
    ban("threads", &["thread", ":", ":", "scope"], Where::Pure, "a lane or a task does the work"),
    ban("randomness", &["getrandom"], Where::Pure, "take a seed as an argument"),
    ban("environment", &["env", ":", ":", "var"], Where::Pure, "take it as an argument"),
];

const fn ban(
    rule: &'static str,
    tokens: &'static [&'static str],
    place: Where,
    instead: &'static str,
) -> Ban {
    Ban { rule, tokens, place, instead }
}

/// Checks every Rust file.
pub(crate) fn check(sources: &Sources, found: &mut Vec<Finding>) {
    for (path, file) in sources.all() {
        for ban in &BANS {
            for line in file.find(ban.tokens) {
                if holds(ban.place, path, sources.is_test(path, line)) {
                    let what = format!("{} does not belong here", ban.tokens.concat());
                    found.push(Finding::new(ban.rule, path, line, what).remedy(ban.instead));
                }
            }
        }
    }
}

fn holds(place: Where, path: &str, is_test: bool) -> bool {
    let owner = crate_of(path);
    match place {
        Where::Everywhere => true,
        Where::OutsideTests => !is_test,
        Where::Pure => PURE.contains(&owner),
        Where::NoClock => {
            let free = owner == "xtask" || CLOCK.contains(&owner);
            !free && (PURE.contains(&owner) || !is_test)
        }
    }
}

/// The crate a path belongs to; folders outside `crates` go by their own name.
pub(crate) fn crate_of(path: &str) -> &str {
    let rest = path.strip_prefix("crates/").unwrap_or(path);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::{BANS, check};
    use crate::tidy::Sources;
    use crate::tidy::tree::Tree;

    fn rules(path: &str, text: &str) -> Vec<(&'static str, usize)> {
        let tree = Tree::of(&[(path, text)]);
        let mut found = Vec::new();
        let sources = Sources::parse(&tree, &mut found);
        check(&sources, &mut found);
        found.iter().map(|finding| (finding.rule, finding.line)).collect()
    }

    #[test]
    fn every_ban_catches_its_own_tokens() {
        for ban in &BANS {
            let mut call = ban.tokens.concat();
            if ban.tokens[0] == "#" {
                call.push_str("] fn b() {}");
            } else if ban.tokens[0] == "." {
                call.insert(0, 'x');
            } else if call.contains("(D") {
                call.push_str("::ZERO)");
            } else if call.ends_with('(') {
                call.push(')');
            } else if call.ends_with('!') {
                call.push_str("();");
            }
            let text = format!("fn a() {{\n{call}\n}}\n");
            assert_eq!(rules("crates/udm-core/src/a.rs", &text), [(ban.rule, 2)], "{text}");
        }
    }

    #[test]
    fn comments_and_strings_may_talk_about_it() {
        let text = "/// Never todo!() here.\nfn a() { b(\"todo!()\"); } // x.unwrap()\n";
        assert_eq!(rules("crates/udm-core/src/a.rs", text), []);
    }

    #[test]
    fn unwrap_is_for_tests() {
        let text = "#[cfg(test)]\nmod tests {\n    fn a() { x.unwrap(); }\n}\n";
        assert_eq!(rules("crates/udm/src/a.rs", text), []);
        assert_eq!(rules("crates/udm/tests/a.rs", "fn a() { x.unwrap(); }\n"), []);
        let split = "fn a() {\n    x\n        .unwrap\n        ();\n}\n";
        assert_eq!(rules("crates/udm/src/a.rs", split), [("unwrap", 3)]);
        assert_eq!(rules("crates/udm/src/a.rs", "fn a() { x.unwrap_or(1); }\n"), []);
    }

    #[test]
    fn a_file_declared_as_tests_by_another_is_a_test() {
        let tree = Tree::of(&[
            ("crates/udm/src/gate.rs", "#[cfg(test)]\nmod cases;\nmod more;\n"),
            ("crates/udm/src/gate/cases.rs", "fn a() { x.unwrap(); }\n"),
            ("crates/udm/src/gate/more.rs", "fn a() { x.unwrap(); }\n"),
        ]);
        let mut found = Vec::new();
        let sources = Sources::parse(&tree, &mut found);
        check(&sources, &mut found);
        let paths: Vec<&str> = found.iter().map(|finding| finding.path.as_str()).collect();
        assert_eq!(paths, ["crates/udm/src/gate/more.rs"]);
    }

    #[test]
    fn the_clock_belongs_to_drivers_and_the_binary() {
        let text = "fn a() { std::time::Instant::now(); }\n";
        assert_eq!(rules("crates/udm-driver/src/a.rs", text), []);
        assert_eq!(rules("crates/udm-front/src/a.rs", text), [("clock", 1)]);
        assert_eq!(rules("crates/udm-front/tests/a.rs", text), []);
        assert_eq!(rules("crates/udm-sim/tests/a.rs", text), [("clock", 1)]);
    }

    #[test]
    fn hash_order_is_banned_where_the_simulator_runs() {
        let text = "use std::collections::HashMap;\n";
        assert_eq!(rules("crates/udm-core/tests/a.rs", text), [("hash-order", 1)]);
        assert_eq!(rules("crates/udm-control/src/a.rs", text), []);
    }
}
