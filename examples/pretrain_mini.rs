//! How the small T5 under `assets/t5-mini` was made: a Unigram vocabulary and a T5, trained from nothing on text.
//!
//! ```text
//! cargo run --release --example pretrain_mini -- --text dialogues.jsonl --output t5-mini
//! ```
//!
//! The text is JSON Lines with the fields `dialogue` and `summary`; `assets/dialogsum-sample/make_sample.py
//! --pretraining-text` writes it from what the sample leaves of DialogSum. A summary is a text of its own here: it is
//! never shown with its dialogue. There are four kinds of examples, in equal parts:
//!
//! * span corruption (Raffel et al., 2020, section 3.1.4): write what the sentinels in a dialogue stand for;
//! * gap sentences (Zhang et al., 2020): behind the prompt of the summarisation task, write the turn of a dialogue that
//!   says most about the others, which in one half of these cases has been taken out;
//! * continuation: write the turns that come next;
//! * denoising (Lewis et al., 2020): write a summary whole, of which about half has been replaced by sentinels.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use sideburn::adapters::{Precision, WeightMut};
use sideburn::prelude::*;
use sideburn::t5::FeedForward;
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::{sequence::Sequence, whitespace::WhitespaceSplit};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, TokenizerBuilder, normalizers::unicode::NFKC};

#[derive(Parser)]
struct Args {
    /// JSON Lines with the fields `dialogue` and `summary`.
    #[arg(long)]
    text: PathBuf,
    /// Where the model directory is written.
    #[arg(long, default_value = "out/t5-mini")]
    output: PathBuf,
    /// Steps of the optimiser.
    #[arg(long, default_value_t = 3600)]
    max_steps: u64,
    /// Examples of a step.
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// The learning rate after the warm-up.
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Entries of the vocabulary, sentinels included.
    #[arg(long, default_value_t = 4096, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1000..100_000))]
    vocab_size: usize,
    /// What all random draws follow from.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Where training runs: flex, wgpu, vulkan, metal, cuda.
    #[arg(long, default_value = "flex")]
    device: String,
}

const SENTINELS: usize = 32;
const MAX_SOURCE_LENGTH: usize = 320;
const MAX_TARGET_LENGTH: usize = 96;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let device = parse_device(&args.device)?.autodiff();
    let texts = read_texts(&args.text)?;
    std::fs::create_dir_all(&args.output)?;
    train_vocabulary(&texts, args.vocab_size, &args.output.join("tokenizer.json"))
        .map_err(anyhow::Error::from_boxed)?;
    let corpus = Corpus::new(&texts, &Tokenizer::from_dir(&args.output)?)?;
    println!("{} dialogues, {} tokens", corpus.dialogues.len(), corpus.tokens());

    let config = T5Config {
        vocab_size: args.vocab_size,
        d_model: 192,
        d_kv: 48,
        d_ff: 384,
        num_heads: 4,
        num_layers: 2,
        feed_forward_proj: FeedForward::GatedGelu,
        tie_word_embeddings: true,
        scale_decoder_outputs: Some(false),
        dropout_rate: 0.0,
        ..T5Config::default()
    };
    let mut model = T5::random(&config, Key::from_seed(args.seed).fold_in_name("weights"), &device);
    rescale(&mut model);
    println!("{}", ParameterReport::of(&model));

    let sampler = BatchSampler::new(corpus.dialogues.len(), args.batch_size, args.seed)?.drop_last()?;
    let key = Key::from_seed(args.seed).fold_in_name("corruption");
    let train = TrainConfig {
        learning_rate: args.learning_rate,
        warmup_steps: args.max_steps / 20,
        lr_scheduler_type: Schedule::Cosine,
        weight_decay: 0.01,
        seed: args.seed,
        ..TrainConfig::new(args.max_steps)
    };
    Trainer::new(train)?
        .observe(ProgressLine::new(args.max_steps))
        .observe(JsonLinesLog::create(args.output.join("pretraining.jsonl"))?)
        .train(&mut model, |step| corpus.batch(&sampler.batch(step), key.fold_in(step)), T5::token_losses)?;
    model.save_dir(&args.output, Precision::Bf16)?;
    println!("written to {}", args.output.display());
    Ok(())
}

/// Position biases by which the first heads look at their neighbourhood, and the last everywhere, after ALiBi (Press et
/// al., 2022): learnt from nothing, in steps of the learning rate, they would take the better part of a short run.
fn nearness([buckets, heads]: [usize; 2], bidirectional: bool, device: &Device) -> Tensor<2> {
    let slope = |head: usize| if head + 1 < heads { 0.5f32.powi(head as i32) } else { 0.0 };
    let distance = |bucket: usize| if bidirectional { bucket % (buckets / 2) } else { bucket };
    let biases: Vec<f32> =
        (0..buckets).flat_map(|bucket| (0..heads).map(move |head| -slope(head) * distance(bucket) as f32)).collect();
    Tensor::<1>::from_floats(biases.as_slice(), device).reshape([buckets, heads]).require_grad()
}

