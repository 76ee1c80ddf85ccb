//! Fifty updates by each optimiser against PyTorch, `transformers` and bitsandbytes, and what becomes of their state.

// How far the numbers are apart is worth seeing.
#![allow(clippy::print_stdout)]

use std::error::Error;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use sideburn_adapters::{AdaptedModel, Key, for_each_parameter, parameters};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_t5::{LanguageModel, T5, T5Config};
use sideburn_testing::{Golden, golden, relative_difference, values};
use sideburn_train::{
    Differentiate, Differentiated, Optim, OptimArgs, Run, RunState, Schedule, StepInfo, TrainConfig, TrainError,
};

const NAMES: [&str; 2] = ["shared.weight", "decoder.final_layer_norm.weight"];

const ALL: [(&str, Optim); 5] = [
    ("adamw_torch", Optim::AdamwTorch),
    ("adafactor", Optim::Adafactor),
    ("lion_32bit", Optim::Lion32bit),
    ("sgd", Optim::Sgd),
    ("adamw_bnb_8bit", Optim::AdamwBnb8bit),
];

/// A model with a matrix of 95 x 48.
fn model() -> T5 {
    let config =
        T5Config { vocab_size: 95, d_model: 48, d_kv: 4, d_ff: 16, num_layers: 1, num_heads: 2, ..T5Config::default() };
    T5::random(&config, Key::from_seed(1), &Device::flex().autodiff()).unfreeze()
}

fn settings(optim: Optim) -> TrainConfig {
    let momentum = if optim == Optim::Sgd { 0.9 } else { 0.0 };
    TrainConfig {
        optim,
        optim_args: OptimArgs { momentum },
        learning_rate: 1e-2,
        weight_decay: 0.1,
        max_grad_norm: 0.0,
        lr_scheduler_type: Schedule::Constant,
        ..TrainConfig::new(50)
    }
}

/// The tensor of `testdata/make_optimizers.py`.
fn exact(shape: [usize; 2], step: i64) -> TensorData {
    let element = |i: i64| {
        let whole = (i * 7919 + step * 104_729 + (i * i) % 1009 * (step + 3)) % 2001 - 1000;
        whole as f32 * 2f32.powi((i % 8 - 18) as i32)
    };
    TensorData::new((0..(shape[0] * shape[1]) as i64).map(element).collect::<Vec<_>>(), shape)
}

/// The gradients of the goldens.
struct Given;

impl Differentiate<T5, PromptBatch> for Given {
    fn gradient(
        &self,
        model: &T5,
        _: &[PromptBatch],
        info: &StepInfo<'_>,
    ) -> Result<Differentiated, Box<dyn Error + Send + Sync>> {
        let (mut gradients, device) = (GradientsParams::new(), model.device().inner());
        for parameter in parameters(model).into_iter().filter(|parameter| NAMES.contains(&parameter.name.as_str())) {
            let shape = parameter.tensor.dims();
            gradients.register(parameter.id(), Tensor::<2>::from_data(exact(shape, info.step as i64), &device));
        }
        Ok(Differentiated { losses: vec![Tensor::ones([1], &device)], gradients })
    }
}

fn batch() -> PromptBatch {
    let rows = || TokenRows::from_rows([[5, 6, 7, 1].as_slice(), &[8, 1]]).unwrap();
    PromptBatch::new(rows(), rows()).unwrap()
}

fn floats(model: &T5, name: &str) -> Vec<f32> {
    values(parameters(model).into_iter().find(|parameter| parameter.name == name).unwrap().tensor.val())
}

#[test]
fn fifty_updates() {
    let (file, tolerance) = (Golden::open("optimizers/updates.safetensors"), golden("optimizers").tolerance as f32);
    for (optim_name, optim) in ALL {
        let mut model = model();
        let ids = NAMES.map(|name| parameters(&model).iter().find(|found| found.name == name).unwrap().id());
        for_each_parameter(&mut model, |param| {
            if ids.contains(&param.id) {
                let values = Tensor::from_data(exact(param.dims(), 1000), &Device::flex().autodiff());
                *param = param.clone().map(|_| values.require_grad());
            }
        });
        let mut run = Run::begin(&model, &settings(optim)).unwrap();
        while !run.is_over() {
            run.step(&mut model, &[batch()], &Given).unwrap();
            let step = run.next_step();
            if [1, 10, 50].contains(&step) {
                for name in NAMES {
                    let expected = file.floats(&format!("{optim_name}.{step}.{name}"));
                    let difference = relative_difference(&floats(&model, name), &expected);
                    println!("{optim_name}, {name} after {step} updates: {difference:e} relative");
                    assert!(difference <= tolerance, "{optim_name}, {name} after {step}: {difference:e}");
                }
            }
        }
        let state = run.state(&model).optimizer;
        assert_eq!(state.len(), 2);
        for name in NAMES {
            let of_parameter = &state[name];
            assert_eq!(of_parameter["step"].as_slice::<i64>().unwrap(), [50]);
            let prefix = format!("{optim_name}.state.{name}.");
            let parts: Vec<String> = file.names().into_iter().filter(|name| name.starts_with(&prefix)).collect();
            assert_eq!(parts.len() + 1, of_parameter.len(), "{prefix}: {:?}", of_parameter.keys());
            for part in parts {
                let found = &of_parameter[&part[prefix.len()..]];
                if found.dtype() == burn::tensor::DType::U8 {
                    assert_eq!(found.as_slice::<u8>().unwrap(), file.tensor(&part).bytes(), "{part}");
                } else {
                    let difference = relative_difference(found.as_slice::<f32>().unwrap(), &file.floats(&part));
                    assert!(difference <= tolerance, "{part}: {difference:e}");
                }
            }
        }
    }
}

