//! `cargo xtask mutants SET`: plants bugs in a copy of the sources and asks the simulator for them.
//!
//! A mutant is a small file in `crates/udm-sim/mutants/SET`: what it breaks, in which file, the
//! text found there (exactly once) and the text put in its place. The tree is copied below the
//! target folder, built once clean and once with each mutant, and the simulator has to find each
//! within its seeds, and nothing in the clean tree. A mutant that lives is an alarm that is broken,
//! one whose text is not found any more has to be written anew; both fail the command.
//!
//! The set `compress` is for the crash enumerator: a mutant there also says within how many crashes
//! it has to be found, or why its rule is redundant; such a one may live.
//!
//! Rules. The working tree is never touched. Release code, but without link-time optimisation: a
//! build takes seconds, and a mutant is found in a few seeds.
//!
//! The tricky case is time: cargo decides by modification times what to build again, so a file is
//! written only where its text changes.

use crate::steps::{Failed, cargo, target_dir};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What to break.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The set of mutants: a folder of crates/udm-sim/mutants.
    set: String,
    /// Seeds for each.
    #[arg(long, value_name = "N", default_value_t = 1500)]
    seeds: u64,
    /// Only mutants whose names contain this.
    #[arg(long, value_name = "TEXT")]
    named: Option<String>,
    /// Only so many of them, others for every commit.
    #[arg(long, value_name = "N")]
    some: Option<usize>,
}

/// Mutants for every change: each costs a build.
const CI_MUTANTS: usize = 2;

/// One planted bug.
struct Mutant {
    name: String,
    title: String,
    file: String,
    find: String,
    put: String,
    /// Crashes that have to be enough; for sets of the crash enumerator.
    crashes: Option<u64>,
    /// Why it may live.
    redundant: Option<String>,
}

/// What the simulator said.
enum Finding {
    Caught { seed: String, how: String },
    Lives,
}

/// A few of the compress set, as every change can afford; the whole set runs by the command.
pub(crate) fn sample(root: &Path) -> Result<(), Failed> {
    let set = "compress".to_owned();
    run(root, &Args { set, seeds: 0, named: None, some: Some(CI_MUTANTS) })
}

/// A number that follows from the commit; 1 where there is none.
fn commit_number(root: &Path) -> u64 {
    let arguments = ["rev-parse", "--short=8", "HEAD"];
    let output = Command::new("git").args(arguments).current_dir(root).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok().and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(1)
}

/// Runs a set of mutants.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let folder = root.join("crates/udm-sim/mutants").join(&args.set);
    let mut mutants = read_set(&folder)?;
    if let Some(part) = &args.named {
        mutants.retain(|mutant| mutant.name.contains(part.as_str()));
    }
    if let Some(count) = args.some {
        mutants.retain(|mutant| mutant.redundant.is_none());
        let step = commit_number(root) * count as u64;
        let first = (step % mutants.len().max(1) as u64) as usize;
        mutants.rotate_left(first);
        mutants.truncate(count);
    }
    let place = target_dir(root).join("mutants");
    let tree = place.join("tree");
    copy_tree(root, &tree)?;
    let begun = Instant::now();
    let crashes = mutants.iter().filter_map(|mutant| mutant.crashes).min();
    let clean = How { set: &args.set, seeds: args.seeds, crashes };
    if let Finding::Caught { seed, how } = search(&tree, &place, &clean)? {
        return Err(Failed::new(format!("the clean tree fails at seed {seed}: {how}")));
    }
    println!("clean tree: nothing found");
    let mut alive = Vec::new();
    for mutant in &mutants {
        let path = tree.join(&mutant.file);
        let clean = fs::read_to_string(&path).map_err(Failed::to(&mutant.file))?;
        if clean.matches(&mutant.find).count() != 1 {
            return Err(Failed::new(format!(
                "{}: its text is not in {} exactly once; write it anew",
                mutant.name, mutant.file
            )));
        }
        write(&path, &clean.replacen(&mutant.find, &mutant.put, 1))?;
        let how = How { set: &args.set, seeds: args.seeds, crashes: mutant.crashes };
        let finding = search(&tree, &place, &how);
        write(&path, &clean)?;
        let Mutant { name, title, .. } = mutant;
        match finding? {
            Finding::Caught { seed, how } => {
                println!("caught  {name:<28} {title}\n        at seed {seed}: {how}");
            }
            Finding::Lives if mutant.redundant.is_some() => {
                let why = mutant.redundant.as_deref().unwrap_or_default();
                println!("lives   {name:<28} {title}\n        as it may: {why}");
            }
            Finding::Lives => {
                println!("LIVES   {name:<28} {title}");
                alive.push(name.as_str());
            }
        }
    }
    let secs = begun.elapsed().as_secs();
    println!("{} of {} caught in {secs} s", mutants.len() - alive.len(), mutants.len());
    match alive.is_empty() {
        true => Ok(()),
        false => Err(Failed::new(format!("mutants that live: {}", alive.join(", ")))),
    }
}

/// How to look for a mutant.
struct How<'a> {
    set: &'a str,
    seeds: u64,
    /// With the crash enumerator, within so many crashes.
    crashes: Option<u64>,
}

