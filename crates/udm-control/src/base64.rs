//! Base64 of the standard alphabet with padding, as JSON carries bytes.
//!
//! Both ends of `DmIoctl` use it. Forty lines of table look-ups do not pay for a dependency; what
//! is not exactly base64 is refused, since nobody but us writes it.
//!
//! The tricky case is the last group: its unused bits have to be zero, so that every byte string
//! has one text only.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const PAD: u8 = b'=';

/// Bytes as text.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=group.len()].copy_from_slice(group);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let six = (word >> (18 - 6 * place)) & 63;
            let shown = place <= group.len();
            text.push(char::from(if shown { ALPHABET[six as usize] } else { PAD }));
        }
    }
    text
}

/// Text as bytes; `None` if it is not base64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|byte| **byte == PAD).count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let digits = &text[..text.len() - padding];
    for group in digits.chunks(4) {
        let mut word = 0_u32;
        for byte in group {
            word = word << 6 | six_bits(*byte)?;
        }
        let missing = 4 - group.len();
        word <<= 6 * missing;
        let whole = word.to_be_bytes();
        let (given, unused) = whole[1..].split_at(3 - missing);
        if unused.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(given);
    }
    Some(bytes)
}

fn six_bits(byte: u8) -> Option<u32> {
    Some(match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

    #[test]
    fn the_vectors_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).expect("good"), bytes.as_bytes());
        }
    }

    #[test]
    fn every_length_comes_back_and_only_one_text_is_right() {
        let bytes: Vec<u8> = (0..=255).collect();
        for len in 0..bytes.len() {
            assert_eq!(decode(&encode(&bytes[..len])).expect("good"), &bytes[..len]);
        }
        for bad in ["Z", "Zg", "Zg=", "Zh==", "Zm9=", "====", "Z===", "Zg==Zg==", "Z g=", "Zg-="] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
