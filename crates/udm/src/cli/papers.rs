//! What the binary knows about itself: explain, completions, man pages, help.
//!
//! Everything is generated from what the code uses anyway: error codes from their list, completions
//! and man pages from the command line's definitions, target help from docs/targets. None of it
//! needs a daemon.

use super::args::Cli;
use super::failure::Failure;
use super::output::Output;
use clap::{Command, CommandFactory};
use std::fmt::Write;
use std::path::Path;
use udm_control::errno;
use udm_core::error::{ErrorCode, UserError};

/// The manual page of each target type.
const TARGET_PAGES: [(&str, &str); 9] = [
    ("compress", include_str!("../../../../docs/targets/compress.md")),
    ("delay", include_str!("../../../../docs/targets/delay.md")),
    ("error", include_str!("../../../../docs/targets/error.md")),
    ("flakey", include_str!("../../../../docs/targets/flakey.md")),
    ("insitu-comp", include_str!("../../../../docs/targets/insitu-comp.md")),
    ("linear", include_str!("../../../../docs/targets/linear.md")),
    ("multipath", include_str!("../../../../docs/targets/multipath.md")),
    ("striped", include_str!("../../../../docs/targets/striped.md")),
    ("zero", include_str!("../../../../docs/targets/zero.md")),
];

pub(crate) fn explain(code: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let Some(wanted) = code else {
        for code in ErrorCode::ALL {
            output.text(&format!("{}  {}\n", code.as_str(), code.title()));
            output.push("codes", &as_json(*code));
        }
        return Ok(());
    };
    let upper = wanted.to_ascii_uppercase();
    let found = ErrorCode::ALL
        .iter()
        .find(|code| code.as_str() == upper || code.as_str().strip_prefix("UDM-") == Some(&*upper));
    let Some(code) = found else {
        return Err(UserError::new(
            ErrorCode::BadParameter,
            format!("there is no error code '{wanted}'"),
        )
        .hint("udm explain lists all codes")
        .into());
    };
    output.text(&format!(
        "{}: {}\n\n{}\n\nTo dmsetup this is: {}\n",
        code.as_str(),
        code.title(),
        code.explain(),
        errno::text(code.kind())
    ));
    output.field("code", &as_json(*code));
    Ok(())
}

fn as_json(code: ErrorCode) -> serde_json::Value {
    serde_json::json!({
        "code": code.as_str(),
        "kind": errno::name(code.kind()),
        "errno": errno::number(code.kind()),
        "title": code.title(),
        "explanation": code.explain(),
    })
}

pub(crate) fn completions(shell: clap_complete::Shell, output: &mut Output) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "udm", &mut script);
    output.text(&String::from_utf8_lossy(&script));
}

/// Writes `udm.1` and a page for each verb. Returns how many.
pub(crate) fn man(dir: &Path, output: &mut Output) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let what = format!("write manual pages to {}", dir.display());
        Failure::from(errno::system(ErrorCode::BadConfig, &what, &error))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    for (name, page) in man_pages().map_err(failed)? {
        std::fs::write(dir.join(&name), page).map_err(failed)?;
        output.push("pages", &name);
        if !output.json {
            output.text(&format!("{name}\n"));
        }
    }
    Ok(())
}

/// Every manual page with its file name.
pub(crate) fn man_pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = Cli::command();
    root.build();
    let mut pages = Vec::new();
    let mut render = |command: Command, title: &str| -> std::io::Result<()> {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).title(title).render(&mut page)?;
        pages.push((format!("{title}.1"), page));
        Ok(())
    };
    for verb in root.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let title = format!("udm-{}", verb.get_name());
        render(verb.clone(), &title)?;
    }
    render(root.clone(), "udm")?;
    Ok(pages)
}

pub(crate) fn help(topic: &[String], output: &mut Output) -> Result<(), Failure> {
    let mut root = Cli::command();
    root.build();
    let words: Vec<&str> = topic.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => output.text(&root.render_long_help().to_string()),
        ["target" | "targets"] => {
            let mut text = "Target types with a manual page:\n".to_owned();
            for (name, page) in TARGET_PAGES {
                let _ = writeln!(text, "  {name:<9} {}", summary(page));
            }
            output.text(&text);
        }
        ["target", name] => match TARGET_PAGES.iter().find(|(known, _)| known == name) {
            Some((_, page)) => output.text(page),
            None => {
                let names: Vec<&str> = TARGET_PAGES.iter().map(|(name, _)| *name).collect();
                return Err(UserError::new(
                    ErrorCode::UnknownTarget,
                    format!("there is no page of a target '{name}'"),
                )
                .hint(format!("there are: {}", names.join(", ")))
                .into());
            }
        },
        verbs => {
            let mut command = &mut root;
            for verb in verbs {
                command = command.find_subcommand_mut(verb).ok_or_else(|| {
                    Failure::usage(format!("There is no verb '{verb}'; udm help lists them.\n"))
                })?;
            }
            output.text(&command.render_long_help().to_string());
        }
    }
    Ok(())
}

/// The first sentence below a page's title.
fn summary(page: &str) -> String {
    let paragraph: Vec<&str> = page
        .lines()
        .skip(1)
        .skip_while(|line| line.trim().is_empty())
        .take_while(|line| !line.trim().is_empty())
        .collect();
    let text = paragraph.join(" ");
    text.split_once(". ").map_or(text.clone(), |(sentence, _)| format!("{sentence}."))
}
