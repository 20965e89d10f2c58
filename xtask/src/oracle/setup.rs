//! What a Linux guest is made of: a kernel, its modules and a few programs, in one archive.
//!
//! Everything comes from Debian's packages by their names: the kernel image is downloaded and
//! unpacked below `target/oracle/`, not installed; programs are those of this machine, with the
//! libraries they are linked with. `--setup` installs what is missing; without it the missing
//! packages are named and nothing is touched. Nothing is compiled but our own two tools.
//!
//! The tricky case is the order of modules: the package has no index of what needs what, so it is
//! read from the modules themselves (`depends=` in their description), and the guest just loads
//! them one after the other.

use super::cpio::Archive;
use crate::steps::{self, Failed, is_installed, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages, and the program that shows that one is there.
const PACKAGES: [(&str, &str); 12] = [
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("busybox-static", "busybox"),
    ("dmsetup", "dmsetup"),
    ("bash", "bash"),
    ("xz-utils", "xz"),
    ("gcc", "cc"),
    ("libc-bin", "ldd"),
    ("tar", "tar"),
    ("nbd-client", "nbd-client"),
    ("syslinux", "syslinux"),
    ("mtools", "mcopy"),
    ("dosfstools", "mkfs.vfat"),
];
/// Packages that depend on the kernel image to take; the first that exists.
const KERNELS: [&str; 2] = ["linux-image-6.12-amd64", "linux-image-amd64"];
/// What the guest loads, with parameters; what they need is found.
const MODULES: [(&str, &str); 12] = [
    ("dm-mod", ""),
    ("brd", "rd_nr=8 rd_size=16384"),
    ("loop", "max_loop=8"),
    // Two targets with two disks on one store: two paths to each of two disks.
    ("scsi_debug", "dev_size_mb=16 num_tgts=2 max_luns=2 add_host=0 sector_size=512"),
    ("sd_mod", ""),
    ("dm-zero", ""),
    ("dm-delay", ""),
    ("dm-flakey", ""),
    ("dm-multipath", ""),
    ("dm-round-robin", ""),
    ("dm-queue-length", ""),
    ("dm-service-time", ""),
];
/// Programs of this machine that the guest gets.
const PROGRAMS: [&str; 2] = ["bash", "dmsetup"];

/// How modules may be packed, and what unpacks them.
const PACKED: [(&str, &str); 3] = [("xz", "xz"), ("zst", "zstd"), ("gz", "gzip")];

/// A guest that can be started.
pub(crate) struct Guest {
    /// The kernel's image.
    pub(crate) kernel: PathBuf,
    /// The tools, packed.
    pub(crate) tools: PathBuf,
    /// The kernel's release, such as `6.12.1`.
    pub(crate) release: String,
}

/// Where everything of this command is kept between runs.
pub(crate) fn cache(root: &Path) -> PathBuf {
    steps::target_dir(root).join("oracle")
}

/// Makes a guest, or says what is missing. With `install` it is fetched.
pub(crate) fn guest(root: &Path, install: bool) -> Result<Guest, Failed> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, program)| !is_installed(program))
        .map(|(package, _)| *package)
        .collect();
    if !missing.is_empty() {
        if !install {
            let what = missing.join(" ");
            return Err(Failed::new(format!("{what} missing; --setup installs it")));
        }
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing);
        run(root, apt.env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    let folder = cache(root);
    if install && !folder.join("kernel/tree/boot").is_dir() {
        fetch_kernel(&folder.join("kernel"))?;
    }
    let (kernel, modules) = kernel_tree(&folder)?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let tools = folder.join("tools.cpio");
    pack(root, &modules, &tools)?;
    Ok(Guest { kernel, tools, release })
}

/// The kernel's image and the folder of its modules, once it was fetched.
pub(crate) fn kernel_tree(folder: &Path) -> Result<(PathBuf, PathBuf), Failed> {
    let tree = folder.join("kernel/tree");
    if !tree.join("boot").is_dir() {
        let what = "there is no kernel for the guest; cargo xtask oracle --setup fetches one";
        return Err(Failed::new(what));
    }
    let modules = only_entry(&tree.join("lib/modules"))
        .or_else(|_| only_entry(&tree.join("usr/lib/modules")))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy();
    Ok((tree.join(format!("boot/vmlinuz-{release}")), modules.clone()))
}

