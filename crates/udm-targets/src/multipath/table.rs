//! The table line of `multipath`, in and out.
//!
//! ```text
//! #FEATURES {FEATURE} #HANDLER_ARGS [HANDLER {ARG}] #GROUPS INITIAL_GROUP
//!     { SELECTOR #SELECTOR_ARGS {ARG} #PATHS #PATH_ARGS { DEVICE {ARG} } }
//! ```
//!
//! Called when a table is built and when its text is asked for. Checks come in the kernel's order
//! and say the kernel's words. Groups are read until the words run out; only then is their number
//! compared with #GROUPS. An initial group beyond the last is accepted and means none.
//!
//! Rules. What the kernel drops is dropped and not printed: `retain_attached_hw_handler`, and a
//! hardware handler with its arguments (our devices are not SCSI). What is printed can be loaded.
//!
//! The tricky case is queue_if_no_path: it is printed as it stands *now*, which messages, the time
//! limit and a suspend change; so the text of a live table needs the counters of the lanes.

use super::config::{Features, GroupConfig, MultipathConfig, PathConfig, QueueMode};
use super::counters::{CURRENT, Layout, NEXT, QUEUEING, Snapshot};
use super::selectors::{self, WordGroup, count_of_words};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use udm_core::UserError;
use udm_core::table::{Args, BuildCx};

/// Most feature words.
const FEATURE_WORDS_MAX: u32 = 8;
/// Most arguments of a hardware handler, groups, paths of a group, arguments of a path.
const COUNT_MAX: u32 = 1024;
const PG_INIT_RETRIES_MAX: u32 = 50;
const PG_INIT_DELAY_MS_MAX: u32 = 60_000;

pub(super) fn parse(
    args: &mut Args<'_>,
    cx: &mut BuildCx<'_>,
) -> Result<MultipathConfig, UserError> {
    let features = parse_features(args)?;
    let handler_words = count_of_words(args, "invalid number of hardware handler args", COUNT_MAX)?;
    WordGroup::new(args, handler_words).skip()?;
    let group_count = args.number32("invalid number of priority groups", 0..=COUNT_MAX)? as usize;
    let initial = args.number32("invalid initial priority group", 0..=COUNT_MAX)? as usize;
    if (group_count == 0) != (initial == 0) {
        return Err(
            args.bad("invalid initial priority group: it is 0 if and only if there are none")
        );
    }
    let mut config = MultipathConfig {
        features,
        groups: Vec::new(),
        paths: Vec::new(),
        initial: None,
        layout: Layout { groups: 0, paths: 0 },
        len_sectors: cx.len_sectors,
    };
    while args.left() > 0 {
        parse_group(&mut config, args, cx)?;
    }
    let found = config.groups.len();
    if found != group_count {
        return Err(args.bad(format!(
            "priority group count mismatch: {group_count} announced, {found} found"
        )));
    }
    config.initial = initial.checked_sub(1).filter(|&group| group < found);
    config.layout = Layout { groups: found, paths: config.paths.len() };
    Ok(config)
}

fn parse_features(args: &mut Args<'_>) -> Result<Features, UserError> {
    let mut features = Features::default();
    let mut left = count_of_words(args, "invalid number of feature args", FEATURE_WORDS_MAX)?;
    while left > 0 {
        let word = args.word("a feature")?;
        left -= 1;
        let lower = word.to_ascii_lowercase();
        match lower.as_str() {
            "queue_if_no_path" => {
                features.queue_if_no_path = true;
                continue;
            }
            "retain_attached_hw_handler" => continue,
            _ => {}
        }
        // The others take a value, which must lie inside the announced words.
        if left == 0 {
            return Err(unknown_feature(args, word));
        }
        match lower.as_str() {
            "pg_init_retries" => {
                features.pg_init_retries = args.number32(
                    "pg_init_retries must be between 1 and 50",
                    1..=PG_INIT_RETRIES_MAX,
                )?;
            }
            "pg_init_delay_msecs" => {
                features.pg_init_delay_ms = Some(args.number32(
                    "pg_init_delay_msecs must be between 0 and 60000",
                    0..=PG_INIT_DELAY_MS_MAX,
                )?);
            }
            "queue_mode" => features.queue_mode = parse_mode(args)?,
            _ => return Err(unknown_feature(args, word)),
        }
        left -= 1;
    }
    Ok(features)
}

