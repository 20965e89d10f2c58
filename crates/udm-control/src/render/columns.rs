//! `info -c`: devices as rows, fields as columns.
//!
//! dmsetup's report: each field has a heading, a least width and a side it leans to; a column grows
//! with its longest value; headings lean left always, and every column is padded, the last too.
//! Without headings, or with a separator of one's own, nothing is padded; the separator is then a
//! colon unless given.
//!
//! Fields that are udm's own (`in_flight`, `held`, `size_sectors`) stand behind dmsetup's.

use crate::api::{Dependency, Device, Gauges};
use udm_core::error::{ErrorCode, UserError};

/// One row: a device and what fields may want to know about it.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// The device.
    pub device: Device,
    /// Devices below it.
    pub deps: Vec<Dependency>,
    /// Mapped devices that stand on it: name, major, minor.
    pub users: Vec<(String, u32, u32)>,
    /// Names of the mapped devices among `deps`, by number.
    pub names: Vec<(u32, u32, String)>,
    /// Queue depths.
    pub gauges: Gauges,
}

/// How to print.
#[derive(Clone, Debug, Default)]
pub struct ColumnOptions {
    /// Fields, or `None` for dmsetup's choice. A leading `+` adds to that choice.
    pub fields: Option<String>,
    /// Sort keys; a leading `-` turns one round.
    pub sort: Option<String>,
    /// No line of headings.
    pub noheadings: bool,
    /// What stands between columns.
    pub separator: Option<String>,
    /// `DM_NAME='t0'` instead of `t0`.
    pub nameprefixes: bool,
}

const DEFAULT_FIELDS: &str = "name,major,minor,attr,open,segments,events,uuid";

/// A field's value: numbers sort as numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Number(u64),
    Text(String),
}

impl Cell {
    fn shown(&self) -> String {
        match self {
            Cell::Number(number) => number.to_string(),
            Cell::Text(text) => text.clone(),
        }
    }
}

struct Field {
    name: &'static str,
    heading: &'static str,
    width: usize,
    right: bool,
    value: fn(&Row) -> Cell,
}

const fn text(
    name: &'static str,
    heading: &'static str,
    width: usize,
    value: fn(&Row) -> Cell,
) -> Field {
    Field { name, heading, width, right: false, value }
}

const fn number(
    name: &'static str,
    heading: &'static str,
    width: usize,
    value: fn(&Row) -> Cell,
) -> Field {
    Field { name, heading, width, right: true, value }
}

