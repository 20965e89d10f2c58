//! Lines of `table` and `status`, and dmsetup's concise form of a whole device.
//!
//! A line is `START LENGTH TYPE ARGUMENTS`, with the space after the type even if there are no
//! arguments; tests that compare strings rely on it. A device without a table has one empty line.
//! With more than one device asked for, each line begins with the device's name.

use crate::api::{Device, Line};

/// Which lines of a device to show.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineFilter<'a> {
    /// Only targets of this type.
    pub target: Option<&'a str>,
    /// Put the device's name before each line.
    pub named: bool,
}

/// The lines of one device.
pub fn lines(device: &Device, lines: &[Line], filter: LineFilter<'_>) -> String {
    let mut text = String::new();
    let mut line_begin = String::new();
    if filter.named {
        line_begin = format!("{}: ", device.name);
    }
    if lines.is_empty() && filter.target.is_none() {
        return format!("{line_begin}\n");
    }
    for line in lines {
        if filter.target.is_some_and(|wanted| wanted != line.target) {
            continue;
        }
        text += &line_begin;
        text += &one(line);
        text.push('\n');
    }
    text
}

fn one(line: &Line) -> String {
    format!("{} {} {} {}", line.begin_sector, line.len_sectors, line.target, line.args)
}

/// `table --concise`: devices on one line, to be fed back into `create --concise`.
pub fn concise(devices: &[(Device, Vec<Line>)]) -> String {
    let parts: Vec<String> = devices
        .iter()
        .map(|(device, lines)| {
            let mut part = format!(
                "{},{},{},{}",
                escape(&device.name),
                escape(device.uuid.as_deref().unwrap_or("")),
                device.minor,
                if device.read_only { "ro" } else { "rw" }
            );
            for line in lines {
                part.push(',');
                part += &escape(&one(line));
            }
            part
        })
        .collect();
    parts.join(";") + "\n"
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, ',' | ';' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
