//! Made-up scripts: legal and illegal, the same for Linux and for us, compared in one run.
//!
//! A seed gives a script: a dozen commands on up to three devices over the disks every case has,
//! with tables of every target, one in four of them damaged, and I/O where nothing is suspended.
//! It ends with what there is: `info`, `table` (both) and `status`. A boot of the guest takes a few
//! hundred scripts; each that disagrees is printed whole, with its seed.
//!
//! What is known to differ (`differences-from-linux.md`) is not made up: numbers too large or with
//! a plus, devices on others by a later load (sizes are checked there by us, at resume by Linux),
//! dependencies on files. The tricky case is I/O: on a suspended device it would wait for ever, so
//! `calm` looks first.

use super::judge::Case;
use super::judge::ours::questions;
use super::{our_side, ours, setup, theirs};
use crate::steps::Failed;
use std::path::Path;

/// Scripts of one boot: the guest's memory holds their answers.
const BATCH: u64 = 250;
/// What a word of a table is replaced with when it is damaged.
const GARBAGE: [&str; 12] =
    ["x", "-1", "0x8", "1.5", "", "8x", "nosuch", "R0", "0", "1", "99", "a/b"];
/// Where flakey counts its features in a line.
const FLAKEY_COUNT_AT: usize = 7;
const NAMES: [&str; 4] = ["a", "b", "c", "nosuch"];

/// Asks both about `count` scripts.
pub(crate) fn run(root: &Path, seed: u64, count: u64) -> Result<(), Failed> {
    let guest = setup::guest(root, false)?;
    let side = our_side(root)?;
    let (mut steps, mut wrong, mut next) = (0, 0, 0);
    while next < count {
        let batch: Vec<Case> = (next..count.min(next + BATCH))
            .map(|number| {
                let seed = seed + number;
                questions(&format!("seed-{seed}"), &script(seed))
            })
            .collect();
        next += BATCH;
        let theirs = theirs(root, &guest, &batch, "generated")?;
        for (theirs, ours) in theirs.into_iter().zip(ours(&side, &batch)) {
            let (theirs, ours) = match (theirs, ours) {
                (Ok(theirs), Ok(ours)) => (without_handler(theirs), ours),
                (Err(error), _) | (_, Err(error)) => {
                    println!("{error}");
                    wrong += 1;
                    continue;
                }
            };
            steps += theirs.steps.len();
            let found = theirs.compare(&ours);
            if found.is_empty() {
                continue;
            }
            wrong += 1;
            println!("\n{} disagrees; Linux answered:\n{}", theirs.id, theirs.render());
            found.iter().for_each(|(what, both)| println!("{what}\n{both}"));
        }
        println!("{} of {count} scripts, {steps} steps: {wrong} disagree", next.min(count));
    }
    match wrong {
        0 => Ok(()),
        _ => Err(Failed::new(format!("{wrong} of {count} scripts disagree"))),
    }
}

/// Linux 6.12 still prints a feature that interface 4.50 does not show.
fn without_handler(mut case: Case) -> Case {
    for text in case.steps.iter_mut().flat_map(|step| step.fields.values_mut()) {
        for (shown, kept) in [("3", "2"), ("5", "4"), ("1", "0")] {
            let from = format!(" multipath {shown} retain_attached_hw_handler ");
            *text = text.replace(&from, &format!(" multipath {kept} "));
        }
    }
    case
}

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    /// Below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    /// True once in `sides`.
    fn once_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    fn pick<'a>(&mut self, among: &[&'a str]) -> &'a str {
        let len = u64::try_from(among.len()).unwrap_or(1);
        let at = usize::try_from(self.roll(len)).unwrap_or(0);
        among.get(at).copied().unwrap_or_default()
    }
}

/// The commands of a seed.
fn script(seed: u64) -> Vec<String> {
    let mut dice = Dice(seed);
    let with_io = dice.once_in(2);
    let mut commands = Vec::new();
    let mut made = 0;
    let len = 6 + dice.roll(8);
    for _ in 0..len {
        // Something has to be there before it can be changed.
        if made < 2 && (made == 0 || dice.once_in(3)) {
            commands.push(create(&mut dice, with_io));
            made += 1;
        } else {
            commands.push(command(&mut dice, with_io));
        }
    }
    for asked in ["info -c --noheadings -o name,devno,attr,open,segments,events,uuid", "table"] {
        commands.push(format!("dmsetup {asked}"));
    }
    commands.push("dmsetup table --inactive".to_owned());
    commands.push("dmsetup status --noflush".to_owned());
    commands
}

