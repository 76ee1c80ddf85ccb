//! Summaries by a model and its adapters, kept as they are written, so that a run that was stopped goes on.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use sideburn::data::Shard;
use sideburn::files::{read_text, write_atomic};
use sideburn::prelude::*;
use sideburn::{ManyConfig, generate_many};

use super::Args;
use crate::hub;
use crate::interrupt::stop_on_signals;
use crate::join::Job;
use crate::report::{for_terminal, shown, tell};
use crate::texts::{Named, Written};
use crate::writing::Writer;

/// What is kept in the output directory until all is written.
fn unfinished(directory: &Path, shard: Option<Shard>) -> PathBuf {
    directory.join(match shard {
        None => "unfinished.jsonl".to_owned(),
        Some(shard) => format!("unfinished-{}-of-{}.jsonl", shard.number(), shard.count()),
    })
}

/// The largest such file.
const MAX_UNFINISHED: u64 = 1 << 30;

/// How many prompts are answered before what is written is kept.
const CHUNK: usize = 96;

/// What has been written of what was asked for, in a file: first what that was, then a line for each text.
struct Kept {
    path: PathBuf,
    lines: Vec<String>,
    texts: HashMap<(String, usize), String>,
}

impl Kept {
    /// What an earlier run has kept in a file, if it was asked for the same.
    fn open(path: PathBuf, asked: &Value) -> Self {
        let mut kept = Self { path, lines: vec![asked.to_string()], texts: HashMap::new() };
        let Ok(file) = read_text(&kept.path, MAX_UNFINISHED) else { return kept };
        let mut lines = file.lines();
        if lines.next() != Some(kept.lines[0].as_str()) {
            return kept;
        }
        for line in lines {
            let parsed: Option<(String, usize, String)> = serde_json::from_str(line).ok();
            // Whatever is damaged is written again.
            if let Some((system, at, text)) = parsed {
                kept.lines.push(line.to_owned());
                kept.texts.insert((system, at), text);
            }
        }
        kept
    }

    fn add(&mut self, system: &str, texts: impl IntoIterator<Item = (usize, String)>) -> anyhow::Result<()> {
        for (at, text) in texts {
            self.lines.push(json!([system, at, text]).to_string());
            self.texts.insert((system.to_owned(), at), text);
        }
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory).with_context(|| shown(directory))?;
        }
        Ok(write_atomic(&self.path, (self.lines.join("\n") + "\n").as_bytes())?)
    }
}

