//! Runs that several ranks make together, as threads: the same numbers with any number of them, and errors that end all.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use sideburn_adapters::methods::{AdaLoraConfig, LoraConfig, LoraInit};
use sideburn_adapters::{Adapters, Key, Pass};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_t5::{LanguageModel, T5, T5Config};
use sideburn_testing::parameters;
use sideburn_train::{
    Control, Differentiate, Evaluated, Observer, OverRanks, RankError, Ranks, Restored, Run, RunDir, RunRecorder,
    StepInfo, StepRecord, Strategy, ThreadRanks, TrainConfig, TrainError, Trainer, check_same, evaluate_loss,
    share_state,
};
use tempfile::tempdir;

const STEPS: u64 = 30;
/// Micro-batches of a step.
const MICRO_BATCHES: u64 = 6;

fn base(seed: u64) -> T5 {
    let config = T5Config {
        vocab_size: 64,
        d_model: 16,
        d_kv: 4,
        d_ff: 32,
        num_layers: 1,
        num_heads: 4,
        dropout_rate: 0.2,
        ..T5Config::default()
    };
    T5::random(&config, Key::from_seed(seed), &Device::flex().autodiff())
}

fn with_lora() -> T5 {
    let mut model = base(7);
    let lora =
        LoraConfig { r: 4, lora_dropout: 0.1, init_lora_weights: LoraInit::Random, ..LoraConfig::new(["q", "v"]) };
    model.attach("default", lora, Key::from_seed(8)).unwrap();
    model
}

/// Takes ranks of factors away at steps 5 to 20.
fn with_adalora() -> T5 {
    let mut model = base(7);
    let adalora = AdaLoraConfig {
        init_r: 4,
        target_r: 2,
        tinit: 5,
        tfinal: 10,
        ..AdaLoraConfig::new(["q", "v"], STEPS as usize)
    };
    model.attach("default", adalora, Key::from_seed(8)).unwrap();
    model
}

fn settings() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-2,
        gradient_accumulation_steps: MICRO_BATCHES,
        neftune_noise_alpha: Some(5.0),
        warmup_ratio: 0.1,
        save_steps: 5,
        ..TrainConfig::new(STEPS)
    }
}

/// Ragged rows, as many target tokens in one micro-batch as never in the next.
fn batch(index: u64) -> Result<PromptBatch, Infallible> {
    let key = Key::from_seed(5).fold_in(index);
    let row = |number: u64, most: u64| -> Vec<u32> {
        let key = key.fold_in(number).fold_in(most);
        (0..1 + key.below(0, most)).map(|at| 2 + key.below(at + 1, 60) as u32).chain([1]).collect()
    };
    let rows = |most: u64| TokenRows::from_rows((0..1 + index % 3).map(|number| row(number, most))).unwrap();
    Ok(PromptBatch::new(rows(12), rows(7)).unwrap())
}

