//! How the small T5 under `assets/t5-mini` was made: a Unigram vocabulary and a T5, trained from nothing on text.
//!
//! ```text
//! cargo run --release --example pretrain_mini -- --text dialogues.jsonl --output t5-mini
//! ```
//!
//! The text is JSON Lines with the fields `dialogue` and `summary`; `assets/dialogsum-sample/make_sample.py
//! --pretraining-text` writes it from what the sample leaves of DialogSum. A summary is a text of its own here: it is
//! never shown with its dialogue. There are four kinds of examples:
//!
//! * gap sentences (Zhang et al., 2020), a quarter: behind the prompt of the summarisation task, write the turn of a
//!   dialogue that says most about the others, which in three of ten cases has been taken out;
//! * keywords, a quarter: write the words of a dialogue with the highest tf-idf;
//! * denoising (Lewis et al., 2020), three tenths: write a summary whole, of which the words with the highest tf-idf are
//!   given, in any order;
//! * span corruption (Raffel et al., 2020, section 3.1.4), a fifth: write what the sentinels in a dialogue stand for.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use sideburn::adapters::{Precision, WeightMut};
use sideburn::prelude::*;
use sideburn::t5::FeedForward;
use sideburn_examples::{Console, Interrupt, divergence, exit};
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
    #[arg(long, default_value_t = 10_000)]
    max_steps: u64,
    /// Examples of a step.
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// The learning rate after the warm-up.
    #[arg(long, default_value_t = 5e-4)]
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
/// The heads of every layer that copy from the source to begin with.
const COPYING: usize = 2;
const MAX_SOURCE_LENGTH: usize = 320;
const MAX_TARGET_LENGTH: usize = 96;

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = Console::default();
    let device = parse_device(&args.device)?.autodiff();
    let texts = read_texts(&args.text)?;
    std::fs::create_dir_all(&args.output)?;
    train_vocabulary(&texts, args.vocab_size, &args.output.join("tokenizer.json"))
        .map_err(anyhow::Error::from_boxed)?;
    let corpus = Corpus::new(&texts, &Tokenizer::from_dir(&args.output)?)?;
    writeln!(out, "{} dialogues, {} tokens", corpus.dialogues.len(), corpus.tokens());

    let config = T5Config {
        vocab_size: args.vocab_size,
        d_model: 192,
        d_kv: 48,
        d_ff: 384,
        num_heads: 4,
        num_layers: 2,
        feed_forward_proj: FeedForward::GATED_GELU,
        tie_word_embeddings: true,
        scale_decoder_outputs: Some(false),
        dropout_rate: 0.0,
        ..T5Config::default()
    };
    let mut model = T5::random(&config, Key::from_seed(args.seed).fold_in_name("weights"), &device);
    prepare(&mut model);
    writeln!(out, "{}", ParameterReport::of(&model));

    let sampler = ShuffledSampler::new(corpus.dialogues.len(), args.batch_size, args.seed)?.drop_last()?;
    let key = Key::from_seed(args.seed).fold_in_name("corruption");
    let train = TrainConfig {
        learning_rate: args.learning_rate,
        warmup_steps: args.max_steps / 20,
        lr_scheduler_type: Schedule::Cosine,
        weight_decay: 0.01,
        seed: args.seed,
        ..TrainConfig::new(args.max_steps)
    };
    let ended = Trainer::new(train)?
        .observe(ProgressLine::new())
        .observe(JsonLinesLog::create(args.output.join("pretraining.jsonl"))?)
        .observe(Interrupt::listen()?)
        .train(&mut model, |step| corpus.batch(&sampler.batch(step), key.fold_in(step)), T5::token_losses)
        .map_err(anyhow::Error::from)
        .and_then(|report| divergence(&report.steps).map_or(Ok(()), |reason| Err(anyhow::anyhow!(reason))));
    if let Err(error) = ended {
        let unfinished = args.output.join("unfinished");
        model.save_dir(&unfinished, Precision::F32)?;
        return Err(error.context(format!("the model as it is, is in {}", unfinished.display())));
    }
    model.save_dir(&args.output, Precision::Bf16)?;
    writeln!(out, "written to {}", args.output.display());
    out.finish()
}

/// Position biases by which the encoder's first head looks at the token before, the last heads everywhere, and the others
/// at their neighbourhood, after ALiBi (Press et al., 2022): learnt from nothing, in steps of the learning rate, they would
/// take the better part of a short run.
fn nearness([buckets, heads]: [usize; 2], encoder: bool, device: &Device) -> Tensor<2> {
    let bias = |bucket: usize, head: usize| match (encoder, head) {
        (true, 0) if bucket == 1 => 0.0,
        (true, 0) => -8.0,
        (_, head) if head + 1 == heads => 0.0,
        (true, head) => -0.5f32.powi(head as i32) * (bucket % (buckets / 2)) as f32,
        (false, head) => -0.5f32.powi(head as i32) * bucket as f32,
    };
    let biases: Vec<f32> = (0..buckets).flat_map(|bucket| (0..heads).map(move |head| bias(bucket, head))).collect();
    Tensor::<1>::from_floats(biases.as_slice(), device).reshape([buckets, heads])
}

