//! `sideburn summarize`: texts, and what a model makes of them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde_json::{Map, Value};
use sideburn::data::{Columns, Shard, ShardHeader, parse_csv, parse_jsonl};
use sideburn::prelude::*;
use sideburn::{ManyConfig, Texts, TextsError, generate_many, stream_text};

use crate::hub;
use crate::interrupt::stop_on_signals;
use crate::join::Job;
use crate::report::{for_terminal, in_line, is_closed, shown, tell};
use crate::writing::{Writer, WritingArgs};

/// Summarise texts with a model, with or without adapters
///
/// A text is all that is in the input; JSON Lines and CSV hold many, of which one field or column is read. What a model wrote
/// comes as text, one line for each, or as JSON Lines. Several adapters make a column each. On a terminal a single summary is
/// shown as it is written. Ctrl-C ends it; what is written by then is printed.
///
/// The model writes as its generation_config.json says; flags go before it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the model and its tokenizer, or its id on the hub [default: the small T5 that comes with the repository]
    #[arg(long, value_name = "DIR|ID")]
    model: Option<PathBuf>,
    /// Directory of an adapter for it, or its id on the hub; of several, each makes a column
    #[arg(long, value_name = "DIR|ID")]
    adapter: Vec<PathBuf>,
    /// A file, or - for the standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    input: PathBuf,
    /// What the input is [default: what its name ends with; the standard input is text]
    #[arg(long, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
    /// What is written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output_format: OutputFormat,
    /// The column or field of a text in CSV or JSON Lines
    #[arg(long, value_name = "NAME", default_value = "dialogue")]
    column: String,
    /// Only a part of the texts: 2/4 is the second of four, each of which has every fourth text. What is written, JSON Lines
    /// with the places of texts, is made one by sideburn join
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    #[command(flatten)]
    writing: WritingArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InputFormat {
    Text,
    Jsonl,
    Csv,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    Text,
    Jsonl,
}

impl Args {
    /// With `--json`, JSON Lines.
    pub(crate) fn with_json(mut self, json: bool) -> Self {
        if json {
            self.output_format = OutputFormat::Jsonl;
        }
        self
    }
}

/// A text of the input.
struct Source {
    /// From 0.
    place: usize,
    id: String,
    text: String,
}

/// What the model wrote with one adapter, or without.
struct Column {
    name: String,
    texts: Texts<sideburn::AutoError>,
}

/// The longest text of an input that is one, in bytes; it is that of a record of the other formats.
const MAX_TEXT: u64 = 16 << 20;

/// The small T5 of the repository.
const EMBEDDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/t5-mini");

/// Whether all texts were summarised. Writes to the standard output as far as it is read.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    ensure!(
        args.shard.is_none() || args.output_format == OutputFormat::Jsonl,
        "--shard writes JSON Lines; give --output-format jsonl, or --json"
    );
    let names = column_names(&args.adapter)?;
    let mut sources = read(args)?;
    let all = sources.len();
    let job = args.shard.map(|_| Job::over(sources.iter().map(|source| (source.id.as_str(), source.text.clone()))));
    if let Some(shard) = args.shard {
        let mut places = shard.places(all).peekable();
        sources.retain(|source| places.next_if_eq(&source.place).is_some());
    }
    let directory = match &args.model {
        Some(name) => hub::model(name)?,
        None => EMBEDDED.into(),
    };
    if args.model.is_none() {
        ensure!(directory.is_dir(), "the small T5 of the repository is not at {}; give a --model", shown(&directory));
    }
    // Nothing is computed before all is there.
    let adapters = args.adapter.iter().map(|name| hub::adapter(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let writer = args.writing.open(&directory)?;
    let stop = stop_on_signals()?;
    let fields = |source: &Source| Fields::from([("dialogue".to_owned(), source.text.clone())]);
    let prompts = writer.prompts(sources.iter().map(fields))?;
    let Writer { mut model, tokenizer, mut config, template, .. } = writer;
    let header = match (args.shard, job) {
        (Some(shard), Some(job)) => {
            let mut job = job.with(&model.fingerprint()).with(&format!("{config:?} {} {names:?}", template.as_str()));
            job = job.with(&format!("{} {:?}", args.writing.max_source_length, args.writing.compute as u8));
            for adapter in &adapters {
                job = job.with_adapter(adapter)?;
            }
            // Parts draw other numbers.
            config.seed = Key::from_seed(config.seed).fold_in_name("shard").fold_in(shard.number() as u64).start();
            Some(ShardHeader { shard, texts: all, records: 1, job: job.name() })
        }
        _ => None,
    };

    if let ([prompt], [_], OutputFormat::Text) = (&prompts[..], &names[..], args.output_format) {
        if let Some(adapter) = adapters.first() {
            model.load_adapter("adapter", adapter)?;
        }
        return stream(&model, &tokenizer, prompt, &config, &stop);
    }
    let mut columns = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        if let Some(adapter) = adapters.get(index) {
            model.load_adapter("adapter", adapter)?;
        }
        let (prompts, config) = (&prompts, ManyConfig::new(config.clone()));
        let shows = io::stderr().is_terminal();
        let texts = generate_many(&model, &tokenizer, prompts, &config, |progress| {
            if shows {
                tell!("\r{}: {} of {}", for_terminal(&name), progress.done, progress.prompts);
            }
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if shows {
            tell!("\n");
        }
        columns.push(Column { name, texts });
        if adapters.get(index).is_some() {
            model.delete("adapter")?;
        }
    }
    print(args, header.as_ref(), &sources, &columns)
}

/// The texts of the input.
fn read(args: &Args) -> anyhow::Result<Vec<Source>> {
    let is_stdin = args.input == Path::new("-");
    let name = if is_stdin { PathBuf::from("the standard input") } else { args.input.clone() };
    // A pipe will do as well as a file.
    let input: Box<dyn BufRead> = if is_stdin {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(&args.input).with_context(|| shown(&args.input))?))
    };
    let ending = args.input.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    let format = args.input_format.unwrap_or(match ending.as_deref() {
        Some("csv" | "tsv") => InputFormat::Csv,
        Some("json" | "jsonl") => InputFormat::Jsonl,
        _ => InputFormat::Text,
    });
    // The reader of data sets wants something to be answered, which a text to be summarised need not have.
    let columns = Columns { id: Dataset::dialogsum().columns.id, ..Columns::new([&args.column], &args.column) };
    let examples = match format {
        InputFormat::Text => {
            let mut text = Vec::new();
            input.take(MAX_TEXT + 1).read_to_end(&mut text).with_context(|| shown(&name))?;
            ensure!(
                text.len() as u64 <= MAX_TEXT,
                "{} is a text of more than {} MiB; JSON Lines and CSV hold many, each in a record of its own",
                shown(&name),
                MAX_TEXT >> 20
            );
            let text = String::from_utf8(text).ok().with_context(|| format!("{} is not UTF-8", shown(&name)))?;
            ensure!(!text.trim().is_empty(), "{} holds no text", shown(&name));
            return Ok(vec![Source { place: 0, id: "0".to_owned(), text: text.trim().to_owned() }]);
        }
        InputFormat::Csv => parse_csv(&name, input, &columns)?.examples,
        InputFormat::Jsonl => parse_jsonl(&name, input, &columns)?.examples,
    };
    let source = |(place, mut example): (usize, Example)| Source {
        place,
        text: example.fields.remove(&args.column).unwrap_or_default(),
        id: example.id,
    };
    Ok(examples.into_iter().enumerate().map(source).collect())
}

