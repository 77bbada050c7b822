//! The command `prune`: inspect, diagnose, plan, compress, quantise, convert, verify, compare and
//! evaluate model checkpoints.

mod args;
mod commands;
mod compress;
mod convert;
mod diagnose;
mod error;
mod flags;
mod kv;
mod model;
mod output;
mod progress;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

/// Tensors come and go by the thousand; the allocators of most systems give each back to the kernel.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match commands::run(args::Cli::parse().command) {
        Ok(()) => match output::failure() {
            None => ExitCode::SUCCESS,
            Some(error) => {
                eprintln!("error: standard output: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(e) = cause {
                eprintln!("  because: {e}");
                cause = e.source();
            }
            ExitCode::from(error.exit_code())
        }
    }
}
