//! `sideburn data`: what can be done with dialogues before a model sees them.

mod convert;
mod split;
mod stats;

use clap::Subcommand;

use crate::report::Report;

#[derive(Subcommand)]
pub(crate) enum Command {
    Stats(stats::Args),
    Convert(convert::Args),
    Split(split::Args),
}

pub(crate) fn run(command: Command) -> anyhow::Result<Report> {
    match command {
        Command::Stats(args) => stats::run(&args).map(Report::new),
        Command::Convert(args) => convert::run(&args).map(Report::new),
        Command::Split(args) => split::run(&args).map(Report::new),
    }
}
