//! T5 and its adapters against `transformers` and `peft`.

mod adapter_dirs;
mod adapter_goldens;
mod bad_adapters;
mod base_goldens;
mod broken_models;
mod combine;
mod copies;
mod family;
mod finite;
mod forms_of_adapters;
mod formula;
mod generation;
mod logits;
mod lora_goldens;
mod lora_inits;
mod new_adapters;
mod position;
mod quantized;
mod registry;
