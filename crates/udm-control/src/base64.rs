//! Base64 of the standard alphabet with padding, as JSON carries bytes.
//!
//! Both ends of `DmIoctl` use it; the preload library by way of this crate.
//!
//! The tricky case is text that is nearly base64: the unused bits of the last group have to be
//! zero and the padding whole, so that every byte string has one text only.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Bytes as text.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Text as bytes; `None` if it is not base64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
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