fn unknown_feature(args: &Args<'_>, word: &str) -> UserError {
    args.bad(format!("Unrecognised multipath feature request '{word}'")).hint(
        "features: queue_if_no_path, pg_init_retries N, pg_init_delay_msecs N, \
         retain_attached_hw_handler, queue_mode bio|rq|mq",
    )
}

fn parse_mode(args: &mut Args<'_>) -> Result<QueueMode, UserError> {
    let word = args.word("the queue mode")?;
    match word.to_ascii_lowercase().as_str() {
        "bio" => Ok(QueueMode::Bio),
        "rq" | "mq" => Ok(QueueMode::Request),
        _ => {
            Err(args.bad(format!("Unknown 'queue_mode' requested: '{word}'")).hint("bio, rq or mq"))
        }
    }
}

fn parse_group(
    config: &mut MultipathConfig,
    args: &mut Args<'_>,
    cx: &mut BuildCx<'_>,
) -> Result<(), UserError> {
    if args.left() < 2 {
        args.word("a path selector")?;
        return Err(args.bad("not enough priority group arguments"));
    }
    let mut selector = selectors::parse(args)?;
    let count = args.number32("invalid number of paths", 1..=COUNT_MAX)? as usize;
    let path_words = args.number32("invalid number of path args", 0..=COUNT_MAX)? as usize;
    let group = config.groups.len();
    let first = config.paths.len();
    for _ in 0..count {
        if args.left() < 1 + path_words {
            let (left, needed) = (args.left(), 1 + path_words);
            return Err(args.bad(format!(
                "not enough path parameters: {needed} words needed for a path, {left} left"
            )));
        }
        let written = args.peek().unwrap_or_default().to_owned();
        let device = cx.device(args, "the device of a path")?;
        selector.add_path(&mut WordGroup::new(args, path_words))?;
        config.paths.push(PathConfig { device, written, group });
    }
    config.groups.push(GroupConfig { selector, first, count });
    Ok(())
}

/// The line as `table` prints it. An empty snapshot is a table that no lane serves.
pub(super) fn print(config: &MultipathConfig, snapshot: &Snapshot<'_>) -> String {
    let queueing = match snapshot.is_live() {
        true => snapshot.get(QUEUEING) != 0,
        false => config.features.queue_if_no_path,
    };
    let mut text = String::new();
    put_features(&config.features, queueing, &mut text);
    let shown = shown_group(config, snapshot);
    put(&mut text, format_args!("0 {} {shown} ", config.groups.len()));
    for group in &config.groups {
        let selector = &group.selector;
        put(&mut text, format_args!("{} {}", selector.name(), selector.own_words()));
        put(&mut text, format_args!("{} {} ", group.count, selector.table_words()));
        for (place, path) in config.paths_of(group).iter().enumerate() {
            put(&mut text, format_args!("{} ", path.device.shown));
            selector.print_table(place, &mut text);
        }
    }
    text
}

fn put_features(features: &Features, queueing: bool, text: &mut String) {
    let bio = features.queue_mode == QueueMode::Bio;
    let count = u32::from(queueing)
        + u32::from(features.pg_init_retries > 0) * 2
        + u32::from(features.pg_init_delay_ms.is_some()) * 2
        + u32::from(bio) * 2;
    put(text, format_args!("{count} "));
    if queueing {
        text.push_str("queue_if_no_path ");
    }
    if features.pg_init_retries > 0 {
        put(text, format_args!("pg_init_retries {} ", features.pg_init_retries));
    }
    if let Some(delay_ms) = features.pg_init_delay_ms {
        put(text, format_args!("pg_init_delay_msecs {delay_ms} "));
    }
    if bio {
        text.push_str("queue_mode bio ");
    }
}

/// The group that table and status name: the current, else the next, else the first; 0 if none.
pub(super) fn shown_group(config: &MultipathConfig, snapshot: &Snapshot<'_>) -> u64 {
    if config.groups.is_empty() {
        return 0;
    }
    let initial = || config.initial.map_or(0, |group| group as u64 + 1);
    let next = if snapshot.is_live() { snapshot.get(NEXT) } else { initial() };
    [snapshot.get(CURRENT), next].into_iter().find(|&group| group != 0).unwrap_or(1)
}

/// Appends to a text.
pub(super) fn put(text: &mut String, words: core::fmt::Arguments<'_>) {
    text.write_fmt(words).expect("invariant: writing to a string succeeds");
}
