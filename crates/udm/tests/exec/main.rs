//! `udm exec`: unmodified programs of the kernel's device mapper against our daemon.
//!
//! `session.rs` goes through dmsetup's verbs, `program.rs` compiles a small C program for what
//! dmsetup does not do (poll, signals, copies of descriptors), `many.rs` lets 64 processes at it at
//! once, `lvm.rs` runs LVM2, `nodes.rs` opens nodes. dmsetup is Debian's; without it (or a C
//! compiler) a test says so and passes, except with `CI=true`.
//!
//! The tricky case is the library: no test depends on it as a crate, so it is built here, by the
//! cargo that runs the tests.

#[path = "../common/mod.rs"]
mod common;
#[path = "../judge/mod.rs"]
mod judge;

mod lvm;
mod many;
mod nodes;
mod oracle;
mod parsers;
mod program;
mod session;
mod stats;

use common::{Place, Ran, UDM};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;

/// Builds the preload library beside the binary under test.
fn build_library() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let folder = Path::new(UDM).parent().expect("a folder");
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(other) => other,
            None => panic!("{UDM} is in no folder of a profile"),
        };
        let target = folder.parent().expect("the target folder");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "udm-preload", "--profile", profile, "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo");
        assert!(status.success(), "the preload library does not build");
    });
}

/// True if a program is there; else says what is not tested.
fn has(program: &str) -> bool {
    let there = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|folder| folder.join(program).is_file())
    });
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(there || !ci, "{program} is missing, and CI=true asks for it");
    if !there {
        println!("{program} is not installed; not tested");
    }
    there
}

/// A command that runs through `udm exec`.
fn exec(place: &Place, args: &[&str]) -> Command {
    build_library();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(UDM);
    command
        .arg("exec")
        .args(args)
        .env("UDM_SOCKET", place.path("control.sock"))
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env_remove("UDM_PRELOAD")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs dmsetup.
fn dmsetup(place: &Place, args: &[&str]) -> Ran {
    let args: Vec<&str> = ["dmsetup"].iter().chain(args).copied().collect();
    exec(place, &args).output().expect("ran").into()
}
