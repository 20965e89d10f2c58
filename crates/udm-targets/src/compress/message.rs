//! The messages of a compress target: what their words mean.
//!
//! Rules. Words only; what an order does, and whether it can be done now, is the business of the
//! target and the volume. The tricky case is a size: tables speak in sectors, so messages do too.

use super::volume::ResizeFault;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use udm_core::{ErrorCode, UserError};
use udm_types::SECTOR_BYTES;

/// What a message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// `checkpoint`
    Checkpoint,
    /// `scrub`
    Scrub,
    /// `stats`
    Stats,
    /// `shrink`: the logical size
    Shrink,
    /// `shrink_disk SECTORS`
    ShrinkDisk(u64),
    /// `shrink_disk stop`
    StopShrinking,
    /// `grow_disk`
    GrowDisk,
    /// `gc SEGMENTS`
    Gc(u32),
}

impl Order {
    /// Parses the words of a message.
    pub(super) fn parse(words: &[&str]) -> Result<Order, UserError> {
        match words {
            ["checkpoint"] => Ok(Order::Checkpoint),
            ["scrub"] => Ok(Order::Scrub),
            ["stats"] => Ok(Order::Stats),
            ["shrink"] => Ok(Order::Shrink),
            ["shrink_disk", "stop"] => Ok(Order::StopShrinking),
            ["shrink_disk", sectors] => {
                number(sectors, "sectors, or stop", words).map(Order::ShrinkDisk)
            }
            ["grow_disk"] => Ok(Order::GrowDisk),
            ["gc", count] => {
                let count = number(count, "segments", words)?;
                Ok(Order::Gc(u32::try_from(count).unwrap_or(u32::MAX)))
            }
            other => {
                let words: Vec<String> = other.iter().map(|&word| word.into()).collect();
                Err(UserError::unknown_message(&words))
            }
        }
    }
}

fn number(word: &str, of: &str, words: &[&str]) -> Result<u64, UserError> {
    match word.parse::<u64>() {
        Ok(number) if number > 0 => Ok(number),
        Ok(_) | Err(_) => {
            let text = format!("{} takes a number of {of}, not '{word}'", words[0]);
            Err(UserError::new(ErrorCode::BadMessage, text))
        }
    }
}

/// Why the disk cannot become so small, in sectors.
pub(super) fn cannot_shrink(fault: ResizeFault) -> UserError {
    let text = match fault {
        ResizeFault::Disk { least_bytes, most_bytes } => format!(
            "the volume can use {} to {} sectors of its device",
            least_bytes / SECTOR_BYTES,
            most_bytes / SECTOR_BYTES
        ),
        other @ (ResizeFault::NotServing
        | ResizeFault::Busy
        | ResizeFault::Logical { .. }
        | ResizeFault::NoRoomForMap
        | ResizeFault::NoRoom
        | ResizeFault::Stuck
        | ResizeFault::GivenUp
        | ResizeFault::DiskTooLarge
        | ResizeFault::Failed(_)) => other.to_string(),
    };
    UserError::new(ErrorCode::VolumeSizes, text)
}

#[cfg(test)]
mod tests {
    use super::Order;

    #[test]
    fn words_are_orders() {
        assert_eq!(Order::parse(&["gc", "3"]).ok(), Some(Order::Gc(3)));
        assert_eq!(Order::parse(&["shrink_disk", "2048"]).ok(), Some(Order::ShrinkDisk(2048)));
        assert_eq!(Order::parse(&["shrink_disk", "stop"]).ok(), Some(Order::StopShrinking));
        for wrong in [&["gc"][..], &["gc", "0"], &["shrink_disk", "-1"], &["grow_disk", "9"], &[]] {
            assert!(Order::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
