//! A family of models in one file, as somebody else would write it: a decoder alone, with multi-query attention, layer
//! norms with biases, learned positions and a tied head. A prompt ends with a separator, behind which the model writes.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde_json::{Value, json};
use sideburn_adapters::{
    AdaptedLinear, AdaptedModel, AdaptedTable, AdapterError, AdapterSet, Adapters, Key, ModelShape, Pass, Precision,
    TokenPass, list_weights, random_weight,
};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_generate::{Decoder, GenerationConfig};
use sideburn_kernels::{RowLayout, Visibility};
use sideburn_nn::{
    Activation, Attention, AttentionConfig, ConfigFields, FeedForward, Head, KeysValues, LanguageModel, LayerNorm,
    ModelDir, NnError, Position, behind, embed, places_behind, shift_right,
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
            list.extend([
                (name("ln_1.weight"), borrow!(block.attention_norm.weight).into()),
                (name("ln_1.bias"), borrow!(block.attention_norm.bias).into()),
                (name("attn.q"), borrow!(block.attention.q).into()),
                (name("attn.k"), borrow!(block.attention.k).into()),
                (name("attn.v"), borrow!(block.attention.v).into()),
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

/// The keys and values of all tokens so far, block by block: of each row the prefix and what it wrote; at first the prefix
/// alone, once for all rows.
#[derive(Clone, Debug)]
struct Written {
    blocks: Vec<KeysValues>,
    prefix: usize,
    /// How many tokens each row has, without the prefix.
    lengths: Vec<usize>,
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

    /// The last hidden states of the real tokens of `rows`, and what they leave behind for those that follow.
    fn hidden(
        &self,
        rows: &TokenRows,
        before: Option<Written>,
        pass: &mut Pass,
    ) -> Result<(Tensor<2>, Written), TinyError> {
        let device = self.device();
        let (prompt, before) = match before {
            Some(before) => (None, before),
            None => {
                let of_prefix = |layers| KeysValues::of_prefix(layers, self.tokens.dtype());
                let blocks = self.adapters.prefix().map(of_prefix).unwrap_or_default();
                let (prefix, lengths) = (blocks.first().map_or(0, KeysValues::tokens), vec![0; rows.len()]);
                (self.adapters.virtual_tokens(), Written { blocks, prefix, lengths })
            }
        };
        let added = prompt.as_ref().map_or(0, |prompt| prompt.dims()[0]);
        let lengths: Vec<usize> = rows.lengths().iter().map(|length| length + added).collect();
        let layout = RowLayout::packed(&lengths, &device);
        let (prefix, first) = (before.prefix, before.lengths.clone());
        let own = RowLayout::packed(rows.lengths(), &device);
        let mut x = embed(&self.tokens, rows, &own, 0, &self.adapters.enter(pass, &own)?)?;
        if let Some(prompt) = prompt {
            x = behind(prompt, x, &own, &layout);
        }
        let pass = &mut self.adapters.enter(pass, &layout)?;
        x = x + self.positions_of(&first, &lengths, &layout, pass)?;

        // A row sees what the prefix gives, what it wrote before, and itself.
        let seen: Vec<usize> = first.iter().zip(&lengths).map(|(first, own)| prefix + first + own).collect();
        let keys = RowLayout::packed(&seen, &device);
        let places = places(prefix, &first, &layout, &keys);
        // Behind the first pass each row has one token, which sees all.
        let visibility = match lengths.iter().all(|length| *length == 1) {
            true => Visibility::full(self.config.heads, &layout, &keys),
            false => Visibility::causal(self.config.heads, &layout, &keys, prefix),
        };
        let mut left = Vec::with_capacity(self.blocks.len());
        for (index, block) in self.blocks.iter().enumerate() {
            let projections = block.attention.projections(block.attention_norm.forward(x.clone(), pass), pass);
            let (queries, fresh) = block.attention.split(projections, &Position::None);
            let seen = match before.blocks.get(index) {
                Some(before) => before.clone().pick_with(fresh, &places),
                None => fresh,
            };
            left.push(seen.clone());
            x = x + block.attention.look_at(queries, seen, &Position::None, &visibility, pass);
            x = x.clone() + block.feed_forward.forward(block.feed_forward_norm.forward(x, pass), pass);
        }
        let x = self.norm.forward(x, pass);
        let own: Vec<i32> =
            (0..layout.rows()).flat_map(|row| layout.row(row).skip(added)).map(|at| at as i32).collect();
        let length = own.len();
        let own = Tensor::<1, Int>::from_data(burn::tensor::TensorData::new(own, [length]), &device);
        let lengths = seen.into_iter().map(|seen| seen - prefix).collect();
        Ok((x.select(0, own), Written { blocks: left, prefix, lengths }))
    }

    /// The embeddings of the places that the tokens of `layout` have, where row `i` goes on from place `first[i]`.
    fn positions_of(
        &self,
        first: &[usize],
        lengths: &[usize],
        layout: &RowLayout,
        pass: &TokenPass<'_>,
    ) -> Result<Tensor<2>, TinyError> {
        let places = first.iter().zip(lengths).map(|(first, length)| (*first..first + length).map(|at| at as u32));
        let places = TokenRows::from_rows(places.map(Iterator::collect::<Vec<_>>)).expect("rows of tokens");
        let (found, positions) =
            (places.ids().iter().max().map_or(0, |last| *last as usize + 1), self.config.positions);
        if found > positions {
            return Err(TinyError::TooLong { found, positions });
        }
        Ok(embed(&self.positions, &places, layout, 0, pass)?)
    }

    fn head(&self) -> Head<'_> {
        Head::new(None, &self.tokens)
    }

    /// The last hidden states of rows of which each is a prompt and what is written behind it, at the tokens that say what
    /// is written next: those from the last of the prompt on, one for each token of `written`.
    fn states_behind(&self, prompts: &TokenRows, written: &TokenRows, pass: &mut Pass) -> Result<Tensor<2>, TinyError> {
        let rows = prompts.iter().zip(written.iter()).map(|(prompt, written)| [prompt, written].concat());
        let (hidden, _) = self.hidden(&TokenRows::from_rows(rows).expect("rows of prompts"), None, pass)?;
        let (mut at, mut states) = (0, Vec::new());
        for (prompt, written) in prompts.lengths().iter().zip(written.lengths()) {
            states.extend((at + prompt..at + prompt + written).map(|token| token as i32));
            at += prompt + written;
        }
        let length = states.len();
        let states = Tensor::<1, Int>::from_data(burn::tensor::TensorData::new(states, [length]), &self.device());
        Ok(hidden.select(0, states))
    }

    /// A pass over the tokens of these rows.
    fn enter<'p>(&self, pass: &'p mut Pass, rows: &TokenRows) -> Result<TokenPass<'p>, TinyError> {
        Ok(self.adapters.enter(pass, &RowLayout::packed(rows.lengths(), &self.device()))?)
    }
}

