//! How rows are written, and when they end.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::processors::Processors;
use crate::stopping::{EosToken, MaxLength, MaxNewTokens, MaxTime, Stopping};
use crate::{ConfigError, Sequence};

/// How rows are written, and when they end. Fields are named as in `transformers.GenerationConfig` and mean what they mean
/// there; `generation/configuration_utils.py` of release 4.57 is the reference. Token ids that the model does not know have
/// no effect.
///
/// ```
/// use sideburn_generate::GenerationConfig;
///
/// let greedy = GenerationConfig { eos_token_id: vec![1], no_repeat_ngram_size: 3, ..GenerationConfig::new(64) };
/// let beams = GenerationConfig { num_beams: 4, length_penalty: 2.0, ..greedy.clone() };
/// let sampling = GenerationConfig { do_sample: true, temperature: 0.7, top_p: 0.9, seed: 7, ..greedy };
/// assert!(beams.check().is_ok() && sampling.check().is_ok());
/// ```
///
/// Which strategy writes follows from it:
///
/// | `num_beams` | `do_sample` | others | strategy |
/// |---|---|---|---|
/// | 1 | no | | [`Greedy`](crate::Greedy) |
/// | 1 | no | `penalty_alpha` above 0 and `top_k` above 1 | [`Contrastive`](crate::Contrastive) |
/// | 1 | yes | | [`Sampling`](crate::Sampling) |
/// | more | no | | [`Beams`](crate::Beams) |
/// | more | yes | | [`Beams`](crate::Beams) that draw |
/// | more | no | `num_beam_groups` above 1 | [`BeamGroups`](crate::BeamGroups) |
///
/// It serializes as the fields of a `generation_config.json`, without the last and `output_scores`, which are of one call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationConfig {
    /// The longest row, its history counted in: the start token of an encoder-decoder, the prompt of a decoder alone.
    /// `max_new_tokens` goes before it; where both are `None`, 20 tokens are written.
    pub max_length: Option<usize>,
    /// The most that is written in a row, its end-of-sequence token included.
    pub max_new_tokens: Option<usize>,
    /// No row ends with `eos_token_id` before it has so many tokens, its history counted in.
    pub min_length: usize,
    /// No row ends with `eos_token_id` before so many tokens are written.
    pub min_new_tokens: Option<usize>,
    /// When a search with beams has found enough.
    pub early_stopping: EarlyStopping,
    /// Ends all rows after so many seconds.
    pub max_time: Option<f64>,
    /// Ends a row whose text holds any of these, which need a way to make text: [`Generation::with_text`].
    ///
    /// [`Generation::with_text`]: crate::Generation::with_text
    pub stop_strings: Vec<String>,
    /// Whether tokens are drawn.
    pub do_sample: bool,
    /// How many beams each prompt has; with 1 there is no search.
    pub num_beams: usize,
    /// How many groups the beams of a prompt make, which keep away from each other.
    pub num_beam_groups: usize,
    /// What contrastive search takes off for being like what stands there already, a share of 1.
    pub penalty_alpha: Option<f64>,
    /// What scores are divided by before a draw.
    pub temperature: f64,
    /// Draws from so many of the likeliest tokens, 0 from all; what contrastive search chooses among.
    pub top_k: usize,
    /// Draws from the fewest tokens that have this share of the probability.
    pub top_p: f64,
    /// Draws from tokens that have at least this share of the likeliest one's probability.
    pub min_p: Option<f64>,
    /// Draws from the fewest tokens that have this share of the probability and tell about as much as is expected (Meister
    /// et al., 2022); 1 draws from all.
    pub typical_p: f64,
    /// Draws from tokens of at least this probability (Hewitt et al., 2022).
    pub epsilon_cutoff: f64,
    /// Draws from tokens of at least the smaller of this probability and its root times `exp(-entropy)` (Hewitt et al., 2022).
    pub eta_cutoff: f64,
    /// What a token loses in score for each beam of the groups before that has written it in this step.
    pub diversity_penalty: f64,
    /// What the scores of the row's tokens are divided by, or multiplied with below zero (Keskar et al., 2019).
    pub repetition_penalty: f64,
    /// What the scores of the prompt's tokens are multiplied with, or divided by below zero.
    pub encoder_repetition_penalty: f64,
    /// The score of an answer is the sum of its log-probabilities over its length to the power of this.
    pub length_penalty: f64,
    /// No row may hold the same sequence of this many tokens twice, its history counted in; 0 allows it.
    pub no_repeat_ngram_size: usize,
    /// No row may hold a sequence of this many tokens that the prompt holds; 0 allows it.
    pub encoder_no_repeat_ngram_size: usize,
    /// Sequences of tokens that no row may hold.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Whether scores are made log-probabilities again behind all else.
    pub renormalize_logits: bool,
    /// The token behind a history of one token.
    pub forced_bos_token_id: Option<u32>,
    /// The last token of a row that is as long as allowed: any of these.
    pub forced_eos_token_id: Vec<u32>,
    /// Whether scores that are no numbers are made some.
    pub remove_invalid_values: bool,
    /// Behind so many written tokens the end becomes likelier, by this factor for each.
    pub exponential_decay_length_penalty: Option<(usize, f64)>,
    /// Tokens that are never written.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that are not written first.
    pub begin_suppress_tokens: Vec<u32>,
    /// What is added to the score of the last token of a sequence where the others stand already.
    pub sequence_bias: Vec<(Vec<u32>, f64)>,
    /// How many answers each prompt gets: the best of the beams, or as many draws.
    pub num_return_sequences: usize,
    /// Whether [`Answer::log_probs`](crate::Answer::log_probs) are kept.
    #[serde(skip)]
    pub output_scores: bool,
    /// What ends a row: any of these tokens. Without one, all rows are as long as allowed.
    pub eos_token_id: Vec<u32>,
    /// What stands behind the end of a row where rows have one length.
    pub pad_token_id: Option<u32>,
    /// What a row begins with where nothing else does.
    pub bos_token_id: Option<u32>,
    /// What the decoder of an encoder-decoder begins with.
    pub decoder_start_token_id: Option<u32>,
    /// How many tokens the draft writes ahead of assisted generation.
    pub num_assistant_tokens: usize,
    /// What draws follow from, with the number of the row and of the step.
    #[serde(skip)]
    pub seed: u64,
}

