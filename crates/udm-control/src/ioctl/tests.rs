//! The ioctl face against the tables of the kernel's interface, on a modelled daemon.

use super::layout::{HEADER_LEN_BYTES, HEADER_LEN_BYTES_MIN, flag};
use super::{Command, Outcome, run};
use crate::fuzz::model::{AskModel, Model};
use rustix::io::Errno;

pub(crate) use crate::fuzz::model::device;

const NAME_AT: usize = 48;
const UUID_AT: usize = 176;

/// A call's bytes, field by field.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    /// A call with the usual 16 KiB.
    fn new() -> Bytes {
        Bytes(vec![0; HEADER_LEN_BYTES]).word(0, 4).word(12, 16384).word(16, 312)
    }

    fn of(name: &str) -> Bytes {
        Bytes::new().text(NAME_AT, name.as_bytes())
    }

    fn word(mut self, at: usize, value: u32) -> Bytes {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn flags(self, flags: u32) -> Bytes {
        self.word(28, flags)
    }

    fn size(self, bytes: u32) -> Bytes {
        self.word(12, bytes)
    }

    fn dev(mut self, dev: u64) -> Bytes {
        self.0[40..48].copy_from_slice(&dev.to_ne_bytes());
        self
    }

    fn text(mut self, at: usize, text: &[u8]) -> Bytes {
        self.0[at..at + text.len()].copy_from_slice(text);
        self
    }

    /// A payload right behind the header; the call is as long as it says.
    fn payload(mut self, payload: &[u8]) -> Bytes {
        self.0.extend_from_slice(payload);
        self.0.resize(16384, 0);
        self
    }

    fn spec(self, len: u64, next: u32, target: &[u8], params: &[u8]) -> Bytes {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&0_u64.to_ne_bytes());
        bytes.extend_from_slice(&len.to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&next.to_ne_bytes());
        bytes.extend_from_slice(target);
        bytes.resize(40, 0);
        bytes.extend_from_slice(params);
        self.word(20, 1).payload(&bytes)
    }
}

fn call(model: &Model, command: Command, bytes: &Bytes) -> Outcome {
    run(0xc138_fd00 | command as u32, &bytes.0, model, &mut AskModel(model))
}

/// The bytes of a call that must succeed.
#[track_caller]
fn good(model: &Model, command: Command, bytes: &Bytes) -> Vec<u8> {
    let outcome = call(model, command, bytes);
    assert_eq!((outcome.errno, outcome.why), (0, None), "{command:?}");
    outcome.bytes
}

