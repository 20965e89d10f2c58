//! The command line's grammar, and what is generated from it.

use super::args::{Cli, Command, OnTimeoutArg, parse_span_ms};
use super::output::Output;
use super::papers;
use clap::{CommandFactory, Parser};
use udm_core::error::ErrorCode;

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("udm").chain(line.iter().copied()))
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn dmsetups_spellings_are_taken() {
    for line in [
        &["create", "a", "--table", "0 8 zero"][..],
        &["create", "-r", "-u", "uuid", "a", "table.txt"],
        &["create", "a", "-n", "--noudevsync", "--readahead", "auto"],
        &["create", "--concise", "a,,,,0 8 zero"],
        &["create", "--concise"],
        &["create", "a", "-j", "254", "-m", "7", "--notable"],
        &["reload", "a", "table.txt"],
        &["load", "-u", "uuid", "table.txt"],
        &["suspend", "--noflush", "--nolockfs", "a", "b"],
        &["resume", "a", "--noudevrules", "--addnodeonresume"],
        &["remove", "-f", "--retry", "--deferred", "a"],
        &["remove_all", "--force"],
        &["rename", "a", "--setuuid", "b"],
        &["message", "a", "0", "fail_path", "254:3"],
        &["message", "a", "0", "-option", "--x"],
        &["info", "-c", "--noheadings", "-o", "name,uuid", "-O", "-minor", "--separator", "|"],
        &["info", "-C", "-j", "254", "-m", "7"],
        &["ls", "--tree", "-o", "uuid,active"],
        &["status", "--target", "linear"],
        &["table", "--showkeys", "--inactive", "a"],
        &["wait", "a", "7"],
        &["--verbose", "wait", "a"],
        &["wipe_table", "a", "--nolockfs"],
        &["target-version", "linear"],
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    }
}

#[test]
fn a_command_and_its_options_are_left_as_they_are() {
    let words = ["dmsetup", "ls", "--tree", "--json", "-v", "--", "x"];
    for before in [&["exec", "--explain"][..], &["exec", "--explain", "--"]] {
        let cli = parse(&[before, &words].concat()).expect("is taken");
        let Command::Exec(args) = cli.command else { panic!("not exec") };
        assert!(args.explain && !cli.json);
        assert_eq!(args.command, words);
    }
    let cli = parse(&[&["run", "--table", "0 8 zero"][..], &words].concat()).expect("is taken");
    let Command::Run(args) = cli.command else { panic!("not run") };
    assert_eq!(args.command, words);
    // A slip before the command is no command.
    assert!(parse(&[&["exec", "--explian"][..], &words].concat()).is_err());
}

#[test]
fn wrong_usage_is_refused() {
    for line in [
        &[][..],
        &["create"],
        &["suspend", "a", "--deadline", "soon"],
        &["suspend", "a", "--on-timeout", "fail"],
        &["suspend", "a", "--deadline", "5s", "--on-timeout", "explode"],
        &["export", "a"],
        &["run", "--table", "0 8 zero"],
        &["info", "a", "-u", "uuid"],
        &["nosuchverb"],
    ] {
        let error = parse(line).expect_err("wrong");
        assert!(error.use_stderr(), "{line:?}");
    }
}

#[test]
fn suspend_options_reach_the_verb() {
    let cli =
        parse(&["suspend", "a", "--deadline", "500ms", "--on-timeout", "fail", "--reason", "x"])
            .expect("parses");
    let Command::Suspend(args) = cli.command else { panic!("another verb") };
    assert_eq!(args.deadline, Some(500));
    assert_eq!(args.on_timeout, Some(OnTimeoutArg::Fail));
    assert_eq!(args.reason.as_deref(), Some("x"));
}