fn create(dice: &mut Dice, with_io: bool) -> String {
    let name = dice.pick(&["a", "b", "c", "a", "b", "x y", "a/b", ""]);
    let uuid = match dice.roll(4) {
        0 => format!(" -u {}", dice.pick(&["U", "V", "W"])),
        _ => String::new(),
    };
    if dice.once_in(6) {
        return format!("dmsetup create \"{name}\"{uuid} --notable");
    }
    let readonly = if !with_io && dice.once_in(6) { " --readonly" } else { "" };
    let minor = match dice.roll(8) {
        0 => format!(" -m {}", dice.roll(4)),
        _ => String::new(),
    };
    let table = table(dice, true);
    format!("dmsetup create \"{name}\"{uuid}{readonly}{minor} --table {table}")
}

fn command(dice: &mut Dice, with_io: bool) -> String {
    let name = dice.pick(&NAMES);
    let flags = dice.pick(&["", "", "--noflush ", "--nolockfs "]);
    match dice.roll(if with_io { 30 } else { 22 }) {
        0..=2 => format!("dmsetup load {name} --table {}", table(dice, false)),
        3..=5 => format!("dmsetup resume {flags}{name}"),
        6 | 7 => format!("dmsetup suspend {flags}{name}"),
        8 => format!("dmsetup clear {name}"),
        9 => format!("dmsetup remove {}{name}", dice.pick(&["", "--deferred ", "--force ", ""])),
        10 => format!("dmsetup rename {name} {}", dice.pick(&["a", "b", "c", "d", "x/y"])),
        11 => format!("dmsetup rename {name} --setuuid {}", dice.pick(&["U", "V", "W"])),
        12 | 13 => message(dice, name),
        14 => create(dice, with_io),
        15 => format!("dmsetup table {}{name}", dice.pick(&["", "--inactive "])),
        16 => format!("dmsetup status {}{name}", dice.pick(&["", "--inactive "])),
        17 => "dmsetup info -c --noheadings -o name,attr,open,segments,events".to_owned(),
        18 => format!("dmsetup ls {}", dice.pick(&["", "--target zero", "--target linear"])),
        19 => format!("dmsetup wipe_table {name}"),
        20 => format!("dmsetup message {name} 0 @stats_create - {}", dice.pick(&["8", "/2", "0"])),
        21 => format!("dmsetup message {name} 0 @stats_list"),
        22..=25 => format!("calm && io read {name} {}", range(dice)),
        26..=28 => format!("calm && io write {name} {} {}", range(dice), dice.roll(9) + 1),
        _ => format!("below read $R{} 0 80", dice.roll(2)),
    }
}

/// A first sector and a count within the smallest device.
fn range(dice: &mut Dice) -> String {
    let start = dice.roll(60);
    format!("{start} {}", 1 + dice.roll(64 - start))
}

fn message(dice: &mut Dice, name: &str) -> String {
    let words = [
        "fail_path $S0N",
        "fail_path $S1N",
        "reinstate_path $S0N",
        "queue_if_no_path",
        "fail_if_no_path",
        "switch_group 2",
        "disable_group 1",
        "enable_group 1",
        "hello",
        "@cancel_deferred_remove",
        "@hello",
    ];
    format!("dmsetup message {name} {} {}", dice.pick(&["0", "0", "63", "999"]), dice.pick(&words))
}

/// A table as one word of a shell; of several lines, and damaged, now and then.
fn table(dice: &mut Dice, stacks: bool) -> String {
    let mut lines = vec![line(dice, 0, stacks)];
    if dice.once_in(4) {
        let start = if dice.once_in(6) { 72 } else { 64 };
        lines.push(line(dice, start, stacks));
    }
    let words: Vec<String> = lines.iter().map(|line| format!("\"{line}\"")).collect();
    match words.as_slice() {
        [one] => one.clone(),
        _ => format!("\"$(T {})\"", words.join(" ")),
    }
}

