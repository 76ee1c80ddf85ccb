//! The FLAN-T5-small whose weights, and LoRA factors, are made by a formula; `testdata/README.md` describes it.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use sideburn_adapters::methods::LoraConfig;
use sideburn_adapters::{AdaptedModel, Key, Method, WeightMut};
use sideburn_t5::{T5, T5Config};

/// The values of the tensor called `name`, uniform with this mean and standard deviation.
fn values(name: &str, len: usize, deviation: f64, mean: f64) -> Vec<f32> {
    let key = Key::from_seed(1).fold_in_name(name);
    let element = |index| ((2.0 * key.uniform(index) - 1.0) * 3f64.sqrt() * deviation + mean) as f32;
    (0..len as u64).map(element).collect()
}

/// A model with all its weights.
pub(crate) fn model(config: &T5Config, device: &Device) -> T5 {
    let (d_model, inner) = (config.d_model as f64, config.inner_dim() as f64);
    let mut model = T5::random(config, Key::from_seed(0), device);
    for (name, weight) in model.weights_mut() {
        let (deviation, mean) = match &weight {
            WeightMut::Linear(_) => match name.rsplit('.').next().unwrap() {
                "q" => ((d_model * config.d_kv as f64).powf(-0.5), 0.0),
                "o" => (inner.powf(-0.5), 0.0),
                "wo" => ((config.d_ff as f64).powf(-0.5), 0.0),
                "lm_head" => (8.0 * d_model.powf(-0.5), 0.0),
                _ => (d_model.powf(-0.5), 0.0),
            },
            WeightMut::Vector(_) => (0.1, 1.0),
            WeightMut::Table(_) => (if name == "shared.weight" { 1.0 } else { 0.5 }, 0.0),
        };
        let (name, shape) = {
            let (name, weight) = weight.as_weight().tensors(&name).next().unwrap();
            (name, weight.dims())
        };
        let values = values(&name, shape.iter().product(), deviation, mean);
        weight.into_weight_mut().replace(Tensor::from_data(TensorData::new(values, shape), device));
    }
    model
}

/// Writes an adapter of `model` on `q` and `v` to `directory`, as `peft` would.
pub(crate) fn write_adapter(model: &T5, config: &LoraConfig, directory: &Path) {
    let mut tensors = Vec::new();
    for (site, linear) in model.linears() {
        if !(site.ends_with(".q") || site.ends_with(".v")) {
            continue;
        }
        let [outputs, inputs] = linear.shape();
        let b_deviation = if site.ends_with(".q") { 0.01 } else { 0.05 };
        let factors = [("A", [config.r, inputs], (inputs as f64).powf(-0.5)), ("B", [outputs, config.r], b_deviation)];
        for (factor, shape, deviation) in factors {
            let name = format!("{site}.lora_{factor}.weight");
            let values = values(&name, shape[0] * shape[1], deviation, 0.0);
            let tensor = sideburn_weights::Tensor::from_f32(shape.to_vec(), &values).unwrap();
            tensors.push((format!("base_model.model.{name}"), tensor));
        }
    }
    sideburn_weights::write_safetensors(directory.join("adapter_model.safetensors"), tensors, None).unwrap();
    std::fs::write(directory.join("adapter_config.json"), config.to_json().to_string()).unwrap();
}
