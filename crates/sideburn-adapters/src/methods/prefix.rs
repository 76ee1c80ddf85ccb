//! Prefix tuning: learned keys and values before those of every layer of the decoder (Li and Liang, 2021).

use burn::tensor::Tensor;
use serde_json::{Map, Value, json};

use super::prompt::{
    EMBEDDING, PROMPT, check_sizes, linear, model_sizes, network_specs, prompt_spec, read_sizes, size_fields,
    submodules,
};
use crate::AdapterError;
use crate::fields::Fields;
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::ModelOutline;
use crate::rule::{Init, InputRule, Prefix, Rule, RuleTensors, TensorSpec};

/// Prefix tuning; the fields are named as in `peft.PrefixTuningConfig`.
///
/// The prefix is what self-attention of the decoder sees before the target's own tokens. With `prefix_projection` it
/// comes, while it trains, from an embedding and a network behind it; only the prefix itself is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixTuningConfig {
    /// How many virtual tokens there are.
    pub num_virtual_tokens: usize,
    /// Whether the prefix comes from a network while it trains.
    pub prefix_projection: bool,
    /// The width of the network's hidden layer; that of the model by default.
    pub encoder_hidden_size: Option<usize>,
    /// How many stacks of layers the model has, as `peft` counts.
    pub num_transformer_submodules: Option<usize>,
    /// Whether the network is gone, as in every saved adapter.
    pub inference_mode: bool,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl PrefixTuningConfig {
    /// Of this many virtual tokens.
    pub fn new(num_virtual_tokens: usize) -> Self {
        Self {
            num_virtual_tokens,
            prefix_projection: false,
            encoder_hidden_size: None,
            num_transformer_submodules: None,
            inference_mode: false,
            meta: AdapterMeta::default(),
        }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        fields.ignore("init_weights"); // How the prefix began is past.
        let (num_virtual_tokens, num_transformer_submodules) = read_sizes(fields)?;
        Ok(Self {
            num_virtual_tokens,
            prefix_projection: fields.flag("prefix_projection")?,
            encoder_hidden_size: fields.optional("encoder_hidden_size", "a width")?,
            num_transformer_submodules,
            inference_mode: true,
            meta: AdapterMeta::read(fields)?,
        })
    }
}

impl Method for PrefixTuningConfig {
    fn about(&self) -> About<'_> {
        About { peft_type: "PREFIX_TUNING", meta: &self.meta, targets: None, combines_with: CanCombineWith::Alone }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        check_sizes(self.num_virtual_tokens, self.num_transformer_submodules, self.encoder_hidden_size)
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = size_fields(self.num_virtual_tokens);
        fields.insert("prefix_projection".into(), json!(self.prefix_projection));
        fields.insert("encoder_hidden_size".into(), json!(self.encoder_hidden_size));
        fields
    }

    fn model_fields(&self, model: &ModelOutline) -> Map<String, Value> {
        model_sizes(self.num_transformer_submodules, model.shape.num_heads * model.shape.d_kv, model)
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let prefix = PrefixRule {
            tokens: self.num_virtual_tokens,
            layers: model.shape.num_layers,
            heads: model.shape.num_heads,
            d_kv: model.shape.d_kv,
            submodules: submodules(self.num_transformer_submodules, model),
        };
        if self.prefix_projection && !self.inference_mode {
            let hidden = self.encoder_hidden_size.unwrap_or(prefix.heads * prefix.d_kv);
            return Ok(Plan::at_input(Projection { prefix, hidden }));
        }
        Ok(Plan::at_input(prefix))
    }
}

/// `prompt_embeddings [tokens, layers * 2 * heads * d_kv]`.
///
/// In an encoder-decoder `peft` doubles the `2 * layers` parts and deals out four to each layer, two for each kind of
/// attention; then it drops those of attention to the encoder. So layer `i` has as keys and values the parts `4 i` and
/// `4 i + 1` modulo `2 * layers`, where a decoder alone has `2 i` and `2 i + 1`; the others are never used. An adapter
/// from `peft` means nothing else.
#[derive(Clone, Debug)]
struct PrefixRule {
    tokens: usize,
    layers: usize,
    heads: usize,
    d_kv: usize,
    submodules: usize,
}

impl PrefixRule {
    fn spec(&self) -> TensorSpec {
        prompt_spec([self.tokens, self.width()], Init::Normal(1.0))
    }

    fn width(&self) -> usize {
        self.layers * 2 * self.heads * self.d_kv
    }

    fn split(&self, embeddings: &Tensor<2>) -> Vec<Prefix> {
        let inner = self.heads * self.d_kv;
        let part = |index: usize| {
            let part = embeddings.clone().narrow(1, index % (2 * self.layers) * inner, inner);
            part.reshape([self.tokens, self.heads, self.d_kv]).swap_dims(0, 1)
        };
        let first = |layer: usize| 2 * self.submodules * layer;
        (0..self.layers).map(|layer| Prefix { keys: part(first(layer)), values: part(first(layer) + 1) }).collect()
    }
}

impl Rule for PrefixRule {
    fn tensors(&self) -> Vec<TensorSpec> {
        vec![self.spec()]
    }
}

impl InputRule for PrefixRule {
    fn prefix(&self, own: &RuleTensors) -> Option<Vec<Prefix>> {
        Some(self.split(&own.get(PROMPT)))
    }
}

/// An embedding `[tokens, heads * d_kv]` and, behind it, a hidden layer with tanh and a linear one.
#[derive(Clone, Debug)]
struct Projection {
    prefix: PrefixRule,
    hidden: usize,
}

impl Projection {
    fn embeddings(&self, own: &RuleTensors) -> Tensor<2> {
        linear(linear(own.get(EMBEDDING), own, "transform.0").tanh(), own, "transform.2")
    }
}

impl Rule for Projection {
    fn tensors(&self) -> Vec<TensorSpec> {
        let width = self.prefix.heads * self.prefix.d_kv;
        let layers = [("transform.0", self.hidden, width), ("transform.2", self.prefix.width(), self.hidden)];
        network_specs([self.prefix.tokens, width], &layers)
    }
}

impl InputRule for Projection {
    fn prefix(&self, own: &RuleTensors) -> Option<Vec<Prefix>> {
        Some(self.prefix.split(&self.embeddings(own)))
    }

    fn saved(&self, own: &RuleTensors) -> Option<(TensorSpec, Tensor<2>)> {
        Some((self.prefix.spec(), self.embeddings(own)))
    }
}