/// Downloads the newest kernel package and unpacks it.
fn fetch_kernel(folder: &Path) -> Result<(), Failed> {
    fs::create_dir_all(folder).map_err(Failed::to("make the kernel's folder"))?;
    let package = KERNELS
        .iter()
        .find_map(|meta| {
            let shown = Command::new("apt-cache").args(["depends", meta]).output().ok()?;
            let text = String::from_utf8_lossy(&shown.stdout).into_owned();
            text.lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: "))
                .find(|name| name.starts_with("linux-image-"))
                .map(str::to_owned)
        })
        .ok_or_else(|| Failed::new(format!("no package among {}", KERNELS.join(", "))))?;
    run(folder, Command::new("apt-get").args(["download", "-qq", &package]))?;
    let is_package = |path: &Path| path.extension().is_some_and(|end| end == "deb");
    let file = entries(folder)?
        .into_iter()
        .find(|path| is_package(path))
        .ok_or_else(|| Failed::new("no package was downloaded"))?;
    run(folder, Command::new("dpkg-deb").arg("-x").arg(&file).arg("unpacked"))?;
    fs::remove_file(&file).map_err(Failed::to("remove the package"))?;
    fs::rename(folder.join("unpacked"), folder.join("tree"))
        .map_err(Failed::to("name the kernel's folder"))
}

/// Packs the guest's tools, if what they are made of has changed since.
fn pack(root: &Path, modules: &Path, tools: &Path) -> Result<(), Failed> {
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "run", "tmp", "root", "in", "out", "usr/sbin", "usr/bin"] {
        archive.folder(folder);
    }
    archive.file("init", include_bytes!("guest-init"));
    let busybox = find(&["/bin/busybox", "/usr/bin/busybox"])?;
    archive.file("bin/busybox", &read(&busybox)?);
    let mut packed = std::collections::BTreeSet::new();
    for program in PROGRAMS {
        add_program(program, &mut packed, &mut archive)?;
    }
    archive.link("bin/bash", "/usr/bin/bash");
    archive.link("usr/bin/dmstats", "/usr/bin/dmsetup");
    let compiled =
        [("usr/bin/sectors", "sectors.c", "-static"), ("usr/lib/zygote.so", "zygote.c", "-shared")];
    for (path, source, kind) in compiled {
        archive.file(path, &read(&compile(root, source, kind)?)?);
    }
    let mut order = Vec::new();
    for (name, parameters) in MODULES {
        add_module(modules, name, parameters, &mut order, &mut archive)?;
    }
    archive.file("modules/order", (order.join("\n") + "\n").as_bytes());
    let bytes = archive.finish();
    if fs::read(tools).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(tools, bytes).map_err(Failed::to("write the guest's tools"))
}

/// Adds a program of this machine, with the libraries it is linked with that are not there yet.
pub(crate) fn add_program(
    program: &str,
    packed: &mut std::collections::BTreeSet<String>,
    archive: &mut Archive,
) -> Result<(), Failed> {
    let places = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"].map(|at| format!("{at}/{program}"));
    add_binary(&find(&places)?, program, packed, archive)
}

/// Adds a program at a path, as [`add_program`] does.
pub(crate) fn add_binary(
    path: &Path,
    name: &str,
    packed: &mut std::collections::BTreeSet<String>,
    archive: &mut Archive,
) -> Result<(), Failed> {
    archive.file(&format!("usr/bin/{name}"), &read(path)?);
    let linked = Command::new("ldd").arg(path).output().map_err(Failed::to("run ldd"))?;
    for word in String::from_utf8_lossy(&linked.stdout).split_whitespace() {
        if word.starts_with('/') && packed.insert(word.to_owned()) {
            archive.file(word.trim_start_matches('/'), &read(Path::new(word))?);
        }
    }
    Ok(())
}

