//! Checks of text: what a line may say, what comes back, what a message gets.
//!
//! A bad line is tried as the third line of its text (after a comment and an empty line), so that
//! the error has to name the right line, and on top of nothing, so that no table is left behind.
//!
//! Round trip: a good line prints what the case says, and what was printed builds a table that
//! prints the same again.

use super::bench::{Bench, line, world};
use super::{Bad, Case, Good};
use udm_core::ErrorCode;
use udm_core::lifecycle::StatusKind;
use udm_types::Sector;

fn text<C: Case>(len_sectors: Sector, args: &str) -> String {
    format!("0 {len_sectors} {} {args}", C::TARGET)
}

/// The registry has the type, with the version of its manual.
pub fn the_type_is_registered<C: Case>() {
    let registry = C::registry();
    let known = registry.find(C::TARGET).expect("the type is registered");
    assert_eq!(known.version(), C::VERSION);
}

/// Every bad line of the case is refused with its code, its line and its field.
pub fn bad_arguments_are_refused_with_code_line_and_field<C: Case>() {
    assert!(!C::BAD.is_empty() || C::TARGET == "error", "a case knows lines that are wrong");
    let mut world = world::<C>();
    for Bad { len_sectors, args, code, field } in C::BAD {
        let text = format!("# a comment\n\n{}", text::<C>(*len_sectors, args));
        let error = world.build(&text).expect_err(args);
        assert_eq!(error.code(), *code, "{args}: {error}");
        assert_eq!((error.line(), error.field()), (Some(3), Some(*field)), "{args}: {error}");
    }
}

/// Every good line prints as the case says, and the printed line prints the same again.
pub fn good_lines_print_and_parse_back<C: Case>() {
    let mut world = world::<C>();
    let own = Good { len_sectors: C::LEN_SECTORS, args: C::ARGS, printed: "" };
    for good in C::GOOD.iter().chain([&own]) {
        let build = |world: &mut crate::TestWorld, args: &str| {
            let text = text::<C>(good.len_sectors, args);
            world.build(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
        };
        let table = build(&mut world, good.args);
        let printed = table.targets[0].config.table_args();
        if good.args != own.args {
            assert_eq!(printed, good.printed, "{}", good.args);
        }
        let again = build(&mut world, &printed);
        assert_eq!(again.targets[0].config.table_args(), printed);
        assert_eq!(again.len_sectors, good.len_sectors);
    }
}

/// The live table shows the line, and the status the manual promises.
pub fn the_status_of_a_fresh_table_is_as_documented<C: Case>() {
    let mut bench = Bench::<C>::alone();
    let shown = bench.world.lines(bench.device, StatusKind::Info);
    assert_eq!((shown[0].begin_sector, shown[0].len_sectors), (0, C::LEN_SECTORS));
    assert_eq!((shown[0].target.as_str(), shown[0].args.as_str()), (C::TARGET, C::STATUS));
    let table = bench.world.build(&line::<C>(0)).expect("the case's own line");
    let printed = table.targets[0].config.table_args();
    assert_eq!(bench.world.line_args(bench.device, StatusKind::Table), printed);
    bench.world.assert_quiet();
}

/// A message nobody knows changes nothing and says so.
pub fn unknown_messages_are_refused<C: Case>() {
    let mut bench = Bench::<C>::alone();
    for words in [&["no_such_message"][..], &["no_such_message", "1", "2"]] {
        let error = bench.world.message(bench.device, 0, words).expect_err("no such message");
        assert_eq!(error.code(), ErrorCode::UnknownMessage);
    }
    let beyond = bench.world.message(bench.device, C::LEN_SECTORS, &["no_such_message"]);
    assert_eq!(beyond.expect_err("no target there").code(), ErrorCode::NoTargetThere);
    bench.write(0, 8);
    bench.check_everything();
    bench.world.assert_quiet();
}
