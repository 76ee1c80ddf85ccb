//! How a model writes: the flags of all commands that have one write.

use std::path::Path;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use serde::Serialize;
use sideburn::data::DataError;
use sideburn::prelude::*;

use crate::model::open_on;
use crate::report::{shown, tell};

/// The flags. They go before what the model's files say.
#[derive(clap::Args)]
pub(crate) struct WritingArgs {
    /// The prompt around a text, which stands where {dialogue} does; or one of dialogsum, t5 and instruction; or a file
    /// of it, .txt or .toml [default: dialogsum]
    #[arg(long, value_name = "TEXT|NAME|FILE", value_parser = template)]
    template: Option<Template>,
    /// A task of the model's task_specific_params, such as summarization: its prefix is the prompt, and it writes as
    /// they say
    #[arg(long, value_name = "NAME", conflicts_with = "template")]
    task: Option<String>,
    /// The longest prompt in tokens; what is longer loses its end
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub(crate) max_source_length: usize,
    /// The most that is written [default: what the model's files say, or 64 tokens]
    #[arg(long, value_name = "TOKENS")]
    max_new_tokens: Option<usize>,
    /// The least that is written
    #[arg(long, value_name = "TOKENS")]
    min_new_tokens: Option<usize>,
    /// Searches with so many beams
    #[arg(long, value_name = "COUNT")]
    num_beams: Option<usize>,
    /// What a search makes of length: above 0 it likes longer texts
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// No text holds so many tokens twice in a row
    #[arg(long, value_name = "TOKENS")]
    no_repeat_ngram_size: Option<usize>,
    /// Makes what stands there less likely: above 1
    #[arg(long, value_name = "NUMBER")]
    repetition_penalty: Option<f64>,
    /// Draws tokens
    #[arg(long)]
    do_sample: bool,
    /// Divides scores before a draw
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// Draws from so many of the likeliest tokens
    #[arg(long, value_name = "TOKENS")]
    top_k: Option<usize>,
    /// Draws from the fewest tokens that have this share of the probability
    #[arg(long, value_name = "SHARE")]
    top_p: Option<f64>,
    /// What draws follow from
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,
    /// What to compute in; int8, on the CPU, takes less than half the time of f32, and a quarter of the memory for
    /// weights once they are packed
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub(crate) compute: Compute,
    /// Where to compute: flex (the CPU), wgpu, vulkan, metal or cuda, with :INDEX behind a GPU's
    #[arg(long, default_value = "flex")]
    device: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Compute {
    /// Floats of 32 bits
    F32,
    /// Integers of 8 bits; adapters stay in f32
    Int8,
}

/// A template by its name, from a file, or as it stands there.
pub(crate) fn template(text: &str) -> Result<Template, DataError> {
    let is_file = !text.contains('{') && (text.ends_with(".txt") || text.ends_with(".toml"));
    match Template::preset(text) {
        Err(DataError::UnknownPreset { .. }) if is_file => Template::from_file(text),
        Err(DataError::UnknownPreset { .. }) => Template::new(text),
        preset => preset,
    }
}

impl WritingArgs {
    /// Reads the model and its tokenizer, to write as its files say, and before them the flags.
    pub(crate) fn open(&self, directory: &Path) -> anyhow::Result<Writer> {
        let mut model = open_on(directory, &self.device)?;
        if self.compute == Compute::Int8 {
            ensure!(
                model.device() == Device::flex(),
                "--compute int8 is for the CPU; leave out --device, or compute in f32"
            );
            model.compute_in_int8()?;
        }
        let tokenizer = Tokenizer::from_dir(directory)?;
        tokenizer.check_fits(model.vocab_size())?;
        let (template, config) = self.ways(&model, directory)?;
        Ok(Writer { model, tokenizer, template, config, max_source_length: self.max_source_length })
    }

    /// The prompt, and how the model writes: as its files say, and before them the flags.
    fn ways(&self, model: &AutoModel, directory: &Path) -> anyhow::Result<(Template, GenerationConfig)> {
        let own = model.default_generation_config();
        let (template, mut config) = match &self.task {
            None => {
                let template = match &self.template {
                    Some(template) => template.clone(),
                    None => Dataset::dialogsum().template,
                };
                (template, own.clone())
            }
            Some(name) => {
                let task = sideburn::nn::ModelDir::new(directory).task(name, own)?;
                let Some(task) = task else {
                    bail!(
                        "the config.json of {} tells of no task called {name:?} (`task_specific_params`)",
                        shown(directory)
                    );
                };
                let prefix = task.prefix.replace('{', "{{").replace('}', "}}");
                (Template::new(format!("{prefix}{{dialogue}}"))?, task.generation)
            }
        };
        if config.max_new_tokens.is_none() && config.max_length.is_none() {
            config.max_new_tokens = Some(64);
        }
        config.max_new_tokens = self.max_new_tokens.or(config.max_new_tokens);
        config.min_new_tokens = self.min_new_tokens.or(config.min_new_tokens);
        config.do_sample |= self.do_sample;
        config.num_return_sequences = 1;
        fn set<T: Copy>(to: &mut T, flag: Option<T>) {
            *to = flag.unwrap_or(*to);
        }
        set(&mut config.num_beams, self.num_beams);
        set(&mut config.length_penalty, self.length_penalty);
        set(&mut config.no_repeat_ngram_size, self.no_repeat_ngram_size);
        set(&mut config.repetition_penalty, self.repetition_penalty);
        set(&mut config.temperature, self.temperature);
        set(&mut config.top_k, self.top_k);
        set(&mut config.top_p, self.top_p);
        set(&mut config.seed, self.seed);
        config.check()?;
        for warning in config.without_effect() {
            tell!("warning: {warning}\n");
        }
        Ok((template, config))
    }
}

/// A model that writes.
pub(crate) struct Writer {
    pub(crate) model: AutoModel,
    pub(crate) tokenizer: Tokenizer,
    /// The prompt.
    pub(crate) template: Template,
    pub(crate) config: GenerationConfig,
    max_source_length: usize,
}

impl Writer {
    /// The token ids of each prompt. Tells how many were cut.
    pub(crate) fn prompts(&self, texts: impl IntoIterator<Item = Fields>) -> anyhow::Result<Vec<Vec<u32>>> {
        let mut cut = 0;
        let prompt = |fields: Fields| {
            let encoded =
                self.tokenizer.encode_prompt(&self.template.render(&fields)?, Some(self.max_source_length))?;
            cut += usize::from(encoded.cut > 0);
            anyhow::Ok(encoded.ids)
        };
        let prompts: Vec<_> = texts.into_iter().map(prompt).collect::<anyhow::Result<_>>()?;
        if cut > 0 {
            let limit = self.max_source_length;
            tell!("warning: {cut} of {} texts are longer than {limit} tokens and were cut\n", prompts.len());
        }
        Ok(prompts)
    }
}