/// Compiles a tool of ours for the guest.
fn compile(root: &Path, source: &str, kind: &str) -> Result<PathBuf, Failed> {
    let to = cache(root).join(format!("guest-{source}.out"));
    let from = root.join("crates/udm/tests/oracle").join(source);
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-Wall", "-fPIC", kind, "-o"]).arg(&to).arg(&from);
    run(root, &mut cc)?;
    Ok(to)
}

/// Adds a module behind what it needs, once.
pub(crate) fn add_module(
    modules: &Path,
    name: &str,
    parameters: &str,
    order: &mut Vec<String>,
    archive: &mut Archive,
) -> Result<(), Failed> {
    let normal = name.replace('-', "_");
    if order.iter().any(|line| line.split(' ').next() == Some(&normal)) {
        return Ok(());
    }
    let path = find_module(&modules.join("kernel"), &normal)?
        .ok_or_else(|| Failed::new(format!("the kernel has no module {name}")))?;
    let bytes = plain(&path)?;
    for needed in depends(&bytes) {
        add_module(modules, &needed, "", order, archive)?;
    }
    archive.file(&format!("modules/{normal}"), &bytes);
    order.push(format!("{normal} {parameters}").trim_end().to_owned());
    Ok(())
}

/// Whether a kernel has a module of this name (with underscores).
pub(crate) fn has_module(modules: &Path, normal: &str) -> Result<bool, Failed> {
    find_module(&modules.join("kernel"), normal).map(|found| found.is_some())
}

/// A module's bytes, unpacked.
fn plain(path: &Path) -> Result<Vec<u8>, Failed> {
    let end = path.extension().unwrap_or_default();
    let Some((_, program)) = PACKED.iter().find(|(packed, _)| end == *packed) else {
        return read(path);
    };
    let output = Command::new(program).arg("-dc").arg(path).output();
    let output = output.map_err(Failed::to(format!("run {program}")))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(Failed::new(format!("{program} cannot unpack {}", path.display()))),
    }
}

/// The modules that a module says it needs.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = module.get(at + key.len()..).unwrap_or_default();
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    let text = String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The file of a module, by its name with underscores.
fn find_module(folder: &Path, normal: &str) -> Result<Option<PathBuf>, Failed> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
            if module_name(&name) == Some(normal) {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}

/// What a module is called whose file has this name.
fn module_name(file: &str) -> Option<&str> {
    let packed = PACKED.iter().find_map(|(end, _)| file.strip_suffix(end)?.strip_suffix('.'));
    packed.unwrap_or(file).strip_suffix(".ko")
}

pub(crate) fn find<P: AsRef<Path>>(places: &[P]) -> Result<PathBuf, Failed> {
    let found = places.iter().map(AsRef::as_ref).find(|path| path.is_file());
    let name = places.first().map(|path| path.as_ref().display().to_string());
    found.map(Path::to_owned).ok_or_else(|| Failed::new(format!("no {}", name.unwrap_or_default())))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Failed> {
    let list = fs::read_dir(folder).map_err(Failed::to(format!("list {}", folder.display())))?;
    Ok(list.filter_map(|entry| Some(entry.ok()?.path())).collect())
}

/// The one thing in a folder.
pub(crate) fn only_entry(folder: &Path) -> Result<PathBuf, Failed> {
    let found = entries(folder)?;
    found.into_iter().next().ok_or_else(|| Failed::new(format!("{} is empty", folder.display())))
}

fn read(path: &Path) -> Result<Vec<u8>, Failed> {
    fs::read(path).map_err(Failed::to(format!("read {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::{depends, module_name};

    #[test]
    fn packed_modules_have_the_names_of_plain_ones() {
        for file in ["ublk_drv.ko", "ublk_drv.ko.xz", "ublk_drv.ko.zst", "ublk_drv.ko.gz"] {
            assert_eq!(module_name(file), Some("ublk_drv"), "{file}");
        }
        assert_eq!(module_name("modules.order"), None);
        assert_eq!(module_name("ublk_drv.ko.sig"), None);
    }

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        assert_eq!(
            depends(b"\x7fELF\0license=GPL\0depends=dm-mod,dm_log\0x"),
            ["dm-mod", "dm_log"]
        );
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"").is_empty());
    }
}
