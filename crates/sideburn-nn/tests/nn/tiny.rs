//! A family of models in one file, as somebody else would write it: a decoder alone, with multi-query attention, layer
//! norms with biases, learned positions and a tied head.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde_json::{Value, json};
use sideburn_adapters::{
    AdaptedLinear, AdaptedModel, AdaptedTable, AdapterError, AdapterSet, Adapters, Key, ModelShape, Precision,
    TokenPass, list_weights, random_weight,
};
use sideburn_batch::TokenRows;
use sideburn_generate::GenerationConfig;
use sideburn_nn::{
    Activation, Attention, AttentionConfig, CausalTokens, ConfigFields, DecoderOnly, FeedForward, Frame, Head,
    LayerNorm, ModelDir, NnError, Positions, embed,
};

/// What `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TinyConfig {
    pub(crate) vocab_size: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    pub(crate) positions: usize,
}

impl TinyConfig {
    fn read(value: &Value) -> Result<Self, String> {
        let fields = ConfigFields::new(value.as_object().ok_or("expected a JSON object")?);
        let model_type: Option<String> = fields.value("model_type", "a string")?;
        if model_type.as_deref() != Some("tiny") {
            return Err("`model_type` is not tiny".to_owned());
        }
        let config = Self {
            vocab_size: fields.number("vocab_size", 32)?,
            width: fields.number("n_embd", 8)?,
            heads: fields.number("n_head", 4)?,
            layers: fields.number("n_layer", 2)?,
            positions: fields.number("n_positions", 24)?,
        };
        if config.heads == 0 || !config.width.is_multiple_of(config.heads) {
            return Err(format!("`n_head` is {}, expected a divisor of {}", config.heads, config.width));
        }
        Ok(config)
    }

