//! How to train.

use serde::{Deserialize, Serialize};

use crate::schedule::Course;
use crate::{Optim, OptimArgs, Schedule, ScheduleOptions, TrainError, settings};

/// When something is done in a run: `eval_strategy` and `save_strategy` of `transformers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Never.
    #[default]
    No,
    /// After so many steps each, and at the end.
    Steps,
    /// At the end of each epoch, and of the run.
    Epoch,
}

/// The settings of a run; names and defaults are those of `transformers.TrainingArguments` (PyTorch's AdamW alone would
/// decay by 0.01), but for `max_steps`, which has no default here, and `logging_steps`, which is 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Steps of the optimiser.
    pub max_steps: u64,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// The optimiser.
    pub optim: Optim,
    /// What some optimisers take beside the learning rate.
    pub optim_args: OptimArgs,
    /// Weight decay, which is decoupled but for `sgd`; biases, relative position biases among them, and norms are not decayed.
    pub weight_decay: f64,
    /// The decay of AdamW's first moment, and what Lion's moment counts for in an update.
    pub adam_beta1: f64,
    /// The decay of AdamW's second moment, and of Lion's moment.
    pub adam_beta2: f64,
    /// What AdamW adds to the root of the second moment.
    pub adam_epsilon: f64,
    /// The norm to which the gradient of all parameters together is clipped; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// How the learning rate goes.
    pub lr_scheduler_type: Schedule,
    /// What some schedules take.
    pub lr_scheduler_kwargs: ScheduleOptions,
    /// Steps over which the learning rate rises from zero.
    pub warmup_steps: u64,
    /// What part of a token's loss is the mean over the vocabulary, instead of that of its label (Szegedy et al., 2015). The
    /// losses of steps have it, evaluation has not. `transformers` takes the mean of each micro-batch by itself, and smooths in
    /// evaluation, too.
    pub label_smoothing_factor: f64,
    /// The size of the noise on embedded tokens (NEFTune; Jain et al., 2023, who take 5 to 15); none by default. Each element of
    /// a row of `n` tokens gets a number between `-alpha / sqrt(n width)` and `alpha / sqrt(n width)`; `transformers` counts
    /// the padding of the row in `n`.
    pub neftune_noise_alpha: Option<f64>,
    /// Whether each transformer block keeps only what goes in, and is run again in the backward pass. Gradients are the same, to
    /// the last bit on the CPU.
    pub gradient_checkpointing: bool,
    /// What the learning rate of LoRA's second factor B is multiplied by: LoRA+ (Hayou et al., 2024), which recommends 16
    /// with half the learning rate. 1 is LoRA.
    pub loraplus_lr_ratio: f64,
    /// Micro-batches of a step.
    pub gradient_accumulation_steps: u64,
    /// What all random draws follow from.
    pub seed: u64,
    /// The share of all steps over which the learning rate rises from zero, rounded up to whole steps; instead of
    /// `warmup_steps`.
    pub warmup_ratio: f64,
    /// A step that is logged comes after so many.
    pub logging_steps: u64,
    /// When the model is evaluated.
    pub eval_strategy: Strategy,
    /// Steps from one evaluation to the next.
    pub eval_steps: u64,
    /// When a checkpoint is written. Unless it is never, one is at the end and where a run is stopped, too.
    pub save_strategy: Strategy,
    /// Steps from one checkpoint to the next.
    pub save_steps: u64,
    /// How many checkpoints are kept, the last ones; the one that was evaluated best is kept beside them. None keeps all.
    pub save_total_limit: Option<u64>,
    /// Whether the model has the weights at the end that were evaluated best. Each that is better than all before has a
    /// checkpoint.
    pub load_best_model_at_end: bool,
    /// By which metric of the evaluation a model is better than another: `loss` if none is named.
    pub metric_for_best_model: Option<String>,
    /// Whether more of it is better. If nothing is said, it is, unless the metric's name ends in `loss` or `perplexity`.
    pub greater_is_better: Option<bool>,
    /// The run ends after so many evaluations without one that is better than all before.
    pub early_stopping_patience: Option<u64>,
    /// By how much an evaluation must be better for that.
    pub early_stopping_threshold: f64,
}