#[track_caller]
fn refused(model: &Model, command: Command, bytes: &Bytes) -> Errno {
    let before = model.changes();
    let outcome = call(model, command, bytes);
    assert_eq!(model.changes(), before, "{command:?} changed something");
    assert_eq!(outcome.bytes.len(), 12, "only the version comes back");
    Errno::from_raw_os_error(outcome.errno)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn flags(bytes: &[u8]) -> u32 {
    word(bytes, 28)
}

fn text(bytes: &[u8], at: usize) -> String {
    String::from_utf8(super::header::until_nul(&bytes[at..]).to_vec()).expect("text")
}

fn model_with(names: &[&str]) -> Model {
    let model = Model::default();
    for name in names {
        good(&model, Command::DevCreate, &Bytes::of(name));
    }
    model
}

#[test]
fn the_version_is_checked_first_and_always_written_back() {
    let model = Model::default();
    let ask = |command, input: &[u8]| run(command, input, &model, &mut AskModel(&model));
    let version = |major: u32, minor: u32| Bytes(vec![0; 12]).word(0, major).word(4, minor).0;
    let ours: Vec<u8> = [4_u32, 50, 0].iter().flat_map(|part| part.to_ne_bytes()).collect();
    for (major, minor, errno) in [(4, 0, 0), (4, 50, 0), (4, 51, 22), (3, 0, 22), (5, 0, 22)] {
        let outcome = ask(0xc138_fd00, &version(major, minor));
        assert_eq!((outcome.errno, &outcome.bytes), (errno, &ours), "{major}.{minor}");
    }
    // Only type and number of the ioctl count.
    assert_eq!(ask(0x0000_fd00, &version(4, 0)).errno, 0);
    let other_type = ask(0xc138_fc00, &version(4, 0));
    assert_eq!((other_type.errno, other_type.bytes.len()), (25, 0));
    for unknown in [18, 19, 255] {
        let outcome = ask(0xc138_fd00 | unknown, &version(4, 0));
        assert_eq!((outcome.errno, &outcome.bytes), (25, &ours));
    }
    assert_eq!(ask(0xc138_fd00, &[0; 11]).errno, 14);
    assert_eq!(ask(0xc138_fd07, &version(4, 0)).errno, 14);
}

#[test]
fn sizes_are_checked_before_anything_is_done() {
    let model = model_with(&["a"]);
    for size in [0, 304, (1 << 30) + 1, u32::MAX] {
        assert_eq!(refused(&model, Command::DevRemove, &Bytes::of("a").size(size)), Errno::INVAL);
    }
    // A command that reads more needs what it says it has.
    let load = Bytes::of("a").word(20, 1).size(400);
    assert_eq!(refused(&model, Command::TableLoad, &load), Errno::FAULT);
    let bytes = good(&model, Command::DevStatus, &Bytes::of("a").size(305));
    assert_eq!(bytes.len(), 305);
}

#[test]
fn exactly_one_key_finds_a_device() {
    let model = Model::default();
    good(&model, Command::DevCreate, &Bytes::of("a").text(UUID_AT, b"LVM-1"));
    let status = |bytes: &Bytes| call(&model, Command::DevStatus, bytes).errno;
    let uuid = Bytes::new().text(UUID_AT, b"LVM-1");
    assert_eq!(status(&Bytes::of("a")), 0);
    assert_eq!(status(&uuid), 0);
    assert_eq!(status(&Bytes::new().dev(0xfe00)), 0);
    assert_eq!(status(&Bytes::of("a").text(UUID_AT, b"LVM-1")), 22);
    assert_eq!(status(&Bytes::of("a").dev(0xfe00)), 6);
    assert_eq!(status(&uuid.dev(0xfe00)), 6);
    assert_eq!(status(&Bytes::new()), 6);
    assert_eq!(status(&Bytes::new().dev(0xfd00)), 6);
    assert_eq!(status(&Bytes::of("b")), 6);
    assert_eq!(status(&Bytes::of("b").text(NAME_AT, b"\xff")), 6);
    let found = good(&model, Command::DevStatus, &Bytes::new().dev(0xfe00));
    assert_eq!((text(&found, NAME_AT), text(&found, UUID_AT)), ("a".into(), "LVM-1".into()));
}

#[test]
fn a_created_device_has_the_lowest_minor_or_the_one_asked_for() {
    let model = model_with(&["a"]);
    let made = good(&model, Command::DevCreate, &Bytes::of("b").flags(flag::INACTIVE_PRESENT));
    assert_eq!((word(&made, 40), flags(&made), made.len()), (0xfe01, 0, 305));
    let fixed = Bytes::of("c").flags(flag::PERSISTENT_DEV);
    assert_eq!(word(&good(&model, Command::DevCreate, &fixed.clone().dev(0x1234_0910)), 40), {
        // Minor 0x12310, whatever the major.
        super::header::dev_number(254, 0x1_2310) as u32
    });
    // Taken: ENXIO, not EBUSY; a taken name is EBUSY.
    let taken = Bytes::of("d").flags(flag::PERSISTENT_DEV).dev(1);
    assert_eq!(refused(&model, Command::DevCreate, &taken), Errno::NXIO);
    assert_eq!(refused(&model, Command::DevCreate, &Bytes::of("a")), Errno::BUSY);
    for bad in ["", "a/b", ".", "..", "control"] {
        assert_eq!(refused(&model, Command::DevCreate, &Bytes::of(bad)), Errno::INVAL, "{bad}");
    }
}

#[test]
fn removing_leaves_the_header_as_it_was_found() {
    let model = model_with(&["a", "b"]);
    model.open("a");
    assert_eq!(refused(&model, Command::DevRemove, &Bytes::of("a")), Errno::BUSY);
    let deferred = Bytes::of("a").flags(flag::DEFERRED_REMOVE);
    let answer = good(&model, Command::DevRemove, &deferred);
    assert_eq!((flags(&answer), word(&answer, 24)), (flag::DEFERRED_REMOVE, 0));
    let status = good(&model, Command::DevStatus, &Bytes::of("a"));
    assert_eq!((flags(&status), word(&status, 24)), (flag::DEFERRED_REMOVE, 1));
    let deferred = Bytes::of("b").flags(flag::DEFERRED_REMOVE);
    let answer = good(&model, Command::DevRemove, &deferred);
    assert_eq!((flags(&answer), word(&answer, 40)), (flag::UEVENT_GENERATED, 0));
    assert_eq!(refused(&model, Command::DevRemove, &Bytes::of("b")), Errno::NXIO);
    let cancel = Bytes::of("a").payload(b"\0\0\0\0\0\0\0\0@Cancel_Deferred_Remove\0");
    good(&model, Command::TargetMsg, &cancel);
    assert_eq!(flags(&good(&model, Command::DevStatus, &Bytes::of("a"))), 0);
    assert_eq!(good(&model, Command::RemoveAll, &Bytes::new()).len(), 12);
}

#[test]
fn a_rename_finds_by_name_and_keeps_the_old_one_in_the_header() {
    let model = model_with(&["a", "b"]);
    let rename = |from: &str, to: &[u8]| Bytes::of(from).payload(to);
    let answer = good(&model, Command::DevRename, &rename("a", b"c\0"));
    assert_eq!((text(&answer, NAME_AT), flags(&answer)), ("a".into(), flag::UEVENT_GENERATED));
    assert_eq!(word(&answer, 40), 0xfe00);
    // Its own name is taken, too; and that is told before a missing device is.
    assert_eq!(refused(&model, Command::DevRename, &rename("c", b"c\0")), Errno::BUSY);
    assert_eq!(refused(&model, Command::DevRename, &rename("x", b"b\0")), Errno::BUSY);
    assert_eq!(refused(&model, Command::DevRename, &rename("x", b"d\0")), Errno::NXIO);
    let by_uuid = Bytes::new().text(UUID_AT, b"u").payload(b"d\0");
    assert_eq!(refused(&model, Command::DevRename, &by_uuid), Errno::NXIO);
    let long = [&[b'n'; 128][..], b"\0"].concat();
    for bad in [&b"\0"[..], b"a/b\0", b"..\0", &long] {
        assert_eq!(refused(&model, Command::DevRename, &rename("c", bad)), Errno::INVAL);
    }
    let before_header = rename("c", b"d\0").word(16, 304);
    assert_eq!(refused(&model, Command::DevRename, &before_header), Errno::INVAL);
    let outside = rename("c", b"d\0").word(16, 16384);
    assert_eq!(refused(&model, Command::DevRename, &outside), Errno::INVAL);
    let uuid = rename("c", &long).flags(flag::UUID);
    good(&model, Command::DevRename, &uuid);
    let again = rename("c", b"other\0").flags(flag::UUID);
    assert_eq!(refused(&model, Command::DevRename, &again), Errno::INVAL);
}

#[test]
fn a_table_goes_in_by_specs_and_comes_back_by_specs() {
    let model = model_with(&["a"]);
    let load = Bytes::of("a").flags(flag::READONLY).spec(8, 0, b"linear", b"x # 0\0");
    let loaded = good(&model, Command::TableLoad, &load);
    // Read-only describes the live table, of which there is none.
    assert_eq!((flags(&loaded), word(&loaded, 20)), (flag::INACTIVE_PRESENT, 0));
    let inactive = Bytes::of("a").flags(flag::QUERY_INACTIVE_TABLE);
    let status = good(&model, Command::DevStatus, &inactive);
    assert_eq!(word(&status, 20), 1);
    assert_eq!(flags(&status) & flag::READONLY, flag::READONLY);
    let none = good(&model, Command::TableStatus, &Bytes::of("a"));
    assert_eq!((none.len(), word(&none, 16)), (305, 312));
    let resumed = good(&model, Command::DevSuspend, &Bytes::of("a"));
    assert_eq!(flags(&resumed), flag::ACTIVE_PRESENT | flag::UEVENT_GENERATED);
    assert_eq!(flags(&good(&model, Command::DevSuspend, &Bytes::of("a"))), flag::ACTIVE_PRESENT);
    for command in [Command::TableStatus, Command::DevWait] {
        let shown = good(&model, command, &Bytes::of("a").flags(flag::STATUS_TABLE));
        assert_eq!((shown.len(), word(&shown, 12)), (312 + 46, 312 + 46));
        assert_eq!(
            (text(&shown, 312 + 24), text(&shown, 312 + 40)),
            ("linear".into(), "x # 0".into())
        );
        assert_eq!(word(&shown, 312 + 20), 48);
    }
    let small = good(&model, Command::TableStatus, &Bytes::of("a").size(352));
    assert_eq!((small.len(), flags(&small) & flag::BUFFER_FULL), (305, flag::BUFFER_FULL));
    assert_eq!(word(&small, 20), 1);
    let bad = Bytes::of("a").spec(8, 0, b"bad", b"\0");
    assert_eq!(refused(&model, Command::TableLoad, &bad), Errno::INVAL);
    let missing = Bytes::of("x").spec(8, 0, b"", b"");
    assert_eq!(refused(&model, Command::TableLoad, &missing), Errno::NXIO);
    good(&model, Command::TableLoad, &load);
    let cleared = good(&model, Command::TableClear, &Bytes::of("a"));
    assert_eq!(flags(&cleared), flag::ACTIVE_PRESENT | (flags(&cleared) & flag::READONLY));
}

#[test]
fn suspend_is_seen_and_flags_that_are_no_state_come_back() {
    let model = model_with(&["a"]);
    let odd = flag::SUSPEND | flag::NOFLUSH | 1 << 10 | 1 << 2;
    let answer = good(&model, Command::DevSuspend, &Bytes::of("a").flags(odd | flag::BUFFER_FULL));
    assert_eq!(flags(&answer), odd);
    assert_eq!(flags(&good(&model, Command::DevStatus, &Bytes::of("a"))), flag::SUSPEND);
}

#[test]
fn lists_need_their_room_and_take_prefixes() {
    let model = Model::default();
    assert_eq!(good(&model, Command::ListDevices, &Bytes::new()).len(), 312);
    for (name, uuid) in [("vg-a", &b"LVM-1"[..]), ("vg-b", b"LVM-2"), ("x", b"")] {
        good(&model, Command::DevCreate, &Bytes::of(name).text(UUID_AT, uuid));
    }
    let list = |bytes: &Bytes| good(&model, Command::ListDevices, bytes);
    let all = list(&Bytes::new());
    assert_eq!((text(&all, 312 + 12), word(&all, 312 + 8)), ("vg-a".into(), 32));
    assert_eq!(all.len(), 312 + 32 + 32 + 24);
    assert_eq!(list(&Bytes::of("vg-").flags(flag::UUID)).len(), 312 + 80);
    assert_eq!(list(&Bytes::of("vg-").text(UUID_AT, b"LVM-2")).len(), 312 + 32);
    let full = list(&Bytes::new().size(312 + 87));
    assert_eq!((full.len(), flags(&full)), (HEADER_LEN_BYTES_MIN, flag::BUFFER_FULL));
    assert_eq!(list(&Bytes::new().size(312 + 88)).len(), 400);
    let tiny = list(&Bytes::new().size(305));
    assert_eq!((tiny.len(), word(&tiny, 16), flags(&tiny)), (305, 305, flag::BUFFER_FULL));
}

#[test]
fn versions_deps_and_messages_answer_in_the_result_area() {
    let model = model_with(&["a"]);
    let versions = good(&model, Command::ListVersions, &Bytes::new());
    assert_eq!(
        (text(&versions, 328), word(&versions, 312), word(&versions, 320)),
        ("zero".into(), 24, 2)
    );
    let linear = good(&model, Command::GetTargetVersion, &Bytes::of("linear"));
    assert_eq!((word(&linear, 312), word(&linear, 320), linear.len()), (0, 5, 312 + 30));
    assert_eq!(refused(&model, Command::GetTargetVersion, &Bytes::of("x")), Errno::INVAL);
    // Without a table there are no devices below, and no result either.
    assert_eq!(good(&model, Command::TableDeps, &Bytes::of("a")).len(), 305);
    good(&model, Command::TableLoad, &Bytes::of("a").spec(8, 0, b"zero", b"\0"));
    good(&model, Command::DevSuspend, &Bytes::of("a"));
    let deps = good(&model, Command::TableDeps, &Bytes::of("a"));
    assert_eq!((deps.len(), word(&deps, 312), word(&deps, 320)), (328, 1, 0xfe07));
    let say = |words: &[u8]| Bytes::of("a").payload(&[&[0; 8], words].concat());
    let said = good(&model, Command::TargetMsg, &say(b"say it\0"));
    assert_eq!((text(&said, 312), said.len(), word(&said, 16)), ("it".into(), 315, 312));
    assert_eq!(flags(&said), flag::ACTIVE_PRESENT | flag::DATA_OUT);
    assert_eq!(good(&model, Command::TargetMsg, &say(b"say\0")).len(), 313);
    assert_eq!(good(&model, Command::TargetMsg, &say(b"hush\0")).len(), 305);
    for bad in [&b" \0"[..], b"@nothing\0", b"what\0", b"\xff\0"] {
        assert_eq!(refused(&model, Command::TargetMsg, &say(bad)), Errno::INVAL);
    }
    let mut full = say(b"say 12345678\0").size(312 + 9);
    full.0.truncate(312 + 21);
    full = full.size(312 + 21);
    assert_eq!(good(&model, Command::TargetMsg, &full).len(), 312 + 9);
}

#[test]
fn a_geometry_is_four_numbers_in_their_ranges() {
    let model = model_with(&["a"]);
    let set = |text: &[u8]| Bytes::of("a").payload(text);
    assert_eq!(good(&model, Command::DevSetGeometry, &set(b"65535 255 255 0\0")).len(), 12);
    for bad in [&b"65536 1 1 0\0"[..], b"1 256 1 0\0", b"1 1 256 0\0", b"1 1 1\0", b"1 1 1 0 x\0"] {
        assert_eq!(refused(&model, Command::DevSetGeometry, &set(bad)), Errno::INVAL);
    }
    assert_eq!(good(&model, Command::DevArmPoll, &Bytes::new()).len(), 305);
}

#[test]
fn random_calls_keep_the_fuzzers_rules() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let texts: [&[u8]; 6] =
        [b"a\0", b"say x\0", b"zero\0", b"1 2 3 0\0", b"@cancel_deferred_remove\0", b"\xff\xff"];
    for _ in 0..2000 {
        let mut input = Vec::new();
        for _ in 0..8 {
            let mut bytes = Bytes::of(["a", "b", ""][random() as usize % 3]);
            bytes = bytes.flags(random() as u32 & 0xf_ffff).word(20, random() as u32 % 3);
            let mut payload = vec![0; random() as usize % 64];
            payload.extend_from_slice(texts[random() as usize % texts.len()]);
            bytes.0.extend_from_slice(&payload);
            for _ in 0..random() % 4 {
                let at = random() as usize % bytes.0.len();
                bytes.0[at] = random() as u8;
            }
            input.extend_from_slice(&[random() as u8 % 20, random() as u8 & 0xfc]);
            input.extend_from_slice(&(bytes.0.len() as u16).to_le_bytes());
            input.extend_from_slice(&bytes.0);
        }
        crate::fuzz::ioctls(&input);
    }
}
