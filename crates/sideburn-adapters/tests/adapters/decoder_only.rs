//! Every method on a model that is a decoder alone, built from the same layers and traits as any other: nothing of it
//! assumes an encoder.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use serde_json::{Value, json};
use sideburn_adapters::methods::{
    AdaLoraConfig, FullConfig, Ia3Config, LnTuningConfig, LoHaConfig, LoKrConfig, LoraConfig, LoraInit, MethodRegistry,
    OftConfig, PTuningConfig, PrefixTuningConfig, PromptInit, PromptTuningConfig, TrainableTokensConfig, VeraConfig,
};
use sideburn_adapters::{
    AdaptedLinear, AdaptedModel, AdaptedTable, AdaptedVector, AdapterError, AdapterMeta, AdapterSet, Adapters, Key,
    Method, ModelShape, ParameterReport, Pass, TokenPass, list_weights, random_weight,
};
use sideburn_kernels::RowLayout;
use tempfile::tempdir;

const VOCABULARY: usize = 13;
const WIDTH: usize = 8;
const HEADS: usize = 2;
/// Not `WIDTH / HEADS`.
const D_KV: usize = 3;
const LAYERS: usize = 2;

/// `x + Attention(norm(x))`, then `x + w_out(silu(w_in(x)))`.
#[derive(Module, Debug)]
struct Block {
    norm: AdaptedVector,
    q: AdaptedLinear,
    k: AdaptedLinear,
    v: AdaptedLinear,
    o: AdaptedLinear,
    w_in: AdaptedLinear,
    w_out: AdaptedLinear,
}

/// A language model without an encoder. The output head is a layer of its own, or the embedding.
#[derive(Module, Debug)]
struct Decoder {
    embedding: AdaptedTable,
    blocks: Vec<Block>,
    norm: AdaptedVector,
    head: Option<AdaptedLinear>,
    adapters: AdapterSet,
}

impl Decoder {
    fn new(tied: bool, device: &Device) -> Self {
        let key = Key::from_seed(1);
        let linear = |out, input, name: &str| AdaptedLinear::random(out, input, 0.5, key.fold_in_name(name), device);
        let norm = || AdaptedVector::new(Tensor::ones([WIDTH], device));
        let block = |index: usize| {
            let linear = |out, input, name: &str| linear(out, input, &format!("{index}.{name}"));
            Block {
                norm: norm(),
                q: linear(HEADS * D_KV, WIDTH, "q"),
                k: linear(HEADS * D_KV, WIDTH, "k"),
                v: linear(HEADS * D_KV, WIDTH, "v"),
                o: linear(WIDTH, HEADS * D_KV, "o"),
                w_in: linear(2 * WIDTH, WIDTH, "w_in"),
                w_out: linear(WIDTH, 2 * WIDTH, "w_out"),
            }
        };
        Self {
            embedding: AdaptedTable::new(random_weight([VOCABULARY, WIDTH], 1.0, key.fold_in_name("wte"), device)),
            blocks: (0..LAYERS).map(block).collect(),
            norm: norm(),
            head: (!tied).then(|| linear(VOCABULARY, WIDTH, "head")),
            adapters: AdapterSet::default(),
        }
    }

