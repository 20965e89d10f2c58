//! The state file: what a daemon brings back after a restart.
//!
//! One JSON file, `state.json` in the state directory, always written whole: to a new file, made
//! durable, then renamed over the old one, and the directory made durable. So after a crash at any
//! moment it is the old state or the new one. The format is in docs/formats/state.md.
//!
//! A file that cannot be understood stops the daemon before it has touched anything; nothing is
//! overwritten, since the file may be all that is left of somebody's set-up.
//!
//! The tricky case is two daemons on one directory: a lock file keeps the second one out, and is
//! never removed, because removing it would let a third one in.

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use udm_control::api::{PathPolicy, Tls};
use udm_control::errno;
use udm_control::place::{ExportKind, ExportPlace};
use udm_core::error::{ErrorCode, UserError};
use udm_types::{DmName, DmUuid};

/// The file's name.
pub const FILE_NAME: &str = "state.json";
/// What the first field says.
const FORMAT: &str = "udm-state";
/// Version of the format.
const VERSION: u32 = 1;
/// Longest state file taken. Tables of a million lines fit; a file of this size is no state file.
const LEN_BYTES_MAX: u64 = 1 << 30;

/// Everything that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// `udm-state`.
    pub format: String,
    /// Version of the format.
    pub version: u32,
    /// Mapped devices.
    pub devices: Vec<SavedDevice>,
    /// Exports.
    pub exports: Vec<SavedExport>,
}

impl Default for State {
    fn default() -> State {
        State {
            format: FORMAT.to_owned(),
            version: VERSION,
            devices: Vec::new(),
            exports: Vec::new(),
        }
    }
}

/// A mapped device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDevice {
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: Option<String>,
    /// Its minor number.
    pub minor: u32,
    /// It was suspended by the user.
    pub suspended: bool,
    /// The live table.
    pub live: Option<SavedTable>,
    /// The inactive table.
    pub inactive: Option<SavedTable>,
    /// Its paths are checked in this way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<PathPolicy>,
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTable {
    /// Loaded read-only.
    pub read_only: bool,
    /// Its lines, as they would be loaded.
    pub lines: Vec<String>,
}

/// An export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedExport {
    /// Its name.
    pub name: String,
    /// The device's name.
    pub device: String,
    /// Served over NBD at `unix:PATH` or `tcp:HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<String>,
    /// Mounted over this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuse: Option<String>,
    /// Served as the disk of a virtual machine at this unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<String>,
    /// Served as this disk of the kernel, `/dev/ublkbN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ublk: Option<String>,
    /// Writes are refused.
    pub read_only: bool,
    /// It speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// It uses not more lanes than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<NonZeroU16>,
}

impl SavedExport {
    /// An export at this place.
    pub fn at(place: ExportPlace, name: String, device: String, read_only: bool) -> SavedExport {
        let mut saved = SavedExport { name, device, read_only, ..SavedExport::default() };
        match place.kind {
            ExportKind::Nbd => saved.nbd = Some(place.address),
            ExportKind::Fuse => saved.fuse = Some(place.address),
            ExportKind::VhostUser => saved.vhost_user = Some(place.address),
            ExportKind::Ublk => saved.ublk = Some(place.address),
        }
        saved
    }

    /// How and where it is served.
    ///
    /// # Errors
    /// If the file says nothing, or several things.
    pub fn place(&self) -> Result<ExportPlace, UserError> {
        ExportPlace::one_of(&[
            (ExportKind::Nbd, self.nbd.as_deref()),
            (ExportKind::Fuse, self.fuse.as_deref()),
            (ExportKind::VhostUser, self.vhost_user.as_deref()),
            (ExportKind::Ublk, self.ublk.as_deref()),
        ])
    }
}

/// The state directory, locked for this daemon.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    _lock: OwnedFd,
}

