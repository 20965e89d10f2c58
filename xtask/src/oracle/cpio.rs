//! An archive of files in the format an initial file system of Linux has ("newc").
//!
//! `setup.rs` packs the guest's tools with it, `guest.rs` the steps of a run; Linux unpacks one
//! archive behind the other, so the tools are packed once. Only folders, files and links; all
//! belong to root. It never reads the clock: the same files give the same bytes.
//!
//! The tricky case is alignment: name and content are each padded to four bytes, counted from the
//! start of the archive, and the head is 110 bytes long.

use std::collections::BTreeSet;

/// An archive that is being written.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

impl Archive {
    /// Adds a folder and those above it. The path has no leading slash.
    pub(crate) fn folder(&mut self, path: &str) {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let part = path.get(..end).unwrap_or(path);
            if !part.is_empty() && self.folders.insert(part.to_owned()) {
                self.entry(part, FOLDER, &[]);
            }
        }
    }

    /// Adds a file that may be executed, and its folders.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.entry(path, FILE, content);
    }

    /// Adds a symbolic link, and its folders.
    pub(crate) fn link(&mut self, path: &str, to: &str) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.entry(path, LINK, to.as_bytes());
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (content_len, name_len) = (content.len(), name.len() + 1);
        // Inode, mode, owner, group, links, time, size, two device numbers, name's size, checksum.
        let head = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{content_len:08x}{:08x}{:08x}{:08x}{:08x}{name_len:08x}{:08x}",
            self.entries, 0, 0, 1, 0, 0, 0, 0, 0, 0
        );
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn heads_are_110_bytes_and_all_is_padded() {
        let mut archive = Archive::default();
        archive.file("a/b", b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        // Folder "a": 110 + 2 bytes; file "a/b": 110 + 4, padded to 116, and 5 padded to 8.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[112..118], b"070701");
        assert_eq!(&bytes[112 + 116..112 + 121], b"12345");
        assert_eq!(&bytes[112 + 124..112 + 130], b"070701");
    }
}
