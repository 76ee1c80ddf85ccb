//! Search with beams.

use sideburn_batch::Key;

use super::{Decision, Next, Rules, Strategy, last_tokens, no_token};
use crate::config::EarlyStopping;
use crate::scores::{draw, softmax};
use crate::{Decoder, GenerateError, GenerationConfig, Sequence};

/// Beam search, and beam sampling where the configuration asks for draws: `GenerationMixin._beam_search` of `transformers`
/// 4.57, for each prompt by itself.
///
/// Each prompt has `num_beams` rows. Of all tokens behind all of them, the likeliest go on; those that end a row are kept by
/// their score, the sum of the log-probabilities over a power of the length. When a prompt is done, its beams leave the batch.
#[derive(Clone, Debug)]
pub struct Beams {
    config: GenerationConfig,
    /// What draws follow from.
    key: Key,
    /// The sum of the log-probabilities of each row, in the order of the decoder's.
    running: Vec<f32>,
    /// The answers found for each prompt, the best first.
    found: Vec<Vec<Found>>,
}

#[derive(Clone, Debug)]
struct Found {
    score: f32,
    row: Sequence,
}

/// A token behind a row.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    from: usize,
    token: u32,
    /// The sum of the log-probabilities with the token.
    sum: f32,
    log_prob: f32,
    ends: bool,
}

/// What `transformers` has in place of a score that does not count.
pub(super) const NONE: f32 = -1e9;

impl Beams {
    /// Searches as the configuration asks for.
    pub fn new(config: &GenerationConfig) -> Self {
        let key = Key::from_seed(config.seed).fold_in_name("beam sampling");
        Self { config: config.clone(), key, running: Vec::new(), found: Vec::new() }
    }

    /// The tokens that may go on from the rows of one prompt, the best first or in the order of their draws.
    fn candidates(&self, of_rows: &[Vec<(u32, f32)>], first: usize, row: &Sequence) -> Vec<Candidate> {
        let candidate = |from: usize, (token, log_prob): (u32, f32)| {
            let sum = self.running[from] + log_prob;
            Candidate { from, token, sum, log_prob, ends: false }
        };
        let all =
            (first..).zip(of_rows).flat_map(|(from, tokens)| tokens.iter().map(move |token| candidate(from, *token)));
        let mut all: Vec<Candidate> = all.collect();
        let count = candidates_of(&self.config, self.config.num_beams);
        if self.config.do_sample {
            let key = self.key.fold_in(row.number()).fold_in(row.written().len() as u64);
            let mut weights = softmax(&all.iter().map(|candidate| candidate.sum).collect::<Vec<f32>>());
            let drawn = (0..count as u64).map_while(|index| draw(&mut weights, key.uniform(index)));
            return drawn.map(|place| all[place]).collect();
        }
        all.sort_by(|a, b| b.sum.total_cmp(&a.sum));
        all.truncate(count);
        all
    }

    /// Takes in what ends among `candidates`, and says whether the prompt is done with beams whose best has this sum.
    fn is_done(
        &mut self,
        prompt: usize,
        candidates: &[Candidate],
        rows: &mut [Sequence],
        keeps_log_probs: bool,
    ) -> bool {
        let Self { config, found, .. } = self;
        let found = &mut found[prompt];
        // All rows of a prompt have one length.
        let (written, history) = (rows[candidates[0].from].written().len() + 1, rows[candidates[0].from].history());
        for candidate in candidates.iter().take(config.num_beams).filter(|candidate| candidate.ends) {
            let score = length_penalised(candidate.sum, written, config.length_penalty);
            let place = found.partition_point(|better| better.score >= score);
            if place < config.num_beams {
                let mut row = rows[candidate.from].clone();
                row.push(candidate.token, keeps_log_probs.then_some(candidate.log_prob));
                found.insert(place, Found { score, row });
                found.truncate(config.num_beams);
            }
        }
        let going_on = candidates.iter().filter(|candidate| !candidate.ends).map(|candidate| candidate.sum);
        let Some(best) = going_on.reduce(f32::max) else { return true };
        if found.len() < config.num_beams {
            return false;
        }
        let hoped_for = match config.early_stopping {
            EarlyStopping::FirstFound => return true,
            EarlyStopping::Never if config.length_penalty > 0.0 => config.limit(history),
            EarlyStopping::Heuristic | EarlyStopping::Never => written,
        };
        length_penalised(best, hoped_for, config.length_penalty) <= found[found.len() - 1].score
    }
}

