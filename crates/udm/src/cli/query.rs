//! The verbs that ask: status, table, info, ls, deps, targets, version.
//!
//! They collect what the daemon answers and let `udm_control::render` print it as dmsetup would.
//! Without a device named they go over all; a device that is removed between the list and the
//! question is left out, since it would not be in the list a moment later.

use super::args::{DepsArgs, InfoArgs, LsArgs, TableArgs};
use super::asker::{Chosen, Daemon};
use super::failure::Failure;
use super::output::Output;
use udm_control::api::{self, Device, Line, LinesAnswer};
use udm_control::render::columns::{ColumnOptions, Row, columns, needs};
use udm_control::render::{self, LineFilter, NameStyle, Node, Subject, TreeOptions};
use udm_core::error::{ErrorCode, UserError};

/// Which of the two verbs that print table lines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinesVerb {
    Status,
    Table,
}

/// dmsetup's words for a device that info and status do not find.
fn missing(verb: &str, subject: &Subject<'_>, error: UserError) -> Failure {
    if error.code() == ErrorCode::NoSuchDevice {
        return Failure::dm(render::NO_SUCH_DEVICE, Some(error));
    }
    if error.code() == ErrorCode::NoDaemon {
        return Failure::from(error);
    }
    Failure::ioctl(verb, subject, error)
}

fn is_gone(error: &UserError) -> bool {
    error.code() == ErrorCode::NoSuchDevice
}

/// The devices named, or all; and whether it is all.
fn named_or_all(daemon: &mut Daemon, chosen: Vec<Chosen>) -> Result<(Vec<Chosen>, bool), Failure> {
    if !chosen.is_empty() {
        return Ok((chosen, false));
    }
    let all = daemon.devices()?;
    Ok((all.iter().map(|device| Chosen::named(&device.name)).collect(), true))
}

pub(crate) fn lines(
    daemon: &mut Daemon,
    args: &TableArgs,
    verb: LinesVerb,
    output: &mut Output,
) -> Result<(), Failure> {
    let (devices, all) = named_or_all(daemon, args.device.chosen())?;
    if devices.is_empty() {
        output.text(render::NO_DEVICES);
    }
    output.field("devices", &serde_json::json!([]));
    let named = all || devices.len() > 1;
    let mut concise: Vec<(Device, Vec<Line>)> = Vec::new();
    for chosen in devices {
        let kind = match verb {
            LinesVerb::Status => "status",
            LinesVerb::Table => "table",
        };
        let call = api::TableStatus {
            device: chosen.selector.clone(),
            inactive: args.inactive,
            kind: Some(kind.to_owned()),
        };
        let LinesAnswer { device, lines } = match daemon.ask(&call) {
            Ok(answer) => answer,
            Err(error) if all && is_gone(&error) => continue,
            Err(error) if verb == LinesVerb::Status => {
                return Err(missing("status", &chosen.subject(), error));
            }
            Err(error) if error.code() == ErrorCode::NoDaemon => return Err(error.into()),
            Err(error) => return Err(Failure::ioctl("table", &chosen.subject(), error)),
        };
        let shown: Vec<&Line> = lines
            .iter()
            .filter(|line| args.target.as_deref().is_none_or(|target| target == line.target))
            .collect();
        output.push("devices", &serde_json::json!({ "device": device, "lines": shown }));
        if args.concise {
            concise.push((device, lines));
        } else {
            let filter = LineFilter { target: args.target.as_deref(), named };
            output.text(&render::lines(&device, &lines, filter));
        }
    }
    if args.concise {
        output.text(&render::concise(&concise));
    }
    Ok(())
}

pub(crate) fn info(
    daemon: &mut Daemon,
    args: &InfoArgs,
    verbose: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    output.field("devices", &serde_json::json!([]));
    let chosen = args.device.chosen();
    if args.columns && !output.json {
        return info_columns(daemon, args, &chosen, output);
    }
    let (devices, all) = named_or_all(daemon, chosen)?;
    if devices.is_empty() {
        output.text(render::NO_DEVICES);
    }
    for chosen in devices {
        let answer = match daemon.ask(&api::Info { device: chosen.selector.clone() }) {
            Ok(answer) => answer,
            Err(error) if all && is_gone(&error) => continue,
            Err(error) => return Err(missing("info", &chosen.subject(), error)),
        };
        output.text(&render::info(&answer.device, Some(&answer.gauges), verbose));
        output.push("devices", &answer);
    }
    Ok(())
}

