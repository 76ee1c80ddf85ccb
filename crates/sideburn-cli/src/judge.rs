//! `sideburn judge`: summaries, as a language model scores them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sideburn::data::{Loaded, Shard, ShardHeader};
use sideburn::eval::{Interval, bootstrap};
use sideburn::files::write_atomic;
use sideburn::judge::{
    Agreement, Chat, Endpoint, EndpointConfig, Item, Judge, JudgeConfig, Judged, Progress, Rating, Usage, Verdict,
    compare_ratings,
};
use sideburn::prelude::*;

use crate::interrupt::stop_on_signals;
use crate::join::Job;
use crate::report::{Finding, count, in_line, shown, table, tell};
use crate::source::DataArgs;
use crate::texts::{Named, check_names, read_predictions};

/// Have a language model score summaries for relevance, coherence, consistency and fluency, from 1 to 5
///
/// The model is behind a server with OpenAI's interface, which the environment names: OPENAI_BASE_URL (such as
/// http://localhost:8000/v1), OPENAI_MODEL, and OPENAI_API_KEY where the server wants a key. It is shown the dialogue and a
/// summary, and no reference. What it has answered is kept, so that a run that was stopped goes on, and a second one asks
/// nothing.
///
/// The output is JSON Lines: for each summary id, system, scores, reasons, and why a score is missing (failed); then for each
/// system the means with their intervals. Files of such lines, by other judges or by people, are compared with --against.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// What a system wrote; several times for several systems
    #[arg(long, value_name = "[NAME=]FILE", required = true)]
    predictions: Vec<Named>,
    /// The field of the objects in .jsonl files of predictions [default: summary; without it, each field is a system]
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// The file that is written
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Scores of the same summaries by another judge or by people: JSON Lines with id, system and scores
    #[arg(long, value_name = "FILE")]
    against: Vec<PathBuf>,
    /// Only score a part of the dialogues: 2/4 is the second of four. sideburn join makes one of what all parts have written
    #[arg(long, value_name = "I/N", conflicts_with = "against")]
    shard: Option<Shard>,
    /// Where answers are kept [default: the output's name with .cache behind it]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Questions under way at once
    #[arg(long, value_name = "COUNT", default_value_t = JudgeConfig::default().concurrency)]
    concurrency: usize,
    /// The most questions in a minute [default: as many as the server takes]
    #[arg(long, value_name = "COUNT")]
    requests_per_minute: Option<f64>,
    /// The price of a million tokens that are read, to know the cost
    #[arg(long, value_name = "PRICE", requires = "completion_price")]
    prompt_price: Option<f64>,
    /// The price of a million tokens that are written
    #[arg(long, value_name = "PRICE", requires = "prompt_price")]
    completion_price: Option<f64>,
    /// Number of bootstrap samples
    #[arg(long, default_value_t = BootstrapConfig::default().samples)]
    samples: usize,
    /// Seed of their draws, and of the part of the data that is taken
    #[arg(long, default_value_t = BootstrapConfig::default().seed)]
    seed: u64,
}

