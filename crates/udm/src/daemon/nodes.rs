//! Where mapped devices can be opened: their files, and the kernel's block devices on them.
//!
//! A FUSE export is a file; a loop device on that file is a block device of the kernel's with the
//! mapped device's bytes, and a ublk export is one by itself. The preload library opens these for
//! `/dev/mapper/NAME`, and `--links` keeps a folder of symbolic links to the files ([`Links`]).
//!
//! Rules. Nothing is remembered about the kernel: somebody else attaches loop devices, so sysfs is
//! read when it is asked for. In the folder of links only links are touched that point to where a
//! link of ours did.
//!
//! The tricky case is a name with a slash, which Linux allows: it gets no link.

use rustix::fs::FileType;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The kernel's list of block devices.
const BLOCK_DEVICES: &str = "/sys/block";

/// The kernel's block device that a file is, or the loop device on it: its node and its number.
pub(super) fn block_of(file: &Path) -> Option<(String, (u32, u32))> {
    let stat = rustix::fs::stat(file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return loop_on(file);
    }
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Some((file.display().to_string(), number))
}

fn loop_on(file: &Path) -> Option<(String, (u32, u32))> {
    loop_on_in(Path::new(BLOCK_DEVICES), file)
}

fn loop_on_in(devices: &Path, file: &Path) -> Option<(String, (u32, u32))> {
    let is_loop = |name: &str| name.starts_with("loop");
    let names = fs::read_dir(devices).ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        is_loop(&name).then_some(name)
    });
    let mut found: Vec<String> = names
        .filter(|name| {
            // A loop device that stands on nothing has no such file.
            let backing = fs::read_to_string(devices.join(name).join("loop/backing_file"));
            backing.is_ok_and(|backing| Path::new(backing.trim_end_matches('\n')) == file)
        })
        .collect();
    found.sort();
    let name = found.into_iter().next()?;
    let number = fs::read_to_string(devices.join(&name).join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some((format!("/dev/{name}"), (major.parse().ok()?, minor.parse().ok()?)))
}

/// A folder with a symbolic link for each mapped device that has a file.
pub(super) struct Links {
    folder: PathBuf,
    /// What was linked last, by name.
    made: Mutex<BTreeMap<String, PathBuf>>,
}

impl Links {
    /// Links in this folder, which is made if it is missing.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(super) fn new(folder: &Path) -> std::io::Result<Links> {
        fs::create_dir_all(folder)?;
        Ok(Links { folder: std::path::absolute(folder)?, made: Mutex::default() })
    }

    /// Makes the links what they should be; gives what could not be done.
    pub(super) fn update(&self, wanted: BTreeMap<String, PathBuf>) -> Vec<String> {
        // A panic in here cannot leave more than a link too few.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = Vec::new();
        for (name, file) in made.iter().filter(|(name, file)| wanted.get(*name) != Some(*file)) {
            self.remove(name, file);
        }
        made.retain(|name, file| wanted.get(name) == Some(file));
        for (name, file) in wanted {
            if made.contains_key(&name) || name.contains('/') {
                continue;
            }
            // One left by a daemon that died.
            self.remove(&name, &file);
            let link = self.folder.join(&name);
            match std::os::unix::fs::symlink(&file, &link) {
                Ok(()) => drop(made.insert(name, file)),
                Err(error) => failed.push(format!("no link {}: {error}", link.display())),
            }
        }
        failed
    }

    /// Removes a link of ours; what stands there instead stays.
    fn remove(&self, name: &str, file: &Path) {
        let link = self.folder.join(name);
        if fs::read_link(&link).is_ok_and(|to| to == file) {
            // If it cannot be removed, it leads nowhere and harms nobody.
            let _ = fs::remove_file(link);
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.update(BTreeMap::new());
    }
}

#[cfg(test)]
mod tests {
    use super::{Links, loop_on_in};
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    #[test]
    fn a_loop_device_is_found_by_the_file_below_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for (name, backing, number) in
            [("loop0", Some("/a b"), "7:0"), ("loop7", Some("/m"), "7:7"), ("loop8", None, "7:8")]
        {
            let folder = dir.path().join(name);
            fs::create_dir_all(folder.join("loop")).expect("made");
            fs::write(folder.join("dev"), format!("{number}\n")).expect("written");
            if let Some(backing) = backing {
                fs::write(folder.join("loop/backing_file"), format!("{backing}\n")).expect("ok");
            }
        }
        let found = |file: &str| loop_on_in(dir.path(), Path::new(file));
        assert_eq!(found("/m"), Some(("/dev/loop7".to_owned(), (7, 7))));
        assert_eq!(found("/a b"), Some(("/dev/loop0".to_owned(), (7, 0))));
        assert_eq!(found("/n"), None);
    }

    #[test]
    fn links_follow_and_what_is_not_ours_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let folder = dir.path().join("mapper");
        let links = Links::new(&folder).expect("made");
        let wanted = |names: &[(&str, &str)]| -> BTreeMap<String, PathBuf> {
            names.iter().map(|(name, file)| ((*name).to_owned(), PathBuf::from(file))).collect()
        };
        let link = |name: &str| fs::read_link(folder.join(name)).ok();
        fs::write(folder.join("kept"), "").expect("written");
        let failed =
            links.update(wanted(&[("a", "/1"), ("b", "/2"), ("kept", "/3"), ("x/y", "/4")]));
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!((link("a"), link("b")), (Some("/1".into()), Some("/2".into())));
        assert!(links.update(wanted(&[("b", "/5")])).is_empty());
        assert_eq!((link("a"), link("b")), (None, Some("/5".into())));
        drop(links);
        assert_eq!(link("b"), None);
        assert!(folder.join("kept").is_file());
    }
}
