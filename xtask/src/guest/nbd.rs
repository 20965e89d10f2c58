//! A guest's kernel is the NBD client: `/dev/nbd0` is a mapped device, by nbd-client and TCP.
//!
//! The guest reaches this machine's loopback by QEMU's user network. It connects two disks to one
//! device, over several connections each: one in the clear, later one by TLS. It makes a file
//! system, writes files in rounds and reads them back, while the host swaps and grows the table.
//!
//! The tricky case is growth: the kernel's client learns a size when it connects, and only then.
//! It takes another one by netlink, for which nbd-client has no word: `nbd-size.c` says it, and the
//! file system grows in use. Kills are not tried: without a time-out of its own choosing, which
//! nbd-client cannot set, this client fails its requests when the connection is lost.

use super::host::{Host, START_SECTORS};
use super::kernel::kernel;
use super::machine::{self, Contents, LIMIT_S, Machine};
use crate::certificates;
use crate::steps::{Failed, is_installed, run as run_command};
use std::path::{Path, PathBuf};
use std::process::Command;

const MODULES: [&str; 5] = ["virtio_net", "qemu_fw_cfg", "nbd", "crc32c_generic", "ext4"];
const PROGRAMS: [&str; 4] = ["nbd-client", "mkfs.ext4", "e2fsck", "resize2fs"];

/// How much.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds of files; the table is swapped in each.
    #[arg(long, default_value_t = 4)]
    pub(crate) rounds: u32,
    /// The udm to try; a release build if left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) udm: Option<PathBuf>,
}

/// True if the programs for this guest are there.
pub(crate) fn is_possible() -> bool {
    is_installed("nbd-client") && is_installed(certificates::TOOL)
}

/// Runs a guest to its end.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    if !is_possible() {
        return Err(Failed::new("the packages nbd-client and openssl are needed"));
    }
    let mut host = Host::start(root, args.udm.as_ref())?;
    certificates::make(&host.dir, "IP:10.0.2.2")?;
    let size = host.dir.join("nbd-size");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-Wall", "-static", "-o"]).arg(&size).arg("xtask/src/guest/nbd-size.c");
    run_command(root, &mut cc)?;
    let contents = Contents {
        init: concat!(include_str!("common-init"), include_str!("nbd-init")),
        modules: &MODULES,
        programs: &PROGRAMS,
        built: &[size],
    };
    let kernel = kernel(root, None)?;
    machine::pack(&host.dir, &kernel, &contents)?;
    let export = |name: &str, options: &[&str]| {
        let mut words = vec!["export", "vm", "--nbd", "tcp:127.0.0.1:0", "--name", name];
        words.extend(options);
        host.udm(&words).and_then(|uri| port_of(&uri))
    };
    let plain = export("vm", &[])?;
    let secured = export("tls", &["--tls-certificates", &host.path("")])?;
    let machine = Machine {
        kernel: Some(&kernel),
        memory_mib: 512,
        limit_s: LIMIT_S,
        words: &format!("udm_rounds={} udm_port={plain} udm_tls={secured}", args.rounds),
        devices: &[
            "-netdev",
            "user,id=net",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
            "-fw_cfg",
            "name=opt/udm/ca,file=ca-cert.pem",
        ],
    };
    let qemu = machine::start(&host.dir, &machine)?;
    let told = machine::follow(qemu, |said| answer(&mut host, said))?;
    told.expect_last(&format!("ok {}", host.len_sectors))?;
    println!("{} rounds, {} swaps, grown once: all is well", args.rounds, host.swaps);
    Ok(())
}

/// Does something to the device after a line of the guest.
fn answer(host: &mut Host, said: &str) -> Result<(), Failed> {
    let words: Vec<&str> = said.split(' ').collect();
    let is = |size: &str, wanted: u64| {
        let right = size == wanted.to_string();
        if right { Ok(()) } else { Err(Failed::new(format!("{said}: {wanted} is right"))) }
    };
    match words[..] {
        ["disk", size] | ["kept", size] => is(size, START_SECTORS),
        ["grown", size] | ["secured", size] => is(size, host.len_sectors),
        ["failed:", ..] => Err(Failed::new(format!("the guest {said}"))),
        ["growing"] => {
            host.grow();
            host.swap()
        }
        // Files are being written at this moment.
        ["round", _] | ["mounted"] | ["done", _] => host.swap(),
        _ => Ok(()),
    }
}

/// The port of `nbd://127.0.0.1:PORT/NAME`.
fn port_of(uri: &str) -> Result<u16, Failed> {
    let port = uri.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next());
    port.and_then(|port| port.parse().ok())
        .ok_or_else(|| Failed::new(format!("there is no port in {uri}")))
}

/// An authority and a server's certificate, in the host's folder.
#[cfg(test)]
mod tests {
    use super::port_of;

    #[test]
    fn the_port_of_an_address_is_found() {
        assert_eq!(port_of("nbd://127.0.0.1:4711/vm\n").ok(), Some(4711));
        assert!(port_of("nbd+unix:///vm?socket=/a").is_err());
    }
}
