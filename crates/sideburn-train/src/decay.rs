//! Parameters that weight decay leaves alone.

/// Whether weight decay leaves a parameter of this name alone, as `transformers.Trainer.get_decay_parameter_names` has it:
/// norms, and whatever is called a bias, T5's table of relative position biases among them.
///
/// `bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)`, in lower case; and `(?:^|\.)ln_`, as norms are called that
/// it tells by their class alone (`transformer.ln_f`).
pub(crate) fn is_undecayed(name: &str) -> bool {
    let name = name.to_lowercase();
    let is_norm = |component: &str| component == "norm" || component.ends_with("_norm") || component.starts_with("ln_");
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
            "transformer.h.0.ln_attn.weight",
            "transformer.ln_f.weight",
        ] {
            assert!(is_undecayed(name), "{name}");
        }
        for name in ["shared.weight", "base_model.model.q.lora_magnitude_vector", "q.ia3_l", "normal.weight"] {
            assert!(!is_undecayed(name), "{name}");
        }
    }
}
