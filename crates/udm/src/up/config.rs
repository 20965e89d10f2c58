//! The file that `udm up` serves: what it may say, and every mistake with its line.
//!
//! ```toml
//! [[file]]            # a backing file; created sparse if it is missing
//! path = "disk.img"
//! size = "256M"
//!
//! [[device]]
//! name = "disk"
//! table = "0 524288 linear disk.img 0"
//!
//! [device.multipath]   # only for a multipath table: its paths are checked (docs/multipath.md)
//! check_interval = "5s"
//!
//! [[export]]
//! device = "disk"
//! nbd = "unix:disk.sock"   # or fuse = "disk.raw", a file to mount it over
//! lanes = 1            # not more; all if left out
//!
//! [export.tls]         # only for nbd (docs/fronts/nbd.md)
//! certificates = "pki"
//! ```
//!
//! Paths are relative to the file's own directory. Keys that are not known are refused: a misspelt
//! `readonly` must not be silently ignored. Everything is checked here before anything is made.

use crate::daemon::check_place;
use crate::paths::config::read;
use serde::Deserialize;
use std::num::NonZeroU16;
use std::ops::Range;
use toml::Spanned;
use udm_control::api::{PathPolicy, Tls};
use udm_control::place::{ExportKind, ExportPlace};
use udm_core::error::{ErrorCode, UserError};
use udm_core::table::{parse_size_sectors, parse_table};
use udm_types::{DmName, DmUuid, Sector};

/// A backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDecl {
    /// Where.
    pub path: String,
    /// How large it has to be.
    pub len_sectors: Sector,
    /// Where it is declared.
    pub line: u32,
}

/// A mapped device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDecl {
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: Option<String>,
    /// Its table, a line for each target.
    pub table: String,
    /// Open what is below read-only.
    pub readonly: bool,
    /// Where its table is declared.
    pub line: u32,
    /// How its paths are checked, if they are.
    pub multipath: Option<PathPolicy>,
}

/// An export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDecl {
    /// The device's name.
    pub device: String,
    /// How and where.
    pub place: ExportPlace,
    /// Name of the export.
    pub name: Option<String>,
    /// Refuse writes.
    pub readonly: bool,
    /// Speak TLS.
    pub tls: Option<Tls>,
    /// Use not more lanes than this.
    pub lanes: Option<NonZeroU16>,
    /// Where it is declared.
    pub line: u32,
}