impl TrainConfig {
    /// The settings that may be others where a run goes on: what comes of it does not depend on them.
    pub const MAY_CHANGE: [&str; 8] = [
        "gradient_checkpointing",
        "logging_steps",
        "eval_strategy",
        "eval_steps",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "early_stopping_patience",
    ];

    /// The defaults, for `max_steps` steps.
    pub fn new(max_steps: u64) -> Self {
        Self {
            max_steps,
            learning_rate: 5e-5,
            optim: Optim::AdamwTorch,
            optim_args: OptimArgs::default(),
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lr_scheduler_type: Schedule::Linear,
            lr_scheduler_kwargs: ScheduleOptions::default(),
            warmup_steps: 0,
            label_smoothing_factor: 0.0,
            neftune_noise_alpha: None,
            gradient_checkpointing: false,
            loraplus_lr_ratio: 1.0,
            gradient_accumulation_steps: 1,
            seed: 42,
            warmup_ratio: 0.0,
            logging_steps: 1,
            eval_strategy: Strategy::No,
            eval_steps: 500,
            save_strategy: Strategy::Steps,
            save_steps: 500,
            save_total_limit: None,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
        }
    }

    /// Steps over which the learning rate rises from zero.
    pub(crate) fn warmup(&self) -> u64 {
        match self.warmup_steps {
            0 => (self.warmup_ratio * self.max_steps as f64).ceil() as u64,
            steps => steps,
        }
    }

    /// The metric by which a model is better than another, without `eval_` before it, and whether more of it is better.
    pub(crate) fn best_metric(&self) -> (&str, bool) {
        let metric = self.metric_for_best_model.as_deref().unwrap_or("loss");
        let metric = metric.strip_prefix("eval_").unwrap_or(metric);
        let less_is_better = ["loss", "perplexity"].iter().any(|ending| metric.ends_with(ending));
        (metric, self.greater_is_better.unwrap_or(!less_is_better))
    }

