//! Diverse beam search.

use super::beams::{NONE, candidates_of, length_penalised, prompts};
use super::{Answer, Decision, Next, Rules, Strategy, last_tokens, no_token};
use crate::config::EarlyStopping;
use crate::processors::LogitsProcessor;
use crate::scores::{Scores, best_few, log_softmax};
use crate::{Decoder, GenerateError, GenerationConfig, Sequence};

/// Diverse beam search (Vijayakumar et al., 2018): `GenerationMixin._group_beam_search` of `transformers` 4.52 with its
/// `BeamSearchScorer`, for each prompt by itself.
///
/// The beams of a prompt make groups. In each step the groups choose one after the other, and a token loses
/// `diversity_penalty` for each beam of the groups before that has chosen it. The best answers of all groups are given.
#[derive(Clone, Debug)]
pub struct BeamGroups {
    config: GenerationConfig,
    /// The group of each row, and the sum of its log-probabilities, in the order of the decoder's rows.
    running: Vec<(usize, f32)>,
    /// What each group of each prompt has found.
    found: Vec<Vec<Group>>,
}

#[derive(Clone, Debug, Default)]
struct Group {
    /// Scores, and rows with the token that ended them.
    found: Vec<(f32, Sequence)>,
    is_done: bool,
}

impl BeamGroups {
    /// Searches as the configuration asks for.
    pub fn new(config: &GenerationConfig) -> Self {
        Self { config: config.clone(), running: Vec::new(), found: Vec::new() }
    }

    fn beams_of_group(&self) -> usize {
        self.config.num_beams / self.config.num_beam_groups
    }

    /// Chooses for one group: from the log-probabilities of its rows, of which the first is row `first`.
    fn choose(
        &mut self,
        group: usize,
        first: usize,
        of_rows: &[Vec<(u32, f32)>],
        rows: &[Sequence],
        rules: &Rules<'_>,
    ) -> Vec<(Next, f32)> {
        let (beams, prompt) = (self.beams_of_group(), rows[first].prompt());
        let sums = &self.running;
        let all = (first..).zip(of_rows).flat_map(|(from, tokens)| {
            tokens.iter().map(move |(token, log_prob)| (from, *token, *log_prob, sums[from].1 + log_prob))
        });
        let mut candidates: Vec<_> = all.collect();
        candidates.sort_by(|a, b| b.3.total_cmp(&a.3));
        candidates.truncate(candidates_of(&self.config, beams));
        let found = &mut self.found[prompt][group];
        let (written, history) = (rows[first].written().len() + 1, rows[first].history());
        let mut going_on = Vec::new();
        for (rank, (from, token, log_prob, sum)) in candidates.iter().copied().enumerate() {
            let mut row = rows[from].clone();
            let log_prob = rules.keeps_log_probs.then_some(log_prob);
            if self.config.eos_token_id.contains(&token) {
                if rank < beams {
                    // Whichever ended it, `transformers` writes the first.
                    row.push(self.config.eos_token_id[0], log_prob);
                    found.add(length_penalised(sum, written, self.config.length_penalty), row, beams);
                }
            } else {
                row.push(token, log_prob);
                going_on.push((Next { from, row }, sum));
                if going_on.len() == beams {
                    break;
                }
            }
        }
        let best = candidates.first().map_or(NONE, |(.., sum)| *sum);
        let hoped_for = match self.config.early_stopping {
            EarlyStopping::Never if self.config.length_penalty > 0.0 => self.config.limit(history),
            _ => written,
        };
        let hoped_for = length_penalised(best, hoped_for, self.config.length_penalty);
        let enough = found.worst().is_some_and(|worst| worst >= hoped_for);
        let first_found = self.config.early_stopping == EarlyStopping::FirstFound;
        found.is_done = found.found.len() >= beams && (first_found || enough);
        going_on
    }

    /// The answers to a prompt, where these rows are left.
    fn answers(&mut self, prompt: usize, left: Vec<(usize, f32, Sequence)>) -> Vec<Answer> {
        let beams = self.beams_of_group();
        let mut groups = std::mem::take(&mut self.found[prompt]);
        for (group, sum, row) in left {
            let score = length_penalised(sum, row.written().len(), self.config.length_penalty);
            groups[group].add(score, row, beams);
        }
        let mut all: Vec<(f32, Sequence)> = groups.into_iter().flat_map(|group| group.found).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let best = all.into_iter().rev().take(self.config.num_return_sequences).enumerate();
        best.map(|(rank, (score, row))| row.into_answer(rank, Some(score))).collect()
    }
}