/// Rescales fresh weights for AdamW, whose steps have one size for all of them; T5's own are made for Adafactor, whose
/// steps grow with the weights. The embedding, which is the output head as well, is made small, and so is what each layer
/// adds to it.
fn rescale(model: &mut T5) {
    for (name, weight) in model.weights_mut() {
        let weight = match weight {
            WeightMut::Table(table) => table,
            WeightMut::Linear(linear) => linear.weight_mut(),
            WeightMut::Vector(_) => continue,
        };
        let factor = match name.rsplit('.').next() {
            _ if name == "shared.weight" => 1.0 / 16.0,
            _ if name.contains("relative_attention_bias") => {
                let (encoder, device) = (name.starts_with("encoder"), weight.lazy_device());
                *weight = weight.clone().map(|table| nearness(table.dims(), encoder, &device));
                continue;
            }
            Some("o" | "wo") => 0.2,
            _ => continue,
        };
        *weight = weight.clone().map(|tensor| Tensor::from_inner(tensor.inner() * factor).require_grad());
    }
}

#[derive(serde::Deserialize)]
struct Text {
    dialogue: String,
    summary: String,
}

fn read_texts(path: &Path) -> anyhow::Result<Vec<Text>> {
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let lines = BufReader::new(file).lines().zip(1..);
    lines
        .map(|(line, number)| {
            serde_json::from_str(&line?).with_context(|| format!("{}, line {number}", path.display()))
        })
        .collect()
}

/// A Unigram model over words (Kudo, 2018), with `</s>` behind every text, in the form that T5's tokenizer has.
fn train_vocabulary(texts: &[Text], size: usize, path: &Path) -> tokenizers::Result<()> {
    let special = |text: &str| AddedToken::from(text, true);
    let metaspace = || Metaspace::new('▁', PrependScheme::Always, true);
    let processor = TemplateProcessing::builder()
        .try_single("$A </s>")?
        .special_tokens(vec![("</s>", 1)])
        .build()
        .map_err(|error| error.to_string())?;
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(Unigram::default())
        .with_normalizer(Some(NFKC))
        .with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), metaspace().into()])))
        .with_post_processor(Some(processor))
        .with_decoder(Some(metaspace()))
        .build()?;
    let mut trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size((size - SENTINELS) as u32)
        .special_tokens(["<pad>", "</s>", "<unk>"].map(special).to_vec())
        .unk_token(Some("<unk>".to_owned()))
        .build()
        .map_err(|error| error.to_string())?;
    tokenizer.train(&mut trainer, texts.iter().flat_map(|text| [&text.dialogue, &text.summary]))?;
    let sentinels: Vec<_> = (0..SENTINELS).rev().map(|index| special(&format!("<extra_id_{index}>"))).collect();
    tokenizer.add_special_tokens(sentinels)?;
    tokenizer.save(path, false)?;
    Ok(())
}

/// The tokenised dialogues.
struct Corpus {
    dialogues: Vec<Dialogue>,
    /// What the prompt template puts before and behind a dialogue.
    prompt: [Vec<u32>; 2],
    sentinels: Vec<u32>,
    eos: u32,
}

struct Dialogue {
    turns: Vec<Vec<u32>>,
    summary: Vec<u32>,
    /// The turns that say most about the others, the best first.
    salient: Vec<usize>,
}

impl Corpus {
    fn new(texts: &[Text], tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let template = PromptTemplate::default();
        let (before, behind) = template.as_str().split_once("{dialogue}").expect("every template has a place for it");
        // Words are tokenised one by one, so that the ids of a text are those of its parts, one after the other.
        let ids = |text: &str| -> anyhow::Result<Vec<u32>> {
            let mut ids = tokenizer.encode(text, None)?.ids;
            ids.pop();
            Ok(ids)
        };
        let sentinel = |index: usize| ids(&format!("<extra_id_{index}>")).map(|ids| ids[ids.len() - 1]);
        Ok(Self {
            prompt: [ids(before)?, ids(behind)?],
            sentinels: (0..SENTINELS).map(sentinel).collect::<Result<_, _>>()?,
            eos: tokenizer.eos_id(),
            dialogues: texts
                .iter()
                .map(|text| {
                    let lines: Vec<&str> = text.dialogue.lines().filter(|line| !line.trim().is_empty()).collect();
                    let turns = lines.iter().map(|line| ids(line)).collect::<Result<_, _>>()?;
                    Ok(Dialogue { turns, summary: ids(&text.summary)?, salient: by_salience(&lines) })
                })
                .collect::<anyhow::Result<_>>()?,
        })
    }

