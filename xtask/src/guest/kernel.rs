//! Which Linux a guest runs: Debian's of the machine's release, or a newer one.
//!
//! A newer one comes from the backports of a newer Debian, by an apt with folders of its own below
//! `target/oracle/`: nothing is installed and the machine's own lists stay as they are. The mirror
//! is the one this machine's apt already uses for Debian; packages are checked against Debian's
//! keyring. What was fetched once is kept.
//!
//! The tricky case: up to 6.18 a kernel is one package, later ones are a package each for the
//! image, the modules and their lists, and the one that is asked for is empty.

use crate::oracle::setup::{cache, kernel_tree, only_entry};
use crate::steps::{Failed, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where newer kernels are.
const SUITE: &str = "trixie-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The word for the newest there is.
const NEWEST: &str = "newest";
/// Beginnings of the packages that a kernel's package is made of.
const PARTS: [&str; 3] = ["linux-base-", "linux-binary-", "linux-modules-"];

/// A kernel that was unpacked.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Its image.
    pub(super) image: PathBuf,
    /// The folder of its modules.
    pub(super) modules: PathBuf,
}

/// The kernel for a guest: of this series (`6.18`, or `newest`), or the usual one.
pub(super) fn kernel(root: &Path, series: Option<&str>) -> Result<Kernel, Failed> {
    let Some(series) = series else {
        let (image, modules) = kernel_tree(&cache(root))?;
        return Ok(Kernel { image, modules });
    };
    if series != NEWEST && version(series).is_none() {
        return Err(Failed::new(format!("'{series}': a series is {NEWEST}, or as 6.18")));
    }
    let folder = cache(root).join(format!("kernel-{series}"));
    let tree = folder.join("tree");
    if !tree.is_dir() {
        fetch(&folder, series)?;
    }
    let modules = only_entry(&tree.join("usr/lib/modules"))
        .or_else(|_| only_entry(&tree.join("lib/modules")))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy();
    println!("Linux {release}");
    let within = modules.join("vmlinuz");
    let image = match within.is_file() {
        true => within,
        false => tree.join(format!("boot/vmlinuz-{release}")),
    };
    Ok(Kernel { image, modules })
}

/// Downloads and unpacks a kernel into `tree`.
fn fetch(folder: &Path, series: &str) -> Result<(), Failed> {
    let apt = Apt::new(folder)?;
    run(folder, apt.command("apt-get").args(["update", "-qq"]))?;
    let names = read(apt.command("apt-cache").args(["pkgnames", "linux-image-"]))?;
    let package = newest(&names, series)
        .ok_or_else(|| Failed::new(format!("{SUITE} has no kernel {series}")))?;
    let needed = read(apt.command("apt-cache").args(["depends", &package]))?;
    let needed = needed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let parts = needed.filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
    let mut download = apt.command("apt-get");
    download.args(["download", "-qq", &package]).args(parts);
    run(folder, &mut download)?;
    let list = fs::read_dir(folder).map_err(Failed::to("list the kernel's packages"))?;
    for file in list.filter_map(|entry| Some(entry.ok()?.path())) {
        if file.extension().is_some_and(|end| end == "deb") {
            run(folder, Command::new("dpkg-deb").arg("-x").arg(&file).arg("unpacked"))?;
            fs::remove_file(&file).map_err(Failed::to("remove a package"))?;
        }
    }
    fs::rename(folder.join("unpacked"), folder.join("tree"))
        .map_err(Failed::to("name the kernel's folder"))
}

/// An apt that knows one suite, and has its own folders.
struct Apt(Vec<String>);

impl Apt {
    fn new(folder: &Path) -> Result<Apt, Failed> {
        let own = folder.join("apt");
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(own.join(part)).map_err(Failed::to("make folders for apt"))?;
        }
        let list = own.join("sources.list");
        let source = format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", mirror()?);
        fs::write(&list, source).map_err(Failed::to("write a source for apt"))?;
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        Ok(Apt(vec![
            option("Dir::State", &own.join("state")),
            option("Dir::Cache", &own.join("cache")),
            option("Dir::Etc::SourceList", &list),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
        ]))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.0.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        command
    }
}

/// Where this machine's apt has Debian from.
fn mirror() -> Result<String, Failed> {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", "$(REPO_URI)"]);
    ask.args(["Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main"]);
    let all = read(&mut ask)?;
    let first = all.lines().next().map(str::to_owned);
    first.ok_or_else(|| Failed::new("apt knows no mirror of Debian (apt-get update)"))
}

/// The newest of these packages that is of the series, without variants such as `-rt`.
fn newest(names: &str, series: &str) -> Option<String> {
    let of_series = names.lines().filter_map(|name| {
        let of = name.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
        let release = version(of.split('+').next()?).filter(|_| !of.contains('-'))?;
        let wanted = if series == NEWEST { Vec::new() } else { version(series)? };
        release.starts_with(&wanted).then_some((release, name))
    });
    of_series.max().map(|(_, name)| name.to_owned())
}

/// `6.18.2` as numbers.
fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

/// Runs a command and gives what it prints.
fn read(command: &mut Command) -> Result<String, Failed> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(Failed::to(format!("run {program}")))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr);
            Err(Failed::new(format!("{program}: {}", why.trim())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::newest;

    const NAMES: &str = "linux-image-6.18.9+deb13-amd64\nlinux-image-6.18.12+deb13-amd64\n\
        linux-image-6.18.15+deb13-rt-amd64\nlinux-image-7.3.4+deb13-amd64\n\
        linux-image-7.3.4+deb13-amd64-dbg\nlinux-image-amd64\nlinux-image-rt-amd64";

    #[test]
    fn the_newest_of_a_series_is_by_numbers_and_no_variant() {
        let is = |series| newest(NAMES, series);
        assert_eq!(is("6.18").as_deref(), Some("linux-image-6.18.12+deb13-amd64"));
        assert_eq!(is("newest").as_deref(), Some("linux-image-7.3.4+deb13-amd64"));
        assert_eq!(is("6.1"), None);
    }
}