/// What the columns are called: as the directories of the adapters, or `summary` where there is but one.
fn column_names(adapters: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    if adapters.len() < 2 {
        return Ok(vec!["summary".to_owned()]);
    }
    let last =
        |path: &PathBuf| path.file_name().map_or_else(|| shown(path), |name| name.to_string_lossy().into_owned());
    let short: Vec<String> = adapters.iter().map(last).collect();
    let unique = |name: &String| name != "id" && short.iter().filter(|other| *other == name).count() == 1;
    let names = short.iter().zip(adapters).map(|(name, path)| if unique(name) { name.clone() } else { shown(path) });
    let names: Vec<String> = names.collect();
    for (index, name) in names.iter().enumerate() {
        ensure!(name != "id", "id is the column of the ids of texts; give the adapter as ./id");
        ensure!(!names[..index].contains(name), "the adapter {} is given twice", in_line(name));
    }
    Ok(names)
}

/// Shows a text as it is written. Whether it was written to its end.
fn stream(
    model: &AutoModel,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    config: &GenerationConfig,
    stop: &AtomicBool,
) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    let pieces = stream_text(model, tokenizer, prompt, config)?;
    for piece in pieces.map(|piece| piece.map_err(anyhow::Error::from)).chain([Ok("\n".to_owned())]) {
        // A pipe that is closed has read enough.
        if is_closed(out.write_all(for_terminal(&piece?).as_bytes()).and_then(|()| out.flush()))? {
            break;
        }
        if stop.load(Ordering::Relaxed) {
            is_closed(writeln!(out))?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Prints all columns, and tells on the standard error what could not be summarised.
fn print(args: &Args, header: Option<&ShardHeader>, sources: &[Source], columns: &[Column]) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    let (mut all, mut open, mut stopped) = (true, true, 0);
    if args.output_format == OutputFormat::Text && columns.len() > 1 {
        let names: Vec<String> = columns.iter().map(|column| in_cell(&column.name)).collect();
        open = !is_closed(writeln!(out, "{}", names.join("\t")))?;
    }
    if let Some(header) = header {
        open = !is_closed(write!(out, "{}", header.to_lines([])))?;
    }
    for (index, source) in sources.iter().enumerate() {
        let (mut texts, before) = (Vec::new(), stopped);
        for Column { name, texts: of_column } in columns {
            texts.push(match &of_column[index] {
                Ok(written) => Value::from(written[0].clone()),
                Err(TextsError::Stopped) => {
                    stopped += 1;
                    Value::Null
                }
                Err(error) => {
                    all = false;
                    tell!(
                        "error: {}, {}: {}\n",
                        for_terminal(&source.id),
                        for_terminal(name),
                        for_terminal(&error.to_string())
                    );
                    Value::Null
                }
            });
        }
        if header.is_some() && stopped > before {
            // What is not written is missed when parts are joined.
            continue;
        }
        let line = match args.output_format {
            OutputFormat::Jsonl => {
                let fields = columns.iter().map(|column| column.name.clone()).zip(texts);
                let place = header.map(|_| ("at".to_owned(), source.place.into()));
                let id = [("id".to_owned(), source.id.clone().into())];
                let fields: Map<String, Value> = place.into_iter().chain(id).chain(fields).collect();
                Value::Object(fields).to_string()
            }
            OutputFormat::Text => {
                texts.iter().map(|text| in_cell(text.as_str().unwrap_or_default())).collect::<Vec<_>>().join("\t")
            }
        };
        open = open && !is_closed(writeln!(out, "{line}"))?;
    }
    is_closed(out.flush())?;
    if stopped > 0 {
        tell!("error: stopped; {stopped} of {} texts were not written\n", sources.len() * columns.len());
    }
    Ok(all && stopped == 0)
}

/// A text in one line, in one column.
fn in_cell(text: &str) -> String {
    for_terminal(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}
