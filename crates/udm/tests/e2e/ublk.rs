//! A disk of the kernel, where there is none: what is missing is said, and nothing is left behind.
//!
//! Disks that work are tested in a guest (`cargo xtask guest ublk`).

use super::common::Place;

#[test]
fn a_kernel_without_ublk_says_what_to_do() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    place.udm(&["create", "d", "--table", "0 2048 zero"]).ok();
    let refused = place.udm(&["export", "d", "--ublk", "disk"]);
    refused.fails("UDM-0503");
    if std::path::Path::new("/dev/ublk-control").exists() {
        eprintln!("this machine has ublk; left out: what one without it says");
        return;
    }
    for words in [&["export", "d", "--ublk"][..], &["export", "d", "--ublk", "3"]] {
        let refused = place.udm(words);
        assert!(refused.err.contains("modprobe ublk_drv"), "{}", refused.err);
        refused.fails("UDM-0506");
    }
    assert!(place.udm(&["exports"]).ok().contains("No exports found"));
    // Nothing holds the device.
    place.udm(&["remove", "d"]).ok();
}
