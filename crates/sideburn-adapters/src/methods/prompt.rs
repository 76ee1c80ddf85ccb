//! Soft prompts: prompt tuning (Lester et al., 2021) and P-tuning (Liu et al., 2021).

use burn::tensor::{Int, Tensor, TensorData, activation};
use serde_json::{Map, Value, json};
use sideburn_kernels::{Key, embedding, matmul};

use super::checks::check;
use crate::AdapterError;
use crate::fields::{Fields, fields};
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::ModelOutline;
use crate::rule::{Init, InputRule, Rule, RuleTensors, TensorSpec, Weights};

/// What the virtual tokens of prompt tuning begin as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromptInit {
    /// Draws from a standard normal, as PyTorch's `Embedding`.
    #[default]
    Random,
    /// The embeddings of a text, cut or repeated to the number of virtual tokens.
    Text {
        /// The text; only recorded.
        text: String,
        /// Its tokens, as the tokenizer gives them; `peft` takes the end of the sequence with them.
        ids: Vec<u32>,
    },
    /// The embeddings of random tokens of the vocabulary, drawn with this seed.
    SampleVocab(u64),
}

/// Prompt tuning; the fields are named as in `peft.PromptTuningConfig`.
///
/// Virtual tokens stand before the tokens of the encoder, or of a model that is a decoder alone. Of an encoder-decoder
/// `peft` stores twice as many (`num_transformer_submodules` is 2) and uses the first half; so does this crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTuningConfig {
    /// How many virtual tokens there are.
    pub num_virtual_tokens: usize,
    /// What they begin as.
    pub prompt_tuning_init: PromptInit,
    /// How many stacks of layers `peft` stores virtual tokens for; by default those that the model has.
    pub num_transformer_submodules: Option<usize>,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl PromptTuningConfig {
    /// Of this many virtual tokens.
    pub fn new(num_virtual_tokens: usize) -> Self {
        Self {
            num_virtual_tokens,
            prompt_tuning_init: PromptInit::Random,
            num_transformer_submodules: None,
            meta: AdapterMeta::default(),
        }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        // How the tokens began is past; the sizes of the model are the model's.
        for past in ["prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"] {
            fields.ignore(past);
        }
        let (num_virtual_tokens, num_transformer_submodules) = read_sizes(fields)?;
        Ok(Self {
            num_virtual_tokens,
            prompt_tuning_init: PromptInit::Random,
            num_transformer_submodules,
            meta: AdapterMeta::read(fields)?,
        })
    }
}

/// `num_virtual_tokens`, and `num_transformer_submodules` if it is there.
pub(super) fn read_sizes(fields: &Fields<'_>) -> Result<(usize, Option<usize>), AdapterError> {
    for of_the_model in ["token_dim", "num_attention_heads", "num_layers"] {
        fields.ignore(of_the_model);
    }
    let tokens = fields.required("num_virtual_tokens", "a number of at least 1")?;
    Ok((tokens, fields.optional("num_transformer_submodules", "1 or 2")?))
}

/// Refuses sizes that mean nothing; `hidden` is the width of the network that the tokens come from while they train.
pub(super) fn check_sizes(
    num_virtual_tokens: usize,
    submodules: Option<usize>,
    hidden: Option<usize>,
) -> Result<(), AdapterError> {
    let is_number = (1..=1_000_000).contains(&num_virtual_tokens);
    check("num_virtual_tokens", num_virtual_tokens, is_number, "a number from 1 to 1000000")?;
    let submodules = submodules.unwrap_or(1);
    check("num_transformer_submodules", submodules, matches!(submodules, 1 | 2), "1 or 2")?;
    let hidden = hidden.unwrap_or(1);
    check("encoder_hidden_size", hidden, hidden > 0, "a width of at least 1")
}

/// The sizes that every prompt has.
pub(super) fn size_fields(num_virtual_tokens: usize) -> Map<String, Value> {
    Map::from_iter([("num_virtual_tokens".to_owned(), json!(num_virtual_tokens))])
}

/// The sizes that `peft` records of the model; of a prefix the width of all heads together is that of its tokens.
pub(super) fn model_sizes(given: Option<usize>, token_dim: usize, model: &ModelOutline) -> Map<String, Value> {
    fields! {
        "num_transformer_submodules": submodules(given, model),
        "token_dim": token_dim,
        "num_attention_heads": model.shape.num_heads,
        "num_layers": model.shape.num_layers,
    }
}

pub(super) fn submodules(given: Option<usize>, model: &ModelOutline) -> usize {
    given.unwrap_or(if model.shape.encoder_decoder { 2 } else { 1 })
}

