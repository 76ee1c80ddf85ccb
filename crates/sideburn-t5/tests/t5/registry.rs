//! Several adapters over one base: choosing them for the model and for single rows, swapping, deleting, and what is
//! refused.

use burn::tensor::{Device, Tensor};
use sideburn_adapters::methods::{Ia3Config, LoraConfig, PromptTuningConfig};
use sideburn_adapters::{AdaptedModel, AdapterError, AdapterMeta, Adapters, Key, Method, ParameterReport, Pass};
use sideburn_batch::TokenRows;
use sideburn_generate::GenerationConfig;
use sideburn_t5::{LanguageModel, T5};

use sideburn_testing::{Golden, max_difference, values, written};

const BASE: &str = "t5_gated_untied";
/// The adapters of the golden of mixed rows.
const A: &str = "adapters/lora_rslora";
const B: &str = "adapters/lora_rank_alpha_pattern";

fn base() -> T5 {
    T5::from_dir(sideburn_testing::path(BASE), &Device::flex()).unwrap()
}

fn with_a_and_b() -> T5 {
    let mut model = base();
    model.load_adapter("a", sideburn_testing::path(A)).unwrap();
    model.load_adapter("b", sideburn_testing::path(B)).unwrap();
    model
}

struct Inputs {
    source: TokenRows,
    decoder_input: TokenRows,
}

impl Inputs {
    fn open() -> Self {
        let io = Golden::open("lora/t5_gated_untied/io.safetensors");
        Self { source: io.source(), decoder_input: io.full_rows("decoder_input_ids") }
    }

    fn row(&self, row: usize) -> Self {
        let only = |rows: &TokenRows| TokenRows::from_rows([rows.iter().nth(row).unwrap()]).unwrap();
        Self { source: only(&self.source), decoder_input: only(&self.decoder_input) }
    }

    fn logits(&self, model: &T5) -> Vec<f32> {
        self.logits_in(model, Pass::evaluate())
    }

    fn logits_in(&self, model: &T5, mut pass: Pass) -> Vec<f32> {
        values(model.logits(&self.source, &self.decoder_input, &mut pass).unwrap())
    }
}

const ROWS: [Option<&str>; 4] = [Some("a"), None, Some("b"), Some("a")];

#[test]
fn every_row_with_its_own_adapter() {
    let inputs = Inputs::open();
    let model = with_a_and_b();
    let mixed = inputs.logits_in(&model, Pass::evaluate().with_adapters(ROWS));
    let golden = Golden::open("adapters/mixed_rows/io.safetensors").floats("logits");
    let difference = max_difference(&mixed, &golden);
    println!("mixed rows differ from those of peft by at most {difference:e}");
    assert!(difference <= 1e-4, "logits differ by {difference:e}");

    // The same as each row alone, with its adapter active.
    let scale = mixed.iter().fold(0f32, |max, x| max.max(x.abs()));
    for (row, (name, found)) in ROWS.iter().zip(mixed.chunks(mixed.len() / 4)).enumerate() {
        let mut alone = model.clone();
        alone.set_active(&name.iter().copied().collect::<Vec<_>>()).unwrap();
        let difference = max_difference(found, &inputs.row(row).logits(&alone)) / scale;
        println!("row {row} differs from itself alone by {difference:e} relative");
        assert!(difference <= 1e-5, "row {row} differs by {difference:e}");
    }
}

#[test]
fn rows_decode_with_their_adapters() {
    let inputs = Inputs::open();
    let model = with_a_and_b();
    let config = GenerationConfig { eos_token_id: vec![1], ..GenerationConfig::new(24) };
    let pass = Pass::evaluate().with_adapters(ROWS);
    let mixed = written(model.start_decoding(&inputs.source, pass).unwrap(), &config);
    for (row, name) in ROWS.iter().enumerate() {
        let mut alone = model.clone();
        alone.set_active(&name.iter().copied().collect::<Vec<_>>()).unwrap();
        let decoding = alone.start_decoding(&inputs.row(row).source, Pass::evaluate()).unwrap();
        assert_eq!(written(decoding, &config)[0], mixed[row], "row {row}");
    }
    assert_ne!(mixed[0], written(base().start_decoding(&inputs.source, Pass::evaluate()).unwrap(), &config)[0]);
}