/// All that a file declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Backing files.
    pub files: Vec<FileDecl>,
    /// Devices, in the order they are made.
    pub devices: Vec<DeviceDecl>,
    /// Exports.
    pub exports: Vec<ExportDecl>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    file: Vec<RawFile>,
    #[serde(default)]
    device: Vec<RawDevice>,
    #[serde(default)]
    export: Vec<RawExport>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    path: Spanned<String>,
    size: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    name: Spanned<String>,
    uuid: Option<Spanned<String>>,
    table: Spanned<RawTable>,
    #[serde(default)]
    readonly: bool,
    multipath: Option<Spanned<RawMultipath>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMultipath {
    check_interval: Option<Spanned<String>>,
    check_interval_max: Option<Spanned<String>>,
    check_timeout: Option<Spanned<String>>,
    failback: Option<Spanned<String>>,
    marginal_failures: Option<Spanned<u32>>,
    marginal_window: Option<Spanned<String>>,
    marginal_hold: Option<Spanned<String>>,
    no_path: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawTable {
    Text(String),
    Lines(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExport {
    device: Spanned<String>,
    nbd: Option<Spanned<String>>,
    fuse: Option<Spanned<String>>,
    vhost_user: Option<Spanned<String>>,
    ublk: Option<Spanned<String>>,
    name: Option<String>,
    #[serde(default)]
    readonly: bool,
    tls: Option<Spanned<Tls>>,
    lanes: Option<NonZeroU16>,
}

/// Finds lines of places, and makes errors that name them.
struct Places<'a>(&'a str);

impl Places<'_> {
    fn line(&self, span: &Range<usize>) -> u32 {
        let before = self.0.get(..span.start).unwrap_or(self.0);
        let breaks = before.bytes().filter(|byte| *byte == b'\n').count();
        u32::try_from(breaks + 1).unwrap_or(u32::MAX)
    }

    fn bad(&self, span: &Range<usize>, what: impl Into<String>) -> UserError {
        UserError::new(ErrorCode::BadConfig, what).at_line(self.line(span))
    }
}

impl Config {
    /// Parses and checks.
    ///
    /// # Errors
    /// `BadConfig` with the line.
    pub fn parse(text: &str) -> Result<Config, UserError> {
        let places = Places(text);
        let raw: RawConfig = toml::from_str(text).map_err(|error| {
            let what = error.message().to_owned();
            match error.span() {
                Some(span) => places.bad(&span, what),
                None => UserError::new(ErrorCode::BadConfig, what),
            }
        })?;
        let mut config = Config::default();
        for file in &raw.file {
            config.files.push(places.file(file)?);
        }
        for device in &raw.device {
            let decl = places.device(device)?;
            if config.devices.iter().any(|other| other.name == decl.name) {
                let what = format!("another device is called '{}'", decl.name);
                return Err(places.bad(&device.name.span(), what));
            }
            config.devices.push(decl);
        }
        for export in &raw.export {
            config.exports.push(places.export(export, &config)?);
        }
        if config.devices.is_empty() {
            return Err(UserError::new(ErrorCode::BadConfig, "the file declares no [[device]]")
                .hint("examples/quickstart.toml is a complete file"));
        }
        Ok(config)
    }
}

impl Places<'_> {
    fn file(&self, file: &RawFile) -> Result<FileDecl, UserError> {
        let size = file.size.get_ref();
        let len_sectors = parse_size_sectors(size)
            .map_err(|error| self.bad(&file.size.span(), format!("size: {}", error.message())))?;
        if len_sectors == 0 {
            return Err(self.bad(&file.size.span(), "size: it is 0"));
        }
        if file.path.get_ref().is_empty() {
            return Err(self.bad(&file.path.span(), "path: it is empty"));
        }
        let line = self.line(&file.path.span());
        Ok(FileDecl { path: file.path.get_ref().clone(), len_sectors, line })
    }

    fn device(&self, device: &RawDevice) -> Result<DeviceDecl, UserError> {
        let name = device.name.get_ref();
        DmName::new(name)
            .map_err(|error| self.bad(&device.name.span(), format!("name: {error}")))?;
        if let Some(uuid) = &device.uuid {
            DmUuid::new(uuid.get_ref())
                .map_err(|error| self.bad(&uuid.span(), format!("uuid: {error}")))?;
        }
        let table = match device.table.get_ref() {
            RawTable::Text(text) => text.clone(),
            RawTable::Lines(lines) => lines.join("\n"),
        };
        let lines = parse_table(&table).map_err(|error| {
            self.bad(&device.table.span(), format!("table of '{name}': {error}"))
        })?;
        if let Some(multipath) = &device.multipath
            && lines.iter().all(|line| line.target != "multipath")
        {
            let what = format!("multipath: the table of '{name}' has no multipath target");
            return Err(self.bad(&multipath.span(), what));
        }
        let multipath = device.multipath.as_ref().map(|raw| self.multipath(raw)).transpose()?;
        Ok(DeviceDecl {
            name: name.clone(),
            uuid: device.uuid.as_ref().map(|uuid| uuid.get_ref().clone()),
            table,
            readonly: device.readonly,
            line: self.line(&device.table.span()),
            multipath,
        })
    }

    fn multipath(&self, section: &Spanned<RawMultipath>) -> Result<PathPolicy, UserError> {
        let raw = section.get_ref();
        let word =
            |word: &Option<Spanned<String>>| word.as_ref().map(|word| word.get_ref().clone());
        let policy = PathPolicy {
            check_interval: word(&raw.check_interval),
            check_interval_max: word(&raw.check_interval_max),
            check_timeout: word(&raw.check_timeout),
            failback: word(&raw.failback),
            marginal_failures: raw.marginal_failures.as_ref().map(|number| *number.get_ref()),
            marginal_window: word(&raw.marginal_window),
            marginal_hold: word(&raw.marginal_hold),
            no_path: word(&raw.no_path),
        };
        let span = |key: &str| {
            let words = [
                ("check_interval", &raw.check_interval),
                ("check_interval_max", &raw.check_interval_max),
                ("check_timeout", &raw.check_timeout),
                ("failback", &raw.failback),
                ("marginal_window", &raw.marginal_window),
                ("marginal_hold", &raw.marginal_hold),
                ("no_path", &raw.no_path),
            ];
            let word = words.iter().find(|(known, _)| *known == key);
            let span = word.and_then(|(_, word)| word.as_ref().map(Spanned::span));
            let number = raw.marginal_failures.as_ref().map(Spanned::span);
            span.or(number).unwrap_or_else(|| section.span())
        };
        match read(&policy) {
            Ok(_) => Ok(policy),
            Err((key, what)) => Err(self.bad(&span(key), format!("{key}: {what}"))),
        }
    }

    fn export(&self, export: &RawExport, config: &Config) -> Result<ExportDecl, UserError> {
        let device = export.device.get_ref();
        if config.devices.iter().all(|known| known.name != *device) {
            let names: Vec<&str> = config.devices.iter().map(|known| known.name.as_str()).collect();
            let what = format!("device: there is no [[device]] called '{device}'");
            return Err(self
                .bad(&export.device.span(), what)
                .hint(format!("declared are: {}", names.join(", "))));
        }
        let (place, span) = self.place(export)?;
        check_place(&place).map_err(|error| {
            self.bad(&span, format!("{}: {}", place.kind.word(), error.message()))
        })?;
        if let Some(tls) = &export.tls
            && place.kind != ExportKind::Nbd
        {
            return Err(self.bad(&tls.span(), "tls: it is for nbd only"));
        }
        let name = export.name.as_ref().unwrap_or(device);
        for other in &config.exports {
            let taken = other.name.as_ref().unwrap_or(&other.device);
            if taken == name || other.place == place {
                let what = format!("the export at line {} has this name or address", other.line);
                return Err(self.bad(&span, what));
            }
        }
        Ok(ExportDecl {
            device: device.clone(),
            place,
            name: export.name.clone(),
            readonly: export.readonly,
            tls: export.tls.as_ref().map(|tls| tls.get_ref().clone()),
            lanes: export.lanes,
            line: self.line(&span),
        })
    }

    /// How and where an export is served, and where that is declared.
    fn place(&self, export: &RawExport) -> Result<(ExportPlace, Range<usize>), UserError> {
        let given = [
            (ExportKind::Nbd, &export.nbd),
            (ExportKind::Fuse, &export.fuse),
            (ExportKind::VhostUser, &export.vhost_user),
            (ExportKind::Ublk, &export.ublk),
        ];
        let text =
            |word: &Option<Spanned<String>>| word.as_ref().map(|word| word.get_ref().clone());
        let words: Vec<_> = given.iter().map(|(kind, word)| (*kind, text(word))).collect();
        let words: Vec<_> = words.iter().map(|(kind, word)| (*kind, word.as_deref())).collect();
        let place = ExportPlace::one_of(&words).map_err(|error| {
            self.bad(&export.device.span(), error.message()).hint(error.hint_text())
        })?;
        let word = given.iter().find_map(|(_, word)| word.as_ref());
        let span = word.map_or_else(|| export.device.span(), Spanned::span);
        Ok((place, span))
    }
}

