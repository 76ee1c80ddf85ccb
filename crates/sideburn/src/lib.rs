//! Parameter-efficient fine-tuning for [Burn](burn).
//!
//! This crate gathers the others under one name. Each can be used without it:
//!
//! | module | crate | what it is |
//! |---|---|---|
//! | [`adapters`] | `sideburn-adapters` | the linear layer with adapter slots, LoRA, PEFT directories |
//! | [`batch`] | `sideburn-batch` | token rows with lengths, keyed random draws |
//! | [`data`] | `sideburn-data` | data sets, prompt templates, tokenisation, sampling |
//! | [`eval`] | `sideburn-eval` | what models wrote, scored, with intervals |
//! | [`falcon`] | `sideburn-falcon` | Falcon |
//! | [`files`] | `sideburn-files` | files opened with care, directories replaced as one thing |
//! | [`generate`] | `sideburn-generate` | generation over any decoder, token by token |
//! | [`hub`] | `sideburn-hub` | models and adapters by their ids on the hub |
//! | [`judge`] | `sideburn-judge` | summaries scored by a language model |
//! | [`kernels`] | `sideburn-kernels` | fused differentiable operations |
//! | [`mpi`] | `sideburn-mpi` | training runs over several processes |
//! | [`nn`] | `sideburn-nn` | blocks of language models, the files of a model directory |
//! | [`rouge`] | `sideburn-rouge` | ROUGE, as `rouge_score` computes it |
//! | [`t5`] | `sideburn-t5` | the T5 family |
//! | [`train`] | `sideburn-train` | the training loop |
//! | [`weights`] | `sideburn-weights` | safetensors, strictly read |
//!
//! [`AutoModel`] reads a model of whichever family a directory holds. [`stream_text`] has one write a text piece by piece, and
//! [`generate_many`] behind many prompts. [`device`] turns a name such as `flex` or `cuda:1` into a Burn device, and
//! [`prelude`] holds what most programs import.

#![forbid(unsafe_code)]

/// The programs of the README are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// And that of the page about the hub.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/hub.md")]
struct HubPage;

/// And that of the page about several processes.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/scaling.md")]
struct ScalingPage;

/// And those of the pages about methods.
#[cfg(doctest)]
mod methods {
    #[doc = include_str!("../../../docs/methods/README.md")]
    struct Index;
    #[doc = include_str!("../../../docs/methods/adalora.md")]
    struct Adalora;
    #[doc = include_str!("../../../docs/methods/dora.md")]
    struct Dora;
    #[doc = include_str!("../../../docs/methods/full.md")]
    struct Full;
    #[doc = include_str!("../../../docs/methods/ia3.md")]
    struct Ia3;
    #[doc = include_str!("../../../docs/methods/ln_tuning.md")]
    struct LnTuning;
    #[doc = include_str!("../../../docs/methods/loha.md")]
    struct Loha;
    #[doc = include_str!("../../../docs/methods/lokr.md")]
    struct Lokr;
    #[doc = include_str!("../../../docs/methods/lora.md")]
    struct Lora;
    #[doc = include_str!("../../../docs/methods/oft.md")]
    struct Oft;
    #[doc = include_str!("../../../docs/methods/prefix_tuning.md")]
    struct PrefixTuning;
    #[doc = include_str!("../../../docs/methods/prompt_tuning.md")]
    struct PromptTuning;
    #[doc = include_str!("../../../docs/methods/registry.md")]
    struct Registry;
    #[doc = include_str!("../../../docs/methods/trainable_tokens.md")]
    struct TrainableTokens;
    #[doc = include_str!("../../../docs/methods/vera.md")]
    struct Vera;
}

mod auto;
mod batch_size;
pub mod device;
pub mod plan;
mod texts;

pub use auto::{AutoDecoding, AutoError, AutoModel};
pub use batch_size::{BatchSize, BatchSizeError, find_batch_size};
pub use texts::{ManyConfig, ManyProgress, TextPieces, Texts, TextsError, generate_many, stream_text};

pub use sideburn_adapters as adapters;
pub use sideburn_batch as batch;
pub use sideburn_data as data;
pub use sideburn_eval as eval;
pub use sideburn_falcon as falcon;
pub use sideburn_files as files;
pub use sideburn_generate as generate;
pub use sideburn_hub as hub;
pub use sideburn_judge as judge;
pub use sideburn_kernels as kernels;
pub use sideburn_mpi as mpi;
pub use sideburn_nn as nn;
pub use sideburn_quant as quant;
pub use sideburn_rouge as rouge;
pub use sideburn_t5 as t5;
pub use sideburn_train as train;
pub use sideburn_weights as weights;

/// What most programs import.
pub mod prelude {
    pub use burn::module::Module;
    pub use burn::tensor::{Device, Tensor};
    pub use sideburn_adapters::methods::LoraConfig;
    pub use sideburn_adapters::{AdaptedModel, Adapters, Key, ParameterReport, Pass, TargetModules};
    pub use sideburn_batch::{PromptBatch, TokenRows};
    pub use sideburn_data::{
        Dataset, Example, Fields, Limits, Sampler, ShuffledSampler, Split, Template, TokenizedExample, Tokenizer,
        tokenize,
    };
    pub use sideburn_eval::{BootstrapConfig, Evaluation, Score};
    pub use sideburn_falcon::{Falcon, FalconConfig};
    pub use sideburn_generate::{GenerationConfig, generate};
    pub use sideburn_hub::Hub;
    pub use sideburn_nn::LanguageModel;
    pub use sideburn_quant::Quantization;
    pub use sideburn_rouge::{Metric, RougeScorer};
    pub use sideburn_t5::{T5, T5Config};
    pub use sideburn_train::{ChromeTrace, JsonLinesLog, ProgressLine, Schedule, TrainConfig, Trainer};

    pub use crate::AutoModel;
    pub use crate::device::parse_device;
}
