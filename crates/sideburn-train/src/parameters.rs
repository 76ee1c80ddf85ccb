//! The names of parameters, and the groups of them that the optimiser treats apart.

use std::collections::{HashMap, HashSet};

use burn::module::ParamId;
use sideburn_adapters::{AdaptedModel, Weight, adapter_tensors};

/// The name of each parameter, which is the same in every process: those of the base as `transformers` calls them, and
/// those of adapters behind the adapter's name.
pub(crate) fn names<M: AdaptedModel>(model: &M) -> HashMap<ParamId, String> {
    let mut names = HashMap::new();
    let mut add = |id: ParamId, name: String| {
        names.entry(id).or_insert(name);
    };
    for (name, weight) in model.weights() {
        match weight {
            Weight::Linear(linear) => {
                add(linear.weight().id, format!("{name}.weight"));
                linear.bias().into_iter().for_each(|bias| add(bias.id, format!("{name}.bias")));
            }
            Weight::Vector(vector) => add(vector.weight().id, name),
            Weight::Table(table) => add(table.weight().id, name),
        }
    }
    for entry in model.adapters().list() {
        let adapter = entry.name();
        for (name, param) in adapter_tensors(model, adapter).expect("an adapter of the list") {
            add(param.id, format!("{adapter}:{name}"));
        }
    }
    names
}

/// The parameters that weight decay leaves alone, as `transformers.Trainer.get_decay_parameter_names` does: norms, and
/// whatever is called a bias, T5's table of relative position biases among them.
pub(crate) fn undecayed<M: AdaptedModel>(model: &M) -> HashSet<ParamId> {
    let mut ids = HashSet::new();
    for (name, weight) in model.weights() {
        match weight {
            Weight::Linear(linear) => ids.extend(linear.bias().map(|bias| bias.id)),
            Weight::Vector(vector) if is_undecayed(&name) => {
                ids.insert(vector.weight().id);
            }
            Weight::Table(table) if is_undecayed(&name) => {
                ids.insert(table.weight().id);
            }
            Weight::Vector(_) | Weight::Table(_) => {}
        }
    }
    ids.extend(of_adapters(model, is_undecayed));
    ids
}

/// The second factors of LoRA, and whatever else adapters have that is one number for each output: what
/// `peft.optimizers.create_loraplus_optimizer` gives another learning rate.
pub(crate) fn second_factors<M: AdaptedModel>(model: &M) -> HashSet<ParamId> {
    of_adapters(model, |name| name.contains("lora_B") || name.contains("lora_magnitude_vector"))
}

/// The parameters of adapters whose names are chosen.
fn of_adapters<M: AdaptedModel>(model: &M, chosen: impl Fn(&str) -> bool) -> HashSet<ParamId> {
    let adapters = model.adapters().list().iter();
    let tensors = adapters.flat_map(|entry| adapter_tensors(model, entry.name()).expect("an adapter of the list"));
    tensors.filter(|(name, _)| chosen(name)).map(|(_, param)| param.id).collect()
}

/// `bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)`, in lower case.
fn is_undecayed(name: &str) -> bool {
    let name = name.to_lowercase();
    let is_norm = |component: &str| component == "norm" || component.ends_with("_norm");
    ["bias", "layernorm", "rmsnorm"].iter().any(|part| name.contains(part)) || name.split('.').any(is_norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_transformers_reads_them() {
        for name in [
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "encoder.block.0.layer.1.layer_norm.weight",
            "base_model.model.encoder.final_layer_norm.ln_tuning_layers.weight",
            "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_B.bias",
            "prompt_encoder.mlp_head.0.bias",
            "transformer.h.0.input_layernorm.weight",
        ] {
            assert!(is_undecayed(name), "{name}");
        }
        for name in ["shared.weight", "base_model.model.q.lora_magnitude_vector", "q.ia3_l", "normal.weight"] {
            assert!(!is_undecayed(name), "{name}");
        }
    }
}