/// What was found, without what is of single summaries.
#[derive(Serialize)]
pub(crate) struct Found {
    output: PathBuf,
    model: String,
    /// The means of each system, by the names of criteria.
    systems: Vec<(String, BTreeMap<String, Interval>)>,
    /// Scores that could not be had.
    failed: usize,
    /// Why the first could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    #[serde(flatten)]
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    /// How far the judge agrees with each file, criterion by criterion.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    agreement: BTreeMap<String, BTreeMap<String, Agreement>>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Found> {
    let bootstrap = BootstrapConfig { samples: args.samples, seed: args.seed, ..BootstrapConfig::default() };
    let (mut loaded, _) = args.data.read(Split::Test, args.seed)?;
    let mut systems = Vec::new();
    for file in &args.predictions {
        systems.extend(read_predictions(file, args.field.as_deref(), &loaded)?);
    }
    check_names(&systems)?;
    let job = Job::over(loaded.examples.iter().map(|example| (example.id.as_str(), example.source().to_string())));
    let job = job.with(&serde_json::to_string(&systems)?);
    let (all, shard) = (loaded.examples.len(), args.shard);
    let places: Vec<usize> = shard.map_or((0..all).collect(), |shard| shard.places(all).collect());
    loaded.examples = places.iter().map(|place| loaded.examples[*place].clone()).collect();
    for (_, texts) in &mut systems {
        *texts = places.iter().map(|place| std::mem::take(&mut texts[*place])).collect();
    }
    // What cannot be read is told before anything is paid for.
    let others = args.against.iter().map(|path| Ok((shown(path), Rating::read(path)?)));
    let others = others.collect::<anyhow::Result<Vec<_>>>()?;
    let server = EndpointConfig { requests_per_minute: args.requests_per_minute, ..EndpointConfig::from_env()? };
    let endpoint = Endpoint::new(server)?;
    if let Some(warning) = endpoint.warning() {
        tell!("warning: {warning}\n");
    }
    let cache = args.cache.clone().unwrap_or_else(|| {
        let mut name = args.output.clone().into_os_string();
        name.push(".cache");
        name.into()
    });
    let config = JudgeConfig { concurrency: args.concurrency, cache: Some(cache), ..JudgeConfig::default() };
    let judge = Judge::new(endpoint, config)?;
    let judged = judged(&judge, &systems, &loaded)?;

    let ratings = ratings(&judge, &systems, &loaded, &judged);
    let means = systems.iter().map(|(system, _)| means(system, &ratings, &bootstrap));
    let means = means.collect::<anyhow::Result<Vec<_>>>()?;
    let model = judge.chat().model().to_owned();
    let mut lines = String::new();
    for rating in &ratings {
        lines += &(serde_json::to_string(rating)? + "\n");
    }
    for (system, means) in &means {
        lines += &(json!({ "system": system, "model": model, "means": means }).to_string() + "\n");
    }
    if let Some(shard) = shard {
        let header = ShardHeader { shard, texts: all, records: systems.len(), job: job.with(&model).name() };
        let record = |rating: &Rating| match serde_json::to_value(rating)? {
            Value::Object(record) => anyhow::Ok(record),
            _ => Ok(Map::new()),
        };
        let records = ratings.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        // Systems one after the other, each with all dialogues.
        lines = header.to_lines(places.iter().copied().cycle().zip(records));
    }
    write_atomic(&args.output, lines.as_bytes())?;
    let mut agreement = BTreeMap::new();
    for (path, others) in others {
        let found = compare_ratings(&ratings, &others).with_context(|| in_line(&path))?;
        agreement.insert(path, found);
    }
    let failures = judged.verdicts.iter().flatten().filter_map(|verdict| verdict.as_ref().err());
    let prices = args.prompt_price.zip(args.completion_price);
    Ok(Found {
        output: args.output.clone(),
        model,
        systems: means,
        failed: failures.clone().count(),
        failure: failures.clone().next().cloned(),
        usage: judged.usage,
        cost: prices.map(|(prompt, completion)| judged.usage.cost(prompt, completion)),
        agreement,
    })
}