    /// The logits `[tokens, VOCABULARY]` of rows of tokens, one row after the other.
    fn logits(&self, rows: &[&[i32]], pass: &mut Pass) -> Result<Tensor<2>, AdapterError> {
        let prompt = self.adapters.virtual_tokens();
        let prefix = self.adapters.prefix();
        let added = prompt.as_ref().map_or(0, |prompt| prompt.dims()[0]);
        let own: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        let lengths: Vec<usize> = own.iter().map(|length| length + added).collect();
        let device = self.device();

        let ids = TensorData::new(rows.concat(), [own.iter().sum::<usize>()]);
        let tokens = self.adapters.enter(pass, &RowLayout::packed(&own, &device))?;
        let embedded = self.embedding.rows(Tensor::<1, Int>::from_data(ids, &device), &tokens);
        let embedded = split(embedded, &own).into_iter();
        let embedded = embedded.flat_map(|row| prompt.clone().into_iter().chain([row])).collect();
        let mut x = Tensor::cat(embedded, 0);

        let tokens = &mut self.adapters.enter(pass, &RowLayout::packed(&lengths, &device))?;
        for (index, block) in self.blocks.iter().enumerate() {
            let normed = scaled_to_one(x.clone(), &block.norm, tokens);
            let [q, k, v] =
                [&block.q, &block.k, &block.v].map(|layer| split(layer.forward(normed.clone(), tokens), &lengths));
            let attended = q.into_iter().zip(k).zip(v).map(|((q, k), v)| {
                let [q, mut k, mut v] = [q, k, v].map(heads);
                if let Some(layers) = &prefix {
                    k = Tensor::cat(vec![layers[index].keys.clone(), k], 1);
                    v = Tensor::cat(vec![layers[index].values.clone(), v], 1);
                }
                attention(q, k, v)
            });
            let attended = Tensor::cat(attended.collect(), 0);
            x = x + block.o.forward(attended, tokens);
            let inner = activation::silu(block.w_in.forward(x.clone(), tokens));
            x = x + block.w_out.forward(inner, tokens);
        }
        let x = scaled_to_one(x, &self.norm, tokens);
        let x = split(x, &lengths).into_iter().zip(&own).map(|(row, own)| row.narrow(0, added, *own)).collect();
        let x = Tensor::cat(x, 0);
        let tokens = &mut self.adapters.enter(pass, &RowLayout::packed(&own, &device))?;
        Ok(match &self.head {
            Some(head) => head.forward(x, tokens),
            None => self.embedding.scores(x, tokens),
        })
    }
}

fn split(x: Tensor<2>, lengths: &[usize]) -> Vec<Tensor<2>> {
    x.split_with_sizes(lengths.to_vec(), 0)
}

/// `[tokens, HEADS * D_KV]` as `[HEADS, tokens, D_KV]`.
fn heads(x: Tensor<2>) -> Tensor<3> {
    let [tokens, _] = x.dims();
    x.reshape([tokens, HEADS, D_KV]).swap_dims(0, 1)
}

/// Causal attention of the last tokens to all, `[tokens, HEADS * D_KV]`.
fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<2> {
    let ([_, tokens, _], [_, keys, _]) = (q.dims(), k.dims());
    let later = |index| if index % keys > index / keys + (keys - tokens) { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..tokens * keys).map(later).collect();
    let mask = Tensor::<2>::from_data(TensorData::new(mask, [tokens, keys]), &q.device());
    let weights = activation::softmax(q.matmul(k.swap_dims(1, 2)) + mask.unsqueeze(), 2);
    weights.matmul(v).swap_dims(0, 1).reshape([tokens, HEADS * D_KV])
}

fn scaled_to_one(x: Tensor<2>, norm: &AdaptedVector, pass: &TokenPass<'_>) -> Tensor<2> {
    let mean = x.clone().square().mean_dim(1).add_scalar(1e-6);
    x / mean.sqrt() * norm.value(pass).unsqueeze()
}

impl AdaptedModel for Decoder {
    list_weights! { |model, list, borrow, each, some| {
        list.push(("wte.weight".to_owned(), borrow!(model.embedding).into()));
        for (index, block) in each!(model.blocks).enumerate() {
            let name = |part: &str| format!("h.{index}.{part}");
            list.extend([
                (name("norm.weight"), borrow!(block.norm).into()),
                (name("attn.q"), borrow!(block.q).into()),
                (name("attn.k"), borrow!(block.k).into()),
                (name("attn.v"), borrow!(block.v).into()),
                (name("attn.o"), borrow!(block.o).into()),
                (name("mlp.w_in"), borrow!(block.w_in).into()),
                (name("mlp.w_out"), borrow!(block.w_out).into()),
            ]);
        }
        list.push(("ln_f.weight".to_owned(), borrow!(model.norm).into()));
        if let Some(head) = some!(model.head) {
            list.push(("lm_head".to_owned(), head.into()));
        }
    }}