/// How many tokens are looked at for so many beams: enough that as many go on where every end token is among them.
pub(super) fn candidates_of(config: &GenerationConfig, beams: usize) -> usize {
    (1 + config.eos_token_id.len()).max(2) * beams
}

/// The score of a row of this length.
pub(super) fn length_penalised(sum: f32, length: usize, penalty: f64) -> f32 {
    sum / (length as f64).powf(penalty) as f32
}

/// Where the rows of each prompt lie, in their order.
pub(super) fn prompts(rows: &[Sequence]) -> Vec<std::ops::Range<usize>> {
    let mut first = 0;
    rows.chunk_by(|a, b| a.prompt() == b.prompt())
        .map(|rows| {
            first += rows.len();
            first - rows.len()..first
        })
        .collect()
}

impl<D: Decoder> Strategy<D> for Beams {
    fn rows_of_prompt(&self) -> usize {
        self.config.num_beams
    }

    fn step(
        &mut self,
        decoder: &mut D,
        mut rows: Vec<Sequence>,
        rules: &Rules<'_>,
    ) -> Result<Decision, GenerateError<D::Error>> {
        if self.running.is_empty() {
            // All beams are equal at first: the others count only where the first has too few tokens to go on with.
            self.running = rows.iter().map(|row| if row.copy() == 0 { 0.0 } else { NONE }).collect();
            self.found = vec![Vec::new(); rows.last().map_or(0, |row| row.prompt() + 1)];
        }
        let logits = decoder.next_logits(&last_tokens(&rows)).map_err(GenerateError::Decoder)?;
        let count = candidates_of(&self.config, self.config.num_beams);
        // Draws are made from all tokens.
        let count = if self.config.do_sample { usize::MAX } else { count };
        let of_rows = rules.best_log_probs(logits, &rows, count)?;
        let mut decision = Decision::default();
        let mut running = Vec::with_capacity(rows.len());
        for of_prompt in prompts(&rows) {
            let (first, prompt) = (of_prompt.start, rows[of_prompt.start].prompt());
            let mut candidates = self.candidates(&of_rows[of_prompt], first, &rows[first]);
            for candidate in &mut candidates {
                candidate.ends = rows[candidate.from].with(candidate.token, |row| rules.ends(row));
            }
            if candidates.is_empty() {
                return Err(no_token(&rows[first]));
            }
            if self.is_done(prompt, &candidates, &mut rows, rules.keeps_log_probs) {
                let found = std::mem::take(&mut self.found[prompt]).into_iter().take(self.config.num_return_sequences);
                let answers = found.enumerate().map(|(rank, Found { score, row })| row.into_answer(rank, Some(score)));
                let ended = decision.ended.len();
                decision.ended.extend(answers);
                let best = decision.ended.get(ended).map_or(&[][..], |best| &best.tokens);
                decision.tokens.extend(best.iter().map(|token| (prompt, *token)));
                continue;
            }
            let mut going_on: Vec<Candidate> = candidates.into_iter().filter(|candidate| !candidate.ends).collect();
            going_on.sort_by(|a, b| b.sum.total_cmp(&a.sum));
            for Candidate { from, token, sum, log_prob, .. } in going_on.into_iter().take(self.config.num_beams) {
                let mut row = rows[from].clone();
                row.push(token, rules.keeps_log_probs.then_some(log_prob));
                decision.going_on.push(Next { from, row });
                running.push(sum);
            }
        }
        self.running = running;
        Ok(decision)
    }
}
