//! Whether what a crash left is right: `udm compress check`, e2fsck, and the ledger.
//!
//! A copy of the disk is judged, so that the life it was taken from may go on. A daemon of the
//! judge's own recovers the copy, the device is copied out, and the file system in it is looked at
//! as after any power cut: in half of the cases e2fsck replays the journal and has to find nothing
//! that it would not mend by itself (`-p`), in the others the kernel replays it and e2fsck has to
//! find nothing at all afterwards (`-n`). Then the ledger is held against the files.
//!
//! Rules. Before and after the recovery `check` has to be clean. The copies stay when something is
//! wrong: `judged.img` (the disk) and `judged.ext4` (the device).

use super::ledger::Ledger;
use super::outside::{code, run};
use crate::soak::daemon::Daemon;
use crate::steps::Failed;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the judge's device.
const DEVICE: &str = "judged";

/// The judge.
pub(super) struct Judge {
    dir: PathBuf,
    daemon: Daemon,
    udm: String,
    judged: u64,
}

impl Judge {
    pub(super) fn start(udm: &Path, dir: &Path) -> Result<Judge, Failed> {
        let dir = dir.join("judge");
        fs::create_dir_all(dir.join("mounted")).map_err(Failed::to("make a folder"))?;
        let daemon = Daemon::start(udm, &dir)?;
        Ok(Judge { dir, daemon, udm: udm.display().to_string(), judged: 0 })
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Judges a disk; `ledgers` is what was known at its moment.
    pub(super) fn judge(
        &mut self,
        disk: &[u8],
        len_sectors: u64,
        ledgers: &mut [Ledger],
    ) -> Result<(), Failed> {
        self.judged += 1;
        let (image, back) = (self.path("judged.img"), self.path("judged.ext4"));
        fs::write(&image, disk).map_err(Failed::to("write an image"))?;
        self.check(&image)?;
        self.daemon.udm(&[
            "create",
            DEVICE,
            "--table",
            &format!("0 {len_sectors} compress {image}"),
        ])?;
        let address = format!("unix:{}", self.path("judged.sock"));
        let uri = self.daemon.udm(&["export", DEVICE, "--nbd", &address])?.trim().to_owned();
        run(&self.dir, &["nbdcopy", &uri, &back])?;
        self.daemon.udm(&["unexport", DEVICE])?;
        self.daemon.udm(&["remove", DEVICE])?;
        self.check(&image)?;
        let kernel_replays = self.judged.is_multiple_of(2);
        if !kernel_replays {
            let code = code(&self.dir, &["e2fsck", "-f", "-p", &back])?;
            if code > 1 {
                let told = fs::read_to_string(self.dir.join("e2fsck.out")).unwrap_or_default();
                return Err(Failed::new(format!("e2fsck -p: exit code {code}: {told}")));
            }
        }
        let point = self.path("mounted");
        run(&self.dir, &["mount", "-o", "loop", &back, &point])?;
        let fits = ledgers.iter_mut().try_for_each(|ledger| ledger.settle(Path::new(&point)));
        run(&self.dir, &["umount", &point])?;
        fits?;
        run(&self.dir, &["e2fsck", "-f", "-n", &back]).map(drop)
    }

    /// The production check of a volume nobody uses: no finding but what a crash leaves.
    pub(super) fn check(&self, image: &str) -> Result<(), Failed> {
        let told = run(&self.dir, &[&self.udm, "compress", "check", image, "--json"])?;
        let told: Value = serde_json::from_str(&told).map_err(Failed::to("read udm's JSON"))?;
        let findings = told["check"]["findings"].as_array().cloned().unwrap_or_default();
        match findings.iter().find(|finding| finding["severity"] != "normal") {
            None => Ok(()),
            Some(finding) => Err(Failed::new(format!("check: {finding}"))),
        }
    }
}
