//! An ext4 goes in and out under abuse, and is checked.
//!
//! Without root and without FUSE a file system cannot be mounted here; so it is made as an image
//! with files in it (`mke2fs -d`), copied to the device over several connections, copied out again,
//! compared, and checked by e2fsck. The copies run while paths are killed.

use super::chaos::Chaos;
use crate::steps::{Failed, is_installed};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What the phase needs; without one of them it is left out, and that is said.
const TOOLS: [&str; 3] = ["mke2fs", "e2fsck", "nbdcopy"];

/// The tree.
const FOLDERS: u64 = 16;
const FILES: u64 = 24;

/// Runs the phase.
pub(super) fn run(chaos: &mut Chaos, uri: &str, dir: &Path) -> Result<(), Failed> {
    if let Some(missing) = TOOLS.iter().find(|tool| !is_installed(tool)) {
        println!("{missing} is not installed; not checked: a file system over the paths");
        return Ok(());
    }
    let (made, back) = (dir.join("made.ext4"), dir.join("back.ext4"));
    make(chaos, &made, dir)?;
    let (made_text, back_text) = (made.display().to_string(), back.display().to_string());
    under_abuse(chaos, &["nbdcopy", "--flush", &made_text, uri])?;
    under_abuse(chaos, &["nbdcopy", uri, &back_text])?;
    let read = |path: &Path| fs::read(path).map_err(Failed::to("read an image"));
    if read(&made)? != read(&back)? {
        return Err(Failed::new("the file system that came out is not the one that went in"));
    }
    finish(start(&["e2fsck", "-f", "-n", &back_text])?, "e2fsck")?;
    println!("ext4: copied in and out while paths were killed, the same, and clean");
    Ok(())
}

/// An image of the device's size with a tree of files of many sizes.
fn make(chaos: &mut Chaos, image: &Path, dir: &Path) -> Result<(), Failed> {
    let tree = dir.join("tree");
    // About a third of the device, in many sizes.
    let len_bytes_max = chaos.len_sectors * 512 / (FOLDERS * FILES) * 2 / 3;
    for folder in 0..FOLDERS {
        let folder = tree.join(format!("folder-{folder}"));
        fs::create_dir_all(&folder).map_err(Failed::to("make a folder"))?;
        for file in 0..FILES {
            let len_bytes = chaos.random.below(len_bytes_max) as usize;
            let bytes: Vec<u8> = (0..len_bytes).map(|_| chaos.random.below(256) as u8).collect();
            fs::write(folder.join(format!("file-{file}")), bytes)
                .map_err(Failed::to("write a file"))?;
        }
    }
    let blocks = (chaos.len_sectors / 8).to_string();
    let (tree, image) = (tree.display().to_string(), image.display().to_string());
    let words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", &tree, &image, &blocks];
    finish(start(&words)?, "mke2fs")
}

/// Runs a program while paths are killed.
fn under_abuse(chaos: &mut Chaos, words: &[&str]) -> Result<(), Failed> {
    let mut child = start(words)?;
    while child.try_wait().map_err(Failed::to("ask for a child's end"))?.is_none() {
        chaos.act_briefly()?;
    }
    finish(child, words[0])
}

fn start(words: &[&str]) -> Result<Child, Failed> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    Command::new(words[0])
        .args(&words[1..])
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(Failed::to(format!("start {}", words[0])))
}

fn finish(mut child: Child, what: &str) -> Result<(), Failed> {
    let status = child.wait().map_err(Failed::to("wait for a program"))?;
    if status.success() { Ok(()) } else { Err(Failed::new(format!("{what}: {status}"))) }
}
