//! The layer rule: which crate of the workspace may use which.
//!
//! The table is that of ARCHITECTURE.md, row for row. Arrows point up this list only, so there is
//! no cycle and a reader can learn the crates in this order. Foreign packages are not looked at
//! here (`licences.rs` does), nor is `xtask`, which uses no crate of the product.
//!
//! The simulator stands behind `udm-lower`: it runs the production code of the file device on its
//! own disks, through its own driver.
//!
//! Development dependencies have a rule of their own: a test may use every crate earlier in the
//! list (it may need a real lower device to test a front with), and the test kit and the
//! simulator from anywhere, since both exist to test the rest. The test kit and the simulator use
//! the engine's crates as ordinary dependencies; cargo allows the circle because a package's tests
//! are built after the package.

use super::Finding;
use super::graph::{Graph, Member};

/// Crates in order, each with what its product may use.
const LAYERS: [(&str, &[&str]); 13] = [
    ("udm-types", &[]),
    ("udm-lane", &["udm-types"]),
    ("udm-core", &["udm-types", "udm-lane"]),
    ("udm-meta", &["udm-types", "udm-lane", "udm-core"]),
    ("udm-targets", &["udm-types", "udm-lane", "udm-core", "udm-meta"]),
    ("udm-testkit", &["udm-types", "udm-lane", "udm-core"]),
    ("udm-driver", &["udm-types", "udm-lane"]),
    ("udm-lower", &["udm-types", "udm-lane", "udm-core", "udm-driver"]),
    (
        "udm-sim",
        &[
            "udm-types",
            "udm-lane",
            "udm-core",
            "udm-meta",
            "udm-targets",
            "udm-testkit",
            "udm-lower",
        ],
    ),
    ("udm-front", &["udm-types", "udm-lane", "udm-core", "udm-driver"]),
    ("udm-control", &["udm-types", "udm-core"]),
    (
        "udm",
        &[
            "udm-types",
            "udm-lane",
            "udm-core",
            "udm-meta",
            "udm-targets",
            "udm-driver",
            "udm-lower",
            "udm-front",
            "udm-control",
        ],
    ),
    ("udm-preload", &["udm-control"]),
];

/// Crates that any crate's tests may use.
const FOR_TESTS: [&str; 2] = ["udm-testkit", "udm-sim"];

/// Checks every member of the workspace.
pub(crate) fn check(graph: &Graph, found: &mut Vec<Finding>) {
    for member in graph.members.iter().filter(|member| member.name != "xtask") {
        let Some(place) = LAYERS.iter().position(|(name, _)| *name == member.name) else {
            let what = format!("crate {} has no place among the layers", member.name);
            let remedy = "add it to the table in ARCHITECTURE.md and in xtask's layers.rs";
            found.push(Finding::new("layers", &member.manifest, 1, what).remedy(remedy));
            continue;
        };
        check_member(member, place, graph, found);
    }
}

fn check_member(member: &Member, place: usize, graph: &Graph, found: &mut Vec<Finding>) {
    let (name, may_use) = LAYERS[place];
    for direct in &member.direct {
        let ours = graph.members.iter().any(|other| other.name == direct.name);
        let earlier = LAYERS[..place].iter().any(|(other, _)| *other == direct.name);
        let for_tests = direct.is_dev && (earlier || FOR_TESTS.contains(&direct.name.as_str()));
        if !ours || for_tests || may_use.contains(&direct.name.as_str()) {
            continue;
        }
        let what = if direct.is_dev {
            format!("tests of {name} may not use {}", direct.name)
        } else {
            format!("{name} may not use {}; it may use: {}", direct.name, may_use.join(", "))
        };
        let remedy = "move the code to where the arrow points down, or pass it in through a trait";
        found.push(Finding::new("layers", &member.manifest, 1, what).remedy(remedy));
    }
}

#[cfg(test)]
mod tests {
    use super::{LAYERS, check};
    use crate::tidy::graph::{Direct, Graph, Member};

    fn rules(name: &str, uses: &str, is_dev: bool) -> usize {
        let direct = vec![Direct { name: uses.to_owned(), is_dev }];
        let member = Member { name: name.to_owned(), direct, ..Member::default() };
        let other = Member { name: uses.to_owned(), ..Member::default() };
        let mut found = Vec::new();
        check(&Graph { members: vec![member, other], foreign: vec![] }, &mut found);
        found.len()
    }

    #[test]
    fn the_table_points_up_only() {
        for (place, (name, may_use)) in LAYERS.iter().enumerate() {
            for used in *may_use {
                let above = LAYERS.iter().position(|(other, _)| other == used);
                assert!(above.is_some_and(|above| above < place), "{name} uses {used}");
            }
        }
    }

    #[test]
    fn an_arrow_that_is_not_in_the_table_is_caught() {
        assert_eq!(rules("udm-core", "udm-lane", false), 0);
        assert_eq!(rules("udm-core", "udm-targets", false), 1);
        assert_eq!(rules("udm-control", "udm-lane", false), 1);
        assert_eq!(rules("udm", "udm-sim", false), 1);
    }

    #[test]
    fn tests_may_use_earlier_crates_and_the_test_crates() {
        assert_eq!(rules("udm-front", "udm-lower", true), 0);
        assert_eq!(rules("udm-core", "udm-testkit", true), 0);
        assert_eq!(rules("udm-targets", "udm-sim", true), 0);
        assert_eq!(rules("udm-core", "udm-targets", true), 1);
    }

    #[test]
    fn a_crate_outside_the_table_is_caught() {
        assert_eq!(rules("udm-new", "udm-types", false), 1);
    }
}
