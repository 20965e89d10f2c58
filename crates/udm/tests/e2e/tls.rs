//! NBD over TLS with other people's clients: libnbd's tools and QEMU's, which speak it by GnuTLS.

use super::certs::{Authority, put};
use super::common::{Daemon, Place, UDM};
use super::outside::{Running, have, run, until};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const LEN_BYTES: u64 = 32 << 20;

/// A daemon with a device, and certificates for its users.
struct Secured {
    place: Place,
    daemon: Daemon,
    authority: Authority,
    pki: TempDir,
}

/// A daemon that keeps its state, with the device `disk`, and the file below that.
fn daemon_with_disk(place: &Place) -> (Daemon, String) {
    let state = place.text("state");
    let daemon = place.daemon(&["--state", &state]);
    let file = place.file("disk.img", LEN_BYTES);
    let table = format!("0 {} linear {file} 0", LEN_BYTES / 512);
    place.udm(&["create", "disk", "--table", &table]).ok();
    (daemon, file)
}

impl Secured {
    fn start() -> Secured {
        let place = Place::new();
        let (daemon, _) = daemon_with_disk(&place);
        let authority = Authority::new();
        let pki = authority.directory();
        Secured { place, daemon, authority, pki }
    }

    /// Serves the device at a socket of this name; the URI.
    fn export(&self, name: &str, options: &[&str]) -> String {
        self.export_at(&format!("unix:{}", self.place.text(name)), name, options)
    }

    /// As `export`, at another kind of address.
    fn export_at(&self, address: &str, name: &str, options: &[&str]) -> String {
        let pki = self.pki();
        let mut args = vec!["export", "disk", "--nbd", address, "--name", name];
        args.extend(["--tls-certificates", &pki]);
        args.extend(options);
        self.place.udm(&args).ok().trim().to_owned()
    }

    fn pki(&self) -> String {
        self.pki.path().display().to_string()
    }
}

/// A URI with the certificates that a client is to use.
fn with_files(uri: &str, dir: &Path) -> String {
    let mark = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{mark}tls-certificates={}", dir.display())
}

/// A URI without TLS.
fn in_the_clear(uri: &str) -> String {
    uri.replacen("nbds", "nbd", 1)
}

/// A directory that trusts the authority but has no identity.
fn trust_only(authority: &Authority) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    put(dir.path(), "ca-cert.pem", &authority.pem);
    dir
}

#[test]
fn libnbd_goes_in_and_out_over_tls() {
    if !have(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let secured = Secured::start();
    let uri = with_files(&secured.export("tls", &[]), secured.pki.path());
    let text = run("nbdinfo", &[&uri]).ok();
    assert!(text.contains("with TLS") && text.contains("export-size: 33554432"), "{text}");
    run("nbdinfo", &["--list", &uri]).ok();
    run("nbdinfo", &["--map", &uri]).ok();
    let (image, back) = (secured.place.file("in.img", LEN_BYTES), secured.place.text("out.img"));
    let bytes: Vec<u8> = (0..LEN_BYTES).map(|at| (at % 251) as u8 + 1).collect();
    std::fs::write(&image, &bytes).expect("written");
    run("nbdcopy", &["--flush", &image, &uri]).ok();
    run("nbdcopy", &[&uri, &back]).ok();
    assert!(std::fs::read(&back).expect("read") == bytes, "the image changed on its way");
}

#[test]
fn qemu_reads_and_writes_over_tls_while_tables_are_swapped() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let secured = Secured::start();
    secured.export("tls", &["--tls-verify-peer"]);
    let socket = secured.place.text("tls");
    let creds = format!("tls-creds-x509,id=t,dir={},endpoint=client", secured.pki());
    let image = format!(
        "driver=nbd,server.type=unix,server.path={socket},export=tls,tls-creds=t,\
         tls-hostname=localhost"
    );
    let info = run("qemu-img", &["info", "--object", &creds, "--image-opts", &image]).ok();
    assert!(info.contains("32 MiB"), "{info}");
    let mut args = vec!["--object", &creds, "--image-opts", &image];
    for command in [
        "write -P 0x55 0 1M",
        "write -f -P 0x66 1M 4k",
        "write -z 2M 1M",
        "discard 3M 1M",
        "aio_write -P 0x77 4M 8M",
        "aio_flush",
        "read -P 0x55 0 1M",
        "read -P 0x66 1M 4k",
        "read -P 0 2M 1M",
        "read -P 0x77 4M 8M",
        "flush",
    ] {
        args.extend(["-c", command]);
    }
    let mut client = Running::start(Command::new("qemu-io").args(args));
    while client.is_running() {
        secured.place.udm(&["suspend", "--noflush", "disk"]).ok();
        secured.place.udm(&["resume", "disk"]).ok();
    }
    let text = client.wait().ok();
    assert!(!text.contains("failed"), "{text}");
}

