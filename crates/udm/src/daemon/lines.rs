//! Table lines back to text, and paths in them made absolute.
//!
//! The daemon keeps tables as text that loads again, and `up` and `run` take paths relative to a
//! directory, which the engine refuses: it cannot know whose directory is meant.
//!
//! Which words are paths? Those that begin with `./` or `../`, and those the caller knows to be
//! files. Anything else is left as it is, since `disk.img` may as well be an option of a target.

use std::path::Path;
use udm_core::error::UserError;
use udm_core::table::{TableLine, parse_table};

/// A line as it would be loaded: separators inside a word get their backslash back.
pub(crate) fn line_text(line: &TableLine) -> String {
    let mut text = format!("{} {} {}", line.begin_sector, line.len_sectors, line.target);
    for word in &line.args {
        text.push(' ');
        for character in word.chars() {
            if character == '\\' || character.is_whitespace() {
                text.push('\\');
            }
            text.push(character);
        }
    }
    text
}

/// Table text with its relative paths made absolute.
///
/// # Errors
/// If the text does not parse, with line and field.
pub(crate) fn with_absolute_paths(
    text: &str,
    is_file: &dyn Fn(&str) -> bool,
) -> Result<String, UserError> {
    let mut lines = parse_table(text)?;
    for word in lines.iter_mut().flat_map(|line| &mut line.args) {
        let (prefix, path) = match word.split_once(':') {
            Some((prefix @ ("file" | "direct"), path)) => (Some(prefix), path),
            _ => (None, word.as_str()),
        };
        let relative = path.starts_with("./") || path.starts_with("../");
        if !(relative || (is_file(path) && !path.starts_with('/'))) {
            continue;
        }
        let Ok(absolute) = std::path::absolute(Path::new(path)) else { continue };
        let Some(absolute) = absolute.to_str() else { continue };
        *word = match prefix {
            Some(prefix) => format!("{prefix}:{absolute}"),
            None => absolute.to_owned(),
        };
    }
    Ok(lines.iter().map(line_text).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::{line_text, with_absolute_paths};
    use udm_core::table::parse_table;

    #[test]
    fn words_with_spaces_load_again() {
        let text = "0 8 linear /dev/my\\ disk\\\\x 0";
        let lines = parse_table(text).expect("good");
        assert_eq!(line_text(&lines[0]), text);
    }

    #[test]
    fn only_known_files_and_dotted_paths_become_absolute() {
        let here = std::env::current_dir().expect("there is one");
        let here = here.to_str().expect("UTF-8");
        let text = "0 8 linear ./a 0\n8 8 linear direct:b 0\n16 8 linear /c 0\n24 8 x b y";
        let expected = format!(
            "0 8 linear {here}/a 0\n8 8 linear direct:{here}/b 0\n16 8 linear /c 0\n24 8 x {here}/b y"
        );
        let made = with_absolute_paths(text, &|word| word == "b").expect("parses");
        assert_eq!(made, expected);
    }
}
