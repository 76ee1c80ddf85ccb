//! Peak memory and time of a LoRA step that keeps every activation, and of one that runs each block again in the backward pass
//! (`gradient_checkpointing`): FLAN-T5-small's architecture at 8 x 512 source and 128 target tokens, and a Falcon of as many
//! blocks at 8 x 512.
//!
//! Memory is what the allocator and the kernels handed out at most during a step, beyond what was held before it; beside it stands
//! what `sideburn plan` says that a step takes.

use std::convert::Infallible;
use std::time::Instant;

use burn::tensor::Device;
use peak_alloc::PeakAlloc;
use sideburn::falcon::FalconConfig;
use sideburn::kernels::{memory_use, release_memory};
use sideburn::plan::{BatchShape, Place, plan_training};
use sideburn::prelude::*;
use sideburn_benches::{batch_of, factored, flan_t5_small};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const REPETITIONS: usize = 3;

fn main() {
    let device = Device::flex().autodiff();
    let t5 = factored(&flan_t5_small(&device), 0.1);
    compare("FLAN-T5-small, 8 x 512 + 128", &t5, &batch_of(8, 512, 128));
    let config = FalconConfig {
        vocab_size: 32_128,
        hidden_size: 512,
        num_hidden_layers: 8,
        num_attention_heads: 8,
        ..FalconConfig::default()
    };
    let mut falcon = Falcon::random(&config, Key::from_seed(0), &device);
    let lora = LoraConfig { r: 32, lora_alpha: 64.0, lora_dropout: 0.1, ..LoraConfig::new(["query_key_value"]) };
    falcon.attach("default", lora, Key::from_seed(0)).expect("every Falcon has such layers");
    compare("Falcon of 8 blocks of 512, 8 x 512", &falcon, &batch_of(8, 384, 128));
}

fn compare<M: LanguageModel>(name: &str, model: &M, batch: &PromptBatch) {
    // Weights are drawn when they are first needed: not in what is measured.
    measure(model, batch, false);
    let (mut kept, mut again) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        kept.push(measure(model, batch, false));
        again.push(measure(model, batch, true));
    }
    let least = |steps: &[(f64, f64)]| {
        let of = |number: fn(&(f64, f64)) -> f64| steps.iter().map(number).fold(f64::INFINITY, f64::min);
        [of(|step| step.0), of(|step| step.1)]
    };
    let ([kept_peak, kept_seconds], [peak, seconds]) = (least(&kept), least(&again));
    println!("{name}, least of {REPETITIONS} steps each");
    for (name, peak, seconds, again) in
        [("everything kept", kept_peak, kept_seconds, false), ("blocks run again", peak, seconds, true)]
    {
        let [mib, planned] = [peak, planned(model, batch, again)].map(|bytes| bytes / f64::from(1 << 20));
        println!("  {name:17} {mib:6.0} MiB {seconds:7.2} s; planned {planned:6.0} MiB, {:.2} of it", planned / mib);
    }
    println!("  ratio             {:10.2} {:9.2}", peak / kept_peak, seconds / kept_seconds);
}

/// What a step takes beside the model, as it is planned.
fn planned<M: LanguageModel>(model: &M, batch: &PromptBatch, gradient_checkpointing: bool) -> f64 {
    let (rows, [prompt, target]) =
        (batch.prompts().len(), [batch.prompts(), batch.targets()].map(|rows| rows.lengths()[0]));
    let plan = plan_training(model, None, BatchShape { rows, prompt, target, gradient_checkpointing }, Place::Cpu);
    (plan.optimizer + plan.activations + plan.workspace) as f64
}

/// The peak in bytes, and the time in seconds, of a step that leaves `model` as it is.
fn measure<M: LanguageModel>(model: &M, batch: &PromptBatch, gradient_checkpointing: bool) -> (f64, f64) {
    let mut model = model.clone();
    // Buffers that wait for the next step count as memory of the step that needs them.
    release_memory();
    let (resting, held) = (ALLOCATOR.current_usage(), memory_use().used);
    ALLOCATOR.reset_peak_usage();
    let started = Instant::now();
    let config = TrainConfig { gradient_checkpointing, ..TrainConfig::new(1) };
    let batches = |_| Ok::<_, Infallible>(batch.clone());
    let trainer = Trainer::new(config).expect("the settings are valid");
    trainer.train(&mut model, batches, M::token_losses).expect("the loss is finite");
    let seconds = started.elapsed().as_secs_f64();
    ((ALLOCATOR.peak_usage() - resting + memory_use().most_used - held) as f64, seconds)
}