#[test]
fn who_must_not_get_in_does_not() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let secured = Secured::start();
    let refused = |uri: &str, words: &str| {
        let ended = run("nbdinfo", &["--size", uri]);
        assert_eq!(ended.code, Some(1), "{uri}: {}", ended.out);
        assert!(ended.err.contains(words), "{uri}: {}", ended.err);
    };
    let required = secured.export("required", &[]);
    refused(&in_the_clear(&required), "TLS");
    let stranger = Authority::new();
    // The client does not trust our certificate. libnbd looks at it only if it knows a host's name.
    let tcp = secured.export_at("tcp:127.0.0.1:0", "tcp", &[]);
    run("nbdinfo", &["--size", &with_files(&tcp, secured.pki.path())]).ok();
    refused(&with_files(&tcp, stranger.directory().path()), "certificate");

    let verified = secured.export("verified", &["--tls-verify-peer"]);
    run("nbdinfo", &["--size", &with_files(&verified, secured.pki.path())]).ok();
    refused(&with_files(&verified, trust_only(&secured.authority).path()), "");
    // It trusts us, but we do not trust it.
    let mixed = stranger.directory();
    put(mixed.path(), "ca-cert.pem", &secured.authority.pem);
    refused(&with_files(&verified, mixed.path()), "");

    let allowed = secured.export("allowed", &["--tls", "on"]);
    run("nbdinfo", &["--size", &in_the_clear(&allowed)]).ok();
    run("nbdinfo", &["--size", &with_files(&allowed, secured.pki.path())]).ok();
}

#[test]
fn options_that_cannot_be_kept_are_refused() {
    let secured = Secured::start();
    let socket = format!("unix:{}", secured.place.text("a"));
    let pki = secured.pki();
    let export = |options: &[&str]| {
        let args: Vec<&str> =
            ["export", "disk"].into_iter().chain(options.iter().copied()).collect();
        secured.place.udm(&args)
    };
    let error = export(&["--nbd", &socket, "--tls-psk", "/nowhere"]).fails("UDM-0511");
    assert!(error.contains("/nowhere: No such file"), "{error}");
    let both = ["--nbd", &socket, "--tls-psk", "keys", "--tls-certificates", &pki];
    assert_eq!(export(&both).code, Some(2));
    let error = export(&["--nbd", &socket, "--tls-psk", "/nowhere", "--tls-verify-peer"]);
    assert!(error.fails("UDM-0403").contains("certificates"));
    let fuse = secured.place.text("file");
    let error = export(&["--fuse", &fuse, "--tls-certificates", &pki]).fails("UDM-0403");
    assert!(error.contains("fuse has no TLS"), "{error}");
    assert_eq!(export(&["--nbd", &socket, "--tls-verify-peer"]).code, Some(2));
    let error = export(&["--nbd", &socket, "--tls-certificates", "/nowhere"]).fails("UDM-0511");
    assert!(error.contains("/nowhere/server-cert.pem: No such file"), "{error}");
    std::fs::remove_file(secured.pki.path().join("ca-cert.pem")).expect("it was there");
    let error = export(&["--nbd", &socket, "--tls-certificates", &pki, "--tls-verify-peer"]);
    assert!(error.fails("UDM-0511").contains("ca-cert.pem"));
    assert_eq!(secured.place.udm(&["exports"]).ok(), "No exports found\n", "nothing is left");
}

#[test]
fn a_killed_daemon_comes_back_with_tls() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let secured = Secured::start();
    let uri = secured.export("tls", &["--tls-verify-peer"]);
    let Secured { place, daemon, pki, .. } = secured;
    daemon.kill();
    let _daemon = place.daemon(&["--state", &place.text("state")]);
    run("nbdinfo", &["--size", &with_files(&uri, pki.path())]).ok();
    assert_eq!(run("nbdinfo", &["--size", &in_the_clear(&uri)]).code, Some(1));
}