/// Prepares fresh weights for a short run of AdamW, whose steps have one size for all of them; T5's own are made for
/// Adafactor, whose steps grow with the weights. The embedding, which is the output head as well, is made small, and so is
/// what each layer adds to it.
///
/// What a small model takes longest to find stands in it from the start: an induction circuit (Olsson et al., 2022). The
/// encoder's first head looks at the token before. The decoder's first [`COPYING`] heads over the source look for what
/// that head wrote of the token that the decoder wrote last, so that they find what followed it in the source; and they
/// write it again, as the outgoing weights of these heads are their incoming ones transposed.
fn prepare(model: &mut T5) {
    const FIRST: &str = "encoder.block.0.layer.0.SelfAttention";
    let d_kv = model.config().d_kv;
    let fresh: HashMap<String, Tensor<2>> =
        model.sites().into_iter().map(|(name, site)| (name, site.weight().val().inner())).collect();
    let first_head = |projection| fresh[&format!("{FIRST}.{projection}")].clone();
    let previous = first_head("v").narrow(0, 0, d_kv);
    let written = first_head("o").narrow(1, 0, d_kv).transpose();
    // The weights of the copying heads, and behind them those of the others.
    let rows = |head: &Tensor<2>, others: &Tensor<2>| {
        let free = others.dims()[0] - COPYING * d_kv;
        Tensor::cat(vec![head.clone().repeat_dim(0, COPYING), others.clone().narrow(0, COPYING * d_kv, free)], 0)
    };
    for (name, weight) in model.weights_mut() {
        let weight = match weight {
            WeightMut::Table(table) => table.weight_mut(),
            WeightMut::Linear(linear) => linear.weight_mut(),
            WeightMut::Vector(_) => continue,
        };
        let drawn = weight.val().inner();
        let (place, last) = name.rsplit_once('.').expect("a weight has a place");
        let prepared = match last {
            _ if name == "shared.weight" => drawn * (1.0 / 12.0),
            _ if place.ends_with("relative_attention_bias") => {
                nearness(drawn.dims(), name.starts_with("encoder"), &drawn.device())
            }
            "q" if place.ends_with("EncDecAttention") => rows(&(previous.clone() * 0.3), &drawn),
            "k" if place.ends_with("EncDecAttention") => rows(&written, &drawn),
            "o" if place.ends_with("EncDecAttention") => {
                let free = drawn.dims()[1] - COPYING * d_kv;
                let incoming = fresh[&format!("{place}.v")].clone().narrow(0, 0, COPYING * d_kv).transpose();
                Tensor::cat(vec![incoming * 0.5, drawn.narrow(1, COPYING * d_kv, free) * 0.03], 1)
            }
            "o" if place == FIRST => {
                let inner = drawn.dims()[1];
                Tensor::cat(vec![written.clone().transpose() * 0.1, drawn.narrow(1, d_kv, inner - d_kv) * 0.03], 1)
            }
            "o" | "wo" => drawn * 0.03,
            _ => continue,
        };
        *weight = weight.clone().map(|_| Tensor::from_inner(prepared.clone()).require_grad());
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
    /// What stands before a dialogue whose keywords are asked for.
    keyword_prompt: Vec<u32>,
    sentinels: Vec<u32>,
    eos: u32,
}

struct Dialogue {
    turns: Vec<Vec<u32>>,
    /// Its words with the highest tf-idf.
    keywords: Vec<Vec<u32>>,
    summary: Vec<u32>,
    summary_keywords: Vec<Vec<u32>>,
    /// The turn that says most about the others.
    salient: usize,
}

impl Corpus {
    fn new(texts: &[Text], tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let template = Dataset::dialogsum().template;
        let (before, behind) = template.as_str().split_once("{dialogue}").expect("every template has a place for it");
        // Words are tokenised one by one, so that the ids of a text are those of its parts, one after the other.
        let ids = |text: &str| -> anyhow::Result<Vec<u32>> {
            let mut ids = tokenizer.encode_prompt(text, None)?.ids;
            ids.pop();
            Ok(ids)
        };
        let in_dialogues = frequencies(texts.iter().map(|text| text.dialogue.as_str()));
        let in_summaries = frequencies(texts.iter().map(|text| text.summary.as_str()));
        let sentinel = |index: usize| ids(&format!("<extra_id_{index}>")).map(|ids| ids[ids.len() - 1]);
        Ok(Self {
            prompt: [ids(before)?, ids(behind)?],
            keyword_prompt: ids("Keywords of the following conversation:")?,
            sentinels: (0..SENTINELS).map(sentinel).collect::<Result<_, _>>()?,
            eos: tokenizer.eos_id().context("no end-of-sequence token")?,
            dialogues: texts
                .iter()
                .map(|text| {
                    let lines: Vec<&str> = text.dialogue.lines().filter(|line| !line.trim().is_empty()).collect();
                    let turns = lines.iter().map(|line| ids(line)).collect::<Result<_, _>>()?;
                    let list = |words: Vec<&str>| words.into_iter().map(ids).collect::<Result<_, _>>();
                    Ok(Dialogue {
                        turns,
                        keywords: list(keywords(&text.dialogue, &in_dialogues, texts.len(), 6))?,
                        summary: ids(&text.summary)?,
                        summary_keywords: list(keywords(&text.summary, &in_summaries, texts.len(), 8))?,
                        salient: most_salient(&lines)?,
                    })
                })
                .collect::<anyhow::Result<_>>()?,
        })
    }

    fn tokens(&self) -> usize {
        self.dialogues.iter().flat_map(|dialogue| &dialogue.turns).map(Vec::len).sum()
    }

    fn batch(&self, indices: &[usize], key: Key) -> Result<PromptBatch, sideburn::batch::BatchError> {
        let examples: Vec<_> = indices.iter().map(|index| self.example(*index, key.fold_in(*index as u64))).collect();
        let sources = TokenRows::from_rows(examples.iter().map(|(source, _)| source))?;
        PromptBatch::new(sources, TokenRows::from_rows(examples.iter().map(|(_, target)| target))?)
    }

    fn example(&self, index: usize, key: Key) -> (Vec<u32>, Vec<u32>) {
        let dialogue = &self.dialogues[index];
        let part = key.fold_in_name("part");
        let (mut source, mut target) = match key.below(0, 20) {
            0..5 if dialogue.turns.len() >= 4 => self.take_out_turn(dialogue, part),
            5..10 => self.list_keywords(dialogue),
            10..16 => (shuffled(&dialogue.summary_keywords, part), dialogue.summary.clone()),
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

    fn list_keywords(&self, dialogue: &Dialogue) -> (Vec<u32>, Vec<u32>) {
        let source = [self.keyword_prompt.clone(), dialogue.turns.concat()].concat();
        (source, dialogue.keywords.concat())
    }

    /// Asks for the most salient turn, which is taken out of its place in three of ten cases.
    fn take_out_turn(&self, dialogue: &Dialogue, key: Key) -> (Vec<u32>, Vec<u32>) {
        let masked = key.uniform(1) < 0.3;
        let [before, behind] = &self.prompt;
        let mut source = before.clone();
        for (index, turn) in dialogue.turns.iter().enumerate() {
            if index == dialogue.salient && masked {
                source.push(self.sentinels[0]);
            } else {
                source.extend_from_slice(turn);
            }
        }
        source.truncate(MAX_SOURCE_LENGTH - 1 - behind.len());
        source.extend_from_slice(behind);
        (source, dialogue.turns[dialogue.salient].clone())
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

/// The words, one behind the other in an order drawn by lot.
fn shuffled(words: &[Vec<u32>], key: Key) -> Vec<u32> {
    let mut order: Vec<usize> = (0..words.len()).collect();
    order.sort_by(|a, b| key.uniform(*a as u64).total_cmp(&key.uniform(*b as u64)));
    order.into_iter().flat_map(|index| words[index].iter().copied()).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric() && c != '#'))
        .filter(|word| !word.is_empty() && !word.ends_with('#'))
}

/// In how many texts each word occurs.
fn frequencies<'a>(texts: impl Iterator<Item = &'a str>) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for text in texts {
        let distinct: HashSet<String> = words(text).map(str::to_lowercase).collect();
        for word in distinct {
            *counts.entry(word).or_insert(0) += 1;
        }
    }
    counts
}

/// The words of a text with the highest tf-idf, in the order of their first occurrence.
fn keywords<'a>(text: &'a str, frequencies: &HashMap<String, usize>, texts: usize, limit: usize) -> Vec<&'a str> {
    let mut found: Vec<(String, &str, usize)> = Vec::new();
    for word in words(text) {
        let lower = word.to_lowercase();
        match found.iter_mut().find(|(known, ..)| *known == lower) {
            Some((.., count)) => *count += 1,
            None => found.push((lower, word, 1)),
        }
    }
    let score =
        |(word, _, count): &(String, &str, usize)| *count as f64 * (texts as f64 / frequencies[word] as f64).ln();
    let mut best: Vec<usize> = (0..found.len()).collect();
    best.sort_by(|a, b| score(&found[*b]).total_cmp(&score(&found[*a])));
    best.truncate(limit);
    best.sort_unstable();
    best.into_iter().map(|index| found[index].1).collect()
}

/// The turn with the highest ROUGE-1 against all other turns together, the first of several.
fn most_salient(turns: &[&str]) -> anyhow::Result<usize> {
    let scorer = RougeScorer::new(&[Metric::Rouge1]);
    let scores: Vec<f64> = (0..turns.len())
        .map(|index| {
            let others = [&turns[..index], &turns[index + 1..]].concat().join("\n");
            Ok(scorer.score(&others, turns[index])?[Metric::Rouge1].fmeasure)
        })
        .collect::<anyhow::Result<_>>()?;
    Ok((0..turns.len()).rev().max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or(0))
}