static FIELDS: [Field; 31] = [
    text("name", "Name", 16, |row| Cell::Text(row.device.name.clone())),
    text("mangled_name", "MangledName", 16, |row| Cell::Text(mangle(&row.device.name))),
    text("unmangled_name", "UnmangledName", 16, |row| Cell::Text(row.device.name.clone())),
    text("uuid", "UUID", 32, |row| Cell::Text(row.device.uuid.clone().unwrap_or_default())),
    text("blkdevname", "BlkDevName", 16, |row| Cell::Text(format!("dm-{}", row.device.minor))),
    text("attr", "Stat", 4, |row| Cell::Text(attributes(&row.device))),
    text("tables_loaded", "Tables", 6, |row| Cell::Text(tables(&row.device).to_owned())),
    text("suspended", "Suspended", 9, |row| {
        Cell::Text(if row.device.suspended { "Suspended" } else { "Active" }.to_owned())
    }),
    text("readonly", "Read-only", 9, |row| {
        Cell::Text(if row.device.read_only { "Read-only" } else { "Writeable" }.to_owned())
    }),
    text("devno", "DevNo", 5, |row| {
        Cell::Text(format!("{}:{}", row.device.major, row.device.minor))
    }),
    number("major", "Maj", 3, |row| Cell::Number(row.device.major.into())),
    number("minor", "Min", 3, |row| Cell::Number(row.device.minor.into())),
    number("read_ahead", "RAhead", 6, |_| Cell::Number(256)),
    number("open", "Open", 4, |row| Cell::Number(row.device.open_count.into())),
    number("segments", "Targ", 4, |row| Cell::Number(row.device.target_count.into())),
    number("events", "Event", 6, |row| Cell::Number(row.device.event_nr.into())),
    number("device_count", "#Devs", 5, |row| Cell::Number(row.deps.len() as u64)),
    text("devs_used", "DevNamesUsed", 16, |row| Cell::Text(used(row, &|_, name| name.into()))),
    text("devnos_used", "DevNosUsed", 16, |row| Cell::Text(numbers_used(row))),
    text("blkdevs_used", "BlkDevNamesUsed", 16, |row| {
        Cell::Text(used(row, &|minor, _| format!("dm-{minor}")))
    }),
    number("device_ref_count", "#Refs", 5, |row| Cell::Number(row.users.len() as u64)),
    text("names_using_dev", "RefNames", 8, |row| {
        Cell::Text(join(row.users.iter().map(|(name, ..)| name.clone())))
    }),
    text("devnos_using_dev", "RefDevNos", 9, |row| {
        Cell::Text(join(row.users.iter().map(|(_, major, minor)| format!("{major}:{minor}"))))
    }),
    text("subsystem", "Subsys", 6, |row| Cell::Text(subsystem(&row.device))),
    text("vg_name", "VG", 4, |row| Cell::Text(lvm_part(&row.device, 0))),
    text("lv_name", "LV", 4, |row| Cell::Text(lvm_part(&row.device, 1))),
    text("lv_layer", "LVLayer", 7, |row| Cell::Text(lvm_part(&row.device, 2))),
    number("size_sectors", "Sectors", 8, |row| Cell::Number(row.device.len_sectors)),
    number("in_flight", "InFlight", 8, |row| Cell::Number(row.gauges.in_flight)),
    number("held", "Held", 5, |row| Cell::Number(row.gauges.held)),
    number("errors", "Errors", 6, |row| Cell::Number(row.gauges.errors)),
];

fn attributes(device: &Device) -> String {
    let flags = [
        if device.live_present { 'L' } else { '-' },
        if device.inactive_present { 'I' } else { '-' },
        if device.suspended { 's' } else { '-' },
        if device.read_only { 'r' } else { 'w' },
    ];
    flags.iter().collect()
}

fn tables(device: &Device) -> &'static str {
    match (device.live_present, device.inactive_present) {
        (false, false) => "None",
        (true, false) => "Live",
        (false, true) => "Inactive",
        (true, true) => "Both",
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

fn used(row: &Row, mapped: &dyn Fn(u32, &str) -> String) -> String {
    join(row.deps.iter().filter_map(|dep| {
        let number = dep.major.zip(dep.minor);
        let found = number.and_then(|(major, minor)| {
            row.names.iter().find(|known| (known.0, known.1) == (major, minor))
        });
        match (found, number) {
            (Some((_, minor, name)), _) => Some(mapped(*minor, name)),
            // dmsetup knows no name for it; what has no number has only its text.
            (None, Some(_)) => None,
            (None, None) => Some(dep.shown.clone()),
        }
    }))
}

fn numbers_used(row: &Row) -> String {
    join(row.deps.iter().map(|dep| match dep.major.zip(dep.minor) {
        Some((major, minor)) => format!("{major}:{minor}"),
        None => dep.shown.clone(),
    }))
}

fn subsystem(device: &Device) -> String {
    let uuid = device.uuid.as_deref().unwrap_or("");
    let word = uuid.split_once('-').map_or("", |(word, _)| word);
    word.to_owned()
}

/// A part of the name as LVM joins them: by single hyphens, a hyphen inside a part being doubled.
fn lvm_part(device: &Device, part: usize) -> String {
    if subsystem(device) != "LVM" {
        return String::new();
    }
    const HYPHEN: &str = "\u{0}";
    let protected = device.name.replace("--", HYPHEN);
    let found = protected.splitn(3, '-').nth(part).unwrap_or("");
    found.replace(HYPHEN, "-")
}

/// Characters outside dmsetup's white list as `\xNN`.
fn mangle(name: &str) -> String {
    let mut mangled = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte) {
            mangled.push(char::from(byte));
        } else {
            mangled += &format!("\\x{byte:02x}");
        }
    }
    mangled
}