#[test]
fn adapters_come_and_go() {
    let inputs = Inputs::open();
    let plain = inputs.logits(&base());
    let mut model = with_a_and_b();
    let names = |model: &T5| model.adapters().list().iter().map(|entry| entry.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&model), ["a", "b"]);
    let b = inputs.logits(&model);
    assert!(model.adapters().get("b").unwrap().is_active() && !model.adapters().get("a").unwrap().is_active());
    model.set_active(&["a"]).unwrap();
    let a = inputs.logits(&model);
    assert!(max_difference(&a, &b) > 0.1 && max_difference(&a, &plain) > 0.1);
    assert_eq!(model.without_adapters(|model| inputs.logits(model)), plain, "off for a while");
    assert_eq!(inputs.logits(&model), a, "and on again");
    model.set_active(&["a", "b"]).unwrap();
    let both = inputs.logits(&model);
    assert!(max_difference(&both, &a) > 0.1 && max_difference(&both, &b) > 0.1);
    model.set_active(&[]).unwrap();
    assert_eq!(inputs.logits(&model), plain);

    model.delete("a").unwrap();
    assert_eq!(names(&model), ["b"]);
    model.set_active(&["b"]).unwrap();
    assert_eq!(inputs.logits(&model), b);
    assert!(model.weights().iter().all(|(_, weight)| weight.slots().iter().all(|slot| slot.name() == "b")));
}

#[test]
fn only_what_is_chosen_trains() {
    let mut model = with_a_and_b();
    let parameters = |name: &str, model: &T5| -> usize {
        let tensors = model.adapter_tensors(name).unwrap();
        tensors.into_values().map(|tensor| tensor.lazy_shape().num_elements()).sum()
    };
    let (a, b) = (parameters("a", &model), parameters("b", &model));
    assert_ne!(a, b);
    assert_eq!(ParameterReport::of(&model).trainable as usize, b, "the newest");
    model.set_trainable(&["a"]).unwrap();
    assert_eq!(ParameterReport::of(&model).trainable as usize, a);
    model.set_active(&["b"]).unwrap();
    assert_eq!(ParameterReport::of(&model).trainable as usize, a, "what is active is another question");
    model.set_trainable(&["a", "b"]).unwrap();
    assert_eq!(ParameterReport::of(&model).trainable as usize, a + b);
    model.set_trainable(&[]).unwrap();
    assert_eq!(ParameterReport::of(&model).trainable, 0);
}

#[test]
fn tensors_are_swapped_in_place() {
    let inputs = Inputs::open();
    let mut model = with_a_and_b();
    let b = inputs.logits(&model);
    let directory = tempfile::tempdir().unwrap();
    let mut other = model.clone();
    other.set_adapter_tensors("b", |name| name.contains("lora_B").then(|| vec![0.0; 64 * rank(name)])).unwrap();
    other.save_adapter("b", directory.path()).unwrap();
    model.swap_adapter("b", directory.path()).unwrap();
    assert_eq!(inputs.logits(&model), inputs.logits(&base()), "B is zero");
    model.swap_adapter("b", sideburn_testing::path(B)).unwrap();
    assert_eq!(inputs.logits(&model), b);
    let error = model.swap_adapter("b", sideburn_testing::path(A)).unwrap_err().to_string();
    assert!(error.contains("another configuration"), "{error}");
    assert_eq!(inputs.logits(&model), b, "as before");
}

#[test]
fn new_values_train_as_the_old_ones_did() {
    let mut model = with_a_and_b();
    let report = ParameterReport::of(&model);
    // `a` was frozen when `b` came.
    model.swap_adapter("a", sideburn_testing::path(A)).unwrap();
    assert_eq!(ParameterReport::of(&model), report);
    model.set_adapter_tensors("a", |name| name.contains("lora_B").then(|| vec![0.0; 64 * 4])).unwrap();
    assert_eq!(ParameterReport::of(&model), report);
    model.set_trainable(&[]).unwrap();
    model.swap_adapter("b", sideburn_testing::path(B)).unwrap();
    assert_eq!(ParameterReport::of(&model).trainable, 0);
    model.set_trainable(&["b"]).unwrap();
    model.swap_adapter("b", sideburn_testing::path(B)).unwrap();
    assert_eq!(ParameterReport::of(&model), report);
}

/// The ranks in the golden `b`.
fn rank(name: &str) -> usize {
    match name {
        name if name.contains("encoder.block") && name.contains("SelfAttention.q") && !name.contains("decoder") => 4,
        name if name.contains("EncDecAttention.v") => 2,
        _ => 3,
    }
}

#[test]
fn many_adapters_are_no_more_work() {
    let mut model = base();
    for index in 0..35 {
        model.attach(&format!("adapter {index}"), LoraConfig::new(["q", "v"]), Key::from_seed(index)).unwrap();
    }
    let (_, site) = model.linears().into_iter().find(|(name, _)| name.ends_with(".q")).unwrap();
    assert_eq!(site.slots().len(), 35);
    assert_eq!(site.slots().filter(|slot| slot.is_active()).count(), 1);
}

