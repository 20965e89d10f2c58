//! Certificates for trials and measurements: an authority, a server and a client.
//!
//! Made by openssl with the commands of `docs/fronts/nbd.md`, under the file names that all NBD
//! programs agree on, so that one folder serves both sides. Used by `guest/nbd.rs`, `interop/` and
//! `bench/nbd/`. They last a month and are thrown away with their folder.

use crate::steps::Failed;
use std::path::Path;
use std::process::Command;

/// What makes them.
pub(crate) const TOOL: &str = "openssl";

const EC: [&str; 7] =
    ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/// Makes them in a folder; the server's name is like `DNS:localhost` or `IP:10.0.2.2`.
pub(crate) fn make(dir: &Path, name: &str) -> Result<(), Failed> {
    let authority = ["-subj", "/CN=authority", "-keyout", "ca-key.pem", "-out", "ca-cert.pem"];
    openssl(dir, &authority)?;
    for who in ["server", "client"] {
        let (subject, name) = (format!("/CN={who}"), format!("subjectAltName={name}"));
        let (key, certificate) = (format!("{who}-key.pem"), format!("{who}-cert.pem"));
        openssl(
            dir,
            &[
                &["-subj", &subject, "-keyout", &key, "-out", &certificate][..],
                &["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"],
                &["-addext", &name, "-addext", "basicConstraints=critical,CA:FALSE"],
            ]
            .concat(),
        )?;
    }
    Ok(())
}

fn openssl(dir: &Path, words: &[&str]) -> Result<(), Failed> {
    let output = Command::new(TOOL)
        .args(EC)
        .args(["-days", "30"])
        .args(words)
        .current_dir(dir)
        .output()
        .map_err(Failed::to("start openssl"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failed::new(format!("openssl {}: {why}", words.join(" "))))
}