/// Every field's name.
pub fn field_names() -> Vec<&'static str> {
    FIELDS.iter().map(|field| field.name).collect()
}

fn find(name: &str) -> Result<&'static Field, UserError> {
    FIELDS.iter().find(|field| field.name == name).ok_or_else(|| {
        UserError::new(ErrorCode::BadParameter, format!("there is no field '{name}'"))
            .hint(format!("fields: {}", field_names().join(", ")))
    })
}

fn chosen(fields: Option<&str>) -> Result<Vec<&'static Field>, UserError> {
    let list = match fields {
        None => DEFAULT_FIELDS.to_owned(),
        Some("all") => field_names().join(","),
        Some(list) => match list.strip_prefix('+') {
            Some(more) => format!("{DEFAULT_FIELDS},{more}"),
            None => list.to_owned(),
        },
    };
    list.split(',').map(str::trim).map(find).collect()
}

fn sort(rows: &mut [Row], keys: &str) -> Result<(), UserError> {
    // The last key first: sorting is stable.
    for key in keys.split(',').rev() {
        let (name, reverse) = match key.strip_prefix('-') {
            Some(name) => (name, true),
            None => (key.strip_prefix('+').unwrap_or(key), false),
        };
        let value = find(name)?.value;
        rows.sort_by(|a, b| {
            let order = value(a).cmp(&value(b));
            if reverse { order.reverse() } else { order }
        });
    }
    Ok(())
}

/// What the rows of a report have to hold beside the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Devices below and above.
    pub deps: bool,
    /// Queue depths and counters.
    pub gauges: bool,
}

/// What the fields and sort keys of a report need, so that nobody asks 1,000 devices for numbers
/// that are not shown.
pub fn needs(options: &ColumnOptions) -> Needs {
    let words = options.fields.iter().chain(&options.sort).flat_map(|list| list.split(','));
    let names: Vec<&str> = words.map(|word| word.trim().trim_start_matches(['+', '-'])).collect();
    let any = |wanted: &[&str]| names.iter().any(|name| *name == "all" || wanted.contains(name));
    Needs {
        deps: any(&[
            "device_count",
            "devs_used",
            "devnos_used",
            "blkdevs_used",
            "device_ref_count",
            "names_using_dev",
            "devnos_using_dev",
        ]),
        gauges: any(&["in_flight", "held", "errors"]),
    }
}

/// The report.
///
/// # Errors
/// A field or sort key that does not exist.
pub fn columns(rows: &[Row], options: &ColumnOptions) -> Result<String, UserError> {
    let fields = chosen(options.fields.as_deref())?;
    let mut rows = rows.to_vec();
    if let Some(keys) = &options.sort {
        sort(&mut rows, keys)?;
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| fields.iter().map(|field| (field.value)(row).shown()).collect())
        .collect();
    let aligned = options.separator.is_none() && !options.noheadings && !options.nameprefixes;
    let separator = match &options.separator {
        Some(separator) => separator.as_str(),
        None if aligned || options.nameprefixes => " ",
        None => ":",
    };
    let mut widths: Vec<usize> = fields.iter().map(|field| field.width).collect();
    for (index, width) in widths.iter_mut().enumerate() {
        let longest = cells.iter().map(|row| row[index].chars().count()).max().unwrap_or(0);
        *width = (*width).max(longest);
    }
    let mut text = String::new();
    if !options.noheadings {
        let headings = fields.iter().zip(&widths).map(|(field, width)| {
            if aligned { format!("{:<width$}", field.heading) } else { field.heading.to_owned() }
        });
        text += &(headings.collect::<Vec<_>>().join(separator) + "\n");
    }
    for row in &cells {
        let shown = fields.iter().zip(row).zip(&widths).map(|((field, cell), width)| {
            match (aligned, field.right) {
                _ if options.nameprefixes => {
                    format!("DM_{}='{cell}'", field.name.to_ascii_uppercase())
                }
                (false, _) => cell.clone(),
                (true, true) => format!("{cell:>width$}"),
                (true, false) => format!("{cell:<width$}"),
            }
        });
        text += &(shown.collect::<Vec<_>>().join(separator) + "\n");
    }
    Ok(text)
}