fn refused<T>(result: Result<T, AdapterError>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn what_cannot_be_is_refused() {
    let inputs = Inputs::open();
    let mut model = with_a_and_b();
    let before = inputs.logits(&model);
    let key = Key::from_seed(0);

    for name in ["", "..", "a/b", "a\\b", "a\nb", "__base__", &"x".repeat(201)] {
        let error = refused(model.attach(name, LoraConfig::new(["q"]), key));
        assert!(error.starts_with("an adapter cannot be called"), "{error}");
    }
    let error = refused(model.attach("a", LoraConfig::new(["q"]), key));
    assert!(error.contains("already has an adapter called \"a\""), "{error}");
    let meta = AdapterMeta { modules_to_save: vec!["lm_haed".into()], ..AdapterMeta::default() };
    let error = refused(model.attach("c", LoraConfig { meta, ..LoraConfig::new(["q"]) }, key));
    assert!(error.contains("modules_to_save [\"lm_haed\"] names nothing") && error.contains("lm_head"), "{error}");
    assert!(refused(model.set_active(&["c"])).contains("no adapter called \"c\"; it has [\"a\", \"b\"]"));
    assert!(refused(model.set_active(&["a", "a"])).contains("one and the same"));
    assert!(refused(model.delete("c")).contains("no adapter called"));
    assert_eq!(inputs.logits(&model), before, "nothing has changed");

    // What DoRA and a bias of LoRA's have no place for.
    for lora in [
        LoraConfig { use_dora: true, ..LoraConfig::new(["shared"]) },
        LoraConfig { lora_bias: true, ..LoraConfig::new(["shared", "q"]) },
    ] {
        let error = refused(model.attach("c", lora, key));
        assert!(error.contains("selects the embedding shared"), "{error}");
    }

    model.attach("größe 数", Ia3Config::default(), key).unwrap();
    model.attach("dora", LoraConfig { use_dora: true, ..LoraConfig::new(["q"]) }, key).unwrap();
    model.attach("prompt", PromptTuningConfig::new(3), key).unwrap();
    assert!(refused(model.set_active(&["a", "größe 数"])).contains("their kinds do not combine"));
    assert!(refused(model.set_active(&["a", "dora"])).contains("can only be active alone"));
    assert!(refused(model.set_active(&["a", "prompt"])).contains("\"a\" (LORA) and \"prompt\" (PROMPT_TUNING)"));
    model.set_active(&["a"]).unwrap();

    let encode = |names: Vec<Option<&str>>| {
        let mut pass = Pass::evaluate().with_adapters(names);
        model.encode(&inputs.source, &mut pass).expect_err("an error").to_string()
    };
    assert!(encode(vec![Some("a")]).contains("names adapters for 1 rows, the batch has 4"));
    assert!(encode(vec![Some("c"), None, None, None]).contains("no adapter called \"c\""));
    assert!(encode(vec![Some("prompt"), None, None, None]).contains("acts on the model's input"));
}

#[test]
fn merged_adapters_stay_merged_until_they_are_taken_out() {
    let inputs = Inputs::open();
    let mut model = with_a_and_b();
    let b = inputs.logits(&model);
    assert_eq!(model.merge().unwrap(), ["b"]);
    assert!(refused(model.set_active(&["b"])).contains("is merged into the base"));
    assert!(refused(model.delete("b")).contains("is merged"));
    assert!(refused(model.swap_adapter("b", sideburn_testing::path(B))).contains("is merged"));
    // Another one on top.
    model.set_active(&["a"]).unwrap();
    let on_top = inputs.logits(&model);
    model.merge().unwrap();
    assert!(max_difference(&inputs.logits(&model), &on_top) <= 2e-4);
    assert_eq!(model.unmerge().unwrap(), ["a", "b"]);
    model.set_active(&["b"]).unwrap();
    assert_eq!(inputs.logits(&model), b, "bit for bit");
    assert!(model.unmerge().is_ok(), "there is nothing left to take out");

    model.merge_and_unload().unwrap();
    assert!(model.adapters().list().is_empty() && model.weights().iter().all(|(_, weight)| weight.slots().is_empty()));
    assert!(max_difference(&inputs.logits(&model), &b) <= 2e-4);

    let mut broken = with_a_and_b();
    broken.set_adapter_tensors("b", |name| name.contains("lora_B").then(|| vec![f32::MAX; 64 * rank(name)])).unwrap();
    let error = refused(broken.merge());
    assert!(error.contains("\"b\" would make") && error.contains("not finite"), "{error}");
    broken.set_active(&[]).unwrap();
    assert_eq!(inputs.logits(&broken), inputs.logits(&base()), "the base is as it was");
}

#[test]
fn the_drift_of_a_merge_is_measured() {
    let inputs = Inputs::open();
    let mut model = with_a_and_b();
    let drift = |model: &T5| {
        model.merge_drift(|model| model.logits(&inputs.source, &inputs.decoder_input, &mut Pass::evaluate()))
    };
    let found = drift(&model).unwrap();
    println!("merging changes logits by at most {found:e}");
    assert!(found > 0.0 && found <= 2e-4, "{found:e}");
    let before = inputs.logits(&model);
    assert!(model.adapters().get("b").unwrap().is_active(), "nothing is merged yet");
    let mut merged = model.clone();
    merged.merge().unwrap();
    assert_eq!(max_difference(&inputs.logits(&merged), &before), found);

    let nan = model.merge_drift(|model| Ok::<_, AdapterError>(Tensor::<1>::full([2], f32::NAN, &model.device())));
    assert!(nan.unwrap().is_nan());
    model.set_active(&[]).unwrap();
    assert_eq!(drift(&model).unwrap(), 0.0, "there is nothing to merge");
    model.attach("prompt", PromptTuningConfig::new(3), Key::from_seed(0)).unwrap();
    assert!(drift(&model).unwrap_err().to_string().contains("cannot be merged into the model's input"));
}

#[test]
fn values_that_are_not_finite_are_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let mut model = with_a_and_b();
    for value in [f32::NAN, f32::INFINITY] {
        model
            .set_adapter_tensors("b", |name| {
                name.contains("EncDecAttention.v.lora_A").then(|| {
                    let mut values = vec![0.5; 64 * rank(name)];
                    values[7] = value;
                    values
                })
            })
            .unwrap();
        model.save_adapter("b", directory.path()).unwrap();
        let error = refused(base().load_adapter("b", directory.path()));
        assert!(error.contains("EncDecAttention.v.lora_A.weight") && error.contains("element 7"), "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let small = LoraConfig { r: 1, ..LoraConfig::new(["encoder.block.0.layer.0.SelfAttention.q"]) };
    let mut model = base();
    model.attach("small", small, Key::from_seed(1)).unwrap();
    model.save_adapter("small", directory.path()).unwrap();
    let file = directory.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let mut model = base();
    for end in 0..bytes.len() {
        std::fs::write(&file, &bytes[..end]).unwrap();
        assert!(model.load_adapter("small", directory.path()).is_err(), "cut at {end}");
    }
    std::fs::write(&file, &bytes).unwrap();
    model.load_adapter("small", directory.path()).unwrap();
    assert_eq!(model.adapters().list().len(), 1);
}

#[test]
fn the_configurations_of_published_adapters_are_read_or_refused_with_a_reason() {
    let Some(data) = std::env::var_os("SIDEBURN_TEST_DATA") else { return };
    let mut found = 0;
    let mut directories = vec![std::path::PathBuf::from(data).join("data/peft")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "json") {
                let text = std::fs::read_to_string(&path).unwrap();
                if !text.contains("peft_type") {
                    continue;
                }
                found += 1;
                match sideburn_adapters::methods::MethodRegistry::peft().read_file(&path) {
                    Ok(method) => println!("{}: {}", path.display(), method.peft_type()),
                    Err(error) => {
                        println!("{error}");
                        let AdapterError::InFile { source, .. } = error else { panic!("{error}") };
                        assert!(matches!(
                            *source,
                            AdapterError::UnsupportedField { .. } | AdapterError::InvalidField { .. }
                        ));
                    }
                }
            }
        }
    }
    assert!(found >= 10, "only {found} configurations");
}

#[test]
fn configurations_survive_the_file() {
    let config = LoraConfig {
        r: 4,
        lora_alpha: 6.5,
        rank_pattern: [("q".to_owned(), 2)].into(),
        alpha_pattern: [("v".to_owned(), 3.0)].into(),
        use_rslora: true,
        meta: AdapterMeta { task_type: Some("SEQ_2_SEQ_LM".to_owned()), ..AdapterMeta::default() },
        ..LoraConfig::new(["q", "v"])
    };
    let read = sideburn_adapters::methods::MethodRegistry::peft().read(&config.to_json()).unwrap();
    assert_eq!(read.downcast_ref::<LoraConfig>(), Some(&config));
}
