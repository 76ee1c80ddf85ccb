//! Programs that show Sideburn at work; run them with `cargo run --release --example NAME`.
//!
//! * `dialogsum_lora`: the main job. LoRA teaches a frozen T5 to summarise dialogues.
//! * `compare_methods`: every method of fine-tuning on the same base and data, in a table.
//! * `pretrain_mini`: how the small T5 under `assets/t5-mini` was made.
//!
//! This library is empty: each example is one file that can be read on its own.
