//! How a device is served, and where: the one thing that tells kinds of exports apart.
//!
//! Calls, `up` files, the state file and the command line each have one optional word for each
//! kind (`nbd`, ...); exactly one of them is given. They all come through
//! [`ExportPlace::one_of`], so the rule and its error are written once.
//!
//! A new kind is a variant here, a field in each of those four, and a file in the daemon. What an
//! address of a kind may look like is the daemon's business.

use udm_core::error::{ErrorCode, UserError};

/// How a device is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExportKind {
    /// Network Block Device.
    Nbd,
    /// A file, mounted.
    Fuse,
    /// vhost-user-blk: the disk of a virtual machine.
    VhostUser,
    /// ublk: a disk of this machine's kernel.
    Ublk,
}

impl ExportKind {
    /// All kinds.
    pub const ALL: &'static [ExportKind] =
        &[ExportKind::Nbd, ExportKind::Fuse, ExportKind::VhostUser, ExportKind::Ublk];

    /// The word of calls and files.
    pub fn word(self) -> &'static str {
        match self {
            ExportKind::Nbd => "nbd",
            ExportKind::Fuse => "fuse",
            ExportKind::VhostUser => "vhost_user",
            ExportKind::Ublk => "ublk",
        }
    }

    /// The kind of a word.
    pub fn of_word(word: &str) -> Option<ExportKind> {
        ExportKind::ALL.iter().copied().find(|kind| kind.word() == word)
    }
}

/// Where a device is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportPlace {
    /// How.
    pub kind: ExportKind,
    /// Where, as its user wrote it.
    pub address: String,
}

impl ExportPlace {
    /// The one that is given.
    ///
    /// # Errors
    /// `BadParameter` if none or more than one is.
    pub fn one_of(given: &[(ExportKind, Option<&str>)]) -> Result<ExportPlace, UserError> {
        let mut places = given.iter().filter_map(|(kind, address)| Some((*kind, (*address)?)));
        match (places.next(), places.next()) {
            (Some((kind, address)), None) => Ok(ExportPlace { kind, address: address.to_owned() }),
            (None, _) => Err(wrong("it is not said how to serve the device")),
            (Some(_), Some(_)) => Err(wrong("an export is served in one way")),
        }
    }
}

fn wrong(what: &str) -> UserError {
    let words: Vec<&str> = ExportKind::ALL.iter().map(|kind| kind.word()).collect();
    UserError::new(ErrorCode::BadParameter, what).hint(format!("give one of: {}", words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::{ExportKind, ExportPlace};

    #[test]
    fn exactly_one_place_is_taken() {
        let nbd = (ExportKind::Nbd, Some("unix:a"));
        assert_eq!(ExportPlace::one_of(&[nbd]).expect("one").address, "unix:a");
        let fuse = (ExportKind::Fuse, Some("a"));
        assert!(ExportPlace::one_of(&[nbd, fuse]).is_err());
        assert!(ExportPlace::one_of(&[(ExportKind::Nbd, None)]).is_err());
    }

    #[test]
    fn words_lead_back_to_their_kinds() {
        for kind in ExportKind::ALL {
            assert_eq!(ExportKind::of_word(kind.word()), Some(*kind));
        }
        assert_eq!(ExportKind::of_word("gopher"), None);
    }
}