/// The verdicts on all summaries, systems one after the other.
fn judged(judge: &Judge<Endpoint>, systems: &[(String, Vec<String>)], loaded: &Loaded) -> anyhow::Result<Judged> {
    let dialogues: Vec<_> = loaded.examples.iter().map(Example::source).collect();
    let items = systems
        .iter()
        .flat_map(|(_, texts)| dialogues.iter().zip(texts).map(|(dialogue, summary)| Item { dialogue, summary }));
    let items: Vec<Item<'_>> = items.collect();
    let stop = stop_on_signals()?;
    let (shows, mut last) = (io::stderr().is_terminal(), None::<Instant>);
    let watch = |progress: Progress| {
        let Progress { done, failed, total, usage, .. } = progress;
        let is_due = done == total || last.is_none_or(|last| last.elapsed() > Duration::from_millis(100));
        if shows && is_due {
            last = Some(Instant::now());
            let (cached, end) = (usage.cached, if done == total { "\n" } else { "" });
            tell!("\r{done} of {total} scores, {cached} known before, {failed} failed{end}");
        }
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    Ok(judge.judge(&items, watch)?)
}

/// A line for each summary.
fn ratings(
    judge: &Judge<Endpoint>,
    systems: &[(String, Vec<String>)],
    loaded: &Loaded,
    judged: &Judged,
) -> Vec<Rating> {
    let texts = systems.iter().flat_map(|(system, _)| loaded.examples.iter().map(move |example| (system, example)));
    let rating = |((system, example), verdicts): ((&String, &Example), &Vec<Result<Verdict, String>>)| {
        let mut rating = Rating { id: example.id.clone(), system: Some(system.clone()), ..Rating::default() };
        for (criterion, verdict) in judge.config().criteria.iter().zip(verdicts) {
            let name = criterion.name.clone();
            match verdict {
                Ok(Verdict { score, reason }) => {
                    rating.scores.insert(name.clone(), f64::from(*score));
                    rating.reasons.insert(name, reason.clone());
                }
                Err(reason) => drop(rating.failed.insert(name, reason.clone())),
            }
        }
        rating
    };
    texts.zip(&judged.verdicts).map(rating).collect()
}

/// The means of a system, of the scores that could be had.
fn means(
    system: &str,
    ratings: &[Rating],
    config: &BootstrapConfig,
) -> anyhow::Result<(String, BTreeMap<String, Interval>)> {
    let mut values = BTreeMap::<&String, Vec<f64>>::new();
    for rating in ratings.iter().filter(|rating| rating.system.as_deref() == Some(system)) {
        for (name, score) in &rating.scores {
            values.entry(name).or_default().push(*score);
        }
    }
    let means = values.into_iter().map(|(name, values)| Ok((name.clone(), bootstrap(&values, config)?)));
    Ok((system.to_owned(), means.collect::<anyhow::Result<_>>()?))
}

impl Finding for Found {
    fn passed(&self) -> bool {
        self.failed == 0
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, model, systems, failed, failure, usage, cost, agreement } = self;
        let head = ["system", "criterion", "mean [95 %]", "n"].map(str::to_owned);
        let rows = systems.iter().flat_map(|(system, means)| {
            means.iter().map(move |(name, Interval { mean, low, high, n, .. })| {
                [system.clone(), name.clone(), format!("{mean:.2} [{low:.2}, {high:.2}]"), n.to_string()]
            })
        });
        table(f, &[head].into_iter().chain(rows).collect::<Vec<_>>())?;
        for (path, agreement) in agreement {
            writeln!(f, "\nagreement with {path}")?;
            let head = ["criterion", "equal", "kappa", "Spearman", "n"].map(str::to_owned);
            let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
            let row = |(name, found): (&String, &Agreement)| {
                let equal = format!("{:.1} %", 100.0 * found.equal);
                [name.clone(), equal, number(found.kappa), number(found.spearman), found.n.to_string()]
            };
            table(f, &[head].into_iter().chain(agreement.iter().map(row)).collect::<Vec<_>>())?;
        }
        let Usage { calls, cached, prompt_tokens, completion_tokens, .. } = usage;
        writeln!(
            f,
            "\n{} of {model}, {cached} scores known before; {} read, {} written{}",
            count(*calls, "answer"),
            count(*prompt_tokens as usize, "token"),
            count(*completion_tokens as usize, "token"),
            cost.map_or_else(String::new, |cost| format!(", cost {cost:.4}")),
        )?;
        if let Some(failure) = failure {
            writeln!(f, "{} could not be had; the first: {failure}", count(*failed, "score"))?;
        }
        writeln!(f, "{}", shown(output))
    }
}
