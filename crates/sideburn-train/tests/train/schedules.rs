//! Learning rates over a run, against `transformers.get_scheduler`.

use sideburn_t5::T5;
use sideburn_train::{Schedule, ScheduleOptions, TrainConfig, Trainer};

#[derive(serde::Deserialize)]
struct Case {
    name: Schedule,
    kwargs: ScheduleOptions,
    warmup_steps: u64,
    rates: Vec<f64>,
}

#[test]
fn factors_are_those_of_transformers() {
    let text = std::fs::read_to_string(sideburn_testing::path("lr_schedules.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (name, lr_scheduler_type) in [
        ("linear_w10_t100", Schedule::Linear),
        ("cosine_w10_t100", Schedule::Cosine),
        ("constant_w10", Schedule::ConstantWithWarmup),
    ] {
        let factors: Vec<f64> = serde_json::from_value(golden[name].clone()).unwrap();
        assert_eq!(factors.len(), 100);
        let config = TrainConfig { learning_rate: 1.0, lr_scheduler_type, warmup_steps: 10, ..TrainConfig::new(100) };
        for (step, expected) in factors.into_iter().enumerate() {
            let factor = config.learning_rate_at(step as u64);
            assert!((factor - expected).abs() < 1e-12, "{name}, step {step}: {factor} is not {expected}");
        }
    }
}

#[test]
fn rates_of_all_schedules_with_their_arguments() {
    let text = std::fs::read_to_string(sideburn_testing::path("optimizers/schedules.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 28);
    for Case { name, kwargs, warmup_steps, rates } in cases {
        let lr_scheduler_kwargs = kwargs.clone();
        // What transformers passes over is refused here.
        let warmup_steps = if name == Schedule::Constant { 0 } else { warmup_steps };
        let config = TrainConfig {
            learning_rate: 2e-3,
            lr_scheduler_type: name,
            lr_scheduler_kwargs,
            warmup_steps,
            ..TrainConfig::new(50)
        };
        config.validate().unwrap();
        assert_eq!(rates.len(), 50);
        for (step, expected) in rates.into_iter().enumerate() {
            let rate = config.learning_rate_at(step as u64);
            assert!((rate - expected).abs() < 1e-15, "{name:?} {kwargs:?}, step {step}: {rate} is not {expected}");
        }
    }
}

#[test]
fn a_ratio_of_the_steps_is_a_warm_up_rounded_up() {
    let config = TrainConfig { warmup_ratio: 0.03, ..TrainConfig::new(50) };
    assert_eq!(config.learning_rate_at(1), 0.5 * config.learning_rate);
}

#[test]
fn arguments_that_mean_nothing_are_refused() {
    let refused = |change: &dyn Fn(&mut TrainConfig)| {
        let mut config = TrainConfig::new(50);
        change(&mut config);
        Trainer::<T5>::new(config).err().expect("an error").to_string()
    };
    type Change<'a> = &'a dyn Fn(&mut TrainConfig);
    let cases: [(Change<'_>, &str); 6] = [
        (&|c| c.lr_scheduler_kwargs.power = Some(2.0), "`lr_scheduler_kwargs.power` is 2, expected nothing"),
        (
            &|c| {
                c.lr_scheduler_type = Schedule::Constant;
                c.warmup_steps = 3;
            },
            "`warmup_steps` is 3, expected 0 with `constant`",
        ),
        (
            &|c| c.lr_scheduler_type = Schedule::WarmupStableDecay,
            "`lr_scheduler_kwargs.num_decay_steps` is 0, expected a number of steps",
        ),
        (
            &|c| {
                c.lr_scheduler_type = Schedule::WarmupStableDecay;
                c.lr_scheduler_kwargs.num_decay_steps = Some(51);
            },
            "`lr_scheduler_kwargs.num_decay_steps` is 51, expected at most the steps",
        ),
        (
            &|c| {
                c.lr_scheduler_type = Schedule::Polynomial;
                c.lr_scheduler_kwargs.lr_end = Some(1.0);
            },
            "`lr_scheduler_kwargs.lr_end` is 1, expected less than `learning_rate`",
        ),
        (&|c| c.optim_args.momentum = 0.9, "`optim_args.momentum` is 0.9, expected a number in [0, 1) with `sgd`"),
    ];
    for (change, said) in cases {
        let error = refused(change);
        assert!(error.starts_with(said), "{error}");
    }
}
