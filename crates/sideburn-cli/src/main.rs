//! `sideburn`: looks into adapters, merges, combines and converts them, and holds a model against reference numbers.

#![forbid(unsafe_code)]

mod adapter;
mod forward;
mod reference;
mod report;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::Report;

const EXAMPLES: &str = "\
Examples:
  What is in an adapter, and how strong it is at each site:
    sideburn adapter inspect my-adapter --sites
  Whether it fits a base model:
    sideburn adapter check my-adapter --base flan-t5-base
  A model of its own, for programs that know no adapters:
    sideburn adapter merge my-adapter --base flan-t5-base --output merged --precision bf16
  One adapter out of several:
    sideburn adapter combine news talk --weights 0.7,0.3 --base flan-t5-base --output both
  adapter_model.bin to adapter_model.safetensors:
    sideburn adapter convert old-adapter --output my-adapter
  Whether Sideburn computes what transformers computed:
    sideburn verify --model flan-t5-base --adapter my-adapter --reference reference.safetensors

Exit status: 0 if all is well, 1 if a check fails, 2 if a command cannot be run.";

/// Looks into adapters of Hugging Face peft, merges, combines and converts them, and holds a model against reference numbers
///
/// Models and adapters are directories as transformers and peft write them. Nothing is fetched from a network.
#[derive(Parser)]
#[command(name = "sideburn", version, after_help = EXAMPLES)]
struct Cli {
    /// Print one JSON object to the standard output, and nothing else
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Inspect, check, merge, combine and convert adapters
    #[command(subcommand)]
    Adapter(adapter::Command),
    Verify(verify::Args),
}

fn main() -> ExitCode {
    let Cli { json, command } = Cli::parse();
    let report = match command {
        Command::Adapter(command) => adapter::run(command),
        Command::Verify(args) => verify::run(&args).map(Report::new),
    };
    match report {
        Ok(report) => {
            // Whoever closes the pipe early has read enough.
            let _ = writeln!(std::io::stdout(), "{}", if json { &report.json } else { &report.text });
            if report.passed { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", report::chain(&error));
            ExitCode::from(2)
        }
    }
}
