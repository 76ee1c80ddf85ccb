//! `sideburn evaluate`: what systems write for the dialogues of a data set, and what it is worth, as a page.

mod scores;
mod writing;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::{Map, Value, json};
use sideburn::data::{Shard, ShardHeader};
use sideburn::eval::{Difference, Mean, Report, Slicing, Statistics, SystemScores};
use sideburn::files::{AtomicDir, check_writable, write_atomic};
use sideburn::prelude::*;

use crate::join::Job;
use crate::report::{self, Finding, shown};
use crate::source::DataArgs;
use crate::texts::{Named, Written, check_names, read_predictions};
use crate::writing::WritingArgs;
use writing::Summaries;

/// Evaluate summaries: those in files, or those that a model writes, without adapters and with each of them
///
/// Writes report.html, a page that needs nothing beside it, report.json with all that is in it, and predictions.jsonl
/// with what each system wrote. Summaries that a model is writing are kept in the output directory until it is done:
/// after Ctrl-C the same command goes on where it was.
///
/// A file of predictions has a text on each line, in the order of the dialogues, or is JSON Lines (.jsonl), whose
/// objects may have an id. One that sideburn evaluate or sideburn summarize --json has written has a system in each
/// field.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// What a system wrote; several times for several systems
    #[arg(long, value_name = "[NAME=]FILE", required_unless_present = "model")]
    predictions: Vec<Named>,
    /// The field of the objects in .jsonl files of predictions [default: summary; without it, each field is a system]
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// Directory of a model and its tokenizer, or its id on the hub, which is to write
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Directory of an adapter for it, or its id on the hub; several times for several systems
    #[arg(long, value_name = "[NAME=]DIR", requires = "model")]
    adapter: Vec<Named>,
    /// Only have the model write for a part of the dialogues, 2/4 say, the second of four: shard-2-of-4.jsonl is written, and
    /// nothing is scored. sideburn join makes one file of all parts, which is then given to --predictions
    #[arg(long, value_name = "I/N", requires = "model", conflicts_with_all = ["predictions", "scores"])]
    shard: Option<Shard>,
    /// Scores from elsewhere, such as those of sideburn judge: JSON Lines with id, system and scores
    #[arg(long, value_name = "FILE")]
    scores: Vec<PathBuf>,
    /// Compare words by their Porter stems
    #[arg(long)]
    stemmer: bool,
    /// Number of bootstrap samples, and of samples of the randomisation tests
    #[arg(long, default_value_t = BootstrapConfig::default().samples)]
    samples: usize,
    /// Where the files are written
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    writing: WritingArgs,
}

/// What was found, without what is of single dialogues.
#[derive(Serialize)]
pub(crate) struct Evaluated {
    title: String,
    n: usize,
    systems: Vec<SystemScores>,
    differences: Vec<Difference>,
    statistics: Vec<Statistics>,
    slicings: Vec<Slicing>,
    /// The files.
    report: PathBuf,
    json: PathBuf,
    predictions: PathBuf,
    #[serde(skip)]
    text: String,
}