impl Method for PromptTuningConfig {
    fn about(&self) -> About<'_> {
        About { peft_type: "PROMPT_TUNING", meta: &self.meta, targets: None, combines_with: CanCombineWith::Alone }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        check_sizes(self.num_virtual_tokens, self.num_transformer_submodules, None)?;
        match &self.prompt_tuning_init {
            PromptInit::Text { ids, .. } if ids.is_empty() => Err(AdapterError::InvalidField {
                field: "prompt_tuning_init_text",
                found: "without a token".into(),
                expected: "a text of at least one token",
            }),
            _ => Ok(()),
        }
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = size_fields(self.num_virtual_tokens);
        // `peft` would ask for the tokenizer again if this were TEXT, only to overwrite what it makes of it.
        fields.insert("prompt_tuning_init".into(), json!("RANDOM"));
        fields.insert("prompt_tuning_init_text".into(), Value::Null);
        fields.insert("tokenizer_name_or_path".into(), Value::Null);
        fields
    }

    fn model_fields(&self, model: &ModelOutline) -> Map<String, Value> {
        model_sizes(self.num_transformer_submodules, model.shape.d_model, model)
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let stored = self.num_virtual_tokens * submodules(self.num_transformer_submodules, model);
        let init = match &self.prompt_tuning_init {
            PromptInit::Random => Init::Normal(1.0),
            PromptInit::Text { ids, .. } => rows_of((0..stored).map(|index| ids[index % ids.len()]).collect(), model)?,
            PromptInit::SampleVocab(seed) => {
                let key = Key::from_seed(*seed);
                let vocabulary = model.vocabulary();
                rows_of((0..stored).map(|index| key.below(index as u64, vocabulary as u64) as u32).collect(), model)?
            }
        };
        Ok(Plan::at_input(Prompt { used: self.num_virtual_tokens, stored, width: model.shape.d_model, init }))
    }
}

/// The embeddings of these tokens.
fn rows_of(ids: Vec<u32>, model: &ModelOutline) -> Result<Init, AdapterError> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= model.vocabulary()) {
        return Err(AdapterError::InvalidField {
            field: "prompt_tuning_init_text",
            found: format!("of the token {id}"),
            expected: "tokens of the model's vocabulary",
        });
    }
    Ok(Init::from_base(move |base: Weights| {
        let index: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [ids.len()]), &base.weight.device());
        embedding(base.weight, index)
    }))
}

/// `prompt_embeddings [stored, d_model]`, of which the first `used` stand before every row.
#[derive(Clone, Debug)]
struct Prompt {
    used: usize,
    stored: usize,
    width: usize,
    init: Init,
}

impl Rule for Prompt {
    fn tensors(&self) -> Vec<TensorSpec> {
        vec![self.spec()]
    }
}

impl InputRule for Prompt {
    fn virtual_tokens(&self, own: &RuleTensors) -> Option<Tensor<2>> {
        Some(own.get(PROMPT).narrow(0, 0, self.used))
    }
}

impl Prompt {
    fn spec(&self) -> TensorSpec {
        prompt_spec([self.stored, self.width], self.init.clone())
    }
}

/// P-tuning: prompt tuning through a small network; the fields are named as in `peft.PromptEncoderConfig`.
///
/// While it trains the adapter has an embedding and a network of two hidden layers behind it (`MLP` of `peft`; its `LSTM`
/// can be loaded, not trained). Only what these make of the virtual tokens is saved, so that a loaded adapter is a
/// soft prompt like that of prompt tuning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PTuningConfig {
    /// How many virtual tokens there are.
    pub num_virtual_tokens: usize,
    /// The width of the network's hidden layers; that of the model by default.
    pub encoder_hidden_size: Option<usize>,
    /// How many stacks of layers `peft` stores virtual tokens for; by default those that the model has.
    pub num_transformer_submodules: Option<usize>,
    /// Whether the network is gone, as in every saved adapter.
    pub inference_mode: bool,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl PTuningConfig {
    /// Of this many virtual tokens.
    pub fn new(num_virtual_tokens: usize) -> Self {
        Self {
            num_virtual_tokens,
            encoder_hidden_size: None,
            num_transformer_submodules: None,
            inference_mode: false,
            meta: AdapterMeta::default(),
        }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        // The network is not in the file.
        for past in ["encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout"] {
            fields.ignore(past);
        }
        let (num_virtual_tokens, num_transformer_submodules) = read_sizes(fields)?;
        Ok(Self {
            num_virtual_tokens,
            encoder_hidden_size: fields.optional("encoder_hidden_size", "a width")?,
            num_transformer_submodules,
            inference_mode: true,
            meta: AdapterMeta::read(fields)?,
        })
    }
}

