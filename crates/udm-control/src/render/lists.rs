//! The short lists: ls, deps, targets, version.
//!
//! Each as dmsetup prints it, with its tabs: `ls` has one between name and number, `deps` one
//! before the colon. A device below that has no number (a file, memory) is shown by its text where
//! dmsetup would show the number.

use crate::api::{Dependency, Device, TargetType};

/// How `ls -o` shows a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameStyle {
    /// `(254:0)`.
    #[default]
    DevNo,
    /// The mapped device's name.
    DevName,
    /// `dm-0`.
    BlkDevName,
}

/// `ls`.
pub fn ls(devices: &[Device], style: NameStyle) -> String {
    let shown = |device: &Device| match style {
        NameStyle::DevNo => format!("{}:{}", device.major, device.minor),
        NameStyle::DevName => device.name.clone(),
        NameStyle::BlkDevName => format!("dm-{}", device.minor),
    };
    devices.iter().map(|device| format!("{}\t({})\n", device.name, shown(device))).collect()
}

/// `ls --target TYPE`, which puts a comma where plain `ls` has a colon.
pub fn ls_of_type(devices: &[Device]) -> String {
    let line = |device: &Device| format!("{}\t({}, {})\n", device.name, device.major, device.minor);
    devices.iter().map(line).collect()
}

/// `deps` of one device; `names` gives a mapped device's name for its number under `-o devname`.
pub fn deps(
    device: &Device,
    deps: &[Dependency],
    named: bool,
    style: NameStyle,
    names: &dyn Fn(u32, u32) -> Option<String>,
) -> String {
    let mut text = if named { format!("{}: ", device.name) } else { String::new() };
    text += &format!("{} dependencies\t:", deps.len());
    for dep in deps {
        let shown = match (dep.major, dep.minor) {
            (Some(major), Some(minor)) => match (style, names(major, minor)) {
                (NameStyle::DevName, Some(name)) => name,
                (NameStyle::BlkDevName, Some(_)) => format!("dm-{minor}"),
                (NameStyle::DevNo | NameStyle::DevName | NameStyle::BlkDevName, _) => {
                    format!("{major}, {minor}")
                }
            },
            _ => dep.shown.clone(),
        };
        text += &format!(" ({shown})");
    }
    text.push('\n');
    text
}

/// `targets`, and `target-version`.
pub fn targets(targets: &[TargetType]) -> String {
    let line = |target: &TargetType| {
        let [major, minor, patch] = target.version;
        format!("{:<16} v{major}.{minor}.{patch}\n", target.name)
    };
    targets.iter().map(line).collect()
}

/// `version`.
pub fn version(library: &str, driver: &str) -> String {
    format!("Library version:   {library}\nDriver version:    {driver}\n")
}