/// When a search with beams has found enough: `early_stopping`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as there are `num_beams` answers: `true`.
    FirstFound,
    /// When the best beam, as long as it is now, would score below all of `num_beams` answers: `false`.
    #[default]
    Heuristic,
    /// When no beam can score above any of `num_beams` answers, however long it grew: `"never"`.
    Never,
}

/// As `transformers` has it.
impl Serialize for EarlyStopping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::FirstFound => serializer.serialize_bool(true),
            Self::Heuristic => serializer.serialize_bool(false),
            Self::Never => serializer.serialize_str("never"),
        }
    }
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_length: None,
            max_new_tokens: None,
            min_length: 0,
            min_new_tokens: None,
            early_stopping: EarlyStopping::Heuristic,
            max_time: None,
            stop_strings: Vec::new(),
            do_sample: false,
            num_beams: 1,
            num_beam_groups: 1,
            penalty_alpha: None,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: None,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            diversity_penalty: 0.0,
            repetition_penalty: 1.0,
            encoder_repetition_penalty: 1.0,
            length_penalty: 1.0,
            no_repeat_ngram_size: 0,
            encoder_no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            renormalize_logits: false,
            forced_bos_token_id: None,
            forced_eos_token_id: Vec::new(),
            remove_invalid_values: false,
            exponential_decay_length_penalty: None,
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            sequence_bias: Vec::new(),
            num_return_sequences: 1,
            output_scores: false,
            eos_token_id: Vec::new(),
            pad_token_id: None,
            bos_token_id: None,
            decoder_start_token_id: None,
            num_assistant_tokens: 20,
            seed: 0,
        }
    }
}

/// What is written where nothing says how much.
const DEFAULT_NEW_TOKENS: usize = 20;

impl GenerationConfig {
    /// Rows of at most so many tokens, which nothing ends earlier.
    pub fn new(max_new_tokens: usize) -> Self {
        Self { max_new_tokens: Some(max_new_tokens), ..Self::default() }
    }

    /// How many tokens may be written behind a history of this many.
    pub fn limit(&self, history: usize) -> usize {
        match (self.max_new_tokens, self.max_length) {
            (Some(count), _) => count,
            (None, Some(length)) => length.saturating_sub(history),
            (None, None) => DEFAULT_NEW_TOKENS,
        }
    }