#[test]
fn a_run_goes_on_from_its_state() {
    for (name, optim) in ALL {
        let config = TrainConfig { max_grad_norm: 1.0, ..settings(optim) };
        let (mut whole, mut halves) = (model(), model());
        let mut run = Run::begin(&whole, &config).unwrap();
        for _ in 0..4 {
            run.step(&mut whole, &[batch()], &T5::token_losses).unwrap();
        }
        let mut run = Run::begin(&halves, &config).unwrap();
        for _ in 0..2 {
            run.step(&mut halves, &[batch()], &T5::token_losses).unwrap();
        }
        let state: RunState = serde_json::from_str(&serde_json::to_string(&run.state(&halves)).unwrap()).unwrap();
        let mut run = Run::resume(&halves, state).unwrap();
        for _ in 0..2 {
            run.step(&mut halves, &[batch()], &T5::token_losses).unwrap();
        }
        assert_eq!(sideburn_testing::parameters(&halves), sideburn_testing::parameters(&whole), "{name}");
        assert_ne!(sideburn_testing::parameters(&halves), sideburn_testing::parameters(&model()), "{name}");
    }
}

#[test]
fn the_state_of_another_optimiser_is_refused() {
    let mut model = model();
    let mut run = Run::begin(&model, &settings(Optim::AdamwBnb8bit)).unwrap();
    run.step(&mut model, &[batch()], &Given).unwrap();
    let state = run.state(&model);
    let refused = |state: RunState| Run::resume(&model, state).err().expect("an error").to_string();

    let mut of_lion = state.clone();
    of_lion.config.optim = Optim::Lion32bit;
    let error = refused(of_lion);
    assert!(error.contains("shared.weight has the state \"state1\" in U8, expected floats"), "{error}");
    let mut of_sgd = state.clone();
    of_sgd.config = settings(Optim::Sgd);
    assert!(refused(of_sgd).contains("has no state \"momentum_buffer\""));
    let mut short = state.clone();
    short.optimizer.get_mut("shared.weight").unwrap().insert("absmax2".to_owned(), [1f32].into());
    assert!(refused(short).contains("its state \"absmax2\" has [1], expected [18]"));
    let mut more = state.clone();
    more.optimizer.get_mut("shared.weight").unwrap().insert("absmax3".to_owned(), [1f32].into());
    assert!(refused(more).contains("shared.weight has a state \"absmax3\", which is none of this optimiser's"));
    let mut floats = state;
    let tensors = &mut floats.optimizer.get_mut("shared.weight").unwrap();
    tensors.insert("state1".to_owned(), TensorData::new(vec![0f32; 95 * 48], [95, 48]));
    assert!(refused(floats).contains("shared.weight has codes that are no bytes"));
}

#[test]
fn an_update_that_led_to_nothing_finite_is_taken_back() {
    for (name, optim) in ALL {
        let mut model = model();
        // Five updates of this size are too many.
        let mut run = Run::begin(&model, &TrainConfig { learning_rate: 1e38, ..settings(optim) }).unwrap();
        let mut before = Vec::new();
        let error = loop {
            before.push(sideburn_testing::parameters(&model));
            match run.step(&mut model, &[batch()], &T5::token_losses) {
                Ok(_) => assert!(before.len() < 10, "{name}: 1e38 is a large step"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, TrainError::NotFinite { .. }), "{name}: {error}");
        if optim != Optim::AdamwTorch {
            // Of two updates, the second led here: the weights are those before it.
            let good = before.len().saturating_sub(2);
            assert_eq!(sideburn_testing::parameters(&model), before[good], "{name}");
        }
    }
}
