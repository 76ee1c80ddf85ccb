//! `sideburn data stats`: how many dialogues there are, and how long they are.

use std::fmt;
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::ensure;
use serde::Serialize;
use sideburn::data::{GroupedSampler, Lengths, Loaded, TokenizedSet, tokenize_cached, tokenize_watched};
use sideburn::prelude::*;

use crate::hub;
use crate::report::{Finding, count, grouped, table, tell};
use crate::source::DataArgs;
use crate::writing::template;

/// Count the examples of a data set, and show how long they are
///
/// With the tokenizer of a model, lengths are tokens of prompts and targets, limits are suggested (the 85th percentile of
/// the prompts and the 90th of the targets), and it is shown how much of batches would be padding on a GPU. Without it, lengths are words of dialogues and references.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Model whose tokenizer counts: a directory, or an id on the hub
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The prompt around a dialogue, whose tokens count as well; or one of dialogsum, t5 and instruction; or a file of it,
    /// .txt or .toml [default: that of the data set]
    #[arg(long, value_name = "TEXT|NAME|FILE", requires = "model", value_parser = template)]
    template: Option<Template>,
    /// Keeps the tokens in this directory, so that the next run need not make them again
    #[arg(long, value_name = "DIR", requires = "model")]
    token_cache: Option<PathBuf>,
    /// Tokens of the batches whose padding is shown
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    batch_tokens: usize,
    /// Lines of each histogram
    #[arg(long, value_name = "COUNT", default_value_t = 12)]
    bins: usize,
    /// What a subsample follows from
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
}

/// How wide the longest bar is.
const BAR: usize = 40;
const PERCENTILES: [f64; 6] = [5.0, 50.0, 85.0, 90.0, 95.0, 99.0];

#[derive(Serialize)]
pub(crate) struct Stats {
    title: String,
    #[serde(flatten)]
    source_of: serde_json::Value,
    seed: u64,
    records: usize,
    examples: usize,
    skipped: Vec<SkippedRecord>,
    /// The fewest and the most references of an example.
    references: [usize; 2],
    /// Dialogues that are those of another example.
    repeated: usize,
    /// What lengths are counted in: tokens or words.
    unit: &'static str,
    source: Distribution,
    target: Distribution,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggest: Option<Suggested>,
    #[serde(skip_serializing_if = "Option::is_none")]
    padding: Option<Padding>,
}

/// Shares of padding among the tokens of batches on a device that pads rows, as GPUs do.
#[derive(Serialize)]
struct Padding {
    /// What a batch has at most, in `by_budget`.
    batch_tokens: usize,
    by_budget: f64,
    /// All prompts as long as the longest, and all targets.
    to_longest: f64,
    /// To 512 and 128 tokens, to which what is longer is cut.
    to_defaults: f64,
}

impl Padding {
    fn of(set: &TokenizedSet, batch_tokens: usize, seed: u64) -> anyhow::Result<Self> {
        let lengths = set.lengths();
        let Limits { max_source_length, max_target_length } = Limits::default();
        let padding = |[source, target]: [usize; 2]| {
            let tokens: usize = lengths.iter().map(|[own, of_target]| own.min(&source) + of_target.min(&target)).sum();
            1.0 - tokens as f64 / ((source + target) * lengths.len()).max(1) as f64
        };
        let longest = [0, 1].map(|part| lengths.iter().map(|of| of[part]).max().unwrap_or_default());
        Ok(Self {
            batch_tokens,
            by_budget: set.padding(&GroupedSampler::by_padded_tokens(&lengths, batch_tokens, seed)?),
            to_longest: padding(longest),
            to_defaults: padding([max_source_length, max_target_length]),
        })
    }
}

#[derive(Serialize)]
struct SkippedRecord {
    at: String,
    reason: String,
}

#[derive(Serialize)]
struct Distribution {
    total: usize,
    mean: f64,
    max: usize,
    percentiles: Vec<(f64, f64)>,
    #[serde(skip)]
    histogram: String,
}

