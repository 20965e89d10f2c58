//! The status of `striped`: `COUNT {DEVICE} 1 LETTERS`.
//!
//! One letter for each leg in table order: `A` while it has had no error since the table went live,
//! `D` (dead) after the first. The counters are summed over the lanes before they come here; they
//! are empty if no lane serves the table (an inactive one), which reads as "no error".
//!
//! The `1` is Linux's: the number of words that follow.

use alloc::format;
use alloc::string::String;

/// The status of legs shown as `devices`, with their error counts.
pub(super) fn print<'a>(devices: impl ExactSizeIterator<Item = &'a str>, errors: &[u64]) -> String {
    let mut text = format!("{}", devices.len());
    let mut letters = String::new();
    for (index, device) in devices.enumerate() {
        text.push(' ');
        text.push_str(device);
        let healthy = errors.get(index).is_none_or(|&errors| errors == 0);
        letters.push(if healthy { 'A' } else { 'D' });
    }
    text.push_str(" 1 ");
    text.push_str(&letters);
    text
}

#[cfg(test)]
mod tests {
    use super::print;

    #[test]
    fn letters_follow_the_legs() {
        let legs = ["1:0", "1:1", "1:0"];
        assert_eq!(print(legs.into_iter(), &[0, 3, 0]), "3 1:0 1:1 1:0 1 ADA");
        assert_eq!(print(legs.into_iter(), &[]), "3 1:0 1:1 1:0 1 AAA");
    }
}