impl Method for PTuningConfig {
    fn about(&self) -> About<'_> {
        About { peft_type: "P_TUNING", meta: &self.meta, targets: None, combines_with: CanCombineWith::Alone }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        check_sizes(self.num_virtual_tokens, self.num_transformer_submodules, self.encoder_hidden_size)
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = size_fields(self.num_virtual_tokens);
        fields.insert("encoder_reparameterization_type".into(), json!("MLP"));
        fields.insert("encoder_hidden_size".into(), json!(self.encoder_hidden_size));
        fields.insert("encoder_num_layers".into(), json!(2));
        fields.insert("encoder_dropout".into(), json!(0.0));
        fields
    }

    fn model_fields(&self, model: &ModelOutline) -> Map<String, Value> {
        model_sizes(self.num_transformer_submodules, model.shape.d_model, model)
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let stored = self.num_virtual_tokens * submodules(self.num_transformer_submodules, model);
        let prompt =
            Prompt { used: self.num_virtual_tokens, stored, width: model.shape.d_model, init: Init::Normal(1.0) };
        if self.inference_mode {
            return Ok(Plan::at_input(prompt));
        }
        let hidden = self.encoder_hidden_size.unwrap_or(model.shape.d_model);
        Ok(Plan::at_input(PromptEncoder { prompt, hidden }))
    }
}

/// An embedding `[stored, d_model]` and, behind it, two hidden layers with relu and a linear one.
#[derive(Clone, Debug)]
struct PromptEncoder {
    prompt: Prompt,
    hidden: usize,
}

impl PromptEncoder {
    fn embeddings(&self, own: &RuleTensors) -> Tensor<2> {
        let hidden = activation::relu(linear(own.get(EMBEDDING), own, "mlp_head.0"));
        linear(activation::relu(linear(hidden, own, "mlp_head.2")), own, "mlp_head.4")
    }
}

/// What the embedding of a network of [`network_specs`] is called.
pub(super) const EMBEDDING: &str = "prompt_encoder.embedding.weight";

/// `x W^T + b` for the linear layer of that name of a network of [`network_specs`].
pub(super) fn linear(x: Tensor<2>, own: &RuleTensors, layer: &str) -> Tensor<2> {
    let [weight, bias] = ["weight", "bias"].map(|part| own.get(&format!("prompt_encoder.{layer}.{part}")));
    matmul(x, weight.transpose()) + bias
}

/// What virtual tokens come from while they train: an embedding of this shape, and behind it linear layers
/// `(name, out, in)`, as PyTorch makes them.
pub(super) fn network_specs(embedding: [usize; 2], layers: &[(&str, usize, usize)]) -> Vec<TensorSpec> {
    let spec = |name: &str, shape: Vec<usize>, init: Init| {
        TensorSpec::new(format!("prompt_encoder.{name}"), shape, init).of_site("").not_stored()
    };
    let mut specs = vec![spec("embedding.weight", embedding.into(), Init::Normal(1.0))];
    for (name, out, input) in layers {
        specs.push(spec(&format!("{name}.weight"), vec![*out, *input], Init::kaiming(*input)));
        specs.push(spec(&format!("{name}.bias"), vec![*out], Init::kaiming(*input)));
    }
    specs
}

/// What it is called.
pub(super) const PROMPT: &str = "prompt_embeddings";

/// What `peft` stores of virtual tokens: one matrix for the whole adapter.
pub(super) fn prompt_spec(shape: [usize; 2], init: Init) -> TensorSpec {
    TensorSpec::new(PROMPT, shape, init).of_site("")
}

impl Rule for PromptEncoder {
    fn tensors(&self) -> Vec<TensorSpec> {
        let Prompt { stored, width, .. } = self.prompt;
        let layers = [
            ("mlp_head.0", self.hidden, width),
            ("mlp_head.2", self.hidden, self.hidden),
            ("mlp_head.4", width, self.hidden),
        ];
        network_specs([stored, width], &layers)
    }
}

impl InputRule for PromptEncoder {
    fn virtual_tokens(&self, own: &RuleTensors) -> Option<Tensor<2>> {
        Some(self.embeddings(own).narrow(0, 0, self.prompt.used))
    }

    fn saved(&self, own: &RuleTensors) -> Option<(TensorSpec, Tensor<2>)> {
        Some((self.prompt.spec(), self.embeddings(own)))
    }
}