impl Group {
    fn worst(&self) -> Option<f32> {
        self.found.iter().map(|(score, _)| *score).reduce(f32::min)
    }

    /// Keeps an answer, if it is among the best.
    fn add(&mut self, score: f32, row: Sequence, beams: usize) {
        if self.found.len() >= beams && self.worst().is_some_and(|worst| score <= worst) {
            return;
        }
        self.found.push((score, row));
        if self.found.len() > beams {
            let worst = self.worst().expect("there are some");
            let place = self.found.iter().position(|(score, _)| *score == worst).expect("it is one of them");
            self.found.remove(place);
        }
    }
}

impl<D: Decoder> Strategy<D> for BeamGroups {
    fn rows_of_prompt(&self) -> usize {
        self.config.num_beams
    }

    fn step(
        &mut self,
        decoder: &mut D,
        rows: Vec<Sequence>,
        rules: &Rules<'_>,
    ) -> Result<Decision, GenerateError<D::Error>> {
        let beams = self.beams_of_group();
        if self.running.is_empty() {
            let begun =
                |row: &Sequence| (row.copy() / beams, if row.copy().is_multiple_of(beams) { 0.0 } else { NONE });
            self.running = rows.iter().map(begun).collect();
            let groups = vec![Group::default(); self.config.num_beam_groups];
            self.found = vec![groups; rows.last().map_or(0, |row| row.prompt() + 1)];
        }
        // What a group that is done has chosen counts, too.
        let pad = self.config.pad_token_id.or(self.config.eos_token_id.first().copied()).unwrap_or_default();
        let logits = decoder.next_logits(&last_tokens(&rows)).map_err(GenerateError::Decoder)?;
        let vocabulary = logits.dims()[1];
        let mut scores = Scores::read(logits);
        scores.map(0..rows.len(), |_, scores| log_softmax(scores));
        let (mut decision, mut running) = (Decision::default(), Vec::new());
        for of_prompt in prompts(&rows) {
            let prompt = rows[of_prompt.start].prompt();
            let (mut chosen, mut going_on) = (Vec::<u32>::new(), Vec::new());
            for group in 0..self.config.num_beam_groups {
                if self.found[prompt][group].is_done {
                    chosen.extend(vec![pad; beams]);
                    continue;
                }
                let of_group: Vec<usize> = of_prompt.clone().filter(|row| self.running[*row].0 == group).collect();
                let (first, last) = (of_group[0], of_group[of_group.len() - 1]);
                let count = candidates_of(&self.config, beams).min(vocabulary);
                let processors = &rules.processors;
                let of_rows = scores.map(first..last + 1, |row, scores| {
                    for token in &chosen {
                        if let Some(score) = scores.get_mut(*token as usize) {
                            *score -= self.config.diversity_penalty as f32;
                        }
                    }
                    processors.process(&rows[row], scores);
                    best_few(scores, count)
                });
                if of_rows.iter().all(Vec::is_empty) {
                    return Err(no_token(&rows[first]));
                }
                let next = self.choose(group, first, &of_rows, &rows, rules);
                chosen.extend(next.iter().map(|(next, _)| next.row.last()));
                if !self.found[prompt][group].is_done {
                    going_on.extend(next.into_iter().map(|(next, sum)| (group, sum, next)));
                }
            }
            if going_on.iter().all(|(_, _, next)| rules.ends(&next.row)) {
                let left = going_on.into_iter().map(|(group, sum, next)| (group, sum, next.row)).collect();
                let answers = self.answers(prompt, left);
                let best = answers.first().map_or(&[][..], |best| &best.tokens);
                decision.tokens.extend(best.iter().map(|token| (prompt, *token)));
                decision.ended.extend(answers);
                continue;
            }
            for (group, sum, next) in going_on {
                running.push((group, sum));
                decision.going_on.push(next);
            }
        }
        self.running = running;
        Ok(decision)
    }
}