/// Builds the copy and runs the simulator over it.
fn search(tree: &Path, place: &Path, how: &How<'_>) -> Result<Finding, Failed> {
    let build = place.join("build");
    let mut command = cargo(&["build", "--quiet", "--release", "--package", "udm-sim"]);
    command
        .arg("--target-dir")
        .arg(&build)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(tree);
    let built = command.status().map_err(Failed::to("start cargo"))?;
    if !built.success() {
        return Err(Failed::new("the copy does not build"));
    }
    let mut searching = match how.crashes {
        Some(crashes) => {
            let mut command = Command::new(build.join("release/udm-crash"));
            command.args([how.set, "--crashes", &crashes.to_string()]);
            command
        }
        None => {
            let mut command = Command::new(build.join("release/udm-sim"));
            command.args(["--only", how.set, "--seeds", &how.seeds.to_string()]);
            command
        }
    };
    searching.arg("--no-shrink");
    let output = searching.output().map_err(Failed::to("run the simulator"))?;
    if output.status.success() {
        return Ok(Finding::Lives);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("FAILED seed "));
    let Some((seed, what)) = line.and_then(|line| line.split_once(": ")) else {
        return Err(Failed::new("the simulator failed without a finding"));
    };
    let mut what: String = what.chars().take(120).collect();
    what.retain(|letter| letter != '\n');
    Ok(Finding::Caught { seed: seed.to_owned(), how: what })
}

fn read_set(folder: &Path) -> Result<Vec<Mutant>, Failed> {
    let entries = fs::read_dir(folder).map_err(Failed::to("read the set of mutants"))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| read_mutant(path)).collect()
}

fn read_mutant(path: &Path) -> Result<Mutant, Failed> {
    let text = fs::read_to_string(path).map_err(Failed::to("read a mutant"))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    parse(&name, &text).ok_or_else(|| Failed::new(format!("{name}: not a mutant")))
}

fn parse(name: &str, text: &str) -> Option<Mutant> {
    let (head, rest) = text.split_once("<<<<\n")?;
    let (find, rest) = rest.split_once("====\n")?;
    let (put, _) = rest.split_once(">>>>")?;
    let field = |key: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| value.trim().to_owned())
    };
    Some(Mutant {
        name: name.to_owned(),
        title: field("title:")?,
        file: field("file:")?,
        find: find.to_owned(),
        put: put.to_owned(),
        crashes: field("crashes:").and_then(|count| count.parse().ok()),
        redundant: field("redundant:"),
    })
}

/// Copies what git knows of; what is gone from the tree is gone from the copy.
fn copy_tree(root: &Path, tree: &Path) -> Result<(), Failed> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .map_err(Failed::to("list the files"))?;
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    let wanted: Vec<&str> = names.split('\0').filter(|name| !name.is_empty()).collect();
    for name in &wanted {
        let from = root.join(name);
        let Ok(contents) = fs::read(&from) else { continue };
        let to = tree.join(name);
        if fs::read(&to).is_ok_and(|there| there == contents) {
            continue;
        }
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(Failed::to("make a folder"))?;
        }
        fs::write(&to, contents).map_err(Failed::to("copy a file"))?;
    }
    remove_others(tree, tree, &wanted)
}

fn remove_others(folder: &Path, tree: &Path, wanted: &[&str]) -> Result<(), Failed> {
    for entry in fs::read_dir(folder).map_err(Failed::to("read the copy"))?.flatten() {
        let path = entry.path();
        let Ok(name) = path.strip_prefix(tree) else { continue };
        if path.is_dir() {
            remove_others(&path, tree, wanted)?;
        } else if !wanted.iter().any(|wanted| Path::new(wanted) == name) {
            fs::remove_file(&path).map_err(Failed::to("remove an old file"))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failed> {
    fs::write(path, text).map_err(Failed::to("write a mutant"))
}

#[cfg(test)]
mod tests {
    use super::{parse, read_set};
    use crate::steps::root;
    use std::fs;

    #[test]
    fn a_mutant_has_a_title_a_file_and_two_texts() {
        let text = "title: forgets\nfile: src/a.rs\n<<<<\nif x {\n====\nif true {\n>>>>\n";
        let mutant = parse("m", text).expect("it is one");
        assert_eq!((mutant.title.as_str(), mutant.file.as_str()), ("forgets", "src/a.rs"));
        assert_eq!((mutant.find.as_str(), mutant.put.as_str()), ("if x {\n", "if true {\n"));
        assert!(parse("m", "title: no texts\nfile: a\n").is_none());
    }

    #[test]
    fn every_mutant_still_fits_the_code() {
        let root = root();
        let set =
            |name| read_set(&root.join("crates/udm-sim/mutants").join(name)).expect("readable");
        let (multipath, compress) = (set("multipath"), set("compress"));
        assert!(multipath.len() >= 10, "done-when 7 of the third issue asks for ten");
        assert!(compress.iter().all(|mutant| mutant.crashes.is_some()), "crashes: N");
        for mutant in multipath.into_iter().chain(compress) {
            let code = fs::read_to_string(root.join(&mutant.file)).expect("the file is there");
            assert_eq!(code.matches(&mutant.find).count(), 1, "{}", mutant.name);
            assert_ne!(mutant.find, mutant.put, "{}", mutant.name);
        }
    }
}