fn line(dice: &mut Dice, start: u64, stacks: bool) -> String {
    let disk = |dice: &mut Dice| format!("$R{} {}", dice.roll(3), dice.roll(4) * 8);
    let arguments = match dice.roll(9) {
        0 => "zero".to_owned(),
        1 => "error".to_owned(),
        2 if stacks => format!("linear /dev/mapper/{} 0", dice.pick(&NAMES)),
        2 | 3 => format!("linear {}", disk(dice)),
        4 => format!("striped 2 {} {} {}", dice.pick(&["8", "16", "4"]), disk(dice), disk(dice)),
        5 => format!("delay {} {}", disk(dice), dice.roll(2)),
        6 => flakey(dice, &disk(&mut Dice(start + 1))),
        7 => format!("striped 1 {} {}", dice.pick(&["8", "64"]), disk(dice)),
        _ => multipath(dice),
    };
    let line = format!("{start} 64 {arguments}");
    if !dice.once_in(4) {
        return line;
    }
    let mut words: Vec<&str> = line.split(' ').collect();
    let len = u64::try_from(words.len()).unwrap_or(1);
    let at = usize::try_from(dice.roll(len)).unwrap_or(0);
    // Linux ignores words behind flakey's features, we refuse them: in the list of differences. So
    // no word is added, and the count of features gets no smaller.
    let is_flakey = words.contains(&"flakey");
    let is_count = is_flakey && at == FLAKEY_COUNT_AT;
    match dice.roll(3) {
        // With a word less before it a path would be the type, and dmsetup itself refuses that.
        _ if at < 3 => words.iter_mut().skip(at).take(1).for_each(|word| *word = "nosuch"),
        0 => drop(words.remove(at)),
        1 if !is_flakey => words.insert(at, dice.pick(&GARBAGE)),
        _ => words.iter_mut().skip(at).take(1).for_each(|word| {
            *word = Some(dice.pick(&GARBAGE)).filter(|_| !is_count).unwrap_or("nosuch");
        }),
    }
    words.join(" ")
}

fn flakey(dice: &mut Dice, disk: &str) -> String {
    let times = dice.pick(&["60 0", "0 60"]);
    let features = [
        "",
        " 1 drop_writes",
        " 1 error_writes",
        " 1 error_reads",
        " 5 corrupt_bio_byte 1 r 7 0",
        " 5 corrupt_bio_byte 32 w 9 0",
        " 2 drop_writes error_writes",
    ];
    format!("flakey {disk} {times}{}", dice.pick(&features))
}

fn multipath(dice: &mut Dice) -> String {
    let features = dice.pick(&["0", "0", "2 queue_mode bio", "2 pg_init_retries 3"]);
    match dice.roll(3) {
        0 => format!("multipath {features} 0 1 1 round-robin 0 1 1 $S0 1"),
        1 => format!("multipath {features} 0 1 1 queue-length 0 2 1 $S0 1 $S1 1"),
        _ => {
            format!("multipath {features} 0 2 1 round-robin 0 1 1 $S0 1 service-time 0 1 2 $S1 1 1")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::script;

    #[test]
    fn flakey_has_no_words_behind_its_features() {
        // Seed 20261683 had "0 drop_writes".
        for script in (0..3000).chain([20_261_683]).map(script) {
            for line in script.iter().flat_map(|command| command.split('"')) {
                let words: Vec<&str> = line.split(' ').collect();
                let count = words.get(7).filter(|_| words.get(2) == Some(&"flakey"));
                if let Some(count) = count.and_then(|count| count.parse::<usize>().ok()) {
                    assert!(words.len() - 8 <= count, "{line}");
                }
            }
        }
    }

    #[test]
    fn a_seed_is_a_script() {
        assert_eq!(script(7), script(7));
        assert_ne!(script(7), script(8));
        assert!((1..50).all(|seed| script(seed).len() >= 10));
        assert!((1..50).any(|seed| script(seed).join(" ").contains("multipath")));
    }
}