    /// The learning rate of a step, from 0.
    ///
    /// ```
    /// use sideburn_train::TrainConfig;
    ///
    /// let config = TrainConfig { learning_rate: 1.0, warmup_steps: 2, ..TrainConfig::new(6) };
    /// let rates: Vec<f64> = (0..6).map(|step| config.learning_rate_at(step)).collect();
    /// assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    /// ```
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        self.course().learning_rate_at(step)
    }

    fn course(&self) -> Course<'_> {
        Course {
            schedule: self.lr_scheduler_type,
            options: &self.lr_scheduler_kwargs,
            learning_rate: self.learning_rate,
            warmup: self.warmup(),
            max_steps: self.max_steps,
        }
    }

    /// Refuses values that mean nothing, and such as cannot be together.
    ///
    /// # Errors
    /// If a number is out of its range, or a setting wants another that is not there; the error names the field.
    pub fn validate(&self) -> Result<(), TrainError> {
        let not_negative = |number: f64| number.is_finite() && number >= 0.0;
        let fields = [
            ("learning_rate", self.learning_rate, not_negative(self.learning_rate), "a number of at least 0"),
            ("weight_decay", self.weight_decay, not_negative(self.weight_decay), "a number of at least 0"),
            ("adam_beta1", self.adam_beta1, (0.0..1.0).contains(&self.adam_beta1), "a number in [0, 1)"),
            ("adam_beta2", self.adam_beta2, (0.0..1.0).contains(&self.adam_beta2), "a number in [0, 1)"),
            (
                "adam_epsilon",
                self.adam_epsilon,
                self.adam_epsilon > 0.0 && self.adam_epsilon.is_finite(),
                "a number above 0",
            ),
            (
                "loraplus_lr_ratio",
                self.loraplus_lr_ratio,
                self.loraplus_lr_ratio > 0.0 && self.loraplus_lr_ratio.is_finite(),
                "a number above 0",
            ),
            (
                "label_smoothing_factor",
                self.label_smoothing_factor,
                (0.0..1.0).contains(&self.label_smoothing_factor),
                "a number in [0, 1)",
            ),
            (
                "neftune_noise_alpha",
                self.neftune_noise_alpha.unwrap_or(0.0),
                not_negative(self.neftune_noise_alpha.unwrap_or(0.0)),
                "a number of at least 0",
            ),
            ("max_grad_norm", self.max_grad_norm, not_negative(self.max_grad_norm), "a number of at least 0"),
            (
                "optim_args.momentum",
                self.optim_args.momentum,
                (0.0..1.0).contains(&self.optim_args.momentum)
                    && (self.optim == Optim::Sgd || self.optim_args == OptimArgs::default()),
                "a number in [0, 1) with `sgd`, and nothing with another `optim`",
            ),
            (
                "gradient_accumulation_steps",
                self.gradient_accumulation_steps as f64,
                self.gradient_accumulation_steps > 0,
                "at least 1",
            ),
        ];
        match fields.into_iter().find(|(_, _, valid, _)| !valid) {
            Some((field, found, _, expected)) => Err(TrainError::InvalidSetting { field, found, expected }),
            None => self.check_loop(),
        }
    }

    fn check_loop(&self) -> Result<(), TrainError> {
        let above_zero = [
            ("max_steps", Some(self.max_steps)),
            ("logging_steps", Some(self.logging_steps)),
            ("eval_steps", Some(self.eval_steps)),
            ("save_steps", Some(self.save_steps)),
            ("save_total_limit", self.save_total_limit),
            ("early_stopping_patience", self.early_stopping_patience),
        ];
        if let Some((field, _)) = above_zero.into_iter().find(|(_, number)| *number == Some(0)) {
            return Err(TrainError::InvalidSetting { field, found: 0.0, expected: "at least 1" });
        }
        for (field, found, valid, expected) in [
            ("warmup_ratio", self.warmup_ratio, (0.0..=1.0).contains(&self.warmup_ratio), "a number from 0 to 1"),
            (
                "early_stopping_threshold",
                self.early_stopping_threshold,
                self.early_stopping_threshold.is_finite() && self.early_stopping_threshold >= 0.0,
                "a number of at least 0",
            ),
        ] {
            if !valid {
                return Err(TrainError::InvalidSetting { field, found, expected });
            }
        }
        if self.warmup_steps > 0 && self.warmup_ratio > 0.0 {
            let (steps, ratio) = (self.warmup_steps, self.warmup_ratio);
            return Err(TrainError::Contradiction {
                message: format!("`warmup_steps` is {steps} and `warmup_ratio` is {ratio}; give one of them"),
            });
        }
        let wants_evaluation = [
            ("load_best_model_at_end", self.load_best_model_at_end),
            ("metric_for_best_model", self.metric_for_best_model.is_some()),
            ("early_stopping_patience", self.early_stopping_patience.is_some()),
        ];
        match wants_evaluation.into_iter().find(|(_, is_set)| *is_set && self.eval_strategy == Strategy::No) {
            Some((field, _)) => Err(TrainError::Contradiction {
                message: format!(
                    "`{field}` is set and `eval_strategy` is \"no\", so that there is no best model; set \
                     `eval_strategy` to \"steps\" or \"epoch\""
                ),
            }),
            None => self.course().validate(),
        }
    }

    /// Refuses to go on with a run of other settings, but for those that say only what is told of it and kept.
    pub(crate) fn check_same(&self, run: &Self) -> Result<(), TrainError> {
        let fields = |config: &Self| serde_json::to_value(config).expect("a struct of plain fields");
        let differences = settings::differences(&fields(run), &fields(self), &Self::MAY_CHANGE);
        if differences.is_empty() { Ok(()) } else { Err(TrainError::OtherRun { differences }) }
    }
}
