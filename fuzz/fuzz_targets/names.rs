//! Names and uuids: whatever is accepted keeps the rules, and prints back what went in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use udm_types::{DmName, DmUuid, NAME_LEN_BYTES_MAX, UUID_LEN_BYTES_MAX};

fuzz_target!(|text: &str| {
    if let Ok(name) = DmName::new(text) {
        assert!((1..=NAME_LEN_BYTES_MAX).contains(&text.len()));
        assert!(!text.contains(['/', '\0']));
        assert_eq!(name.to_string(), text);
    }
    if let Ok(uuid) = DmUuid::new(text) {
        assert!((1..=UUID_LEN_BYTES_MAX).contains(&text.len()));
        assert_eq!(uuid.to_string(), text);
    }
});