/// What a model has written for a part.
#[derive(Serialize)]
struct Part {
    predictions: PathBuf,
    /// Dialogues of the part, and of all.
    n: usize,
    of: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<report::Report> {
    match args.shard {
        None => evaluate(args).map(report::Report::new),
        Some(shard) => write_part(args, shard).map(report::Report::new),
    }
}

/// What the model writes for a part, without a score.
fn write_part(args: &Args, shard: Shard) -> anyhow::Result<Part> {
    let model = args.model.as_ref().context("--shard wants a --model")?;
    std::fs::create_dir_all(&args.output).with_context(|| shown(&args.output))?;
    let (loaded, _) = args.data.read(Split::Test, args.writing.seed.unwrap_or_default())?;
    let of = loaded.examples.len();
    let places: Vec<usize> = shard.places(of).collect();
    let texts = |example: &Example| serde_json::to_string(&example.fields).unwrap_or_default();
    let job = Job::over(loaded.examples.iter().map(|example| (example.id.as_str(), texts(example))));
    let examples: Vec<Example> = places.iter().map(|place| loaded.examples[*place].clone()).collect();
    let Summaries { written, job, .. } = writing::summaries(args, model, &examples, job)?;
    let record = |(at, place): (usize, &usize)| {
        let texts = written.iter().map(|(name, outputs)| (name.clone(), Value::from(outputs[at].clone())));
        let id = ("id".to_owned(), Value::from(examples[at].id.clone()));
        (*place, [id].into_iter().chain(texts).collect::<Map<String, Value>>())
    };
    let header = ShardHeader { shard, texts: of, records: 1, job: job.name() };
    let path = args.output.join(format!("shard-{}-of-{}.jsonl", shard.number(), shard.count()));
    write_atomic(&path, header.to_lines(places.iter().enumerate().map(record)).as_bytes())?;
    writing::finish(&args.output, Some(shard))?;
    Ok(Part { predictions: path, n: examples.len(), of })
}

fn evaluate(args: &Args) -> anyhow::Result<Evaluated> {
    check_writable(&args.output)?;
    let seed = args.writing.seed.unwrap_or_default();
    let (loaded, title) = args.data.read(Split::Test, seed)?;
    let mut systems: Vec<Written> = Vec::new();
    let mut how = Value::Null;
    if let Some(model) = &args.model {
        let Summaries { written, how: with, .. } = writing::summaries(args, model, &loaded.examples, Job::over([]))?;
        systems.extend(written);
        how = with;
    }
    for file in &args.predictions {
        systems.extend(read_predictions(file, args.field.as_deref(), &loaded)?);
    }
    check_names(&systems)?;
    let names: Vec<&str> = systems.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(
        !names.contains(&"id"),
        "a system cannot be called id, which predictions.jsonl has for ids; give it as NAME=FILE"
    );
    let given = scores::read(&args.scores, &loaded.examples, &names)?;
    let rouge = RougeScorer::all().with_stemmer(args.stemmer);
    let bootstrap = BootstrapConfig { samples: args.samples, seed, ..BootstrapConfig::default() };
    let (records, skipped) = (loaded.rows, loaded.skipped.len());
    let mut evaluation = Evaluation::new(loaded.examples, bootstrap);
    evaluation.config = json!({
        "data": args.data.record(),
        "records": records,
        "skipped": skipped,
        "predictions": args.predictions.iter().map(|file| shown(&file.path)).collect::<Vec<_>>(),
        "scores": args.scores.iter().map(|path| shown(path)).collect::<Vec<_>>(),
        "stemmer": args.stemmer,
        "written_by": how,
    });
    for ((name, outputs), given) in systems.into_iter().zip(&given) {
        evaluation.add(name, outputs, &[&rouge, given])?;
    }
    let report = Report::new(title, evaluation)?;
    write(&report, &args.output)?;
    writing::finish(&args.output, None)?;

    let text = report.to_string();
    let Report { title, evaluation, differences, statistics, slicings, .. } = report;
    let means =
        |scored: &[sideburn::eval::Scored]| scored.iter().map(|scored| scored.mean.clone()).collect::<Vec<Mean>>();
    let systems = evaluation.systems.iter();
    let systems = systems.map(|system| SystemScores { system: system.name.clone(), scores: means(&system.scores) });
    let [page, json, predictions] = FILES.map(|name| args.output.join(name));
    let (n, systems) = (evaluation.examples.len(), systems.collect());
    Ok(Evaluated { title, n, systems, differences, statistics, slicings, report: page, json, predictions, text })
}

const FILES: [&str; 3] = ["report.html", "report.json", "predictions.jsonl"];

/// All files, or none.
fn write(report: &Report, directory: &Path) -> anyhow::Result<()> {
    let mut predictions = String::new();
    for (at, example) in report.evaluation.examples.iter().enumerate() {
        let texts =
            report.evaluation.systems.iter().map(|system| (system.name.clone(), system.outputs[at].clone().into()));
        let line: Map<String, Value> =
            [("id".to_owned(), example.id.clone().into())].into_iter().chain(texts).collect();
        predictions += &Value::Object(line).to_string();
        predictions.push('\n');
    }
    let staged = AtomicDir::create(directory)?;
    for (name, text) in FILES.into_iter().zip([report.to_html(), serde_json::to_string(report)?, predictions]) {
        let path = staged.path().join(name);
        std::fs::write(&path, text).with_context(|| shown(&path))?;
    }
    Ok(staged.commit()?)
}

impl Finding for Evaluated {}

impl fmt::Display for Evaluated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        writeln!(f, "{}", shown(&self.report))
    }
}

impl Finding for Part {}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { predictions, n, of } = self;
        writeln!(f, "{n} of {of} dialogues\n{}", shown(predictions))
    }
}