/// Removes what was kept for going on: all is written.
pub(super) fn finish(directory: &Path, shard: Option<Shard>) -> anyhow::Result<()> {
    match std::fs::remove_file(unfinished(directory, shard)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// What a model has written.
pub(super) struct Summaries {
    pub(super) written: Vec<Written>,
    /// How it wrote.
    pub(super) how: Value,
    /// What tells this from other jobs.
    pub(super) job: Job,
}

/// What the model writes for the examples, without adapters (`base`) and with each of them. `job` is over their texts.
pub(super) fn summaries(
    args: &Args,
    directory: &Path,
    examples: &[Example],
    mut job: Job,
) -> anyhow::Result<Summaries> {
    // Nothing is computed before all is there.
    let directory = &hub::model(directory)?;
    let adapters =
        args.adapter.iter().map(|adapter| hub::adapter(&adapter.path)).collect::<anyhow::Result<Vec<_>>>()?;
    let writer = args.writing.open(directory)?;
    let prompts = writer.prompts(examples.iter().map(|example| example.fields.clone()))?;
    let Writer { mut model, tokenizer, template, config, .. } = writer;
    // The longest first, so that prompts of about one length are answered together.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|at| (std::cmp::Reverse(prompts[*at].len()), *at));

    let names = names(&args.adapter)?;
    let tokens = prompts.iter().flat_map(|prompt| prompt.iter().map(|id| u64::from(*id) + 1).chain([0]));
    let asked = json!({
        "model": files(directory)?,
        "adapters": adapters.iter().map(|adapter| files(adapter)).collect::<Result<Vec<_>, _>>()?,
        "names": names,
        "compute": args.writing.compute,
        "generation": format!("{config:?}"),
        "prompts": format!("{:016x}", tokens.fold(Key::from_seed(0), Key::fold_in).start()),
    });
    job = job.with(&model.fingerprint()).with(&format!("{config:?} {} {names:?}", template.as_str()));
    job = job.with(&format!("{} {:?}", args.writing.max_source_length, args.writing.compute as u8));
    for adapter in &adapters {
        job = job.with_adapter(adapter)?;
    }
    let mut kept = Kept::open(unfinished(&args.output, args.shard), &asked);
    let stop = stop_on_signals()?;
    let mut written = Vec::new();
    for (place, name) in names.iter().enumerate() {
        if let Some(adapter) = place.checked_sub(1).map(|place| &adapters[place]) {
            model.load_adapter("adapter", adapter)?;
        }
        for (number, chunk) in order.chunks(CHUNK).enumerate() {
            let left: Vec<usize> =
                chunk.iter().copied().filter(|at| !kept.texts.contains_key(&(name.clone(), *at))).collect();
            if left.is_empty() {
                continue;
            }
            // A chunk is answered whole, so that what is drawn does not depend on where a run was stopped.
            let key = Key::from_seed(config.seed);
            let key = args.shard.map_or(key, |shard| key.fold_in_name("shard").fold_in(shard.number() as u64));
            let seed = key.fold_in(number as u64).start();
            let config = ManyConfig::new(GenerationConfig { seed, ..config.clone() });
            let chunk_prompts: Vec<&Vec<u32>> = chunk.iter().map(|at| &prompts[*at]).collect();
            let shows = std::io::stderr().is_terminal();
            let texts = generate_many(&model, &tokenizer, &chunk_prompts, &config, |progress| {
                if shows {
                    let done = number * CHUNK + progress.done;
                    tell!("\r{}: {done} of {}", for_terminal(name), prompts.len());
                }
                if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if stop.load(Ordering::Relaxed) {
                let done = kept.texts.len();
                let all = prompts.len() * names.len();
                bail!(
                    "stopped after {done} of {all} summaries; the same command goes on from there ({})",
                    shown(&kept.path)
                );
            }
            let mut found = Vec::new();
            for (at, texts) in chunk.iter().zip(texts) {
                match texts {
                    Ok(mut texts) => found.push((*at, texts.swap_remove(0))),
                    Err(error) => bail!("{}: {} cannot be summarised: {error}", for_terminal(name), examples[*at].id),
                }
            }
            kept.add(name, found)?;
        }
        if std::io::stderr().is_terminal() {
            tell!("\r{}: {1} of {1}\n", for_terminal(name), prompts.len());
        }
        let text = |at| kept.texts.get(&(name.clone(), at)).cloned().unwrap_or_default();
        written.push((name.clone(), (0..prompts.len()).map(text).collect()));
        if place > 0 {
            model.delete("adapter")?;
        }
    }
    let adapters: Vec<String> = args.adapter.iter().map(|adapter| shown(&adapter.path)).collect();
    let how = json!({
        "model": args.model.as_deref().map(shown),
        "adapters": adapters,
        "template": template.as_str(),
        "max_source_length": args.writing.max_source_length,
        "compute": args.writing.compute,
        "generation": config,
    });
    Ok(Summaries { written, how, job })
}

/// `base`, and adapters by their names or those of their directories.
fn names(adapters: &[Named]) -> anyhow::Result<Vec<String>> {
    let mut names = vec!["base".to_owned()];
    for Named { name, path } in adapters {
        let of_path = || path.file_name().map_or_else(|| shown(path), |name| name.to_string_lossy().into_owned());
        let name = name.clone().unwrap_or_else(of_path);
        ensure!(
            !names.contains(&name),
            "there are two systems called {}; give the adapter another name, as NAME={}",
            for_terminal(&name),
            for_terminal(&shown(path))
        );
        names.push(name);
    }
    Ok(names)
}

/// The files of a directory: when they have changed, so has what a model writes.
fn files(directory: &Path) -> anyhow::Result<Value> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let found = std::fs::metadata(entry.path())?;
        let changed = found.modified()?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        files.push(json!([entry.file_name().to_string_lossy(), found.len(), changed.to_string()]));
    }
    files.sort_by_key(Value::to_string);
    Ok(json!([shown(directory), files]))
}