#[cfg(test)]
mod tests {
    use super::Config;
    use std::num::NonZeroU16;

    const GOOD: &str = "[[file]]\npath = \"d.img\"\nsize = \"1M\"\n\n[[device]]\nname = \"d\"\n\
        table = [\"0 8 zero\", \"8 8 error\"]\n\n[[export]]\ndevice = \"d\"\nnbd = \"unix:d.sock\"\n";

    #[test]
    fn a_good_file_is_taken_whole() {
        let config = Config::parse(GOOD).expect("good");
        assert_eq!(config.files[0].len_sectors, 2048);
        assert_eq!(config.devices[0].table, "0 8 zero\n8 8 error");
        assert_eq!(config.exports[0].place.address, "unix:d.sock");
        assert_eq!(config.exports[0].lanes, None);
        let config = Config::parse(&format!("{GOOD}lanes = 2\n")).expect("good");
        assert_eq!(config.exports[0].lanes, NonZeroU16::new(2));
    }

    #[test]
    fn each_mistake_is_reported_with_its_line() {
        let check = |from: &str, to: &str, line: u32, words: &str| {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let error = Config::parse(&text).expect_err(to);
            assert_eq!(error.line(), Some(line), "{to}: {error}");
            assert!(error.message().contains(words), "{to}: {error}");
        };
        check("size", "sise", 3, "unknown field `sise`");
        check("\"1M\"", "\"1 parsec\"", 3, "size");
        check("\"1M\"", "\"0\"", 3, "size");
        check("\"1M\"", "7", 3, "invalid type");
        check("name = \"d\"", "name = \"a/b\"", 6, "contains a '/'");
        check("0 8 zero", "0 zero", 7, "field 2");
        check("device = \"d\"", "device = \"e\"", 10, "no [[device]] called 'e'");
        check("nbd = \"unix:d.sock\"", "", 10, "how to serve");
        check("unix:d.sock", "d.sock", 11, "none of unix:, tcp: and fd:");
        check("nbd =", "lanes = 0\nnbd =", 11, "nonzero");
        check("[[export]]", "[[exports]]", 9, "unknown field `exports`");
        check("[[export]]", "[[export", 9, "");
        let twice = format!("{GOOD}[[device]]\nname = \"d\"\ntable = \"0 8 zero\"\n");
        assert_eq!(Config::parse(&twice).expect_err("twice").line(), Some(13));
        let twice = format!("{GOOD}[[export]]\ndevice = \"d\"\nnbd = \"unix:e.sock\"\n");
        assert_eq!(Config::parse(&twice).expect_err("same name").line(), Some(14));
        assert!(Config::parse("").expect_err("empty").message().contains("no [[device]]"));
    }
    const PATHS: &str = "[[device]]\nname = \"d\"\ntable = \"0 8 multipath 0 0 0 0\"\n\n\
        [device.multipath]\ncheck_interval = \"1s\"\nfailback = \"10s\"\n\
        marginal_failures = 3\nmarginal_hold = \"1m\"\nno_path = \"60s\"\n";