    fn shape(&self) -> ModelShape {
        ModelShape {
            embedding: "wte",
            head: "lm_head",
            tied_head: self.head.is_none(),
            d_model: WIDTH,
            num_layers: LAYERS,
            num_heads: HEADS,
            d_kv: D_KV,
            ..ModelShape::of_layers()
        }
    }

    fn device(&self) -> Device {
        self.embedding.device()
    }

    fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut AdapterSet {
        &mut self.adapters
    }
}

const ROWS: [&[i32]; 3] = [&[1, 2, 3, 4, 5], &[7, 3], &[12, 0, 2]];

fn logits_of(model: &Decoder, rows: &[&[i32]], mut pass: Pass) -> Vec<f32> {
    model.logits(rows, &mut pass).unwrap().into_data().try_into_vec().unwrap()
}

fn logits(model: &Decoder) -> Vec<f32> {
    logits_of(model, &ROWS, Pass::evaluate())
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

type Attach = Box<dyn Fn(&mut Decoder) -> Result<Vec<String>, AdapterError>>;

/// A way to attach an adapter called `new`, and what can be done with it.
struct Case {
    attach: Attach,
    merges: bool,
    by_row: bool,
    /// Whether its gradient is the derivative, which is not so where a method leaves a part of it out.
    is_derivative: bool,
}

fn case(method: impl Method + Clone) -> Case {
    let attach = move |model: &mut Decoder| model.attach("new", method.clone(), Key::from_seed(3));
    Case { attach: Box::new(attach), merges: true, by_row: true, is_derivative: true }
}

/// Every method, some more than once.
fn every_method() -> Vec<Case> {
    const TARGETS: [&str; 3] = ["q", "v", "w_out"];
    let whole = |case: Case| Case { by_row: false, ..case };
    let input = |case: Case| Case { merges: false, by_row: false, ..case };
    let scaled =
        Ia3Config { targets: TARGETS.into(), feedforward_modules: Some(["w_out"].into()), ..Ia3Config::default() };
    let norms = LnTuningConfig { targets: ["norm", "ln_f"].into(), ..LnTuningConfig::default() };
    let rotated = OftConfig { r: 0, oft_block_size: 2, ..OftConfig::new(TARGETS) };
    let lora = || LoraConfig { r: 2, ..LoraConfig::new(TARGETS) };
    let with_head = LoraConfig {
        meta: AdapterMeta { modules_to_save: vec!["lm_head".to_owned()], ..AdapterMeta::default() },
        ..lora()
    };
    let sampled = PromptInit::SampleVocab(5);
    vec![
        case(AdaLoraConfig { init_r: 3, target_r: 2, ..AdaLoraConfig::new(TARGETS, 100) }),
        whole(case(FullConfig::default())),
        case(scaled),
        whole(case(norms)),
        case(LoHaConfig::new(TARGETS)),
        case(LoKrConfig::new(TARGETS)),
        case(lora()),
        case(LoraConfig { init_lora_weights: LoraInit::Olora, ..lora() }),
        case(LoraConfig { targets: ["wte", "q", "lm_head"].into(), ..lora() }),
        case(LoraConfig { trainable_token_indices: vec![3, 12], ..lora() }),
        case(with_head),
        Case { is_derivative: false, ..case(LoraConfig { use_dora: true, ..lora() }) },
        case(rotated),
        input(case(PTuningConfig::new(3))),
        input(case(PrefixTuningConfig::new(3))),
        input(case(PrefixTuningConfig { prefix_projection: true, ..PrefixTuningConfig::new(3) })),
        input(case(PromptTuningConfig::new(3))),
        input(case(PromptTuningConfig { prompt_tuning_init: sampled, ..PromptTuningConfig::new(3) })),
        case(TrainableTokensConfig::new([3, 12])),
        case(VeraConfig { r: 4, ..VeraConfig::new(TARGETS) }),
    ]
}

/// The trained tensors, by name.
fn trained(model: &Decoder) -> BTreeMap<String, &Param<Tensor<2>>> {
    let mut tensors = model.adapter_tensors("new").unwrap();
    tensors.retain(|_, param| param.val().is_require_grad());
    tensors
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// The model with other values of the trained tensors.
fn moved(model: &Decoder, by: impl Fn(&str, usize) -> f32) -> Decoder {
    let mut moved = model.clone();
    let tensors = trained(model);
    let new = |name: &str| {
        let values = values(tensors.get(name)?.val()).into_iter().enumerate();
        Some(values.map(|(index, value)| value + by(name, index)).collect())
    };
    moved.set_adapter_tensors("new", new).unwrap();
    moved
}

/// The model with an adapter that does something.
fn adapted(base: &Decoder, case: &Case) -> (Decoder, &'static str) {
    let mut model = base.clone();
    (case.attach)(&mut model).unwrap();
    let kind = model.adapters().get("new").unwrap().method().peft_type();
    let noise = |name: &str, index: usize| 0.3 * Key::from_seed(4).fold_in_name(name).normal(index as u64) as f32;
    (moved(&model, noise), kind)
}

fn device() -> Device {
    Device::flex().autodiff()
}

fn bases() -> [Decoder; 2] {
    [false, true].map(|tied| Decoder::new(tied, &device()))
}

/// Calls `check` with every method on both models.
fn for_every_method(check: impl Fn(&Decoder, &Decoder, &Case, &str)) {
    for base in bases() {
        for case in every_method() {
            let (model, kind) = adapted(&base, &case);
            check(&base, &model, &case, kind);
        }
    }
}

#[test]
fn every_method_is_here() {
    let kinds: BTreeSet<&str> = every_method().iter().map(|case| adapted(&bases()[0], case).1).collect();
    assert_eq!(kinds, MethodRegistry::peft().peft_types().collect());
}

#[test]
fn every_method_changes_what_follows_and_nothing_before() {
    for_every_method(|base, model, _, kind| {
        assert!(difference(&logits(model), &logits(base)) > 1e-3, "{kind} does nothing");
        // The first two tokens know nothing of those after them, whatever stands before.
        let [long, short] = [logits(model), logits_of(model, &[&ROWS[0][..2]], Pass::evaluate())];
        assert!(difference(&long[..2 * VOCABULARY], &short) < 1e-5, "{kind}");
    });
}

#[test]
fn every_method_has_gradients() {
    let loss = |model: &Decoder| {
        let logits = model.logits(&ROWS, &mut Pass::evaluate()).unwrap();
        activation::log_softmax(logits, 1).narrow(1, 3, 2).sum()
    };
    for_every_method(|_, model, case, kind| {
        let mut gradients = loss(model).backward();
        let mut squares = 0.0;
        let mut slopes = BTreeMap::new();
        for (name, param) in trained(model) {
            let gradient = values(param.grad_remove(&mut gradients).unwrap_or_else(|| panic!("{kind}: {name}")));
            assert!(gradient.iter().any(|slope| *slope != 0.0), "{kind}: {name} has no influence");
            squares += gradient.iter().map(|slope| f64::from(*slope).powi(2)).sum::<f64>();
            slopes.insert(name, gradient);
        }
        for (name, site) in model.linears() {
            assert!(site.weight().dense().grad(&gradients).is_none(), "{kind}: the base trains at {name}");
        }
        // Along the gradient the loss rises by its norm.
        let step = 3e-4 / squares.sqrt();
        let [up, down] = [step, -step].map(|step| {
            let moved = moved(model, |name, index| (step * f64::from(slopes[name][index])) as f32);
            f64::from(loss(&moved).into_scalar::<f32>())
        });
        let ratio = (up - down) / (2.0 * step * squares);
        println!("{kind}: the loss rises by {ratio:.4} of what the gradient says");
        assert!(!case.is_derivative || (ratio - 1.0).abs() < 0.01, "{kind}: {ratio}");
    });
}

#[test]
fn every_method_is_saved_and_loaded() {
    for_every_method(|base, model, _, kind| {
        let directory = tempdir().unwrap();
        model.save_adapter("new", directory.path()).unwrap();
        let mut loaded = base.clone();
        loaded.load_adapter("again", directory.path()).unwrap();
        assert_eq!(logits(&loaded), logits(model), "{kind}");

        let text = |file: &str| std::fs::read_to_string(directory.path().join(file)).unwrap();
        assert_eq!(text("README.md").contains("AutoModelForCausalLM"), kind != "FULL", "{kind}");
        let config: Value = serde_json::from_str(&text("adapter_config.json")).unwrap();
        assert_eq!(config["task_type"], "CAUSAL_LM", "{kind}");
        let width = match kind {
            "PREFIX_TUNING" => HEADS * D_KV,
            "PROMPT_TUNING" | "P_TUNING" => WIDTH,
            _ => return,
        };
        // As peft records a decoder alone, which has one stack of layers.
        for (field, expected) in [
            ("num_transformer_submodules", 1),
            ("token_dim", width),
            ("num_attention_heads", HEADS),
            ("num_layers", LAYERS),
        ] {
            assert_eq!(config[field], json!(expected), "{kind}: {field}");
        }
        let tokens = loaded.adapter_tensors("again").unwrap().into_values().next().unwrap().lazy_shape();
        assert_eq!(tokens[0], 3, "{kind}: virtual tokens are stored once");
    });
}

#[test]
fn every_method_is_merged_unless_it_is_no_weight() {
    for_every_method(|base, model, case, kind| {
        let (mut merged, before) = (model.clone(), logits(model));
        // What an adapter has for a head has no place in a base that has none.
        let has_head = model.adapter_tensors("new").unwrap().keys().any(|name| name.contains("lm_head"));
        let own_head = base.head.is_none() && has_head;
        if !case.merges || own_head {
            assert!(matches!(merged.merge(), Err(AdapterError::CannotMerge { .. })), "{kind}");
            return;
        }
        merged.merge().unwrap();
        let drift = difference(&logits(&merged), &before);
        println!("{kind}: merging changes logits by {drift:e}");
        assert!(drift < 1e-4, "{kind}: {drift:e}");
        assert_eq!(merged.unmerge().unwrap(), ["new"]);
        assert_eq!(logits(&merged), before, "{kind}: bit for bit");
    });
}

#[test]
fn every_method_is_chosen_for_single_rows_unless_it_cannot_be() {
    for_every_method(|base, model, case, kind| {
        let names = [Some("new"), None, Some("new")];
        let mut inactive = model.clone();
        inactive.set_active(&[]).unwrap();
        let mut pass = Pass::evaluate().with_adapters(names);
        if !case.by_row {
            let error = inactive.logits(&ROWS, &mut pass).unwrap_err();
            assert!(matches!(error, AdapterError::NotByRow { .. }), "{kind}: {error}");
            return;
        }
        let mixed = logits_of(&inactive, &ROWS, pass);
        let alone = ROWS.iter().zip(names);
        let alone = alone
            .flat_map(|(row, name)| logits_of(if name.is_some() { model } else { base }, &[row], Pass::evaluate()));
        assert!(difference(&mixed, &alone.collect::<Vec<_>>()) < 1e-4, "{kind}");
    });
}

/// What is trained with one adapter is that adapter.
#[test]
fn parameters_are_counted() {
    for_every_method(|base, model, _, kind| {
        let own: usize = trained(model).values().map(|param| param.lazy_shape().num_elements()).sum();
        let (report, before) = (ParameterReport::of(model), ParameterReport::of(base));
        assert_eq!(report.trainable as usize, own, "{kind}");
        assert!(report.all >= before.all + own as u64, "{kind}");
    });
}