    /// Whether it can be followed. Fields that have no effect are told by [`without_effect`](Self::without_effect).
    ///
    /// # Errors
    /// If a field has a value that means nothing, or fields contradict each other.
    pub fn check(&self) -> Result<(), ConfigError> {
        let value = |field, value: String, expected| Err(ConfigError::Value { field, value, expected });
        let counts = [
            ("num_beams", self.num_beams),
            ("num_beam_groups", self.num_beam_groups),
            ("num_return_sequences", self.num_return_sequences),
            ("num_assistant_tokens", self.num_assistant_tokens),
            ("max_length", self.max_length.unwrap_or(1)),
        ];
        if let Some((field, count)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return value(field, count.to_string(), "a number of at least 1");
        }
        let positive = [
            ("temperature", self.temperature),
            ("repetition_penalty", self.repetition_penalty),
            ("encoder_repetition_penalty", self.encoder_repetition_penalty),
            (
                "exponential_decay_length_penalty",
                self.exponential_decay_length_penalty.map_or(1.0, |(_, factor)| factor),
            ),
        ];
        if let Some((field, number)) = positive.into_iter().find(|(_, number)| !(*number > 0.0 && number.is_finite())) {
            return value(field, number.to_string(), "a number above 0");
        }
        let shares = [
            ("top_p", self.top_p),
            ("min_p", self.min_p.unwrap_or_default()),
            ("typical_p", self.typical_p),
            ("epsilon_cutoff", self.epsilon_cutoff),
            ("eta_cutoff", self.eta_cutoff),
            ("penalty_alpha", self.penalty_alpha.unwrap_or_default()),
        ];
        if let Some((field, share)) = shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return value(field, share.to_string(), "a number from 0 to 1");
        }
        if self.typical_p == 0.0 {
            return value("typical_p", "0".to_owned(), "a number above 0, at most 1");
        }
        if let Some(seconds) = self.max_time.filter(|seconds| Duration::try_from_secs_f64(*seconds).is_err()) {
            return value("max_time", seconds.to_string(), "a number of seconds of at least 0");
        }
        if !self.length_penalty.is_finite() {
            return value("length_penalty", self.length_penalty.to_string(), "a number");
        }
        if !(self.diversity_penalty >= 0.0 && self.diversity_penalty.is_finite()) {
            return value("diversity_penalty", self.diversity_penalty.to_string(), "a number of at least 0");
        }
        if self.bad_words_ids.iter().chain(self.sequence_bias.iter().map(|(ids, _)| ids)).any(Vec::is_empty) {
            let field = if self.bad_words_ids.iter().any(Vec::is_empty) { "bad_words_ids" } else { "sequence_bias" };
            return value(field, "a list with an empty sequence".to_owned(), "sequences of at least one token");
        }
        if let Some((_, bias)) = self.sequence_bias.iter().find(|(_, bias)| bias.is_nan()) {
            return value("sequence_bias", bias.to_string(), "numbers");
        }
        self.check_together()
    }

    /// Whether its fields agree.
    fn check_together(&self) -> Result<(), ConfigError> {
        let conflict = |message: String| Err(ConfigError::Conflict { message });
        let (beams, groups, returned) = (self.num_beams, self.num_beam_groups, self.num_return_sequences);
        if let (Some(least), Some(most)) = (self.min_new_tokens, self.max_new_tokens)
            && least > most
        {
            return conflict(format!("`min_new_tokens` is {least}, above `max_new_tokens`, which is {most}"));
        }
        if let (None, Some(most)) = (self.max_new_tokens, self.max_length)
            && self.min_length > most
        {
            return conflict(format!("`min_length` is {}, above `max_length`, which is {most}", self.min_length));
        }
        if groups > 1 || (self.diversity_penalty != 0.0 && beams > 1) {
            if self.do_sample {
                return conflict("groups of beams do not draw: unset `do_sample` or `num_beam_groups`".to_owned());
            }
            if !beams.is_multiple_of(groups) {
                return conflict(format!("`num_beams` is {beams}, which `num_beam_groups`, {groups}, does not divide"));
            }
            if self.diversity_penalty == 0.0 {
                return conflict("`diversity_penalty` is 0: all groups would be the same; raise it".to_owned());
            }
            if groups == 1 {
                return conflict("`diversity_penalty` needs `num_beam_groups` above 1".to_owned());
            }
        }
        if beams > 1 && returned > beams {
            return conflict(format!("`num_return_sequences` is {returned}, above `num_beams`, which is {beams}"));
        }
        if beams == 1 && !self.do_sample && returned > 1 {
            return conflict(format!(
                "`num_return_sequences` is {returned}, but greedy and contrastive search have one answer; set `num_beams` or \
                 `do_sample`"
            ));
        }
        Ok(())
    }

    /// What `transformers` warns of: fields that are set, and have no effect beside the others. A sentence for each.
    ///
    /// ```
    /// use sideburn_generate::GenerationConfig;
    ///
    /// let config = GenerationConfig { temperature: 0.7, ..GenerationConfig::new(20) };
    /// assert_eq!(config.without_effect(), ["`temperature` is 0.7, which only sampling uses; set `do_sample`"]);
    /// ```
    pub fn without_effect(&self) -> Vec<String> {
        let default = Self::default();
        let contrastive = self.is_contrastive();
        let of_sampling = [
            ("temperature", self.temperature, default.temperature),
            ("top_k", self.top_k as f64, if contrastive { self.top_k as f64 } else { default.top_k as f64 }),
            ("top_p", self.top_p, default.top_p),
            ("min_p", self.min_p.unwrap_or(0.0), 0.0),
            ("typical_p", self.typical_p, default.typical_p),
            ("epsilon_cutoff", self.epsilon_cutoff, default.epsilon_cutoff),
            ("eta_cutoff", self.eta_cutoff, default.eta_cutoff),
        ];
        let of_beams = [
            ("length_penalty", self.length_penalty, default.length_penalty),
            ("diversity_penalty", self.diversity_penalty, default.diversity_penalty),
            ("num_beam_groups", self.num_beam_groups as f64, default.num_beam_groups as f64),
        ];
        let changed = |fields: &[(&'static str, f64, f64)]| -> Vec<(&'static str, String)> {
            let changed = fields.iter().filter(|(_, value, default)| value != default);
            changed.map(|(field, value, _)| (*field, value.to_string())).collect()
        };
        let mut told = Vec::new();
        if !self.do_sample {
            let told_of = |(field, value)| format!("`{field}` is {value}, which only sampling uses; set `do_sample`");
            told.extend(changed(&of_sampling).into_iter().map(told_of));
        }
        if self.num_beams == 1 {
            let mut fields = changed(&of_beams);
            match self.early_stopping {
                EarlyStopping::Heuristic => {}
                EarlyStopping::FirstFound => fields.push(("early_stopping", "true".to_owned())),
                EarlyStopping::Never => fields.push(("early_stopping", "\"never\"".to_owned())),
            }
            told.extend(
                fields
                    .into_iter()
                    .map(|(field, value)| format!("`{field}` is {value}, which only beams use; set `num_beams`")),
            );
        }
        told
    }

    /// Whether contrastive search writes.
    pub(crate) fn is_contrastive(&self) -> bool {
        !self.do_sample && self.num_beams == 1 && self.top_k > 1 && self.penalty_alpha.is_some_and(|alpha| alpha > 0.0)
    }

    /// Checks that there is room behind each history, and that the least fits into it.
    pub(crate) fn check_rows(&self, rows: &[Sequence]) -> Result<(), ConfigError> {
        for row in rows {
            let (length, limit) = (row.history(), self.limit(row.history()));
            if let (None, 0, Some(max_length)) = (self.max_new_tokens, limit, self.max_length) {
                return Err(ConfigError::NoRoom { prompt: row.prompt(), length, max_length });
            }
            let least = self.min_new_tokens.unwrap_or(0).max(self.min_length.saturating_sub(length));
            if least > limit {
                let message = format!(
                    "prompt {} must be answered with {least} tokens at least (`min_length`, `min_new_tokens`), but with \
                     {limit} at most (`max_length`, `max_new_tokens`)",
                    row.prompt()
                );
                return Err(ConfigError::Conflict { message });
            }
        }
        Ok(())
    }

    /// What it does to the scores of each step, where these are the prompts.
    pub(crate) fn processors<'a>(&self, prompts: Vec<Vec<u32>>) -> Processors<'a> {
        Processors::new(self, prompts)
    }

    /// What ends a row, but for stop strings.
    pub(crate) fn stopping<'a>(&self) -> Stopping<'a> {
        let mut stopping = Stopping::default().with(EosToken::new(self.eos_token_id.iter().copied()));
        stopping = match (self.max_new_tokens, self.max_length) {
            (None, Some(length)) => stopping.with(MaxLength::new(length)),
            (count, _) => stopping.with(MaxNewTokens::new(count.unwrap_or(DEFAULT_NEW_TOKENS))),
        };
        match self.max_time {
            Some(seconds) => stopping.with(MaxTime::from_now(Duration::from_secs_f64(seconds))),
            None => stopping,
        }
    }
}
