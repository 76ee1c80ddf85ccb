//! Tasks out of dialogues.

use anyhow::Context;
use sideburn::batch::BatchError;
use sideburn::prelude::*;

use crate::SENTINELS;
use crate::words::{frequencies, keywords, most_salient};

const MAX_SOURCE_LENGTH: usize = 320;
const MAX_TARGET_LENGTH: usize = 96;

/// The tokenised dialogues.
pub(crate) struct Corpus {
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
    pub(crate) fn new(texts: &[Example], tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let template = Dataset::dialogsum().template;
        let (before, behind) = template.as_str().split_once("{dialogue}").expect("every template has a place for it");
        // Words are tokenised one by one, so that the ids of a text are those of its parts, one after the other.
        let ids = |text: &str| -> anyhow::Result<Vec<u32>> {
            let mut ids = tokenizer.encode_prompt(text, None)?.ids;
            ids.pop();
            Ok(ids)
        };
        let in_dialogues = frequencies(texts.iter().map(|text| text.fields["dialogue"].as_str()));
        let in_summaries = frequencies(texts.iter().map(|text| text.targets[0].as_str()));
        let sentinel = |index: usize| ids(&format!("<extra_id_{index}>")).map(|ids| ids[ids.len() - 1]);
        Ok(Self {
            prompt: [ids(before)?, ids(behind)?],
            keyword_prompt: ids("Keywords of the following conversation:")?,
            sentinels: (0..SENTINELS).map(sentinel).collect::<Result<_, _>>()?,
            eos: tokenizer.eos_id().context("no end-of-sequence token")?,
            dialogues: texts
                .iter()
                .map(|text| {
                    let (dialogue, summary) = (&text.fields["dialogue"], &text.targets[0]);
                    let lines: Vec<&str> = dialogue.lines().filter(|line| !line.trim().is_empty()).collect();
                    let turns = lines.iter().map(|line| ids(line)).collect::<Result<_, _>>()?;
                    let list = |words: Vec<&str>| words.into_iter().map(ids).collect::<Result<_, _>>();
                    Ok(Dialogue {
                        turns,
                        keywords: list(keywords(dialogue, &in_dialogues, texts.len(), 6))?,
                        summary: ids(summary)?,
                        summary_keywords: list(keywords(summary, &in_summaries, texts.len(), 8))?,
                        salient: most_salient(&lines)?,
                    })
                })
                .collect::<anyhow::Result<_>>()?,
        })
    }

    /// Tokens of all dialogues.
    pub(crate) fn tokens(&self) -> usize {
        self.dialogues.iter().flat_map(|dialogue| &dialogue.turns).map(Vec::len).sum()
    }

    /// These dialogues as tasks, drawn with `key`.
    pub(crate) fn batch(&self, indices: &[usize], key: Key) -> Result<PromptBatch, BatchError> {
        let examples: Vec<_> = indices.iter().map(|index| self.example(*index, key.fold_in(*index as u64))).collect();
        let sources = TokenRows::from_rows(examples.iter().map(|(source, _)| source))?;
        PromptBatch::new(sources, TokenRows::from_rows(examples.iter().map(|(_, target)| target))?)
    }

    /// How many dialogues there are.
    pub(crate) fn len(&self) -> usize {
        self.dialogues.len()
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