    fn to_json(&self) -> Value {
        let Self { vocab_size, width, heads, layers, positions } = self;
        json!({
            "model_type": "tiny",
            "vocab_size": vocab_size,
            "n_embd": width,
            "n_head": heads,
            "n_layer": layers,
            "n_positions": positions,
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TinyError {
    #[error(transparent)]
    Nn(#[from] NnError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("a row of {found} tokens, the model has {positions} positions")]
    TooLong { found: usize, positions: usize },
}

#[derive(Module, Debug)]
struct Block {
    attention_norm: LayerNorm,
    attention: Attention,
    feed_forward_norm: LayerNorm,
    feed_forward: FeedForward,
}

#[derive(Module, Debug)]
pub(crate) struct Tiny {
    tokens: AdaptedTable,
    positions: AdaptedTable,
    blocks: Vec<Block>,
    norm: LayerNorm,
    adapters: AdapterSet,
    #[module(skip)]
    config: TinyConfig,
    #[module(skip)]
    generation: GenerationConfig,
}

impl AdaptedModel for Tiny {
    list_weights! { |model, list, borrow, each, some| {
        list.push(("wte.weight".to_owned(), borrow!(model.tokens).into()));
        list.push(("wpe.weight".to_owned(), borrow!(model.positions).into()));
        for (index, block) in each!(model.blocks).enumerate() {
            let name = |part: &str| format!("h.{index}.{part}");
            list.push((name("ln_1.weight"), borrow!(block.attention_norm.weight).into()));
            list.push((name("ln_1.bias"), borrow!(block.attention_norm.bias).into()));
            for (part, linear) in ["q", "k", "v"].into_iter().zip(each!(block.attention.qkv)) {
                list.push((name(&format!("attn.{part}")), linear.into()));
            }
            list.extend([
                (name("attn.o"), borrow!(block.attention.o).into()),
                (name("ln_2.weight"), borrow!(block.feed_forward_norm.weight).into()),
                (name("ln_2.bias"), borrow!(block.feed_forward_norm.bias).into()),
                (name("mlp.fc_in"), borrow!(block.feed_forward.inner[0]).into()),
                (name("mlp.fc_out"), borrow!(block.feed_forward.outer).into()),
            ]);
        }
        list.push(("ln_f.weight".to_owned(), borrow!(model.norm.weight).into()));
        list.push(("ln_f.bias".to_owned(), borrow!(model.norm.bias).into()));
    }}

    fn shape(&self) -> ModelShape {
        ModelShape {
            embedding: "wte",
            head: "lm_head",
            tied_head: true,
            d_model: self.config.width,
            num_layers: self.config.layers,
            // Of the keys and values, which a prefix stands before.
            num_heads: 1,
            d_kv: self.config.width / self.config.heads,
            ..ModelShape::of_layers()
        }
    }

    fn device(&self) -> Device {
        self.tokens.device()
    }

    fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut AdapterSet {
        &mut self.adapters
    }
}

impl Tiny {
    pub(crate) fn random(config: &TinyConfig, key: Key, device: &Device) -> Self {
        let (width, head_width) = (config.width, config.width / config.heads);
        let table =
            |rows, name: &str| AdaptedTable::new(random_weight([rows, width], 0.5, key.fold_in_name(name), device));
        let shape = AttentionConfig {
            width,
            heads: config.heads,
            kv_heads: 1,
            head_width,
            scale: (head_width as f64).powf(-0.5),
            dropout: 0.0,
        };
        let block = |index: usize| {
            let key = key.fold_in(index as u64);
            let linear =
                |name: &str, out, input| AdaptedLinear::random(out, input, 0.4, key.fold_in_name(name), device);
            Block {
                attention_norm: LayerNorm::new(width, 1e-5, device),
                attention: Attention::new(shape, linear),
                feed_forward_norm: LayerNorm::new(width, 1e-5, device),
                feed_forward: FeedForward::new(
                    vec![linear("fc_in", 4 * width, width)],
                    linear("fc_out", width, 4 * width),
                    Activation::Gelu,
                    0.0,
                ),
            }
        };
        Self {
            tokens: table(config.vocab_size, "wte"),
            positions: table(config.positions, "wpe"),
            blocks: (0..config.layers).map(block).collect(),
            norm: LayerNorm::new(width, 1e-5, device),
            adapters: AdapterSet::default(),
            config: config.clone(),
            generation: GenerationConfig::default(),
        }
    }

    pub(crate) fn from_dir(directory: &ModelDir, device: &Device) -> Result<Self, TinyError> {
        let config = TinyConfig::read(&directory.config()?)
            .map_err(|message| NnError::Config { path: directory.config_path(), message })?;
        let mut model = Self::random(&config, Key::from_seed(0), device);
        model.generation = directory.generation_config(&GenerationConfig::default())?;
        model.load_base(&directory.weights()?, |name| Some(name))?;
        Ok(model)
    }

    pub(crate) fn save_dir(&self, directory: &ModelDir) -> Result<(), TinyError> {
        let text = self.config.to_json().to_string();
        sideburn_files::write_atomic(directory.config_path(), text.as_bytes()).map_err(NnError::from)?;
        Ok(self.save_base(directory.path().join("model.safetensors"), Precision::F32)?)
    }
}

impl DecoderOnly for Tiny {
    type Error = TinyError;

    fn frame(&self) -> Frame<'_> {
        Frame {
            embedding: &self.tokens,
            head: Head::new(None, &self.tokens),
            heads: self.config.heads,
            positions: Positions::None,
            generation: &self.generation,
        }
    }

    fn run(
        &self,
        x: Tensor<2>,
        tokens: &mut CausalTokens<'_>,
        pass: &mut TokenPass<'_>,
    ) -> Result<Tensor<2>, TinyError> {
        let layout = tokens.layout();
        let places = tokens.first_places().iter().zip(layout.lengths());
        let places = places.map(|(first, length)| (*first..first + length).map(|at| at as u32).collect::<Vec<_>>());
        let places = TokenRows::from_rows(places).expect("rows of tokens");
        let (found, positions) =
            (places.ids().iter().max().map_or(0, |last| *last as usize + 1), self.config.positions);
        if found > positions {
            return Err(TinyError::TooLong { found, positions });
        }
        let mut x = x + embed(&self.positions, &places, layout, 0, pass)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let normed = block.attention_norm.forward(x.clone(), pass);
            x = x + tokens.attend(index, &block.attention, normed, pass);
            x = x.clone() + block.feed_forward.forward(block.feed_forward_norm.forward(x, pass), pass);
        }
        Ok(self.norm.forward(x, pass))
    }
}

/// Weights around the biases and norms of a new model, so that each of them counts.
pub(crate) fn moved(mut model: Tiny) -> Tiny {
    use sideburn_adapters::WeightMut;
    for (name, weight) in model.weights_mut() {
        if let WeightMut::Vector(vector) = weight {
            let key = Key::from_seed(9).fold_in_name(&name);
            let values: Vec<f32> = (0..vector.len() as u64).map(|index| 1.0 + 0.3 * key.normal(index) as f32).collect();
            let data = burn::tensor::TensorData::new(values, vector.weight().dims());
            let device = vector.weight().device();
            vector.weight_mut().replace(Tensor::from_data(data, &device));
        }
    }
    model
}