fn info_columns(
    daemon: &mut Daemon,
    args: &InfoArgs,
    chosen: &[Chosen],
    output: &mut Output,
) -> Result<(), Failure> {
    let options = ColumnOptions {
        fields: args.fields.clone(),
        sort: args.sort.clone(),
        noheadings: args.noheadings,
        separator: args.separator.clone(),
        nameprefixes: args.nameprefixes,
    };
    let needs = needs(&options);
    let mut devices = Vec::new();
    for one in chosen {
        let answer = daemon.ask(&api::Status { device: one.selector.clone() });
        devices.extend(answer.map_err(|error| missing("info", &one.subject(), error))?.device);
    }
    if chosen.is_empty() {
        devices = daemon.devices()?;
        if devices.is_empty() {
            output.text(render::NO_DEVICES);
            return Ok(());
        }
    }
    let nodes = if needs.deps { nodes(daemon)? } else { Vec::new() };
    let mut rows = Vec::with_capacity(devices.len());
    for device in devices {
        let mut gauges = api::Gauges::default();
        if needs.gauges {
            match daemon.ask(&api::Info { device: Chosen::named(&device.name).selector }) {
                Ok(answer) => gauges = answer.gauges,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        rows.push(row(device, gauges, &nodes));
    }
    output.text(&columns(&rows, &options)?);
    Ok(())
}

/// Every device with what is below it.
fn nodes(daemon: &mut Daemon) -> Result<Vec<Node>, Failure> {
    let mut nodes = Vec::new();
    for device in daemon.devices()? {
        let selector = Chosen::named(&device.name).selector;
        match daemon.ask(&api::Deps { device: selector, inactive: false }) {
            Ok(answer) => nodes.push(Node { device: answer.device, deps: answer.deps }),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(nodes)
}

fn row(device: Device, gauges: api::Gauges, nodes: &[Node]) -> Row {
    let number = |device: &Device| (Some(device.major), Some(device.minor));
    let uses = |node: &Node, below: &Device| {
        node.deps.iter().any(|dep| (dep.major, dep.minor) == number(below))
    };
    let own = nodes.iter().find(|node| node.device.id == device.id);
    let below = nodes.iter().filter(|node| own.is_some_and(|own| uses(own, &node.device)));
    let users = nodes.iter().filter(|node| uses(node, &device));
    Row {
        deps: own.map(|node| node.deps.clone()).unwrap_or_default(),
        users: users
            .map(|node| (node.device.name.clone(), node.device.major, node.device.minor))
            .collect(),
        names: below
            .map(|node| (node.device.major, node.device.minor, node.device.name.clone()))
            .collect(),
        device,
        gauges,
    }
}

fn name_style(options: Option<&str>) -> Result<NameStyle, Failure> {
    match options {
        None | Some("devno") => Ok(NameStyle::DevNo),
        Some("devname") => Ok(NameStyle::DevName),
        Some("blkdevname") => Ok(NameStyle::BlkDevName),
        Some(other) => Err(Failure::usage(format!(
            "'{other}' is no option here; there are devno, devname and blkdevname.\n"
        ))),
    }
}

fn tree_options(options: Option<&str>) -> Result<TreeOptions, Failure> {
    let mut chosen = TreeOptions::default();
    for word in options.unwrap_or_default().split(',').filter(|word| !word.is_empty()) {
        match word {
            "device" => chosen.device = true,
            "nodevice" => chosen.device = false,
            "active" => chosen.active = true,
            "open" => chosen.open = true,
            "rw" => chosen.rw = true,
            "uuid" => chosen.uuid = true,
            "inverted" => chosen.inverted = true,
            "utf" => chosen.utf = true,
            // What we print is both, and nothing is ever cut.
            "ascii" | "vt100" | "compact" | "notrunc" | "blkdevname" => {}
            other => {
                return Err(Failure::usage(format!("'{other}' is no option of ls --tree.\n")));
            }
        }
    }
    Ok(chosen)
}

pub(crate) fn ls(daemon: &mut Daemon, args: &LsArgs, output: &mut Output) -> Result<(), Failure> {
    if args.tree {
        let options = tree_options(args.options.as_deref())?;
        let nodes = nodes(daemon)?;
        let tree = render::tree(&nodes, options);
        output.text(if nodes.is_empty() { render::NO_DEVICES } else { &tree });
        let json: Vec<_> = nodes
            .iter()
            .map(|node| serde_json::json!({ "device": node.device, "deps": node.deps }))
            .collect();
        output.field("devices", &json);
        return Ok(());
    }
    let style = name_style(args.options.as_deref())?;
    let mut devices = daemon.devices()?;
    let none = devices.is_empty();
    if let Some(target) = &args.target {
        let mut with_target = Vec::new();
        for device in devices {
            let selector = Chosen::named(&device.name).selector;
            let call = api::TableStatus { device: selector, ..api::TableStatus::default() };
            match daemon.ask(&call) {
                Ok(answer) if answer.lines.iter().any(|line| line.target == *target) => {
                    with_target.push(device);
                }
                Ok(_) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        devices = with_target;
    }
    output.text(&match (none, &args.target) {
        (true, _) => render::NO_DEVICES.to_owned(),
        (false, Some(_)) => render::ls_of_type(&devices),
        (false, None) => render::ls(&devices, style),
    });
    output.field("devices", &devices);
    Ok(())
}

pub(crate) fn deps(
    daemon: &mut Daemon,
    args: &DepsArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let style = name_style(args.options.as_deref())?;
    let (devices, all) = named_or_all(daemon, args.device.chosen())?;
    output.field("devices", &serde_json::json!([]));
    if devices.is_empty() {
        output.text(render::NO_DEVICES);
        return Ok(());
    }
    let known = daemon.devices()?;
    let name_of = |major: u32, minor: u32| {
        let found = known.iter().find(|device| (device.major, device.minor) == (major, minor));
        found.map(|device| device.name.clone())
    };
    let named = all || devices.len() > 1;
    for chosen in devices {
        let call = api::Deps { device: chosen.selector.clone(), inactive: args.inactive };
        let answer = match daemon.ask(&call) {
            Ok(answer) => answer,
            Err(error) if all && is_gone(&error) => continue,
            Err(error) if error.code() == ErrorCode::NoDaemon => return Err(error.into()),
            Err(error) => return Err(Failure::ioctl("deps", &chosen.subject(), error)),
        };
        output.text(&render::deps(&answer.device, &answer.deps, named, style, &name_of));
        output.push("devices", &answer);
    }
    Ok(())
}

pub(crate) fn targets(daemon: &mut Daemon, output: &mut Output) -> Result<(), Failure> {
    let answer = daemon.ask(&api::Targets {})?;
    output.text(&render::targets(&answer.targets));
    output.field("targets", &answer.targets);
    Ok(())
}

pub(crate) fn target_version(
    daemon: &mut Daemon,
    wanted: &[String],
    output: &mut Output,
) -> Result<(), Failure> {
    let known = daemon.ask(&api::Targets {})?.targets;
    let mut found = Vec::new();
    for name in wanted {
        match known.iter().find(|target| target.name == *name) {
            Some(target) => found.push(target.clone()),
            None => {
                let error =
                    UserError::new(ErrorCode::UnknownTarget, format!("there is no type '{name}'"));
                let subject = Subject { name, ..Subject::default() };
                return Err(Failure::ioctl("target-version", &subject, error));
            }
        }
    }
    output.text(&render::targets(&found));
    output.field("targets", &found);
    Ok(())
}

pub(crate) fn version(daemon: &mut Daemon, output: &mut Output) -> Result<(), Failure> {
    let library = format!("udm {}", env!("CARGO_PKG_VERSION"));
    // The version of this command can be told without a daemon; its own is then left out.
    let answer = daemon.ask(&api::Version {}).ok();
    output.text(&render::version(&library, udm_control::DRIVER_VERSION));
    output.field("version", &env!("CARGO_PKG_VERSION"));
    output.field("driver_version", &udm_control::DRIVER_VERSION);
    output.field("interface_version", &udm_control::INTERFACE_VERSION);
    output.field("daemon_version", &answer.map(|answer| answer.version));
    Ok(())
}
