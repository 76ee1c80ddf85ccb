//! The settings of `sideburn train`: a file, flags, and what they come to.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sideburn::data::{Columns, GroupedSampler, Subsample, TokenizedSet};
use sideburn::files::{MAX_CONFIG, read_text};
use sideburn::prelude::*;
use sideburn::train::{Strategy, with_settings};
use sideburn::{BatchSize, find_batch_size};

use crate::report::{in_line, shown_in_line};

/// All that a run follows from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Directory or id of the base model and its tokenizer; the small T5 of the repository if there is none.
    pub(crate) model: Option<PathBuf>,
    /// Directory or archive of a data set; the sample of DialogSum of the repository if there is none.
    pub(crate) data: Option<PathBuf>,
    /// What the directory holds: `dialogsum` or `samsum`.
    pub(crate) dataset: Known,
    /// The columns of the files, such as `dialogue=text,summary=gist`; those of the data set if there are none.
    pub(crate) columns: Option<String>,
    /// A part of the training examples: `every:100`, `count:500` or `fraction:0.1`.
    pub(crate) subsample: Option<Subsample>,
    /// The text around the dialogue; that of the data set if there is none.
    pub(crate) template: Option<Template>,
    /// The longest prompt and the longest summary, in tokens.
    pub(crate) max_source_length: usize,
    pub(crate) max_target_length: usize,
    /// Where tokens are kept for the next run; nowhere if there is none.
    pub(crate) token_cache: Option<PathBuf>,
    /// flex (the CPU), wgpu, vulkan, metal or cuda, with `:INDEX` behind a GPU's.
    pub(crate) device: String,
    /// Passes over the training examples, instead of `max_steps`; 3 if there is neither.
    pub(crate) num_train_epochs: Option<f64>,
    /// Examples of a micro-batch.
    pub(crate) per_device_train_batch_size: usize,
    /// Whether they may be fewer, in as many more micro-batches, where memory does not suffice.
    pub(crate) auto_find_batch_size: bool,
    /// Examples that are evaluated at once.
    pub(crate) per_device_eval_batch_size: usize,
    /// Whether micro-batches are put together of examples of about one length.
    pub(crate) group_by_length: bool,
    /// Micro-batches of at most so many tokens, prompts and summaries together and on a GPU with their padding, instead of so
    /// many examples.
    pub(crate) max_tokens_per_batch: Option<usize>,
    /// Whether an evaluation has the model write summaries, and scores them.
    pub(crate) predict_with_generate: bool,
    /// For how many dialogues of the validation split, evenly spread over it.
    pub(crate) max_predict_samples: usize,
    /// `tensorboard`, or nothing.
    pub(crate) report_to: Vec<Reporter>,
    #[serde(flatten)]
    pub(crate) training: TrainConfig,
    /// How summaries are written: fields of a `generation_config.json`.
    pub(crate) generation: Map<String, Value>,
    /// What is trained: fields of an `adapter_config.json`. Without any, the base itself is.
    pub(crate) adapter: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Known {
    Dialogsum,
    Samsum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reporter {
    Tensorboard,
}

impl Default for Settings {
    /// LoRA on the model and the data of the repository, as `examples/dialogsum_lora.rs` trains it.
    fn default() -> Self {
        let object = |value: Value| value.as_object().cloned().expect("an object");
        Self {
            model: None,
            data: None,
            dataset: Known::Dialogsum,
            columns: None,
            subsample: None,
            template: None,
            max_source_length: Limits::default().max_source_length,
            max_target_length: Limits::default().max_target_length,
            token_cache: None,
            device: "flex".to_owned(),
            num_train_epochs: None,
            per_device_train_batch_size: 8,
            auto_find_batch_size: false,
            per_device_eval_batch_size: 8,
            group_by_length: false,
            max_tokens_per_batch: None,
            predict_with_generate: false,
            max_predict_samples: 16,
            report_to: Vec::new(),
            training: TrainConfig { learning_rate: 4e-3, warmup_ratio: 0.05, max_steps: 0, ..TrainConfig::new(1) },
            generation: object(json!({ "max_new_tokens": 64, "no_repeat_ngram_size": 3 })),
            adapter: object(json!({
                "peft_type": "LORA", "r": 32, "lora_alpha": 64, "lora_dropout": 0.05, "target_modules": ["q", "v"],
            })),
        }
    }
}

impl Settings {
    /// The defaults, with what a file and then flags say in their place.
    pub(crate) fn read(file: Option<&Path>, flags: &[String]) -> anyhow::Result<Self> {
        let settings = match file {
            None => Self::default(),
            Some(file) => {
                let text = read_text(file, MAX_CONFIG)?;
                Self::default().with_text(&text).with_context(|| shown_in_line(file))?
            }
        };
        settings.with_flags(flags)
    }

    /// With what a TOML text says.
    pub(crate) fn with_text(&self, text: &str) -> anyhow::Result<Self> {
        let table: toml::Table = text.parse()?;
        Ok(with_settings(
            self,
            &table.into_iter().map(|(name, value)| Ok((name, to_json(value)?))).collect::<anyhow::Result<_>>()?,
        )?)
    }

    /// With `KEY=VALUE`s in the place of what was said before. A key with a full stop is a field of a setting that
    /// has fields, such as `adapter`.
    pub(crate) fn with_flags(self, flags: &[String]) -> anyhow::Result<Self> {
        flags.iter().try_fold(self, |settings, flag| {
            let Some((key, value)) = flag.split_once('=') else {
                bail!("--set {}: write KEY=VALUE", in_line(flag));
            };
            let (key, value) = (key.trim(), value.trim());
            // What is no TOML is text: names and paths need no quotes.
            let value = format!("value = {value}")
                .parse::<toml::Table>()
                .ok()
                .and_then(|mut table| table.remove("value"))
                .map_or_else(|| Ok(value.into()), to_json)?;
            let (name, value) = match key.split_once('.') {
                None => (key, value),
                Some((table, field)) => {
                    let all = serde_json::to_value(&settings)?;
                    let Some(mut fields) = all.get(table).and_then(Value::as_object).cloned() else {
                        let tables = all.as_object().into_iter().flatten().filter(|(_, value)| value.is_object());
                        let tables: Vec<String> = tables.map(|(name, _)| format!("`{name}`")).collect();
                        bail!("--set {}: `{table}` has no fields; only {} have", in_line(flag), tables.join(", "))
                    };
                    fields.insert(field.to_owned(), value);
                    (table, Value::Object(fields))
                }
            };
            with_settings(&settings, &[(name.to_owned(), value)].into_iter().collect())
                .with_context(|| format!("--set {}", in_line(flag)))
        })
    }

    /// As TOML that is read again.
    pub(crate) fn to_text(&self) -> String {
        let mut fields = serde_json::to_value(self).expect("plain fields");
        remove_nulls(&mut fields);
        toml::to_string(&fields).expect("no nulls, and maps with text as keys")
    }

    /// Refuses settings that cannot be together. What is left to find out is whether the model, the data and the adapter can
    /// be had.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let Self { num_train_epochs, training, .. } = self;
        if let Some(epochs) = num_train_epochs {
            ensure!(epochs.is_finite() && *epochs > 0.0, "`num_train_epochs` is {epochs}, expected a number above 0");
            let steps = training.max_steps;
            ensure!(steps == 0, "`max_steps` is {steps} and `num_train_epochs` is {epochs}; give one of them");
        }
        ensure!(
            !self.group_by_length || self.max_tokens_per_batch.is_none(),
            "`group_by_length` and `max_tokens_per_batch` put micro-batches together in two ways; give one of them"
        );
        ensure!(
            !self.auto_find_batch_size || self.max_tokens_per_batch.is_none(),
            "`auto_find_batch_size` counts examples and `max_tokens_per_batch` counts tokens; give one of them"
        );
        for (field, number) in [
            ("per_device_train_batch_size", self.per_device_train_batch_size),
            ("per_device_eval_batch_size", self.per_device_eval_batch_size),
            ("max_predict_samples", self.max_predict_samples),
            ("max_tokens_per_batch", self.max_tokens_per_batch.unwrap_or(1)),
        ] {
            ensure!(number > 0, "`{field}` is 0, expected at least 1");
        }
        ensure!(
            !self.predict_with_generate || training.eval_strategy != Strategy::No,
            "`predict_with_generate` is set and `eval_strategy` is \"no\", so that nothing is evaluated; set `eval_strategy` \
             to \"steps\" or \"epoch\""
        );
        if let Some(metric) = &training.metric_for_best_model {
            let known = self.metrics();
            ensure!(
                known.contains(&metric.trim_start_matches("eval_")),
                "`metric_for_best_model` is {}, and an evaluation finds {}{}",
                in_line(metric),
                known.join(", "),
                if self.predict_with_generate { "" } else { "; `predict_with_generate` adds ROUGE" }
            );
        }
        Ok(TrainConfig { max_steps: training.max_steps.max(1), ..training.clone() }.validate()?)
    }

    /// What an evaluation finds.
    fn metrics(&self) -> Vec<&'static str> {
        let rouge = ["rouge1", "rouge2", "rougeL", "rougeLsum"].into_iter().filter(|_| self.predict_with_generate);
        ["loss", "perplexity"].into_iter().chain(rouge).collect()
    }

    /// With the largest micro-batches that there is memory for, as settings that say so themselves.
    pub(crate) fn with_found_batch_size(mut self, model: &AutoModel, set: &TokenizedSet) -> anyhow::Result<Self> {
        let wanted = BatchSize {
            examples: self.per_device_train_batch_size,
            micro_batches: self.training.gradient_accumulation_steps,
        };
        let found = find_batch_size(model, set, wanted, &self.training, None)?;
        self.auto_find_batch_size = false;
        self.per_device_train_batch_size = found.examples;
        self.training.gradient_accumulation_steps = found.micro_batches;
        Ok(self)
    }

    /// With steps in the place of epochs, and paths that are the same from everywhere.
    pub(crate) fn resolved(mut self, batches_per_epoch: usize) -> Self {
        for path in [&mut self.model, &mut self.data].into_iter().flatten().filter(|path| path.exists()) {
            *path = std::path::absolute(&*path).unwrap_or_else(|_| path.clone());
        }
        self.token_cache = self.token_cache.map(|path| std::path::absolute(&path).unwrap_or(path));
        if self.training.max_steps == 0 {
            let batches = self.num_train_epochs.take().unwrap_or(3.0) * batches_per_epoch as f64;
            let steps = (batches / self.training.gradient_accumulation_steps as f64).ceil();
            self.training.max_steps = (steps as u64).max(1);
        }
        self
    }

    pub(crate) fn dataset(&self) -> anyhow::Result<Dataset> {
        let mut dataset = match self.dataset {
            Known::Dialogsum => Dataset::dialogsum(),
            Known::Samsum => Dataset::samsum(),
        };
        if let Some(columns) = &self.columns {
            dataset.columns = columns.parse::<Columns>().context("`columns`")?;
        }
        if let Some(template) = &self.template {
            dataset.template = template.clone();
        }
        Ok(dataset)
    }

    /// Which examples are in which micro-batch.
    pub(crate) fn sampler(&self, set: &TokenizedSet) -> anyhow::Result<Box<dyn Sampler>> {
        let (size, seed) = (self.per_device_train_batch_size, self.training.seed);
        let tokens = set.token_counts();
        Ok(match self.max_tokens_per_batch {
            Some(most) if self.device == "flex" => Box::new(GroupedSampler::by_tokens(&tokens, most, seed)?),
            // A GPU pads rows.
            Some(most) => Box::new(GroupedSampler::by_padded_tokens(&set.lengths(), most, seed)?),
            None if self.group_by_length => Box::new(GroupedSampler::by_length(&tokens, size, seed)?),
            None => Box::new(ShuffledSampler::new(set.len(), size, seed)?),
        })
    }
}

fn to_json(value: toml::Value) -> anyhow::Result<Value> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => {
            let number = serde_json::Number::from_f64(number);
            number.context("a number that is infinite, or none")?.into()
        }
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(to_json).collect::<anyhow::Result<Vec<_>>>()?.into(),
        toml::Value::Table(fields) => {
            let fields = fields.into_iter().map(|(name, value)| Ok((name, to_json(value)?)));
            Value::Object(fields.collect::<anyhow::Result<_>>()?)
        }
    })
}

/// TOML says nothing by leaving it out.
fn remove_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(remove_nulls);
    }
}
