//! What the multipath target says of itself, from its `status` and `table` lines.
//!
//! The same words `dmsetup status` and `dmsetup table` print, read as multipathd reads them: the
//! watcher knows nothing of a target that a user of dmsetup could not see. Pure; a line that does
//! not fit gives `None` and is left alone.
//!
//! ```text
//! 2 QUEUE_IO PG_INIT_COUNT  #hw {hw}  #groups NEXT  { D|A|E  #sel {sel}  #paths #info
//!                                                     { PATH A|F FAIL_COUNT {info} } }
//! ```

use udm_core::table::split_words;

/// The state of a priority group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// I/O goes to it.
    Current,
    /// It may be chosen.
    Enabled,
    /// Somebody said `disable_group`; it is chosen only if no other can be.
    Disabled,
}

/// A path as the target sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathView {
    /// The device, as tables and messages name it.
    pub path: String,
    /// Not failed.
    pub is_active: bool,
    /// How often it failed since the table was loaded.
    pub fail_count: u64,
}

/// A priority group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// Its state.
    pub state: GroupState,
    /// Its paths in table order.
    pub paths: Vec<PathView>,
}

/// A multipath target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Its groups; the first is the best.
    pub groups: Vec<GroupView>,
    /// It queues I/O while no path is left (as the live `table` says).
    pub queues: bool,
    /// The device is suspended: messages would be refused.
    pub is_suspended: bool,
}

impl View {
    /// Reads a status line's arguments. `table` are the arguments of the live table line.
    pub fn read(status: &str, table: &str) -> Option<View> {
        let words = split_words(status);
        let mut words = words.iter().map(String::as_str);
        skip_counted(&mut words)?;
        skip_counted(&mut words)?;
        let group_count = number(&mut words)?;
        let _next_group = number(&mut words)?;
        let mut groups = Vec::new();
        for _ in 0..group_count {
            groups.push(group(&mut words)?);
        }
        Some(View { groups, queues: queues(table), is_suspended: false })
    }

    /// All paths, best group first.
    pub fn paths(&self) -> impl Iterator<Item = &PathView> {
        self.groups.iter().flat_map(|group| &group.paths)
    }
}

fn group<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<GroupView> {
    let state = match words.next()? {
        "A" => GroupState::Current,
        "E" => GroupState::Enabled,
        "D" => GroupState::Disabled,
        _ => return None,
    };
    skip_counted(words)?;
    let path_count = number(words)?;
    let info_count = number(words)?;
    let mut paths = Vec::new();
    for _ in 0..path_count {
        let path = words.next()?.to_owned();
        let is_active = match words.next()? {
            "A" => true,
            "F" => false,
            _ => return None,
        };
        let fail_count = number(words)?;
        for _ in 0..info_count {
            words.next()?;
        }
        paths.push(PathView { path, is_active, fail_count });
    }
    Some(GroupView { state, paths })
}

/// Whether the features of a table line hold `queue_if_no_path`.
fn queues(table: &str) -> bool {
    let words = split_words(table);
    let count = words.first().and_then(|word| word.parse().ok()).unwrap_or(0);
    words.iter().skip(1).take(count).any(|word| word.eq_ignore_ascii_case("queue_if_no_path"))
}

fn number<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<u64> {
    words.next()?.parse().ok()
}

fn skip_counted<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<()> {
    for _ in 0..number(words)? {
        words.next()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::{GroupState, View};

    #[test]
    fn the_lines_of_the_kernel_are_understood() {
        let status =
            "2 0 0 0 2 1 A 0 2 2 8:16 A 0 512 1 8:32 F 3 0 1 D 2 972 0 1 3 8:48 A 0 1 2 3 ";
        let table = "1 queue_if_no_path 0 2 1 service-time 0 2 2 8:16 1 1 8:32 1 1 \
            historical-service-time 0 1 1 8:48 1 ";
        let view = View::read(status, table).expect("a good line");
        assert!(view.queues);
        assert_eq!(view.groups[0].state, GroupState::Current);
        assert_eq!(view.groups[1].state, GroupState::Disabled);
        let paths: Vec<_> =
            view.paths().map(|p| (p.path.as_str(), p.is_active, p.fail_count)).collect();
        assert_eq!(paths, [("8:16", true, 0), ("8:32", false, 3), ("8:48", true, 0)]);
    }

    #[test]
    fn a_fresh_and_an_empty_target_are_understood() {
        let fresh = View::read("2 1 0 0 1 1 E 0 1 0 ./a\\ b A 0 ", "0 0 1 1 x").expect("good");
        assert_eq!(fresh.paths().next().expect("one").path, "./a b");
        assert!(!fresh.queues);
        assert!(View::read("2 1 0 0 0 0 ", "0 0 0 0").expect("good").groups.is_empty());
    }

    #[test]
    fn the_queueing_word_must_be_a_feature() {
        let status = "2 1 0 0 1 1 E 0 1 0 queue_if_no_path A 0";
        let table = "0 0 1 1 round-robin 0 1 0 queue_if_no_path";
        assert!(!View::read(status, table).expect("good").queues);
    }

    #[test]
    fn anything_else_is_left_alone() {
        for line in ["", "2 1", "8:0 0", "2 1 0 0 1 1 X 0 1 0 a A 0", "2 1 0 0 1 1 E 0 1 0 a B 0"] {
            assert_eq!(View::read(line, ""), None, "{line}");
        }
        let cut = "2 0 0 0 2 1 A 0 2 2 8:16 A 0 512 1";
        assert_eq!(View::read(cut, ""), None);
    }
}