/// What each of `count` ranks makes of the same.
fn on_ranks<T: Send>(count: usize, work: impl Fn(ThreadRanks) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> =
            ThreadRanks::of(count).into_iter().map(|ranks| scope.spawn(move || work(ranks))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The losses of a run on so many ranks, and the weights that each rank ends with.
fn train(count: usize, start: impl Fn() -> T5 + Sync) -> (Vec<f64>, Vec<Vec<f32>>) {
    let all = on_ranks(count, |ranks| {
        let mut model = start();
        let trainer = Trainer::new(settings()).unwrap().over(&ranks);
        let report = trainer.train(&mut model, batch, T5::token_losses).unwrap();
        (report.losses(), parameters(&model))
    });
    let (losses, weights): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    assert!(losses.windows(2).all(|pair| pair[0] == pair[1]), "the ranks are told different losses");
    (losses[0].clone(), weights)
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max);
    assert!(worst <= 1e-6, "{what}: losses differ by up to {worst:e} relative");
}

#[test]
fn a_run_is_the_same_on_one_two_and_three_ranks() {
    let starts: [fn() -> T5; 3] = [with_lora, with_adalora, || base(7).unfreeze()];
    for (name, start) in ["lora", "adalora", "full"].into_iter().zip(starts) {
        let (alone, _) = train(1, start);
        for count in [2, 3] {
            let (losses, weights) = train(count, start);
            assert_close(&format!("{name} on {count} ranks"), &losses, &alone);
            assert!(weights.windows(2).all(|pair| pair[0] == pair[1]), "{name}: the ranks have different weights");
        }
    }
}

#[test]
fn a_gradient_is_the_same_on_any_number_of_ranks() {
    let micro_batches: Vec<PromptBatch> = (0..MICRO_BATCHES).map(|index| batch(index).unwrap()).collect();
    let loss_tokens = micro_batches.iter().map(|batch| batch.targets().tokens()).sum();
    let config = settings();
    let gradient = |ranks: &dyn Ranks, model: &T5| {
        let info = StepInfo { config: &config, step: 3, loss_tokens, first_micro_batch: 0 };
        let found = OverRanks::new(ranks, T5::token_losses).gradient(model, &micro_batches, &info).unwrap();
        let losses: Vec<f32> = found.losses.into_iter().map(Tensor::into_scalar).collect();
        (losses, flat(model, &found.gradients))
    };
    let starts: [fn() -> T5; 3] = [with_lora, with_adalora, || base(7).unfreeze()];
    for start in starts {
        let [(losses, whole)] = &on_ranks(1, |ranks| gradient(&ranks, &start()))[..] else { panic!() };
        let norm = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
        // More ranks than micro-batches, too: some have nothing to do.
        for count in [2, 3, 4, 7] {
            let found = on_ranks(count, |ranks| gradient(&ranks, &start()));
            assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{count} ranks have different gradients");
            assert_eq!(found[0].0, *losses);
            let differences = found[0].1.iter().zip(whole).map(|(a, b)| f64::from(a - b));
            let relative = norm(&mut differences.into_iter()) / norm(&mut whole.iter().map(|x| f64::from(*x)));
            println!("{count} ranks: the gradient differs by {relative:e} relative");
            assert!(relative <= 1e-6, "{count}: {relative:e}");
        }
    }
}

fn flat(model: &T5, gradients: &GradientsParams) -> Vec<f32> {
    let all = sideburn_adapters::parameters(model);
    let of = |parameter: &sideburn_adapters::Parameter<'_>| gradients.get::<2>(parameter.id());
    all.iter().filter_map(of).flat_map(|gradient| gradient.into_data().try_into_vec::<f32>().unwrap()).collect()
}

/// Makes a run in a directory on so many ranks, or goes on with the one that is there. Only rank 0 sees the directory.
fn go(count: usize, path: &Path, config: &TrainConfig, stop_after: u64) -> Vec<Vec<f32>> {
    on_ranks(count, |ranks| {
        let mut model = with_lora();
        let mut recorder = (ranks.rank() == 0).then(|| {
            let directory = match path.join("config.toml").exists() {
                true => RunDir::open(path),
                false => RunDir::create(path, "seed = 42\n"),
            };
            let recorder = RunRecorder::new(directory.unwrap(), config, &model, "batches");
            recorder.evaluate(|model: &T5| Ok(evaluate_loss(model, (500..503).map(batch), T5::token_losses)?))
        });
        let state = recorder.as_mut().and_then(|recorder| {
            let Restored { state, .. } = recorder.restore(&mut model).unwrap();
            state
        });
        let state = share_state(&ranks, &mut model, state).unwrap();
        let trainer = Trainer::new(config.clone()).unwrap().over(&ranks).observe(recorder.as_mut());
        let trainer = trainer.observe((ranks.rank() == count - 1).then_some(StopAfter(stop_after)));
        match state {
            Some(state) => trainer.resume(state, &mut model, batch, T5::token_losses),
            None => trainer.train(&mut model, batch, T5::token_losses),
        }
        .unwrap();
        recorder.map(|recorder| recorder.finish(&model).unwrap());
        parameters(&model)
    })
}

/// Ends a run, as a signal does that one rank alone has seen.
struct StopAfter(u64);

impl Observer<T5> for StopAfter {
    fn step(&mut self, record: &StepRecord, _: &Run<T5>, _: &T5) -> Result<Control, TrainError> {
        Ok(if record.step + 1 == self.0 { Control::Stop } else { Control::GoOn })
    }
}

fn logged(path: &Path) -> Vec<f64> {
    let log = fs::read_to_string(path.join("training.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let directory = tempdir().unwrap();
    let [alone, three, mixed] = ["alone", "three", "mixed"].map(|name| directory.path().join(name));
    let config = settings();
    go(1, &alone, &config, STEPS);
    go(3, &three, &config, 0);
    go(3, &mixed, &config, 7);
    assert!(mixed.join("checkpoint-7").exists() && !mixed.join("final").exists());
    go(2, &mixed, &config, 16);
    assert_eq!(logged(&mixed).len(), 16);
    go(3, &mixed, &config, 0);
    assert_close("three ranks, with checkpoints", &logged(&three), &logged(&alone));
    assert_close("three ranks, two, three", &logged(&mixed), &logged(&alone));
    assert!(mixed.join("final").exists());
    // With the same number of ranks the bits are the same.
    let broken = directory.path().join("broken");
    go(3, &broken, &config, 11);
    go(3, &broken, &config, 0);
    assert_eq!(logged(&broken), logged(&three));
    let adapter = |path: &Path| fs::read(path.join("final/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter(&broken), adapter(&three));
}

#[test]
fn all_ranks_end_with_the_best_model() {
    let directory = tempdir().unwrap();
    // The wrong way round, so that the first evaluation is the best.
    let config = TrainConfig {
        eval_strategy: Strategy::Steps,
        eval_steps: 4,
        load_best_model_at_end: true,
        greater_is_better: Some(true),
        early_stopping_patience: Some(3),
        ..settings()
    };
    let path = directory.path().join("run");
    let weights = go(3, &path, &config, 0);
    assert!(weights.windows(2).all(|pair| pair[0] == pair[1]));
    let first_four = go(1, &directory.path().join("other"), &TrainConfig { save_steps: 1, ..config }, 4);
    let differences = weights[0].iter().zip(&first_four[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(differences < 1e-4, "{differences}");
    // After 16 steps, at the fourth evaluation without a better one.
    assert_eq!(logged(&path).len(), 16);
}

/// The messages of the ranks of a run of which something is wrong.
fn fail(
    count: usize,
    change: impl Fn(usize, &mut T5, &mut TrainConfig) + Sync,
    batches: impl Fn(usize, u64) -> Result<PromptBatch, String> + Sync,
    token_losses: impl Fn(usize, &T5, &PromptBatch, &mut Pass) -> Result<Tensor<1>, String> + Sync,
    watching: impl Fn(usize) -> Option<Full> + Sync,
) -> Vec<String> {
    on_ranks(count, |ranks| {
        let (rank, mut model, mut config) = (ranks.rank(), with_lora(), settings());
        change(rank, &mut model, &mut config);
        let trainer = Trainer::new(config).unwrap().over(&ranks).observe(watching(rank));
        let losses = |model: &T5, batch: &PromptBatch, pass: &mut Pass| token_losses(rank, model, batch, pass);
        trainer.train(&mut model, |index| batches(rank, index), losses).unwrap_err().to_string()
    })
}

/// An observer that fails, as on a full disk.
struct Full;

impl Observer<T5> for Full {
    fn step(&mut self, record: &StepRecord, _: &Run<T5>, _: &T5) -> Result<Control, TrainError> {
        let full = TrainError::Contradiction { message: "the disk is full".to_owned() };
        if record.step == 2 { Err(full) } else { Ok(Control::GoOn) }
    }
}

fn good_batch(_: usize, index: u64) -> Result<PromptBatch, String> {
    Ok(batch(index).unwrap())
}

fn good_losses(_: usize, model: &T5, batch: &PromptBatch, pass: &mut Pass) -> Result<Tensor<1>, String> {
    model.token_losses(batch, pass).map_err(|error| error.to_string())
}

#[test]
fn an_error_of_one_rank_ends_all_and_names_it() {
    let unchanged = |_: usize, _: &mut T5, _: &mut TrainConfig| ();
    let nobody = |_: usize| None;
    let unread = |rank: usize, index: u64| match (rank, index / MICRO_BATCHES) {
        (1, 2) => Err("line 7 is broken".to_owned()),
        _ => good_batch(rank, index),
    };
    let found = fail(3, unchanged, unread, good_losses, nobody);
    assert_eq!(
        found,
        ["rank 1: step 2: line 7 is broken", "step 2: line 7 is broken", "rank 1: step 2: line 7 is broken"]
    );

    let calls = Mutex::new(0);
    let losses = |rank: usize, model: &T5, batch: &PromptBatch, pass: &mut Pass| {
        let mut calls = calls.lock().unwrap();
        *calls += usize::from(rank == 2);
        if *calls == 5 && rank == 2 { Err("no memory".to_owned()) } else { good_losses(rank, model, batch, pass) }
    };
    let found = fail(3, unchanged, good_batch, losses, nobody);
    assert_eq!(found, ["step 2: rank 2: no memory", "step 2: rank 2: no memory", "step 2: no memory"]);

    let found = fail(2, unchanged, good_batch, good_losses, |rank| (rank == 0).then_some(Full));
    assert_eq!(found, ["the disk is full", "rank 0: the disk is full"]);
}

#[test]
fn a_number_that_is_not_finite_ends_all_ranks_with_the_same_weights() {
    let losses = |rank: usize, model: &T5, batch: &PromptBatch, pass: &mut Pass| {
        let losses = good_losses(rank, model, batch, pass)?;
        // In one micro-batch, which rank 1 has.
        Ok::<_, String>(if batch.targets().tokens() == 8 { losses.mul_scalar(f32::NAN) } else { losses })
    };
    let weights = on_ranks(2, |ranks| {
        let mut model = with_lora();
        let trainer = Trainer::new(settings()).unwrap().over(&ranks);
        let losses = |model: &T5, batch: &PromptBatch, pass: &mut Pass| losses(ranks.rank(), model, batch, pass);
        let error = trainer.train(&mut model, batch, losses).unwrap_err();
        assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
        parameters(&model)
    });
    assert_eq!(weights[0], weights[1]);
    assert!(weights[0].iter().all(|weight| weight.is_finite()));
}

#[test]
fn ranks_that_begin_with_something_else_are_named() {
    let nobody = |_: usize| None;
    let other_settings = |rank: usize, _: &mut T5, config: &mut TrainConfig| {
        config.seed = if rank == 2 { 1 } else { 42 };
    };
    let found = fail(3, other_settings, good_batch, good_losses, nobody);
    let expected = "rank 2 has settings that rank 0 has not: `seed` is 1, and rank 0 `seed` is 42; give all ranks the same \
                    model, data and settings";
    assert_eq!(found, [expected; 3]);

    let other_base = |rank: usize, model: &mut T5, _: &mut TrainConfig| {
        if rank == 1 {
            *model = base(9);
            let lora = LoraConfig {
                r: 4,
                lora_dropout: 0.1,
                init_lora_weights: LoraInit::Random,
                ..LoraConfig::new(["q", "v"])
            };
            model.attach("default", lora, Key::from_seed(8)).unwrap();
        }
    };
    for found in fail(3, other_base, good_batch, good_losses, nobody) {
        assert!(found.starts_with("rank 1 has a base model that rank 0 has not: v1-"), "{found}");
    }
    let other_adapter = |rank: usize, model: &mut T5, _: &mut TrainConfig| {
        if rank == 1 {
            *model = base(7);
            model.attach("default", LoraConfig { r: 4, ..LoraConfig::new(["q", "v"]) }, Key::from_seed(9)).unwrap();
        }
    };
    for found in fail(2, other_adapter, good_batch, good_losses, nobody) {
        assert!(found.starts_with("rank 1 has trained weights that rank 0 has not: "), "{found}");
    }
    let too_few = |_: usize, _: &mut T5, config: &mut TrainConfig| config.gradient_accumulation_steps = 2;
    for found in fail(3, too_few, good_batch, good_losses, nobody) {
        assert!(
            found.starts_with("`gradient_accumulation_steps` is 2, and there are 3 ranks, each of which"),
            "{found}"
        );
    }
    let found = on_ranks(3, |ranks| {
        let data = if ranks.rank() == 1 { "v1-other" } else { "v1-same" };
        check_same(&ranks, &[("a base model", "v1-base".to_owned()), ("data", data.to_owned())])
            .unwrap_err()
            .to_string()
    });
    assert!(found[2].starts_with("rank 1 has data that rank 0 has not: v1-other, and rank 0 v1-same; "), "{found:?}");
}

/// Ranks that round in another way, as machines of different kinds do.
struct Rounds<'a>(&'a ThreadRanks);

impl Ranks for Rounds<'_> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn count(&self) -> usize {
        self.0.count()
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), RankError> {
        self.0.sum(values)?;
        if self.rank() == 1 && values.len() > 2 {
            values[0] += 0.5;
        }
        Ok(())
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, RankError> {
        self.0.gather(bytes)
    }
}

#[test]
fn ranks_whose_weights_come_apart_are_named() {
    let found = on_ranks(3, |ranks| {
        let (mut model, ranks) = (with_lora(), Rounds(&ranks));
        let trainer = Trainer::new(TrainConfig { max_steps: 3, ..settings() }).unwrap().over(&ranks);
        trainer.train(&mut model, batch, T5::token_losses).unwrap_err().to_string()
    });
    for found in found {
        assert!(found.starts_with("rank 1 has other weights than rank 0 after 3 steps, though both began"), "{found}");
    }
}

#[test]
fn a_rank_that_ends_is_named_by_those_that_wait_for_it() {
    let found = on_ranks(3, |ranks| {
        let mut model = with_lora();
        if ranks.rank() == 1 {
            return RankError::Gone { rank: 1, count: 3 }.to_string();
        }
        let trainer = Trainer::new(settings()).unwrap().over(&ranks);
        trainer.train(&mut model, batch, T5::token_losses).unwrap_err().to_string()
    });
    let expected = "rank 1 of 3 has ended before the others, which cannot go on without it; resume the run";
    assert_eq!(found, [expected; 3]);
}

#[test]
fn ranks_that_do_different_things_are_told_so() {
    let found = on_ranks(2, |ranks| {
        let mut values = vec![1.0; 1 + ranks.rank()];
        ranks.sum(&mut values).unwrap_err().to_string()
    });
    let expected = "rank 1 does something else than rank 0: it gives 2 values, and rank 0 1 values; start all ranks with the \
                    same program, model, data and settings";
    assert_eq!(found, [expected; 2]);
    let found = on_ranks(2, |ranks| match ranks.rank() {
        0 => ranks.sum(&mut [1.0]).unwrap_err().to_string(),
        _ => ranks.gather(b"x").unwrap_err().to_string(),
    });
    assert!(found.iter().all(|found| found.contains("it gives a message, and rank 0 1 values")), "{found:?}");
    let told = on_ranks(3, |ranks| ranks.broadcast(vec![ranks.rank() as u8 + 5]).unwrap());
    assert_eq!(told, vec![vec![5]; 3]);
}

/// Nothing of this is asked where there is one rank: an evaluation, too, is what it was.
#[test]
fn a_rank_alone_is_a_run_alone() {
    let evaluated =
        |model: &T5| -> Evaluated { evaluate_loss(model, (500..503).map(batch), T5::token_losses).unwrap() };
    let [mut one, mut other] = [with_lora(), with_lora()];
    Trainer::new(settings()).unwrap().train(&mut one, batch, T5::token_losses).unwrap();
    let ranks = &ThreadRanks::of(1)[0];
    Trainer::new(settings()).unwrap().over(ranks).train(&mut other, batch, T5::token_losses).unwrap();
    assert_eq!(parameters(&one), parameters(&other));
    assert_eq!(evaluated(&one), evaluated(&other));
}
