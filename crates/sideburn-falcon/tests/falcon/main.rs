//! Falcon and its adapters against `transformers` and `peft`.

mod adapter_goldens;
mod base_goldens;
mod configs;
mod logits;
mod quantized;
