//! What observers are told, and gradients that come from elsewhere than one device.

use std::convert::Infallible;
use std::error::Error;

use burn::optim::GradientsAccumulator;
use burn::tensor::Device;
use sideburn_adapters::methods::LoraConfig;
use sideburn_adapters::{Adapters, Key, Pass};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_t5::{LanguageModel, T5, T5Config};
use sideburn_train::{
    Control, Differentiate, Differentiated, Observer, ProgressLine, Run, RunInfo, StepInfo, StepRecord, TrainConfig,
    TrainError, Trainer,
};

fn model() -> T5 {
    let config =
        T5Config { vocab_size: 64, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 1, num_heads: 4, ..T5Config::default() };
    let mut model = T5::random(&config, Key::from_seed(7), &Device::flex().autodiff());
    model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(8)).unwrap();
    model
}

fn batch(_: u64) -> Result<PromptBatch, Infallible> {
    let rows = || TokenRows::from_rows([[5, 6, 1]]).unwrap();
    Ok(PromptBatch::new(rows(), rows()).unwrap())
}

/// Evaluates the model after every step, and stops the run as soon as the loss is below a bound.
struct StopBelow {
    bound: f32,
    begun: Option<RunInfo>,
    losses: Vec<f32>,
    ended: Option<u64>,
}

impl Observer<T5> for StopBelow {
    fn begin(&mut self, info: &RunInfo) -> Result<Control, TrainError> {
        self.begun = Some(*info);
        Ok(Control::GoOn)
    }

    fn step(&mut self, _: &StepRecord, _: &Run<T5>, model: &T5) -> Result<Control, TrainError> {
        let losses = model.token_losses(&batch(0).unwrap(), &mut Pass::evaluate()).unwrap();
        let loss = losses.mean().inner().into_scalar::<f32>();
        self.losses.push(loss);
        Ok(if loss < self.bound { Control::Stop } else { Control::GoOn })
    }

    fn end(&mut self, run: &mut Run<T5>, _: &mut T5) -> Result<(), TrainError> {
        self.ended = Some(run.next_step());
        Ok(())
    }
}

#[test]
fn an_observer_sees_the_model_and_can_stop() {
    let config = TrainConfig { learning_rate: 3e-2, ..TrainConfig::new(200) };
    let mut observer = StopBelow { bound: 2.0, begun: None, losses: Vec::new(), ended: None };
    let trainer = Trainer::new(config).unwrap().observe(&mut observer);
    let report = trainer.train(&mut model(), batch, T5::token_losses).unwrap();
    let begun = observer.begun.unwrap();
    assert_eq!((begun.first_step, begun.max_steps), (0, 200));
    assert!(begun.parameters.trainable > 0);
    let steps = report.steps.len();
    assert!(steps < 200, "it did not stop");
    assert_eq!((observer.losses.len(), observer.ended), (steps, Some(steps as u64)));
    let (last, before) = observer.losses.split_last().unwrap();
    assert!(*last < 2.0 && before.iter().all(|loss| *loss >= 2.0));
}

/// Two workers, each with every other micro-batch and a copy of the model.
struct TwoWorkers;

impl Differentiate<T5, PromptBatch> for TwoWorkers {
    fn gradient(
        &self,
        model: &T5,
        micro_batches: &[PromptBatch],
        info: &StepInfo<'_>,
    ) -> Result<Differentiated, Box<dyn Error + Send + Sync>> {
        let (mut sum, mut losses) = (GradientsAccumulator::new(), Vec::new());
        for worker in 0..2 {
            let copy = model.clone();
            for (index, batch) in micro_batches.iter().enumerate().skip(worker).step_by(2) {
                // Every micro-batch has its own draws, wherever it is worked on.
                let info = StepInfo { first_micro_batch: index, ..*info };
                let part = T5::token_losses.gradient(&copy, std::slice::from_ref(batch), &info)?;
                losses.extend(part.losses);
                sum.accumulate(model, part.gradients);
            }
        }
        Ok(Differentiated { losses, gradients: sum.grads() })
    }
}

#[test]
fn gradients_may_come_from_several_workers() {
    let config = TrainConfig { gradient_accumulation_steps: 4, learning_rate: 1e-2, ..TrainConfig::new(3) };
    let batch = |index: u64| {
        let rows = |first: u32| TokenRows::from_rows([[first, 6, 1]]).unwrap();
        Ok::<_, Infallible>(PromptBatch::new(rows(5 + index as u32), rows(30 + index as u32)).unwrap())
    };
    let trainer = || Trainer::new(config.clone()).unwrap();
    let alone = trainer().train(&mut model(), batch, T5::token_losses).unwrap().losses();
    let together = trainer().train(&mut model(), batch, TwoWorkers).unwrap().losses();
    for (alone, together) in alone.iter().zip(&together) {
        assert!((alone - together).abs() <= 1e-6 * alone, "{alone} alone, {together} together");
    }
}

/// Three steps that take this long, before a progress line. Its lines are on standard error.
#[test]
#[ignore = "run by the test below, in processes of their own"]
fn steps_that_take_a_while() {
    let seconds: Vec<f64> =
        std::env::var("SECONDS").unwrap().split(' ').map(|seconds| seconds.parse().unwrap()).collect();
    let (model, mut line) = (model(), ProgressLine::new());
    let run = Run::begin(&model, &TrainConfig::new(3)).unwrap();
    for (step, seconds) in seconds.into_iter().enumerate() {
        let step = step as u64;
        let record =
            StepRecord { step, loss: 1.0, penalty: 0.0, learning_rate: 1e-3, grad_norm: 1.0, tokens: 6, seconds };
        line.step(&record, &run, &model).unwrap();
    }
}

#[test]
fn a_slow_first_step_is_explained() {
    let lines = |seconds: &str| {
        let mut process = std::process::Command::new(std::env::current_exe().unwrap());
        process.args(["observing::steps_that_take_a_while", "--exact", "--ignored", "--nocapture"]);
        let output = process.env("SECONDS", seconds).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let slow = lines("12.5 0.25 0.25");
    assert!(slow.contains("the first step took 12.5 s, and this one 0.2 s: a GPU compiles kernels"), "{slow}");
    assert_eq!(slow.matches("the first step").count(), 1, "{slow}");
    for quick in ["0.5 0.25 0.25", "0.25 12.5 0.25", "12.5 12.4 0.25"] {
        assert!(!lines(quick).contains("the first step"), "{quick}");
    }
}
