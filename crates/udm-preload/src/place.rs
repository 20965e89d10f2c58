//! Which paths are ours.
//!
//! Pure: bytes in, meaning out. Called for every path a process opens, so it looks at the first
//! bytes first and allocates nothing. Where a folder of devices was named (`udm exec --dev-dir`),
//! what it has in `mapper` is ours as well; the folder itself is a real one.
//!
//! The tricky case is a device's folder in `/sys/dev/block`: the number may be that of a real
//! device of this machine, which has nothing to do with ours, so all of the folder is ours or not
//! there.

use udm_control::DM_MAJOR;

/// What a path means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// `/dev/mapper/control`.
    Control,
    /// `/dev/mapper`.
    Folder,
    /// A device's node, by name.
    Node(&'a [u8]),
    /// `/proc/devices`.
    Devices,
    /// `/proc/misc`.
    Misc,
    /// `/sys/dev/block/MAJOR:MINOR` of one of our devices, and what stands behind it.
    Sys(u32, &'a [u8]),
}

const FOLDER: &[u8] = b"/dev/mapper";
const SYS: &[u8] = b"/sys/dev/block/";

/// What a path means to us; `None` if nothing. `dev_dir` is the folder of devices, if one was
/// named.
pub(crate) fn place<'a>(path: &'a [u8], dev_dir: Option<&[u8]>) -> Option<Place<'a>> {
    match path {
        b"/proc/devices" => return Some(Place::Devices),
        b"/proc/misc" => return Some(Place::Misc),
        _ => {}
    }
    if let Some(dev_dir) = dev_dir
        && let Some(rest) = path.strip_prefix(dev_dir)
        && let Some(rest) = rest.strip_prefix(b"/mapper/")
    {
        return match rest {
            b"control" => Some(Place::Control),
            name if !name.is_empty() && !name.contains(&b'/') => Some(Place::Node(name)),
            _ => None,
        };
    }
    if let Some(rest) = path.strip_prefix(FOLDER) {
        return match rest {
            b"" | b"/" => Some(Place::Folder),
            b"/control" => Some(Place::Control),
            [b'/', name @ ..] if !name.contains(&b'/') => Some(Place::Node(name)),
            _ => None,
        };
    }
    let rest = path.strip_prefix(SYS)?;
    let (number, behind) = match rest.iter().position(|byte| *byte == b'/') {
        Some(slash) => (&rest[..slash], &rest[slash + 1..]),
        None => (rest, &b""[..]),
    };
    let (major, minor) = std::str::from_utf8(number).ok()?.split_once(':')?;
    let ours = major.parse() == Ok(DM_MAJOR);
    Some(Place::Sys(minor.parse().ok().filter(|_| ours)?, behind))
}

#[cfg(test)]
mod tests {
    use super::{Place, place};

    #[test]
    fn only_what_is_ours_is_taken() {
        let table: [(&[u8], Option<Place<'_>>); 16] = [
            (b"/dev/mapper/control", Some(Place::Control)),
            (b"/dev/mapper", Some(Place::Folder)),
            (b"/dev/mapper/", Some(Place::Folder)),
            (b"/dev/mapper/a b", Some(Place::Node(b"a b"))),
            (b"/dev/mapper/a/b", None),
            (b"/dev/mapperx", None),
            (b"/dev/null", None),
            (b"dev/mapper/a", None),
            (b"", None),
            (b"/proc/devices", Some(Place::Devices)),
            (b"/proc/devices/x", None),
            (b"/proc/misc", Some(Place::Misc)),
            (b"/sys/dev/block/254:3", Some(Place::Sys(3, b""))),
            (b"/sys/dev/block/254:3/dm/name", Some(Place::Sys(3, b"dm/name"))),
            (b"/sys/dev/block/8:3/dm/name", None),
            (b"/sys/dev/block/254:x", None),
        ];
        for (path, expected) in table {
            assert_eq!(place(path, None), expected, "{}", path.escape_ascii());
            assert_eq!(place(path, Some(b"/x")), expected, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn a_folder_of_devices_has_ours_in_mapper() {
        let table: [(&[u8], Option<Place<'_>>); 6] = [
            (b"/d/e/mapper/control", Some(Place::Control)),
            (b"/d/e/mapper/a", Some(Place::Node(b"a"))),
            (b"/d/e/mapper", None),
            (b"/d/e/mapper/", None),
            (b"/d/e/mapper/a/b", None),
            (b"/d/e/other", None),
        ];
        for (path, expected) in table {
            assert_eq!(place(path, Some(b"/d/e")), expected, "{}", path.escape_ascii());
            assert_eq!(place(path, None), None, "{}", path.escape_ascii());
        }
    }
}
