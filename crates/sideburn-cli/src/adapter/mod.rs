//! `sideburn adapter`: what can be done with the directory of an adapter.

mod check;
mod combine;
pub(crate) mod companions;
mod convert;
mod halves;
mod inspect;
mod merge;
mod on_base;
mod tensors;

use clap::Subcommand;

use crate::report::Report;

#[derive(Subcommand)]
pub(crate) enum Command {
    Inspect(inspect::Args),
    Check(check::Args),
    Merge(merge::Args),
    Combine(combine::Args),
    Convert(convert::Args),
}

pub(crate) fn run(command: Command) -> anyhow::Result<Report> {
    match command {
        Command::Inspect(args) => inspect::run(&args).map(Report::new),
        Command::Check(args) => check::run(&args).map(Report::new),
        Command::Merge(args) => merge::run(&args).map(Report::new),
        Command::Combine(args) => combine::run(&args).map(Report::new),
        Command::Convert(args) => convert::run(&args).map(Report::new),
    }
}
