//! `sideburn rouge`: texts against references.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use sideburn::eval::{Comparison, Interval, bootstrap, compare};
use sideburn::files::read_text;
use sideburn::prelude::*;
use sideburn::rouge::Punkt;

use crate::report::{Finding, shown_in_line, table};
use crate::texts::Texts;

/// Score texts against references by ROUGE, as Python's rouge_score does, with confidence intervals
///
/// A file has one text on each line; one whose name ends in .jsonl has a JSON value on each line: a text, a list of
/// texts (several references), or an object with a field that holds either. Only there can a text have lines, which are
/// the sentences of ROUGE-Lsum, and objects may have an `id`, by which two files are matched if both have them. Of several references the best counts, score by score. With --against, a second system
/// is scored on the same references, and the difference is given with the interval of a paired bootstrap and the
/// p-value of an approximate randomisation test.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What a system wrote
    #[arg(long, value_name = "FILE")]
    predictions: PathBuf,
    /// What people wrote, in the same order or with the same ids; given several times, each text has several references
    #[arg(long, value_name = "FILE", required = true)]
    references: Vec<PathBuf>,
    /// What another system wrote, to be compared with
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// The field of the objects in .jsonl files
    #[arg(long, value_name = "NAME", default_value = "summary")]
    field: String,
    /// Compare words by their Porter stems
    #[arg(long)]
    stemmer: bool,
    /// Find the sentences of ROUGE-Lsum by NLTK's Punkt, and do not take each line for one
    #[arg(long)]
    split_summaries: bool,
    /// Directory of what Punkt knows of a language [default: tokenizers/punkt_tab/english in NLTK_DATA or ~/nltk_data]
    #[arg(long, value_name = "DIR", requires = "split_summaries")]
    punkt: Option<PathBuf>,
    /// Number of bootstrap samples, and of samples of the randomisation test
    #[arg(long, default_value_t = BootstrapConfig::default().samples)]
    samples: usize,
    /// Seed of their draws
    #[arg(long, default_value_t = BootstrapConfig::default().seed)]
    seed: u64,
}

/// The largest file of Punkt: the largest of NLTK has 1 MB.
const MAX_PUNKT: u64 = 64 << 20;

#[derive(Serialize)]
pub(crate) struct Rouge {
    #[serde(flatten)]
    scores: BTreeMap<&'static str, Mean>,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<BTreeMap<&'static str, Mean>>,
    /// The first system less the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<BTreeMap<&'static str, Comparison>>,
    stemmer: bool,
    split_summaries: bool,
    bootstrap: BootstrapConfig,
}