/// Limits that cut few.
#[derive(Serialize)]
struct Suggested {
    max_source_length: usize,
    max_target_length: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Stats> {
    ensure!((1..=1000).contains(&args.bins), "--bins is {}; give 1 to 1000", args.bins);
    let (Loaded { examples, rows, skipped, .. }, title) = args.data.read(Split::Train, args.seed)?;
    let words = |text: &str| text.split_whitespace().count();
    let (mut suggest, mut padding, unit) = (None, None, if args.model.is_some() { "tokens" } else { "words" });
    let [source, target] = match &args.model {
        None => {
            let sources = examples.iter().map(|example| words(&example.source())).collect();
            let targets = examples.iter().flat_map(|example| &example.targets).map(|target| words(target)).collect();
            [sources, targets]
        }
        Some(model) => {
            let template = match &args.template {
                Some(template) => template.clone(),
                None => args.data.dataset().template,
            };
            let tokenizer = Tokenizer::from_dir(hub::model(model)?)?;
            let shows = std::io::stderr().is_terminal();
            let progress = |done| {
                if shows {
                    let end = if done == examples.len() { "\n" } else { "" };
                    tell!("\r{} of {} tokenised{end}", grouped(done), grouped(examples.len()));
                }
            };
            let set = match &args.token_cache {
                Some(cache) => tokenize_cached(cache, &examples, &tokenizer, &template, Limits::NONE, progress)?,
                None => tokenize_watched(&examples, &tokenizer, &template, Limits::NONE, progress)?,
            };
            padding = Some(Padding::of(&set, args.batch_tokens, args.seed)?);
            let Limits { max_source_length, max_target_length } = Limits::suggest(&set);
            suggest = Some(Suggested { max_source_length, max_target_length });
            let lengths =
                |part: fn(&TokenizedExample) -> &Vec<u32>| set.examples.iter().map(|of| part(of).len()).collect();
            [lengths(|of| &of.prompt), lengths(|of| &of.target)]
        }
    };
    let distinct: std::collections::HashSet<_> = examples.iter().map(Example::source).collect();
    let counts = || examples.iter().map(|example| example.targets.len());
    Ok(Stats {
        title,
        source_of: args.data.record(),
        seed: args.seed,
        records: rows,
        examples: examples.len(),
        skipped: skipped
            .iter()
            .map(|record| SkippedRecord { at: record.at.to_string(), reason: record.reason.clone() })
            .collect(),
        references: [counts().min().unwrap_or_default(), counts().max().unwrap_or_default()],
        repeated: examples.len() - distinct.len(),
        unit,
        source: distribution(source, args.bins),
        target: distribution(target, args.bins),
        suggest,
        padding,
    })
}

fn distribution(lengths: Vec<usize>, bins: usize) -> Distribution {
    let total: usize = lengths.iter().sum();
    let mean = total as f64 / lengths.len().max(1) as f64;
    let lengths = Lengths::new(lengths);
    let percentiles = PERCENTILES.map(|percent| (percent, lengths.percentile(percent))).to_vec();
    Distribution { total, mean, max: lengths.max(), percentiles, histogram: lengths.histogram(bins, BAR) }
}

impl Finding for Stats {}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { title, records, examples, skipped, references: [fewest, most], repeated, unit, .. } = self;
        writeln!(
            f,
            "{title}: {}, {}, {} skipped",
            count(*records, "record"),
            count(*examples, "example"),
            grouped(skipped.len())
        )?;
        for SkippedRecord { at, reason } in skipped.iter().take(10) {
            writeln!(f, "  {at}: {reason}")?;
        }
        if skipped.len() > 10 {
            writeln!(f, "  and {} more", grouped(skipped.len() - 10))?;
        }
        let references = if fewest == most { fewest.to_string() } else { format!("{fewest} to {most}") };
        writeln!(f, "{references} references each, {} of another example\n", count(*repeated, "dialogue"))?;
        let head = [unit.to_string(), "total".to_owned(), "mean".to_owned(), "max".to_owned()];
        let percents = PERCENTILES.map(|percent| format!("{percent} %"));
        let [a, b, c, d] = head;
        let [p, q, r, s, t, u] = percents;
        let row = |name: &str, of: &Distribution| {
            let start = [name.to_owned(), grouped(of.total), format!("{:.1}", of.mean), grouped(of.max)];
            let numbers: Vec<String> = of.percentiles.iter().map(|(_, length)| format!("{length:.0}")).collect();
            let [a, b, c, d] = start;
            let [p, q, r, s, t, u] = <[String; 6]>::try_from(numbers).unwrap_or_default();
            [a, b, c, d, p, q, r, s, t, u]
        };
        let (sources, targets) =
            if self.suggest.is_some() { ("prompts", "targets") } else { ("dialogues", "references") };
        table(f, &[[a, b, c, d, p, q, r, s, t, u], row(sources, &self.source), row(targets, &self.target)])?;
        for (name, of) in [(sources, &self.source), (targets, &self.target)] {
            write!(f, "\n{name}, {unit}\n{}", of.histogram)?;
        }
        if let Some(Suggested { max_source_length, max_target_length }) = &self.suggest {
            writeln!(f, "\nsuggested: max_source_length {max_source_length}, max_target_length {max_target_length}")?;
        }
        if let Some(Padding { batch_tokens, by_budget, to_longest, to_defaults }) = &self.padding {
            let [by_budget, to_longest, to_defaults] =
                [by_budget, to_longest, to_defaults].map(|share| format!("{:.1} %", 100.0 * share));
            let Limits { max_source_length, max_target_length } = Limits::default();
            writeln!(
                f,
                "padding on a GPU: {by_budget} in batches of {} tokens, {to_longest} if all are as long as the longest, \
                 {to_defaults} at {max_source_length} and {max_target_length}",
                grouped(*batch_tokens)
            )?;
        }
        Ok(())
    }
}
