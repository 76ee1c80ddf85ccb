//! A model of whichever family a directory holds.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sideburn_adapters::{AdaptedModel, AdapterSet, Key, ModelShape, Pass, Precision, Weight, WeightMut};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_files::printable;
use sideburn_generate::{Decoder, GenerationConfig};
use sideburn_nn::{LanguageModel, ModelDir, NnError, QuantizationConfig, read_json};

/// Writes [`AutoModel`], what it decodes with and its errors, from one line for each family: the name of its variant, its
/// model, its configuration, its decoding, its error, and the `model_type`s of `config.json` that it reads, or refuses in words
/// of its own.
macro_rules! families {
    ($($family:ident: $model:ty, $config:ty, $decoding:ty, $error:ty, reads $known:expr, refuses $refused:expr;)+) => {
        /// A model of the family that `config.json` names: `AutoModelForSeq2SeqLM` and `AutoModelForCausalLM` of
        /// `transformers` in one.
        ///
        /// Adapters, training and generation do not ask which family it is of:
        ///
        /// ```no_run
        /// use sideburn::prelude::*;
        ///
        /// let mut model = AutoModel::from_dir("flan-t5-small", &Device::flex().autodiff())?;
        /// model.load_adapter("summaries", "adapters/summaries")?;
        /// let prompts = TokenRows::from_rows([[363, 19, 48, 58, 1]])?;
        /// let decoding = model.start_decoding(&prompts, Pass::evaluate())?;
        /// println!("{:?}", generate(decoding, &model.generation_config(20))?[0].tokens);
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[derive(Module, Debug)]
        #[allow(clippy::large_enum_variant, reason = "a program has one or two of them")]
        pub enum AutoModel {
            $(
                #[doc = concat!("Of the family ", stringify!($family), ".")]
                $family($model),
            )+
        }

        /// An [`AutoModel`] in the middle of writing.
        #[derive(Clone, Debug)]
        #[allow(clippy::large_enum_variant, reason = "a program has one or two of them")]
        pub enum AutoDecoding {
            $(
                #[doc = concat!("Of the family ", stringify!($family), ".")]
                $family($decoding),
            )+
        }

        /// Why an [`AutoModel`] cannot be read, or cannot compute.
        #[derive(Debug, thiserror::Error)]
        #[non_exhaustive]
        pub enum AutoError {
            /// A directory of a family that is not here.
            #[error(
                "{}: `model_type` is {}, expected one of {}; no other family of models is here yet",
                printable(path),
                printable(model_type),
                known_types().join(", ")
            )]
            UnknownFamily {
                /// The configuration.
                path: PathBuf,
                /// What it says.
                model_type: String,
            },
            /// A directory whose configuration cannot be read.
            #[error(transparent)]
            Nn(#[from] NnError),
            $(
                #[doc = concat!("An error of the family ", stringify!($family), ".")]
                #[error(transparent)]
                $family(#[from] $error),
            )+
        }

        /// The `model_type`s that can be read.
        fn known_types() -> Vec<&'static str> {
            let known: &[&[&'static str]] = &[$($known),+];
            known.concat()
        }

        impl AutoModel {
            /// Reads a model directory onto `device`. The weights are frozen and in `f32`; linear layers that bitsandbytes
            /// has quantised stay packed in 4 or 8 bits, and matrices beside them in the 16 bits that they may be stored in.
            ///
            /// # Errors
            /// If the family is not here, a file is missing or broken, or the weights do not fit or are quantised by
            /// another method.
            pub fn from_dir(directory: impl AsRef<Path>, device: &Device) -> Result<Self, AutoError> {
                Self::read(directory.as_ref(), None, device)
            }

            /// Reads the directory of an unquantised model onto `device`, and packs its linear layers in 4 or 8 bits as
            /// they are read, all but those that `transformers` leaves out. In memory is the packed model, and two
            /// tensors as they are stored. Other matrices stay in the 16 bits that they may be stored in.
            ///
            /// ```no_run
            /// use sideburn::prelude::*;
            ///
            /// let device = Device::flex().autodiff();
            /// let mut model = AutoModel::from_dir_quantized("flan-t5-xxl", Quantization::NF4, &device)?;
            /// let lora = LoraConfig { r: 16, lora_alpha: 32.0, ..LoraConfig::new(["q", "v"]) };
            /// model.attach("summaries", lora, Key::from_seed(0))?;
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            ///
            /// # Errors
            /// As for [`from_dir`](Self::from_dir); if the model is quantised already, or has weights that are not finite.
            pub fn from_dir_quantized(
                directory: impl AsRef<Path>,
                quantization: impl Into<QuantizationConfig>,
                device: &Device,
            ) -> Result<Self, AutoError> {
                Self::read(directory.as_ref(), Some(quantization.into()), device)
            }

            fn read(
                directory: &Path,
                quantization: Option<QuantizationConfig>,
                device: &Device,
            ) -> Result<Self, AutoError> {
                let files = ModelDir::new(directory);
                let path = files.config_path();
                match model_type(&path)?.as_str() {
                    $(
                        name if $known.iter().chain($refused).any(|own| *own == name) => {
                            let model = match quantization {
                                None => <$model>::from_dir(directory, device)?,
                                Some(quantization) => <$model>::from_dir_quantized(directory, quantization, device)?,
                            };
                            Ok(Self::$family(model))
                        }
                    )+
                    name => Err(AutoError::UnknownFamily { path, model_type: name.to_owned() }),
                }
            }

            /// A new model of a `config.json`, with weights that are drawn when they are first needed. What is known without
            /// them, such as how many there are, costs nothing.
            ///
            /// # Errors
            /// If the family is not here, or the file is missing or broken.
            pub fn random(config: impl AsRef<Path>, key: Key, device: &Device) -> Result<Self, AutoError> {
                let path = config.as_ref();
                match model_type(path)?.as_str() {
                    $(
                        name if $known.iter().chain($refused).any(|own| *own == name) => {
                            Ok(Self::$family(<$model>::random(&<$config>::from_file(path)?, key, device)))
                        }
                    )+
                    name => Err(AutoError::UnknownFamily { path: path.to_owned(), model_type: name.to_owned() }),
                }
            }

            /// Writes a model directory that `transformers` reads, without adapters. It appears whole or not at all.
            ///
            /// # Errors
            /// If it cannot be written.
            pub fn save_dir(&self, directory: impl AsRef<Path>, precision: Precision) -> Result<(), AutoError> {
                match self {
                    $(Self::$family(model) => Ok(model.save_dir(directory, precision)?),)+
                }
            }
        }

        impl AdaptedModel for AutoModel {
            fn weights(&self) -> Vec<(String, Weight<'_>)> {
                match self {
                    $(Self::$family(model) => model.weights(),)+
                }
            }

            fn weights_mut(&mut self) -> Vec<(String, WeightMut<'_>)> {
                match self {
                    $(Self::$family(model) => model.weights_mut(),)+
                }
            }

            fn keep_in_fp32_modules(&self) -> &'static [&'static str] {
                match self {
                    $(Self::$family(model) => model.keep_in_fp32_modules(),)+
                }
            }

            fn shape(&self) -> ModelShape {
                match self {
                    $(Self::$family(model) => model.shape(),)+
                }
            }

            fn device(&self) -> Device {
                match self {
                    $(Self::$family(model) => model.device(),)+
                }
            }

            fn adapters(&self) -> &AdapterSet {
                match self {
                    $(Self::$family(model) => model.adapters(),)+
                }
            }

            fn adapters_mut(&mut self) -> &mut AdapterSet {
                match self {
                    $(Self::$family(model) => model.adapters_mut(),)+
                }
            }
        }

        impl LanguageModel for AutoModel {
            type Error = AutoError;
            type Decoding = AutoDecoding;

            fn vocab_size(&self) -> usize {
                match self {
                    $(Self::$family(model) => model.vocab_size(),)+
                }
            }

            fn default_generation_config(&self) -> &GenerationConfig {
                match self {
                    $(Self::$family(model) => model.default_generation_config(),)+
                }
            }

            fn tokens_at(&self, site: &str, prompts: usize, targets: usize) -> usize {
                match self {
                    $(Self::$family(model) => model.tokens_at(site, prompts, targets),)+
                }
            }

            fn token_losses(&self, batch: &PromptBatch, pass: &mut Pass) -> Result<Tensor<1>, AutoError> {
                match self {
                    $(Self::$family(model) => Ok(model.token_losses(batch, pass)?),)+
                }
            }

            fn logits(
                &self,
                prompts: &TokenRows,
                written: &TokenRows,
                pass: &mut Pass,
            ) -> Result<Tensor<2>, AutoError> {
                match self {
                    $(Self::$family(model) => Ok(model.logits(prompts, written, pass)?),)+
                }
            }

            fn start_decoding(&self, prompts: &TokenRows, pass: Pass) -> Result<AutoDecoding, AutoError> {
                match self {
                    $(Self::$family(model) => Ok(AutoDecoding::$family(model.start_decoding(prompts, pass)?)),)+
                }
            }
        }

        impl Decoder for AutoDecoding {
            type Error = AutoError;

            fn rows(&self) -> usize {
                match self {
                    $(Self::$family(decoding) => decoding.rows(),)+
                }
            }

            fn history(&self, row: usize) -> &[u32] {
                match self {
                    $(Self::$family(decoding) => decoding.history(row),)+
                }
            }

            fn prompt(&self, row: usize) -> &[u32] {
                match self {
                    $(Self::$family(decoding) => decoding.prompt(row),)+
                }
            }

            fn hidden(&self) -> Option<Tensor<2>> {
                match self {
                    $(Self::$family(decoding) => decoding.hidden(),)+
                }
            }

            fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, AutoError> {
                match self {
                    $(Self::$family(decoding) => Ok(decoding.next_logits(tokens)?),)+
                }
            }

            fn select_rows(&mut self, rows: &[usize]) {
                match self {
                    $(Self::$family(decoding) => decoding.select_rows(rows),)+
                }
            }

            fn forget(&mut self, tokens: usize) {
                match self {
                    $(Self::$family(decoding) => decoding.forget(tokens),)+
                }
            }
        }
    };
}

/// What a `config.json` calls its family.
fn model_type(path: &Path) -> Result<String, NnError> {
    let config = read_json(path)?;
    Ok(config.get("model_type").and_then(|name| name.as_str()).unwrap_or("(absent)").to_owned())
}

families! {
    T5: sideburn_t5::T5, sideburn_t5::T5Config, sideburn_t5::Decoding, sideburn_t5::T5Error,
        reads &["t5", "mt5", "umt5"], refuses &["longt5", "switch_transformers", "t5gemma", "t5gemma2"];
    Falcon: sideburn_falcon::Falcon, sideburn_falcon::FalconConfig,
        sideburn_nn::CausalDecoding<sideburn_falcon::Falcon>, sideburn_falcon::FalconError,
        reads &["falcon"], refuses &["RefinedWeb", "RefinedWebModel", "falcon_h1", "falcon_mamba"];
}
