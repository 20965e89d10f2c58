//! Linux's own answers: recorded sessions of dmsetup, repeated against us and compared.
//!
//! The cases and how they are recorded: `tests/judge`, `cargo xtask oracle`. What differs has to
//! stand in `tests/oracle/differences.txt` with its reason, and what stands there has to differ.

use crate::common::{Place, UDM};
use crate::judge::differences::Accepted;
use crate::judge::ours::{Side, build_sectors};
use crate::judge::{Case, case_files, load};
use crate::{build_library, has};
use std::path::Path;

#[test]
fn recorded_sessions_agree_with_the_kernel() {
    if !has("dmsetup") || !has("cc") {
        return;
    }
    build_library();
    let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle");
    let place = Place::new();
    let sectors = place.path("sectors");
    build_sectors(&oracle, &sectors).expect("built");
    let side = Side { udm: UDM.into(), sectors, oracle: oracle.clone(), work: place.path("cases") };
    let files = case_files(&oracle).expect("a folder");
    let cases: Vec<Case> = files.iter().map(|path| load(path).expect("a case")).collect();
    assert!(cases.len() >= 50, "{} cases", cases.len());
    let accepted = Accepted::load(&oracle).expect("a list");
    let (mut wrong, mut found) = (Vec::new(), Vec::new());
    for (case, answer) in cases.iter().zip(side.run(&cases, 4)) {
        match answer {
            Err(error) => wrong.push(error),
            Ok(ours) => {
                for (what, both) in case.compare(&ours) {
                    if !accepted.covers(&what) {
                        wrong.push(format!("{what}\n{both}"));
                    }
                    found.push(what);
                }
            }
        }
    }
    let ids: Vec<String> = cases.iter().map(|case| case.id.clone()).collect();
    let unneeded = accepted.unneeded(&ids, &found);
    wrong.extend(unneeded.iter().map(|what| format!("{what}: accepted, but it agrees")));
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn cases_are_written_as_they_are_read() {
    let text = "# a note\n$ one\nrc| 0\nout| a\nout|\nout| b\ninfo| x\n$ two\nrc| 1\ninfo|\n";
    let case = Case::parse("id", text).expect("a case");
    assert_eq!(case.steps[0].fields["out"], "a\n\nb");
    assert_eq!(case.steps[1].fields["info"], "");
    assert_eq!(case.render(), text);
    assert!(Case::parse("id", "$ one\nwhat| 0\n").is_err());
}
