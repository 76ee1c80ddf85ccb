//! Settings that mean nothing, contradict each other or are misspelt.

use std::convert::Infallible;

use serde_json::{Map, Value, json};
use sideburn_t5::{LanguageModel, T5};
use sideburn_train::{Evaluated, RunDir, RunRecorder, Strategy, TrainConfig, TrainError, Trainer, with_settings};
use tempfile::tempdir;

use crate::run_dir::{batch, with_lora};

fn given(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn error(value: Value) -> String {
    let config = with_settings(&TrainConfig::new(10), &given(value));
    config.and_then(|config| config.validate()).unwrap_err().to_string()
}

#[test]
fn settings_are_called_as_in_transformers() {
    let all = given(json!({
        "max_steps": 20, "learning_rate": 1, "warmup_ratio": 0.1, "lr_scheduler_type": "cosine", "eval_strategy": "epoch",
        "save_strategy": "no", "save_total_limit": 2, "metric_for_best_model": "rougeL", "greater_is_better": true,
        "early_stopping_patience": 3, "load_best_model_at_end": true, "max_grad_norm": 0.0,
    }));
    let config = with_settings(&TrainConfig::new(10), &all).unwrap();
    config.validate().unwrap();
    assert_eq!((config.max_steps, config.learning_rate, config.save_total_limit), (20, 1.0, Some(2)));
    assert_eq!(config.eval_strategy, Strategy::Epoch);
    // Two steps of warm-up.
    let rates: Vec<f64> = (0..3).map(|step| config.learning_rate_at(step)).collect();
    assert_eq!(rates, [0.0, 0.5, 1.0]);
    let again = serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
    assert_eq!(config, again);
}

#[test]
fn what_is_unknown_or_ill_typed_is_named() {
    for (value, expected) in [
        (json!({"max_step": 5}), "no setting is called `max_step`; the nearest name is `max_steps`"),
        (json!({"Learning_Rate": 5}), "no setting is called `Learning_Rate`; the nearest name is `learning_rate`"),
        (
            json!({"eval_startegy": "steps"}),
            "no setting is called `eval_startegy`; the nearest name is `eval_strategy`",
        ),
        (json!({"fp16": true}), "no setting is called `fp16`"),
    ] {
        assert_eq!(error(value), expected);
    }
    for (value, parts) in [
        (json!({"seed": 1, "max_steps": "ten"}), ["`max_steps` is \"ten\"", "expected u64", "without it, it is 10"]),
        (json!({"max_steps": -1}), ["`max_steps` is -1", "expected u64", ""]),
        (json!({"eval_strategy": "step"}), ["`eval_strategy` is \"step\"", "`no`, `steps`, `epoch`", ""]),
        (json!({"save_total_limit": 1.5}), ["`save_total_limit` is 1.5", "without it, it is null", ""]),
    ] {
        let error = error(value);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn what_means_nothing_or_contradicts_is_refused() {
    for (value, expected) in [
        (json!({"max_steps": 0}), "`max_steps` is 0, expected at least 1"),
        (json!({"save_total_limit": 0}), "`save_total_limit` is 0, expected at least 1"),
        (json!({"logging_steps": 0}), "`logging_steps` is 0, expected at least 1"),
        (json!({"eval_steps": 0}), "`eval_steps` is 0"),
        (json!({"early_stopping_patience": 0}), "`early_stopping_patience` is 0"),
        (json!({"early_stopping_threshold": -1}), "`early_stopping_threshold` is -1"),
        (json!({"warmup_ratio": 1.5}), "`warmup_ratio` is 1.5, expected a number from 0 to 1"),
        (json!({"warmup_ratio": 0.1, "warmup_steps": 3}), "`warmup_steps` is 3 and `warmup_ratio` is 0.1"),
        (json!({"load_best_model_at_end": true}), "`load_best_model_at_end` is set and `eval_strategy` is \"no\""),
        (json!({"early_stopping_patience": 2}), "`early_stopping_patience` is set and `eval_strategy` is \"no\""),
        (json!({"metric_for_best_model": "loss"}), "`metric_for_best_model` is set and `eval_strategy` is \"no\""),
    ] {
        let error = error(value);
        assert!(error.starts_with(expected), "{error}");
    }
}

/// What shows only once there is a run.
#[test]
fn a_run_without_what_its_settings_want_does_not_begin() {
    let run = |config: &TrainConfig, evaluate: Option<fn(&T5) -> Evaluated>| {
        let directory = tempdir().unwrap();
        let mut model = with_lora();
        let mut recorder =
            RunRecorder::new(RunDir::create(directory.path().join("run"), "").unwrap(), config, &model, "");
        if let Some(evaluate) = evaluate {
            recorder = recorder.evaluate(move |model| Ok(evaluate(model)));
        }
        let trainer = Trainer::new(config.clone()).unwrap().observe(&mut recorder);
        trainer.train(&mut model, batch, T5::token_losses).unwrap_err()
    };
    let evaluated = TrainConfig { eval_strategy: Strategy::Steps, eval_steps: 1, ..TrainConfig::new(2) };
    let error = run(&evaluated, None).to_string();
    assert!(
        error.contains("`eval_strategy` is set, and there is nothing to evaluate by: give a validation split"),
        "{error}"
    );
    let by_epoch = TrainConfig { save_strategy: Strategy::Epoch, ..TrainConfig::new(2) };
    let error = run(&by_epoch, None).to_string();
    assert!(error.contains("`save_strategy` is \"epoch\", and nothing says how long one is"), "{error}");
    let unknown = TrainConfig { metric_for_best_model: Some("rouge_l".into()), ..evaluated };
    let metrics = |_: &T5| Evaluated {
        metrics: [("loss".to_owned(), 1.0), ("rougeL".to_owned(), 0.5)].into(),
        ..Evaluated::default()
    };
    let error = run(&unknown, Some(metrics)).to_string();
    assert_eq!(
        error,
        "`metric_for_best_model` is rouge_l, and an evaluation finds loss, rougeL; the nearest name is `rougeL`"
    );
}

#[test]
fn data_that_fails_ends_the_run() {
    let config = TrainConfig::new(2);
    let fails = |_| Err::<sideburn_batch::PromptBatch, _>("no such file");
    let error = Trainer::new(config.clone()).unwrap().train(&mut with_lora(), fails, T5::token_losses).unwrap_err();
    assert!(matches!(error, TrainError::Step { step: 0, .. }), "{error}");
    let none = |_| -> Result<_, Infallible> { batch(0) };
    assert!(Trainer::<T5>::new(TrainConfig { max_steps: 0, ..config }).is_err());
    assert!(Trainer::<T5>::new(TrainConfig::new(1)).unwrap().train(&mut with_lora(), none, T5::token_losses).is_ok());
}