#[test]
fn spans_have_units_and_bounds() {
    assert_eq!(parse_span_ms("5"), Ok(5000));
    assert_eq!(parse_span_ms("500ms"), Ok(500));
    assert_eq!(parse_span_ms("2m"), Ok(120_000));
    for bad in ["", "s", "-1s", "1.5s", "5 s", "99999999999999999999", "18446744073709551615h"] {
        assert!(parse_span_ms(bad).is_err(), "{bad}");
    }
}

#[test]
fn every_verb_has_a_manual_page_and_every_shell_a_script() {
    let pages = papers::man_pages().expect("rendered");
    let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
    for verb in Cli::command().get_subcommands() {
        let name = format!("udm-{}.1", verb.get_name());
        assert!(names.contains(&name.as_str()), "{name}");
    }
    let (_, suspend) = pages.iter().find(|(name, _)| name == "udm-suspend.1").expect("there");
    let suspend = String::from_utf8_lossy(suspend);
    assert!(suspend.contains("deadline") && suspend.contains("noflush"));
    let mut output = Output::new(false);
    for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
        papers::completions(*shell, &mut output);
    }
    papers::explain(None, &mut output).expect("lists");
}

#[test]
fn every_code_can_be_explained_in_any_spelling() {
    let output = &mut Output::new(false);
    for code in ErrorCode::ALL {
        papers::explain(Some(code.as_str()), output).expect("explained");
        papers::explain(Some(&code.as_str().to_lowercase()), output).expect("explained");
    }
    papers::explain(Some("0105"), output).expect("explained");
    assert!(papers::explain(Some("UDM-0000"), output).is_err());
}

#[test]
fn help_knows_verbs_and_targets() {
    let help = |topic: &[&str]| {
        let words: Vec<String> = topic.iter().map(|word| (*word).to_owned()).collect();
        papers::help(&words, &mut Output::new(false))
    };
    for topic in [&[][..], &["suspend"], &["target"], &["target", "linear"], &["bench", "swap"]] {
        assert!(help(topic).is_ok(), "{topic:?}");
    }
    assert!(help(&["nosuchverb"]).is_err());
    assert!(help(&["target", "nosuch"]).is_err());
}

/// The verbs' help, one after the other, at a fixed width.
fn reference() -> String {
    let mut root = Cli::command().term_width(96);
    root.build();
    let mut text = String::from(REFERENCE_BEGIN);
    // A verb's name may have dashes of its own; only those between its parts become spaces.
    let mut add = |command: &mut clap::Command, parts: usize| {
        let name =
            command.get_display_name().unwrap_or(command.get_name()).replacen('-', " ", parts);
        let help = command.render_long_help().to_string();
        text += &format!("\n## {name}\n\n```text\n");
        for line in help.trim_end().lines() {
            text += line.trim_end();
            text.push('\n');
        }
        text += "```\n";
    };
    add(&mut root.clone(), 0);
    for verb in root.get_subcommands_mut().filter(|verb| !verb.is_hide_set()) {
        add(verb, 1);
        for part in verb.get_subcommands_mut().filter(|part| !part.is_hide_set()) {
            add(part, 2);
        }
    }
    text
}

const REFERENCE_BEGIN: &str = "# The command line\n\nGenerated from the definitions the parser uses; \
    a test compares them. To write it anew:\n`UDM_BLESS=1 cargo test -p udm --lib reference`.\n\n\
    Exit codes: 0, 1 for a failure (as dmsetup), 2 for wrong usage; `udm run` has its command's.\n\
    How the verbs of dmsetup differ from dmsetup: [dmsetup.md](dmsetup.md). What `--json` prints:\n\
    [json.md](json.md).\n";

#[test]
fn the_published_reference_is_what_the_parser_uses() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/cli.md");
    let made = reference();
    if std::env::var_os("UDM_BLESS").is_some() {
        std::fs::write(path, &made).expect("written");
    }
    let published = std::fs::read_to_string(path).expect("docs/reference/cli.md");
    assert!(published == made, "docs/reference/cli.md is old: UDM_BLESS=1 writes it anew");
}
