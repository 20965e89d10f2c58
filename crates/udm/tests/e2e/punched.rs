//! `punch` on a file: what died inside segments that are in use is no longer in the file.
//!
//! The same writes go to two volumes in files, one with the option and one without; neither passes
//! whole segments down, so all the difference is punching. What counts is what the file system says
//! the files take.
//!
//! The tricky case is the moment: punching comes after a checkpoint, in the background; the counter
//! of the volume says when it was there.

use super::common::Place;
use super::nbd::NbdClient;
use super::outside::until;
use std::os::unix::fs::MetadataExt;

/// Bytes of a write, and how many make the first round.
const PIECE_BYTES: usize = 64 << 10;
const PIECES: u64 = 128;

fn noise(piece: u64, round: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(round * 1000 + piece);
    let mut bytes = vec![0; PIECE_BYTES];
    rng.fill(&mut bytes);
    bytes
}

fn number(place: &Place, name: &str, counter: &str) -> u64 {
    let stats = place.udm(&["message", name, "0", "stats"]).ok();
    let mut words = stats.split_whitespace().skip_while(|word| *word != counter);
    words.nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[test]
fn a_punched_file_takes_less_space() {
    let place = Place::new();
    let daemon = place.daemon(&[]);
    let socket = place.path("nbd.sock");
    let mut taken = Vec::new();
    for (name, option) in [("with", " punch"), ("without", "")] {
        let disk = place.file(&format!("{name}.img"), 64 << 20);
        place.udm(&["compress", "format", &disk]).ok();
        let words = 1 + usize::from(!option.is_empty());
        let table = format!("0 32768 compress {disk} {words} no_discard_passdown{option}");
        place.udm(&["create", name, "--table", &table]).ok();
        place.udm(&["export", name, "--nbd", &format!("unix:{}", socket.display())]).ok();
        let mut client = NbdClient::connect(&socket, name).expect("connected");
        // Half of everything is overwritten, piece by piece, and the rest stays between.
        for round in 0..2 {
            for piece in (0..PIECES).filter(|piece| round == 0 || piece % 2 == 0) {
                let at = piece * PIECE_BYTES as u64;
                client.write(at, &noise(piece, round), 0).expect("connected").expect("written");
            }
            client.flush().expect("connected").expect("flushed");
            let before = number(&place, name, "checkpoints");
            place.udm(&["message", name, "0", "checkpoint"]).ok();
            until("a checkpoint", || (number(&place, name, "checkpoints") > before).then_some(()));
        }
        if !option.is_empty() {
            let least = PIECES / 4 * PIECE_BYTES as u64;
            until("holes", || (number(&place, name, "punched_bytes") > least).then_some(()));
        }
        for piece in 0..PIECES {
            let at = piece * PIECE_BYTES as u64;
            let read = client.read(at, PIECE_BYTES).expect("connected").expect("read");
            assert!(read == noise(piece, u64::from(piece % 2 == 0)), "piece {piece}");
        }
        drop(client);
        place.udm(&["unexport", name]).ok();
        place.udm(&["remove", name]).ok();
        taken.push(std::fs::metadata(&disk).expect("it is there").blocks() * 512);
        place.udm(&["compress", "check", &disk]).ok();
    }
    drop(daemon);
    let [with, without] = taken[..] else { unreachable!("two volumes") };
    eprintln!("{with} bytes with punch, {without} without");
    let dead = PIECES / 2 * PIECE_BYTES as u64;
    assert!(with + dead / 2 < without, "{with} bytes with punch, {without} without");
}