#[test]
fn a_file_for_up_says_what_tls_is() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let (authority, place) = (Authority::new(), Place::new());
    let pki = authority.directory();
    let text = format!(
        "[[device]]\nname = \"disk\"\ntable = \"0 8192 linear mem:4M 0\"\n\n\
         [[export]]\ndevice = \"disk\"\nnbd = \"unix:up.sock\"\n\
         [export.tls]\ncertificates = \"{}\"\nverify_peer = true\n",
        pki.path().display()
    );
    std::fs::write(place.path("up.toml"), &text).expect("written");
    let socket = place.path("control.sock");
    let up = |file: &str| {
        let mut command = Command::new(UDM);
        command.arg("up").arg(place.path(file)).env("UDM_SOCKET", &socket);
        command
    };
    let mut served = Running::start(&mut up("up.toml"));
    until("it is served", || {
        assert!(served.is_running(), "it has ended");
        place.udm(&["exports"]).out.contains("nbds+unix").then_some(())
    });
    let uri = format!("nbds+unix:///disk?socket={}", place.text("up.sock"));
    run("nbdinfo", &["--size", &with_files(&uri, pki.path())]).ok();
    assert_eq!(run("nbdinfo", &["--size", &in_the_clear(&uri)]).code, Some(1));
    drop(served);
    let fuse = text.replace("nbd = \"unix:up.sock\"", "fuse = \"file\"");
    std::fs::write(place.path("fuse.toml"), fuse).expect("written");
    let refused = Running::start(&mut up("fuse.toml")).wait();
    assert!(refused.err.contains("tls: it is for nbd only"), "{}", refused.err);
}

/// Writes a file that nobody else may read.
fn secret_file(place: &Place, name: &str, text: &str) -> String {
    std::fs::write(place.path(name), text).expect("written");
    run("chmod", &["600", &place.text(name)]).ok();
    place.text(name)
}

#[test]
fn clients_with_a_shared_key_get_in_and_others_do_not() {
    if !have(&["nbdinfo", "nbdcopy", "qemu-img"]) {
        return;
    }
    let place = Place::new();
    let (daemon, file) = daemon_with_disk(&place);
    let (alice, bob) = ("a1".repeat(32), "b0".repeat(32));
    let keys = secret_file(&place, "keys.psk", &format!("alice:{alice}\nbob:{bob}\n"));
    let address = format!("unix:{}", place.text("n"));
    let uri = place.udm(&["export", "disk", "--nbd", &address, "--tls-psk", &keys]).ok();
    let uri = uri.trim();
    let who = |name: &str, file: &str| {
        format!("{}&tls-psk-file={file}", uri.replacen("://", &format!("://{name}@"), 1))
    };
    let size = LEN_BYTES.to_string();
    for name in ["alice", "bob"] {
        let told = run("nbdinfo", &["--size", &who(name, &keys)]).ok();
        assert_eq!(told.trim(), size, "{name}");
    }
    let stolen = secret_file(&place, "stolen.psk", &format!("alice:{bob}\neve:{bob}\n"));
    for uri in [who("alice", &stolen), who("eve", &stolen), in_the_clear(uri)] {
        assert_ne!(run("nbdinfo", &["--size", &uri]).code, Some(0), "{uri}");
    }
    let data: Vec<u8> = (0..LEN_BYTES).map(|at| ((at * 31) >> 7) as u8).collect();
    std::fs::write(place.path("data"), &data).expect("written");
    run("nbdcopy", &["--flush", &place.text("data"), &who("alice", &keys)]).ok();
    assert!(std::fs::read(&file).expect("read") == data, "it is on the disk");
    // The next daemon has the keys as well.
    daemon.kill();
    let _daemon = place.daemon(&["--state", &place.text("state")]);
    run("nbdcopy", &[&who("bob", &keys), &place.text("back")]).ok();
    assert!(std::fs::read(place.path("back")).expect("read") == data);
    // QEMU looks for keys.psk in a folder.
    let secret =
        format!("tls-creds-psk,id=t,endpoint=client,username=bob,dir={}", place.path("").display());
    let image = format!("driver=nbd,path={},export=disk,tls-creds=t", place.text("n"));
    let told = run("qemu-img", &["info", "--object", &secret, "--image-opts", &image]).ok();
    assert!(told.contains("32 MiB"), "{told}");
}
