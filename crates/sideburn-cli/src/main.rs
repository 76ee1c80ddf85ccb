//! `sideburn`: trains adapters, looks into them, merges, combines and converts them, plans memory, quantises models, holds them
//! against reference numbers, summarises, scores and evaluates summaries, in parts if need be, looks into data sets, pushes
//! adapters, and lists devices.

#![forbid(unsafe_code)]

mod adapter;
mod data;
mod devices;
mod evaluate;
mod hub;
mod interrupt;
mod join;
#[cfg(feature = "judge")]
mod judge;
mod loading;
mod model;
mod plan;
#[cfg(feature = "hub")]
mod push;
mod quantization;
mod quantize;
mod reference;
mod report;
mod rouge;
mod source;
mod summarize;
mod texts;
mod train;
mod verify;
mod writing;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::Report;

const EXAMPLES: &str = "\
Examples:
  An adapter, from the small model and the data of the repository; then one of your own, and on where a run has stopped:
    sideburn train
    sideburn train --set model=flan-t5-base --set data=dialogsum --set num_train_epochs=3 --set eval_strategy=epoch
    sideburn train --resume out/train
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
  A model in 4 bits, which is loaded as it is:
    sideburn quantize --model flan-t5-base --to nf4 --output flan-t5-base-nf4
  Whether there is memory enough to train, before anything is loaded:
    sideburn plan --model falcon-7b --adapter my-adapter --quantization nf4 --batch 1 --seq 512
  How good summaries are, and whether one system is better than another:
    sideburn rouge --predictions lora.txt --against zero-shot.txt --references test.jsonl --stemmer
  What a model makes of a data set with an adapter and without, as a page (results/report.html):
    sideburn evaluate --data dialogsum --model flan-t5-base --adapter my-adapter --stemmer --output results
  The same of summaries that are there already:
    sideburn evaluate --data dialogsum --predictions base=a.txt --predictions lora=b.jsonl --output results
  What a language model behind a server thinks of them (OPENAI_BASE_URL, OPENAI_MODEL, OPENAI_API_KEY):
    sideburn judge --data dialogsum --predictions base=a.txt --predictions lora=b.jsonl --output judged.jsonl
  How long the dialogues of a data set are, and parts of it for training, validation and test:
    sideburn data stats --data dialogues.csv --columns dialogue=text,summary=gist --model flan-t5-base
    sideburn data split --data dialogues.csv --columns dialogue=text,summary=gist --output dialogues --seed 42
  Whether Sideburn computes what transformers computed:
    sideburn verify --model flan-t5-base --adapter my-adapter --reference reference.safetensors
  A summary, shown as it is written, and those of two adapters beside each other:
    sideburn summarize --model flan-t5-base --adapter my-adapter --input dialogue.txt
    sideburn summarize --model flan-t5-base --adapter news --adapter talk --input test.csv --num-beams 4
  Many texts in four parts, on as many machines, and one file of what comes of them:
    sideburn summarize --model flan-t5-base --input texts.jsonl --shard 1/4 --json > part-1.jsonl
    sideburn join part-1.jsonl part-2.jsonl part-3.jsonl part-4.jsonl --output summaries.jsonl
  A summary with a model and an adapter from the hub, and an adapter of your own to it:
    sideburn summarize --model google/flan-t5-small --adapter someone/a-lora@v1.0 --input dialogue.txt
    sideburn push --adapter my-adapter --to you/flan-t5-small-dialogsum-lora
  What there is to compute on:
    sideburn devices

Exit status: 0 if all is well, 1 if a check fails, a part of an adapter cannot be read or a text cannot be summarised or
judged, 2 if a command cannot be run, or train, evaluate or judge was stopped before all was done.";

/// Trains adapters of Hugging Face peft, looks into them, merges, combines and converts them, quantises and verifies models, counts,
/// converts and splits data sets, summarises, scores and evaluates
///
/// Models and adapters are directories as transformers and peft write them, or ids on the Hugging Face hub: OWNER/NAME, or
/// OWNER/NAME@REVISION. What is fetched lies in the cache of huggingface_hub; HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE and
/// HF_ENDPOINT mean what they mean there.
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
    Plan(plan::Args),
    /// Count, convert and split data sets
    #[command(subcommand)]
    Data(data::Command),
    Train(train::Args),
    Quantize(quantize::Args),
    Rouge(rouge::Args),
    #[cfg(feature = "judge")]
    Judge(judge::Args),
    Evaluate(Box<evaluate::Args>),
    Join(join::Args),
    Verify(verify::Args),
    Summarize(summarize::Args),
    #[cfg(feature = "hub")]
    Push(push::Args),
    Devices(devices::Args),
}

/// The exit status if a command cannot be run, or its result cannot be printed.
const CANNOT: u8 = 2;

fn main() -> ExitCode {
    let Cli { json, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => return show_usage(&usage),
    };
    let report = match command {
        Command::Adapter(command) => adapter::run(command),
        Command::Plan(args) => plan::run(&args).map(Report::new),
        Command::Data(command) => data::run(command),
        Command::Train(args) => match train::run(&args) {
            // Another process writes.
            Ok(None) => return ExitCode::SUCCESS,
            Ok(Some(report)) => Ok(report),
            Err(error) => Err(error),
        },
        Command::Quantize(args) => quantize::run(&args).map(Report::new),
        Command::Rouge(args) => rouge::run(&args).map(Report::new),
        #[cfg(feature = "judge")]
        Command::Judge(args) => judge::run(&args).map(Report::new),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Join(args) => join::run(&args).map(Report::new),
        Command::Verify(args) => verify::run(&args).map(Report::new),
        Command::Summarize(args) => return ended(summarize::run(&args.with_json(json))),
        #[cfg(feature = "hub")]
        Command::Push(args) => push::run(&args).map(Report::new),
        Command::Devices(args) => Ok(Report::new(devices::run(args))),
    };
    ended(report.and_then(|report| {
        printed(writeln!(io::stdout(), "{}", if json { &report.json } else { &report.text }))?;
        Ok(report.passed)
    }))
}

/// The status of a command that ended well, or not, or could not be run.
fn ended(passed: anyhow::Result<bool>) -> ExitCode {
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            complain(&report::chain(&error));
            ExitCode::from(CANNOT)
        }
    }
}

/// Prints what clap has to say: the help or the version that was asked for, or what is wrong with the arguments.
fn show_usage(usage: &clap::Error) -> ExitCode {
    if usage.use_stderr() {
        // The arguments are quoted in it.
        complain(report::for_terminal(&usage.render().to_string()).trim_end().trim_start_matches("error: "));
        return ExitCode::from(CANNOT);
    }
    ended(printed(usage.print()).map(|()| true))
}

/// Sees to it that the standard output has taken all that was written.
fn printed(written: io::Result<()>) -> anyhow::Result<()> {
    report::is_closed(written.and_then(|()| io::stdout().flush())).map(drop)
}

fn complain(message: &str) {
    // There is nowhere to tell of a standard error that is closed.
    let _ = writeln!(io::stderr(), "error: {message}");
}