impl LanguageModel for Tiny {
    type Error = TinyError;
    type Decoding = TinyDecoding;

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn default_generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    fn token_losses(&self, batch: &PromptBatch, pass: &mut Pass) -> Result<Tensor<1>, TinyError> {
        let (prompts, targets) = (batch.prompts(), batch.targets());
        sideburn_nn::check_ids(targets, self.config.vocab_size)?;
        // The separator stands behind every prompt, and what is read of the target is all but its last token.
        let hidden = self.states_behind(prompts, &shift_right(targets, SEPARATOR), pass)?;
        Ok(self.head().token_losses(hidden, targets, &mut self.enter(pass, targets)?))
    }

    fn logits(&self, prompts: &TokenRows, written: &TokenRows, pass: &mut Pass) -> Result<Tensor<2>, TinyError> {
        let hidden = self.states_behind(prompts, written, pass)?;
        Ok(self.head().logits(hidden, &mut self.enter(pass, written)?))
    }

    fn start_decoding(&self, prompts: &TokenRows, mut pass: Pass) -> Result<TinyDecoding, TinyError> {
        let model = self.valid();
        let (_, written) = model.hidden(prompts, None, &mut pass)?;
        let history = prompts.iter().map(|prompt| [prompt, &[SEPARATOR]].concat()).collect();
        Ok(TinyDecoding { model, pass, written, history })
    }
}

/// What every prompt ends with.
pub(crate) const SEPARATOR: u32 = 2;

/// Where the keys of each row stand among the prefix, the tokens before, and the fresh ones.
fn places(prefix: usize, first: &[usize], own: &RowLayout, keys: &RowLayout) -> Tensor<1, Int> {
    if first.iter().all(|first| *first == 0) {
        return places_behind(prefix, own, keys);
    }
    let before = first.iter().map(|first| prefix + first).sum::<usize>();
    let mut at = 0;
    let rows = first.iter().enumerate().map(|(row, first)| {
        let held = at..at + prefix + first;
        at = held.end;
        held.chain(own.row(row).map(|token| before + token)).map(|place| place as u32).collect::<Vec<_>>()
    });
    keys.ids(&TokenRows::from_rows(rows).expect("rows of tokens"), 0)
}

/// A [`Tiny`] in the middle of writing.
#[derive(Clone, Debug)]
pub(crate) struct TinyDecoding {
    model: Tiny,
    pass: Pass,
    written: Written,
    history: Vec<Vec<u32>>,
}

impl Decoder for TinyDecoding {
    type Error = TinyError;

    fn rows(&self) -> usize {
        self.written.lengths.len()
    }

    fn history(&self, row: usize) -> &[u32] {
        &self.history[row]
    }

    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, TinyError> {
        let fresh = tokens.len() / self.rows();
        let rows = TokenRows::from_rows(tokens.chunks(fresh)).expect("a token at least in each row");
        let (hidden, written) = self.model.hidden(&rows, Some(self.written.clone()), &mut self.pass)?;
        self.written = written;
        Ok(self.model.head().logits(hidden, &mut self.model.enter(&mut self.pass, &rows)?))
    }

    fn select_rows(&mut self, rows: &[usize]) {
        self.keep(rows, 0);
        self.pass.select_rows(rows);
    }

    fn forget(&mut self, tokens: usize) {
        self.keep(&(0..self.rows()).collect::<Vec<_>>(), tokens);
    }
}

impl TinyDecoding {
    /// Keeps these rows, without their last tokens.
    fn keep(&mut self, rows: &[usize], forgotten: usize) {
        let held: Vec<usize> = self.written.lengths.iter().map(|length| self.written.prefix + length).collect();
        let layout = RowLayout::packed(&held, &self.model.device());
        let tokens: Vec<i32> = rows
            .iter()
            .map(|row| layout.row(*row))
            .flat_map(|row| row.start..row.end - forgotten)
            .map(|token| token as i32)
            .collect();
        let length = tokens.len();
        let data = burn::tensor::TensorData::new(tokens, [length]);
        let tokens = Tensor::<1, Int>::from_data(data, &self.model.device());
        self.written.blocks.iter_mut().for_each(|block| *block = block.select(&tokens));
        self.written.lengths = rows.iter().map(|row| self.written.lengths[*row] - forgotten).collect();
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