    fn tokens(&self) -> usize {
        self.dialogues.iter().flat_map(|dialogue| &dialogue.turns).map(Vec::len).sum()
    }

    fn batch(&self, indices: &[usize], key: Key) -> Result<Seq2SeqBatch, sideburn::batch::BatchError> {
        let examples: Vec<_> = indices.iter().map(|index| self.example(*index, key.fold_in(*index as u64))).collect();
        let sources = TokenRows::from_rows(examples.iter().map(|(source, _)| source))?;
        Seq2SeqBatch::new(sources, TokenRows::from_rows(examples.iter().map(|(_, target)| target))?)
    }

    fn example(&self, index: usize, key: Key) -> (Vec<u32>, Vec<u32>) {
        let dialogue = &self.dialogues[index];
        let part = key.fold_in_name("part");
        let (mut source, mut target) = match key.below(0, 4) {
            0 if dialogue.turns.len() >= 4 => self.take_out_turn(dialogue, part),
            1 if dialogue.turns.len() >= 2 => continuation(dialogue, part),
            2 => (self.corrupt_spans(&dialogue.summary, 6, part).0, dialogue.summary.clone()),
            _ => self.corrupt_spans(some_turns(dialogue, part).concat().as_slice(), 15, part),
        };
        source.truncate(MAX_SOURCE_LENGTH - 1);
        source.push(self.eos);
        target.truncate(MAX_TARGET_LENGTH - 1);
        target.push(self.eos);
        (source, target)
    }

    /// Replaces one span of about three tokens in every `spacing` by a sentinel.
    fn corrupt_spans(&self, tokens: &[u32], spacing: usize, key: Key) -> (Vec<u32>, Vec<u32>) {
        let (mut source, mut target) = (Vec::new(), Vec::new());
        let spans = (tokens.len() / spacing).clamp(1, SENTINELS);
        for span in 0..spans {
            let segment = &tokens[span * tokens.len() / spans..(span + 1) * tokens.len() / spans];
            let length = (1 + key.below(2 * span as u64, 5) as usize).min(segment.len());
            let start = key.below(2 * span as u64 + 1, (segment.len() - length + 1) as u64) as usize;
            source.extend_from_slice(&segment[..start]);
            source.push(self.sentinels[span]);
            source.extend_from_slice(&segment[start + length..]);
            target.push(self.sentinels[span]);
            target.extend_from_slice(&segment[start..start + length]);
        }
        (source, target)
    }

    /// Asks for one of the three most salient turns, which is left in its place in half of the cases.
    fn take_out_turn(&self, dialogue: &Dialogue, key: Key) -> (Vec<u32>, Vec<u32>) {
        let chosen = dialogue.salient[key.below(0, 3.min(dialogue.salient.len() as u64)) as usize];
        let masked = key.uniform(1) < 0.5;
        let [before, behind] = &self.prompt;
        let mut source = before.clone();
        for (index, turn) in dialogue.turns.iter().enumerate() {
            if index == chosen && masked {
                source.push(self.sentinels[0]);
            } else {
                source.extend_from_slice(turn);
            }
        }
        source.truncate(MAX_SOURCE_LENGTH - 1 - behind.len());
        source.extend_from_slice(behind);
        (source, dialogue.turns[chosen].clone())
    }
}

/// Consecutive turns of a dialogue, of about 120 tokens.
fn some_turns(dialogue: &Dialogue, key: Key) -> &[Vec<u32>] {
    let first = key.fold_in_name("first").below(0, dialogue.turns.len() as u64) as usize;
    let mut tokens = 0;
    let fitting = dialogue.turns[first..].iter().take_while(|turn| {
        let fits = tokens < 120;
        tokens += turn.len();
        fits
    });
    &dialogue.turns[first..first + fitting.count()]
}

/// Turns of a dialogue, and the turns behind them.
fn continuation(dialogue: &Dialogue, key: Key) -> (Vec<u32>, Vec<u32>) {
    let turn = 1 + key.below(0, dialogue.turns.len() as u64 - 1) as usize;
    let before = dialogue.turns[..turn].concat();
    (before[before.len().saturating_sub(120)..].to_vec(), dialogue.turns[turn..].concat())
}

/// The turns in the order of their ROUGE-1 against all other turns together.
fn by_salience(turns: &[&str]) -> Vec<usize> {
    let scorer = RougeScorer::new(&[Metric::Rouge1]);
    let scores: Vec<f64> = (0..turns.len())
        .map(|index| {
            let others = [&turns[..index], &turns[index + 1..]].concat().join("\n");
            scorer.score(&others, turns[index])[Metric::Rouge1].fmeasure
        })
        .collect();
    let mut order: Vec<usize> = (0..turns.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}
