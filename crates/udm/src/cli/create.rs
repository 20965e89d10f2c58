//! `create`: make a device, load its table, resume it; and nothing is left behind if that fails.
//!
//! dmsetup does it in three calls, and so do we, so that each failure has dmsetup's words: from the
//! second call on it addresses the device by number. The concise form makes several devices from
//! one line; the first failure ends it, and devices made before stay, as with dmsetup.
//!
//! The tricky case is a failed `create`: the first error is what the user hears; that the device
//! could not be removed again is added, never put in its place.

use super::args::CreateArgs;
use super::asker::Daemon;
use super::change::note;
use super::failure::Failure;
use super::output::Output;
use super::table_text::TableText;
use udm_control::api::{self, Selector};
use udm_control::render::{Subject, failed_ioctl};
use udm_core::error::{ErrorCode, UserError};
use udm_types::{DmName, NameError};

/// What dmsetup says of a name it does not even send, and why.
pub(super) fn check_name(name: &str, period: &str) -> Result<(), Failure> {
    let Err(error) = DmName::new(name) else { return Ok(()) };
    let line = match error {
        NameError::Slash => format!("Name \"{name}\" invalid. It contains \"/\".\n"),
        NameError::TooLong(_) => format!("Name \"{name}\" too long{period}\n"),
        // The rest is for the daemon to refuse, as it is for the kernel.
        NameError::Empty | NameError::Nul | NameError::Reserved => return Ok(()),
    };
    let why = UserError::new(ErrorCode::BadName, format!("'{name}' is no valid name: {error}"));
    Err(Failure::dm(line, Some(why)))
}

/// A device to make.
struct Order<'a> {
    name: &'a str,
    uuid: Option<&'a str>,
    minor: Option<u32>,
    table: Option<&'a TableText>,
    read_only: bool,
}

pub(crate) fn create(
    daemon: &mut Daemon,
    args: &CreateArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    if let Some(spec) = &args.concise {
        return create_concise(daemon, spec, output);
    }
    if args.major.is_some() != args.minor.is_some() {
        return Err(Failure {
            lines: Some(
                "Please specify both major number and minor number.\n\
                 Couldn't process command line.\n"
                    .to_owned(),
            ),
            error: None,
            exit: 2,
        });
    }
    let name = args.name.as_deref().unwrap_or_default();
    let table = match args.notable {
        true => None,
        false => Some(TableText::read(args.table.as_deref(), args.table_file.as_deref())?),
    };
    let order = Order {
        name,
        uuid: args.uuid.as_deref(),
        minor: args.minor,
        table: table.as_ref(),
        read_only: args.readonly,
    };
    create_one(daemon, &order, output)
}

fn create_one(daemon: &mut Daemon, order: &Order<'_>, output: &mut Output) -> Result<(), Failure> {
    check_name(order.name, ".")?;
    let table = order.table.filter(|table| !table.is_empty());
    if let Some(table) = table {
        table.check()?;
    }
    let asked = Subject { name: order.name, uuid: order.uuid.unwrap_or_default(), number: None };
    let call = api::Create {
        name: order.name.to_owned(),
        uuid: order.uuid.map(str::to_owned),
        minor: order.minor,
    };
    let created = daemon.ask_dm("create", &asked, &call)?.device.unwrap_or_default();
    let Some(table) = table else {
        note(output, Some(&created));
        return Ok(());
    };
    let device = Selector { minor: Some(created.minor), ..Selector::default() };
    let number = Some((created.major, created.minor));
    let subject = Subject { name: order.name, uuid: "", number };
    let load =
        api::Load { device: device.clone(), table: table.text.clone(), read_only: order.read_only };
    let resume = api::Resume { device: device.clone(), ..api::Resume::default() };
    let up = match daemon.ask_dm("reload", &subject, &load) {
        Ok(_) => daemon.ask_dm("resume", &subject, &resume),
        Err(failure) => Err(failure),
    };
    match up {
        Ok(answer) => {
            note(output, answer.device.as_ref());
            Ok(())
        }
        Err(mut failure) => {
            let remove = api::Remove { device, deferred: false };
            if let Err(error) = daemon.ask(&remove) {
                let lines = failure.lines.get_or_insert_default();
                *lines += &failed_ioctl("remove", &subject, &error);
                *lines += "Failed to revert device creation.\n";
            }
            Err(failure)
        }
    }
}

fn create_concise(daemon: &mut Daemon, spec: &str, output: &mut Output) -> Result<(), Failure> {
    let read;
    let spec = if spec.is_empty() {
        read = TableText::read(None, None)?.text;
        read.trim_end()
    } else {
        spec
    };
    for device in split_escaped(spec, ';') {
        let fields: Vec<String> =
            split_escaped(&device, ',').iter().map(|field| unescape(field)).collect();
        let field = |index: usize| fields.get(index).map_or("", |field| field.trim());
        let bad = |what: &str| Failure::dm(format!("{what} in device specification.\n"), None);
        if field(0).is_empty() {
            return Err(bad("No name"));
        }
        let minor = match field(2) {
            "" => None,
            text => Some(text.parse().map_err(|_| bad("Invalid minor number"))?),
        };
        let read_only = match field(3) {
            "ro" => true,
            "rw" | "" => false,
            _ => return Err(bad("Invalid flags")),
        };
        let lines = fields.get(4..).unwrap_or_default().join("\n");
        let table = TableText::read(Some(&lines), None)?;
        let order = Order {
            name: field(0),
            uuid: Some(field(1)).filter(|uuid| !uuid.is_empty()),
            minor,
            table: Some(&table),
            read_only,
        };
        create_one(daemon, &order, output)?;
    }
    Ok(())
}

/// Splits at a separator that has no backslash before it; backslashes stay.
fn split_escaped(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for character in text.chars() {
        if character == separator && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = character == '\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts
}

fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::{split_escaped, unescape};

    #[test]
    fn concise_fields_split_where_no_backslash_stands() {
        assert_eq!(split_escaped("a\\;b;c", ';'), ["a\\;b", "c"]);
        assert_eq!(split_escaped("a\\\\;c", ';'), ["a\\\\", "c"]);
        assert_eq!(unescape("a\\;b\\\\"), "a;b\\");
    }
}
