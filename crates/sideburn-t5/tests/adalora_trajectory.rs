//! Twenty steps of training with AdaLoRA against `peft`: losses, the ranks left after each step, and the adapter.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use sideburn_adapters::{
    AdaLoraConfig, AdaptedModel, Key, Pass, RankAllocator, Triplets, adalora_regularisation, adapter_tensors,
    load_adapter, read_config_file,
};
use sideburn_batch::Seq2SeqBatch;
use sideburn_t5::T5;

#[allow(dead_code)]
#[path = "../../../testdata/golden.rs"]
mod golden;
use golden::{Golden, values};

const TRAJECTORY: &str = "trajectory/t5_gated_untied__adalora";

fn batches() -> Vec<Seq2SeqBatch> {
    let file = Golden::open("trajectory/t5_gated_untied__lora/batches.safetensors");
    let batch = |index: usize| {
        let source = file.rows(&format!("input_ids.{index}"), &file.mask_lengths(&format!("attention_mask.{index}")));
        let labels = format!("labels.{index}");
        Seq2SeqBatch::new(source, file.rows(&labels, &file.label_lengths(&labels))).unwrap()
    };
    (0..4).map(batch).collect()
}

/// Puts values into parameters.
struct Put(HashMap<ParamId, Tensor<2>>);

impl ModuleMapper for Put {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.0.remove(&param.id) {
            Some(values) => param.map(|old| Tensor::from_inner(values.reshape(old.shape())).require_grad()),
            None => param,
        }
    }
}

/// The name of the tensor `part` of AdaLoRA at a layer.
fn name(layer: &str, part: &str) -> String {
    format!("base_model.model.{layer}.lora_{part}")
}

/// Relative, of all numbers together.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    assert_eq!(found.len(), expected.len());
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

#[test]
fn as_peft_trains() {
    let text = std::fs::read_to_string(golden::path(&format!("{TRAJECTORY}/trajectory.json"))).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut model = T5::from_dir(golden::path("t5_gated_untied"), &Device::flex().autodiff()).unwrap();
    load_adapter(&mut model, "default", golden::path(&format!("{TRAJECTORY}/initial_adapter"))).unwrap();
    let config = model.adapters().get("default").unwrap().method().downcast_ref::<AdaLoraConfig>().unwrap().clone();
    let layers: Vec<String> = adapter_tensors(&model, "default")
        .unwrap()
        .into_keys()
        .filter_map(|name| Some(name.strip_prefix("base_model.model.")?.strip_suffix(".lora_E")?.to_owned()))
        .collect();

    let mut allocator = RankAllocator::new(&config).unwrap();
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).init();
    let (batches, mut worst) = (batches(), 0f64);
    for step in 0..20 {
        let losses = model.token_losses(&batches[step % 4], &mut Pass::train(Key::from_seed(0))).unwrap();
        let loss = losses.mean() + adalora_regularisation(&model, "default").unwrap();
        let (found, expected) = (f64::from(values(loss.clone())[0]), golden["losses"][step].as_f64().unwrap());
        worst = worst.max((found - expected).abs() / expected);
        let gradients = loss.backward();
        let of = |model: &T5| -> BTreeMap<String, Tensor<2>> {
            let tensors = adapter_tensors(model, "default").unwrap();
            tensors.into_iter().map(|(name, param)| (name, param.val())).collect()
        };
        let before = of(&model);
        let gradient: BTreeMap<&String, Tensor<2>> =
            before.iter().map(|(name, tensor)| (name, tensor.grad(&gradients).unwrap())).collect();
        let parameters = GradientsParams::from_grads(gradients, &model);
        model = optimizer.step(1e-3, model, parameters);

        let after = of(&model);
        let triplets = |layer: &String| {
            let [a, b, e] = ["A", "B", "E"].map(|part| {
                let name = name(layer, part);
                (after[&name].clone(), gradient[&name].clone())
            });
            (layer.clone(), Triplets { a, b, e })
        };
        let masked = allocator.update(step, &layers.iter().map(triplets).collect());
        let ids = adapter_tensors(&model, "default").unwrap();
        let put = masked.into_iter().map(|(layer, e)| (ids[&name(&layer, "E")].id, e)).collect();
        model = model.map(&mut Put(put));
        let pattern = allocator.rank_pattern();
        let ranks = if pattern.is_empty() { 16 } else { pattern.values().flatten().filter(|kept| **kept).count() };
        assert_eq!(golden["ranks"][step], ranks, "step {step}");
    }
    println!("losses differ by at most {worst:e} relative");
    assert!(worst <= 1e-5, "losses differ by {worst:e}");

    // The file has only the ranks that are left.
    let directory = format!("{TRAJECTORY}/final_adapter");
    let method = read_config_file(&golden::path(&format!("{directory}/adapter_config.json"))).unwrap();
    let expected = method.downcast_ref::<AdaLoraConfig>().unwrap();
    assert_eq!(expected, &AdaLoraConfig { rank_pattern: allocator.rank_pattern().clone(), ..config });
    let file = Golden::open(&format!("{directory}/adapter_model.safetensors"));
    let tensors = adapter_tensors(&model, "default").unwrap();
    let (mut found, mut stored) = (Vec::new(), Vec::new());
    for (layer, kept) in allocator.rank_pattern() {
        for part in ["A", "B", "E"] {
            let name = name(layer, part);
            let tensor = tensors[&name].val();
            let ranks_first = if part == "B" { tensor.transpose() } else { tensor };
            let rows = ranks_first.split(1, 0).into_iter().zip(kept).filter(|(_, kept)| **kept).map(|(row, _)| row);
            let cut = Tensor::cat(rows.collect(), 0);
            found.extend(values(if part == "B" { cut.transpose() } else { cut }));
            stored.extend(file.floats(&name));
        }
    }
    let difference = distance(&found, &stored);
    println!("the adapter differs by {difference:e} relative after training");
    assert!(difference <= 1e-4, "the adapter differs by {difference:e}");
}
