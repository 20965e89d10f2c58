//! The `udm` binary: daemon and command line in one. All of it is in the library, so that tests and
//! programs that embed udm reach the same code; see `cli/mod.rs`.
//!
//! Nothing else belongs here but the allocator: what is in this file, no test can call. The C
//! library's allocator keeps three times of what a compress volume uses: page-aligned buffers and
//! long-lived small nodes of its map cut its memory to pieces that fit neither
//! (docs/benchmarks/compress.md has the numbers).
#![forbid(unsafe_code)]

/// Programs that embed udm have their own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Hands over to the command line.
fn main() -> std::process::ExitCode {
    udm::cli::main()
}
