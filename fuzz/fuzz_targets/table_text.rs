//! Table text, as a user or a file gives it: parsed, printed, parsed again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udm_core::fuzz::table_text(bytes));
