//! The `udm` binary: hands the command line to the library.

use clap::Parser;

#[derive(Parser)]
enum Cli {
    Bench(udm::bench::BenchArgs),
}

fn main() -> std::process::ExitCode {
    let Cli::Bench(args) = Cli::parse();
    match udm::bench::run(&args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("udm: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