    #[test]
    fn a_multipath_section_is_taken_and_its_mistakes_have_lines() {
        let config = Config::parse(PATHS).expect("good");
        let policy = config.devices[0].multipath.clone().expect("declared");
        assert_eq!(policy.failback.as_deref(), Some("10s"));
        assert_eq!(policy.marginal_failures, Some(3));
        let check = |from: &str, to: &str, line: u32, words: &str| {
            let text = PATHS.replace(from, to);
            assert_ne!(text, PATHS, "{from}");
            let error = Config::parse(&text).expect_err(to);
            assert_eq!(error.line(), Some(line), "{to}: {error}");
            assert!(error.message().contains(words), "{to}: {error}");
        };
        check("\"1s\"", "\"0\"", 6, "check_interval: ");
        check("\"10s\"", "\"soon\"", 7, "failback: expected immediate");
        check("= 3", "= 100000", 8, "marginal_failures: ");
        check("= 3", "= \"3\"", 8, "invalid type");
        check("\"1m\"", "\"1 m\"", 9, "marginal_hold: ");
        check("\"60s\"", "\"never\"", 10, "no_path: expected table");
        check("no_path", "no_paths", 10, "unknown field `no_paths`");
        check("multipath 0 0 0 0", "zero", 5, "no multipath target");
    }
}
