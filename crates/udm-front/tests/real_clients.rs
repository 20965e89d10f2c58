//! Other people's NBD clients against our server: libnbd's tools, QEMU's, fio.
//!
//! Each of them reads the protocol in its own way, and that is what is tested here; what the server
//! does in detail, `tests/nbd` tests. A program that is not installed is named and left out.

#[path = "nbd/rig.rs"]
#[allow(dead_code, reason = "the server's tests use more of it")]
mod rig;

use rig::Rig;
use std::path::Path;
use std::process::Command;
use udm_driver::DriverChoice;

/// Runs a program and gives its output; `None` if it is not installed.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("left out: {program} is not installed");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{complaint}");
    Some(text)
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

/// Runs `test` against a 16 MiB device on each driver.
fn with_server(test: impl Fn(&Rig, &str)) {
    for choice in [DriverChoice::Auto, DriverChoice::Portable] {
        let rig = Rig::new(2, choice, "0 32768 linear mem:16M 0");
        let served = rig.serve(vec![rig.export("vol", false)]);
        test(&rig, &uri(&served.path));
        rig.stop(&served, false);
    }
}

/// A file of 16 MiB that is not zero anywhere.
fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a scratch file");
    let bytes: Vec<u8> = (0..16_u32 << 20).map(|at| (at % 251) as u8 + 1).collect();
    std::fs::write(file.path(), bytes).expect("a scratch file");
    file
}

#[test]
fn nbdinfo_understands_what_we_offer() {
    with_server(|_, uri| {
        let Some(text) = run("nbdinfo", &[uri]) else { return };
        for line in [
            "export-size: 16777216 (16M)",
            "base:allocation",
            "can_multi_conn: true",
            "can_fast_zero: true",
            "can_fua: true",
            "block_size_minimum: 512",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        run("nbdinfo", &["--list", uri]);
        run("nbdinfo", &["--map", uri]);
    });
}

#[test]
fn nbdcopy_brings_an_image_in_and_out() {
    with_server(|_, uri| {
        let (there, back) = (image(), tempfile::NamedTempFile::new().expect("a scratch file"));
        let (from, to) = (there.path().display().to_string(), back.path().display().to_string());
        if run("nbdcopy", &["--flush", &from, uri]).is_some() {
            run("nbdcopy", &[uri, &to]);
            let read = |path: &Path| std::fs::read(path).expect("a scratch file");
            assert!(read(there.path()) == read(back.path()), "the image changed on its way");
        }
    });
}

#[test]
fn qemu_converts_compares_and_plays() {
    with_server(|_, uri| {
        let image = image();
        let file = image.path().display().to_string();
        let convert = ["convert", "-n", "-f", "raw", "-O", "raw", &file, uri];
        if run("qemu-img", &convert).is_some() {
            run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &file, uri]);
        }
        let commands = [
            "write -P 0x55 0 64k",
            "write -f -P 0x66 64k 4k",
            "read -P 0x55 0 64k",
            "read -P 0x66 64k 4k",
            "write -z 1M 1M",
            "write -zu 2M 1M",
            "discard 3M 1M",
            "read -P 0 1M 2M",
            "flush",
        ];
        let mut arguments = vec!["-f", "raw"];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        arguments.push(uri);
        if let Some(text) = run("qemu-io", &arguments) {
            assert!(!text.contains("failed"), "{text}");
        }
    });
}

#[test]
fn fio_verifies_while_tables_are_swapped() {
    with_server(|rig, uri| {
        let uri_argument = format!("--uri={uri}");
        let arguments: Vec<String> = [
            "--name=verify",
            "--ioengine=nbd",
            &uri_argument,
            "--rw=randwrite",
            "--bsrange=4k-128k",
            "--iodepth=32",
            "--numjobs=4",
            "--size=4M",
            "--offset_increment=4M",
            "--loops=8",
            "--verify=crc32c",
            "--verify_fatal=1",
            // It would leave files where the test runs.
            "--verify_state_save=0",
            "--fsync=50",
        ]
        .map(str::to_owned)
        .to_vec();
        let fio = std::thread::spawn(move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            run("fio", &arguments)
        });
        let mut swaps = 0;
        while !fio.is_finished() {
            rig.suspend(true);
            rig.resume(false);
            swaps += 1;
        }
        if let Some(text) = fio.join().expect("fio was content") {
            assert!(text.contains("err= 0"), "{text}");
            println!("{swaps} suspends and resumes");
        }
    });
}
