//! Error codes: each is defined once, explained, and every mention of one is of a code that exists.
//!
//! A code is the stable name of a user's mistake (`udm explain CODE`). All are defined in one list
//! in `udm-core`, an entry being `Name = "CODE", Kind, "title", "explanation";`. Elsewhere a code
//! stands only in examples of output and in the documents, and those grow stale when a code goes;
//! so mentions are checked too, except in `CHANGELOG.md`, which speaks of the past, and in tests,
//! which try codes that do not exist.
//!
//! The entry is recognised by its tokens, not its layout: a string that is a code right behind an
//! equals sign begins one.

use super::tree::Tree;
use super::{Finding, Sources};
use std::collections::BTreeMap;

/// The list of codes.
const LIST: &str = "crates/udm-core/src/error.rs";
const PREFIX: &str = "UDM-";
const DIGITS: usize = 4;
/// Characters of an explanation: shorter is the title again.
const EXPLANATION_LEN_MIN: usize = 15;

/// Checks the list and every mention.
pub(crate) fn check(tree: &Tree, sources: &Sources, found: &mut Vec<Finding>) {
    let defined = definitions(sources, found);
    if defined.is_empty() {
        return;
    }
    for (path, text) in tree.files() {
        // The checker's own tests use codes that do not exist.
        let speaks = path.ends_with(".md") || path.ends_with(".rs");
        if !speaks || path == "CHANGELOG.md" || path.starts_with("xtask/") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            if path.ends_with(".rs") && sources.is_test(path, index + 1) {
                continue;
            }
            for code in codes(line).into_iter().filter(|code| !defined.contains_key(code)) {
                let what = format!("{code} does not exist");
                let remedy = format!("the codes are listed in {LIST}");
                found.push(Finding::new("codes", path, index + 1, what).remedy(remedy));
            }
        }
    }
}

fn definitions(sources: &Sources, found: &mut Vec<Finding>) -> BTreeMap<String, usize> {
    let mut defined = BTreeMap::new();
    let Some(file) = sources.files.get(LIST) else { return defined };
    for (at, pair) in file.tokens.windows(2).enumerate() {
        let [equals, token] = pair else { continue };
        let code = token.text.trim_matches('"');
        if equals.text != "=" || !token.is_literal || codes(code) != [code] {
            continue;
        }
        if let Some(first) = defined.insert(code.to_owned(), token.line) {
            let what = format!("{code} is already taken in line {first}");
            let remedy = "take the next free number; codes are never used again";
            found.push(Finding::new("codes", LIST, token.line, what).remedy(remedy));
        }
        let texts: Vec<&str> = file.tokens[at + 2..]
            .iter()
            .take_while(|token| token.text != ";")
            .filter(|token| token.is_literal)
            .map(|token| token.text.trim_matches('"'))
            .collect();
        let explained = texts.len() == 2 && texts[1].len() >= EXPLANATION_LEN_MIN;
        if !explained {
            let what = format!("{code} has no explanation");
            let remedy = "an entry is: Name = \"CODE\", Kind, \"title\", \"what it means, why it \
                          happens, what to do\";";
            found.push(Finding::new("codes", LIST, token.line, what).remedy(remedy));
        }
    }
    defined
}

fn codes(text: &str) -> Vec<String> {
    text.match_indices(PREFIX)
        .filter_map(|(at, _)| {
            let digits = text.get(at + PREFIX.len()..at + PREFIX.len() + DIGITS)?;
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| format!("{PREFIX}{digits}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{LIST, check};
    use crate::tidy::Sources;
    use crate::tidy::tree::Tree;

    const ENTRY: &str = "codes! { A = \"UDM-0001\", Invalid, \"bad\",\n\"Something is bad; type \
                         something that is good.\";\n";

    fn found(files: &[(&str, &str)]) -> Vec<(String, usize)> {
        let tree = Tree::of(files);
        let mut found = Vec::new();
        let sources = Sources::parse(&tree, &mut found);
        check(&tree, &sources, &mut found);
        found.into_iter().map(|finding| (finding.path, finding.line)).collect()
    }

    #[test]
    fn a_code_without_explanation_is_caught() {
        assert_eq!(found(&[(LIST, &format!("{ENTRY}}}\n"))]), []);
        let bare = format!("{ENTRY}B = \"UDM-0002\", Invalid, \"bad\";\n}}\n");
        assert_eq!(found(&[(LIST, &bare)]), [(LIST.to_owned(), 3)]);
        let short = format!("{ENTRY}B = \"UDM-0002\", Invalid, \"bad\", \"bad\";\n}}\n");
        assert_eq!(found(&[(LIST, &short)]), [(LIST.to_owned(), 3)]);
    }

    #[test]
    fn a_number_taken_twice_is_caught() {
        let twice = format!("{ENTRY}{}}}\n", ENTRY.replace("codes! { A", "B"));
        assert_eq!(found(&[(LIST, &twice)]), [(LIST.to_owned(), 3)]);
    }

    #[test]
    fn a_mention_of_a_code_that_is_gone_is_caught() {
        let list = format!("{ENTRY}}}\n");
        let page = ("docs/a.md", "UDM-0001\nUDM-0002 UDM-xxxx\n");
        assert_eq!(found(&[(LIST, &list), page]), [("docs/a.md".to_owned(), 2)]);
        let past = ("CHANGELOG.md", "UDM-0002\n");
        assert_eq!(found(&[(LIST, &list), past]), []);
    }
}
