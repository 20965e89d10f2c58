//! The `udm` binary: daemon and command line in one. All of it is in the library, so that tests and
//! programs that embed udm reach the same code; see `cli/mod.rs`.
//!
//! Nothing else belongs here: what is in this file, no test can call.
#![forbid(unsafe_code)]

/// Hands over to the command line.
fn main() -> std::process::ExitCode {
    udm::cli::main()
}