impl StateDir {
    /// Makes the directory if it is missing, and locks it.
    ///
    /// # Errors
    /// `SocketInUse` if another daemon has it, or the system's reason.
    pub fn open(dir: &Path) -> Result<StateDir, UserError> {
        let failed = |what: &str, error: &io::Error| {
            errno::system(ErrorCode::StateDamaged, &format!("{what} {}", dir.display()), error)
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| failed("create the state directory", &error))?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let lock = open(dir.join("lock"), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed("lock the state directory", &error.into()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateDir { dir: dir.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(UserError::new(
                ErrorCode::SocketInUse,
                format!("another daemon uses the state directory {}", dir.display()),
            )
            .hint("stop it, or choose another directory with --state")),
            Err(error) => Err(failed("lock the state directory", &error.into())),
        }
    }

    /// Reads the state; an empty one if there is no file yet.
    ///
    /// # Errors
    /// `StateDamaged` with the place. Nothing has been changed.
    pub fn read(&self) -> Result<State, UserError> {
        let path = self.dir.join(FILE_NAME);
        let damaged = |what: String| {
            UserError::new(ErrorCode::StateDamaged, format!("{}: {what}", path.display()))
                .hint("move the file away to start empty, or mend it; it has not been changed")
        };
        let mut bytes = Vec::new();
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(error) => return Err(damaged(error.to_string()).of_kind(errno::kind_of(&error))),
            Ok(file) => file
                .take(LEN_BYTES_MAX)
                .read_to_end(&mut bytes)
                .map_err(|error| damaged(error.to_string()))?,
        };
        let state: State =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if state.format != FORMAT {
            return Err(damaged(format!("format is '{}', expected {FORMAT}", state.format)));
        }
        if state.version != VERSION {
            return Err(damaged(format!("version is {}, this udm knows {VERSION}", state.version)));
        }
        check(&state).map_err(damaged)?;
        Ok(state)
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// `StateNotSaved` with the system's reason; the old state is whole.
    pub fn write(&self, bytes: &[u8]) -> Result<(), UserError> {
        let path = self.dir.join(FILE_NAME);
        self.replace(&path, bytes).map_err(|error| {
            errno::system(ErrorCode::StateNotSaved, &format!("write {}", path.display()), &error)
                .hint("the change is in force, but a restart would not bring it back")
        })
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = self.dir.join(format!("{FILE_NAME}.new"));
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(&self.dir)?.sync_all()
    }
}

impl State {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("invariant: the state has string keys only");
        bytes.push(b'\n');
        bytes
    }
}

/// What JSON cannot say: names that are names, numbers that are free.
fn check(state: &State) -> Result<(), String> {
    let mut names = std::collections::BTreeSet::new();
    let mut uuids = std::collections::BTreeSet::new();
    let mut minors = std::collections::BTreeSet::new();
    for (index, device) in state.devices.iter().enumerate() {
        let place = format!("devices[{index}] '{}'", device.name);
        DmName::new(&device.name).map_err(|error| format!("{place}: name: {error}"))?;
        if let Some(uuid) = &device.uuid {
            DmUuid::new(uuid).map_err(|error| format!("{place}: uuid: {error}"))?;
            if !uuids.insert(uuid) {
                return Err(format!("{place}: another device has uuid '{uuid}'"));
            }
        }
        if !names.insert(&device.name) {
            return Err(format!("{place}: another device has this name"));
        }
        if !minors.insert(device.minor) {
            return Err(format!("{place}: another device has minor {}", device.minor));
        }
    }
    for (index, export) in state.exports.iter().enumerate() {
        export
            .place()
            .map_err(|error| format!("exports[{index}] '{}': {}", export.name, error.message()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{FILE_NAME, SavedDevice, SavedExport, SavedTable, State, StateDir};
    use std::fs;
    use std::num::NonZeroU16;
    use udm_control::api::{PathPolicy, Tls};
    use udm_core::error::ErrorCode;

    fn sample() -> State {
        let table = SavedTable { read_only: true, lines: vec!["0 8 zero".into()] };
        let device = SavedDevice {
            name: "a".into(),
            uuid: Some("u".into()),
            minor: 7,
            suspended: true,
            live: Some(table),
            inactive: None,
            paths: Some(PathPolicy { failback: Some("manual".into()), ..PathPolicy::default() }),
        };
        let export = SavedExport {
            name: "a".into(),
            device: "a".into(),
            nbd: Some("tcp:localhost:10809".into()),
            read_only: false,
            tls: Some(Tls { certificates: Some("/srv/pki".into()), ..Tls::default() }),
            lanes: NonZeroU16::new(3),
            ..SavedExport::default()
        };
        State { devices: vec![device], exports: vec![export], ..State::default() }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state_dir = StateDir::open(dir.path()).expect("opens");
        assert_eq!(state_dir.read().expect("no file yet"), State::default());
        state_dir.write(&sample().encode()).expect("written");
        assert_eq!(state_dir.read().expect("whole"), sample());
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state_dir = StateDir::open(dir.path()).expect("opens");
        let whole = sample().encode();
        // The last byte is the line end after the closing brace.
        for len in 0..whole.len() - 1 {
            fs::write(dir.path().join(FILE_NAME), &whole[..len]).expect("written");
            let error = state_dir.read().expect_err("cut");
            assert_eq!(error.code(), ErrorCode::StateDamaged, "{len}");
            let left = fs::read(dir.path().join(FILE_NAME)).expect("there");
            assert_eq!(left, &whole[..len]);
        }
    }

    #[test]
    fn damage_is_reported_with_its_place() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state_dir = StateDir::open(dir.path()).expect("opens");
        let message_of = |text: &str| {
            fs::write(dir.path().join(FILE_NAME), text).expect("written");
            let error = state_dir.read().expect_err("damaged");
            assert_eq!(error.code(), ErrorCode::StateDamaged);
            error.message().to_owned()
        };
        assert!(message_of("garbage").contains("line 1 column 1"));
        let later = r#"{"format":"udm-state","version":2,"devices":[],"exports":[]}"#;
        assert!(message_of(later).contains("version is 2"));
        let strange = r#"{"format":"udm-state","version":1,"devices":[],"exports":[],"x":1}"#;
        assert!(message_of(strange).contains("unknown field `x`"));
        let nowhere = SavedExport { name: "a".into(), ..SavedExport::default() };
        let nowhere = State { exports: vec![nowhere], ..State::default() };
        let text = String::from_utf8(nowhere.encode()).expect("UTF-8");
        assert!(message_of(&text).contains("exports[0] 'a': it is not said how"));
        let twice = State {
            devices: vec![
                SavedDevice { name: "a".into(), ..SavedDevice::default() },
                SavedDevice { name: "b".into(), ..SavedDevice::default() },
            ],
            ..State::default()
        };
        let text = String::from_utf8(twice.encode()).expect("UTF-8");
        assert!(message_of(&text).contains("devices[1] 'b': another device has minor 0"));
    }

    #[test]
    fn a_second_daemon_is_kept_out_while_the_first_lives() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = StateDir::open(dir.path()).expect("opens");
        let error = StateDir::open(dir.path()).expect_err("taken");
        assert_eq!(error.code(), ErrorCode::SocketInUse);
        drop(first);
        StateDir::open(dir.path()).expect("free again");
    }
}