/// The means of one metric over all texts, shares of 1.
#[derive(Clone, Copy, Serialize)]
struct Mean {
    precision: f64,
    recall: f64,
    fmeasure: f64,
    /// The interval of the F-measure.
    low: f64,
    high: f64,
    n: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Rouge> {
    let mut scorer = RougeScorer::all().with_stemmer(args.stemmer);
    if args.split_summaries {
        scorer = scorer.with_sentences(punkt(args.punkt.clone())?);
    }
    let config = BootstrapConfig { samples: args.samples, seed: args.seed, ..BootstrapConfig::default() };
    let mut references = Texts::read(&args.references[0], &args.field)?;
    for path in &args.references[1..] {
        let texts = Texts::read(path, &args.field)?.in_order_of(&references)?;
        references.texts.iter_mut().zip(texts).for_each(|(references, texts)| references.extend(texts));
    }
    let score = |path: &Path| -> anyhow::Result<Columns> {
        let texts = Texts::read(path, &args.field)?.in_order_of(&references)?;
        let one = |(line, texts): (usize, Vec<String>)| match <[String; 1]>::try_from(texts) {
            Ok([text]) => Ok(text),
            Err(texts) => {
                bail!("{}, line {}: {} texts, where a system writes one", shown_in_line(path), line + 1, texts.len())
            }
        };
        let texts: Vec<String> = texts.into_iter().enumerate().map(one).collect::<Result<_, _>>()?;
        let scores = scorer.score_corpus(&references.texts, &texts).with_context(|| shown_in_line(path))?;
        Ok(Metric::STANDARD.map(|metric| (metric, scores.iter().map(|scores| scores[metric]).collect())).into())
    };
    let first = score(&args.predictions)?;
    let second = args.against.as_deref().map(score).transpose()?;
    let difference = second.as_ref().map(|second| {
        let compared = first.iter().zip(second).map(|((metric, first), (_, second))| {
            Ok((metric.name(), compare(&fmeasures(first), &fmeasures(second), &config)?))
        });
        compared.collect::<anyhow::Result<_>>()
    });
    Ok(Rouge {
        scores: means(&first, &config)?,
        against: second.map(|second| means(&second, &config)).transpose()?,
        difference: difference.transpose()?,
        stemmer: args.stemmer,
        split_summaries: args.split_summaries,
        bootstrap: config,
    })
}

/// What NLTK has downloaded, or what lies in `directory`.
fn punkt(directory: Option<PathBuf>) -> anyhow::Result<Punkt> {
    let roots =
        std::env::var_os("NLTK_DATA").into_iter().flat_map(|roots| std::env::split_paths(&roots).collect::<Vec<_>>());
    let home = std::env::home_dir().map(|home| home.join("nltk_data"));
    let mut known = roots.chain(home).map(|root| root.join("tokenizers/punkt_tab/english"));
    let directory = directory.or_else(|| known.find(|directory| directory.is_dir())).context(
        "NLTK's punkt_tab is not in NLTK_DATA, nor in ~/nltk_data; name its directory with --punkt, or fetch it: python -c \
         \"import nltk; nltk.download('punkt_tab')\"",
    )?;
    let text = |name: &str| read_text(directory.join(name), MAX_PUNKT);
    let (abbreviations, collocations) = (text("abbrev_types.txt")?, text("collocations.tab")?);
    let (starters, contexts) = (text("sent_starters.txt")?, text("ortho_context.tab")?);
    Punkt::new(&abbreviations, &collocations, &starters, &contexts).with_context(|| shown_in_line(&directory))
}

/// The scores of all texts, metric by metric.
type Columns = Vec<(Metric, Vec<sideburn::rouge::Score>)>;

fn fmeasures(scores: &[sideburn::rouge::Score]) -> Vec<f64> {
    scores.iter().map(|score| score.fmeasure).collect()
}

fn means(columns: &Columns, config: &BootstrapConfig) -> anyhow::Result<BTreeMap<&'static str, Mean>> {
    let mean = |(metric, scores): &(Metric, Vec<sideburn::rouge::Score>)| {
        let n = scores.len();
        let of = |part: fn(&sideburn::rouge::Score) -> f64| scores.iter().map(part).sum::<f64>() / n as f64;
        let Interval { mean: fmeasure, low, high, .. } = bootstrap(&fmeasures(scores), config)?;
        let (precision, recall) = (of(|score| score.precision), of(|score| score.recall));
        Ok((metric.name(), Mean { precision, recall, fmeasure, low, high, n }))
    };
    columns.iter().map(mean).collect()
}

impl Finding for Rouge {}

impl fmt::Display for Rouge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scores, against, difference, bootstrap, .. } = self;
        let n = scores.values().next().map_or(0, |mean| mean.n);
        writeln!(f, "{n} texts, {} % intervals of {} samples\n", 100.0 * bootstrap.confidence, bootstrap.samples)?;
        let percent = |value: f64| format!("{:.2}", 100.0 * value);
        let row = |name: &str, mean: &Mean| {
            let interval = format!("{} [{}, {}]", percent(mean.fmeasure), percent(mean.low), percent(mean.high));
            [name.to_owned(), percent(mean.precision), percent(mean.recall), interval]
        };
        let head = |name: &str| [name, "precision", "recall", "F-measure"].map(str::to_owned);
        let rows = |name, scores: &BTreeMap<&str, Mean>| -> Vec<[String; 4]> {
            [head(name)].into_iter().chain(scores.iter().map(|(name, mean)| row(name, mean))).collect()
        };
        table(f, &rows("", scores))?;
        if let Some(against) = against {
            writeln!(f)?;
            table(f, &rows("against", against))?;
        }
        if let Some(difference) = difference {
            let head = ["difference", "F-measure", "p"].map(str::to_owned);
            let row = |(name, compared): (&&str, &Comparison)| {
                let Interval { mean, low, high, .. } = compared.difference;
                let interval = format!("{:+.2} [{}, {}]", 100.0 * mean, percent(low), percent(high));
                [(*name).to_owned(), interval, format!("{:.4}", compared.p_value)]
            };
            writeln!(f)?;
            table(f, &[head].into_iter().chain(difference.iter().map(row)).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}
