//! What is done to one model leaves another, and what cannot be done leaves all as it was.

use burn::module::Module;
use burn::tensor::Device;
use sideburn_adapters::methods::{
    FullConfig, LoraConfig, MethodRegistry, PTuningConfig, TrainableTokensConfig, VeraConfig,
};
use sideburn_adapters::{AdaptedModel, AdapterError, Adapters, Key, ParameterReport, Pass, parameters};
use sideburn_t5::{LanguageModel, T5, T5Config};
use sideburn_testing::{Golden, max_difference, values};
use tempfile::tempdir;

/// A model whose weights are drawn when they are first needed.
fn random() -> T5 {
    let sizes =
        T5Config { vocab_size: 50, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 1, num_heads: 4, ..T5Config::default() };
    T5::random(&sizes, Key::from_seed(0), &Device::flex().autodiff())
}

fn with_lora(mut model: T5) -> T5 {
    model.attach("a", LoraConfig::new(["q", "v"]), Key::from_seed(1)).unwrap();
    model
}

fn trainable(model: &T5) -> u64 {
    ParameterReport::of(model).trainable
}

#[test]
fn freezing_a_copy_freezes_nothing_else() {
    let base = random();
    let all = trainable(&base);
    assert_eq!(all, ParameterReport::of(&base).all);
    let (frozen, adapted) = (
        {
            let mut copy = base.clone();
            copy.set_trainable(&[]).unwrap();
            copy
        },
        with_lora(base.clone()),
    );
    assert_eq!((trainable(&base), trainable(&frozen)), (all, 0));
    assert_eq!(trainable(&adapted), 6 * 2 * 8 * 16);

    let frozen_adapter = {
        let mut copy = adapted.clone();
        copy.set_trainable(&[]).unwrap();
        copy
    };
    assert_eq!((trainable(&frozen_adapter), trainable(&adapted)), (0, 6 * 2 * 8 * 16));
    let weight = |model: &T5| values(model.linears()[0].1.weight().dense());
    assert_eq!(weight(&frozen), weight(&base), "both draw the same");
    assert_eq!(weight(&adapted.clone().valid()), weight(&base));
    let tensors = |model: &T5| values(model.adapter_tensors("a").unwrap().values().next().unwrap().val());
    assert_eq!(tensors(&frozen_adapter), tensors(&adapted));
}

#[test]
fn loading_what_does_not_fit_leaves_what_trains() {
    let mut model = with_lora(random());
    let before = trainable(&model);
    let error = model.load_adapter("b", sideburn_testing::path("adapters/lora_rslora")).unwrap_err();
    assert!(matches!(error, AdapterError::TensorsDoNotFit { .. }), "{error}");
    assert_eq!((trainable(&model), model.adapters().list().len()), (before, 1));
}

#[test]
fn tensors_that_stand_in_several_places_stay_one() {
    let mut model = random();
    model.attach("default", VeraConfig::new(["q", "v"]), Key::from_seed(1)).unwrap();
    let before = ParameterReport::of(&model);
    let own = model.adapter_tensors("default").unwrap().into_iter().map(|(name, param)| (name, values(param.val())));
    let own: std::collections::HashMap<String, Vec<f32>> = own.collect();
    model.set_adapter_tensors("default", |name| own.get(name).cloned()).unwrap();
    assert_eq!(ParameterReport::of(&model), before);
}

#[test]
fn weights_from_before_a_merge_follow_the_model() {
    let base = random();
    let mut model = with_lora(base.clone());
    model.set_adapter_tensors("a", |name| name.contains("lora_B").then(|| vec![0.5; 8 * 16])).unwrap();
    model.merge().unwrap();
    let mut model = model.valid();
    assert_eq!(model.fingerprint(), base.fingerprint());
    model.unmerge().unwrap();
    for ((name, weight), (_, before)) in model.linears().into_iter().zip(base.valid().linears()) {
        assert!(!weight.device().is_autodiff(), "{name}");
        assert_eq!(values(weight.weight().dense()), values(before.weight().dense()), "{name}");
    }
}

/// Both add to one head; neither takes the place of the other.
#[test]
fn two_adapters_at_a_tied_head_add_up() {
    let base = T5::from_dir(sideburn_testing::path("t5_relu_tied"), &Device::flex()).unwrap();
    let io = Golden::open("t5_relu_tied/io.safetensors");
    let (prompts, written) = (io.source(), io.full_rows("decoder_input_ids"));
    let mut model = base.clone();
    for (seed, name) in [(1, "a"), (2, "b")] {
        model.attach(name, LoraConfig::new(["lm_head"]), Key::from_seed(seed)).unwrap();
        let b =
            |name: &str| name.contains("lora_B").then(|| (0..256 * 8).map(|i| (i * seed % 7) as f32 * 0.01).collect());
        model.set_adapter_tensors(name, b).unwrap();
    }
    let mut logits = |active: &[&str]| {
        model.set_active(active).unwrap();
        values(model.logits(&prompts, &written, &mut Pass::evaluate()).unwrap())
    };
    let (none, a, b, both) = (logits(&[]), logits(&["a"]), logits(&["b"]), logits(&["a", "b"]));
    let sum: Vec<f32> = none.iter().zip(a.iter().zip(&b)).map(|(none, (a, b))| a + b - none).collect();
    assert!(max_difference(&a, &none) > 0.01 && max_difference(&b, &none) > 0.01);
    assert!(max_difference(&both, &sum) < 1e-4, "{}", max_difference(&both, &sum));
}

#[test]
fn an_adapter_with_its_network_is_not_swapped() {
    let mut model = random();
    model.attach("p", PTuningConfig::new(4), Key::from_seed(1)).unwrap();
    let directory = tempdir().unwrap();
    model.save_adapter("p", directory.path()).unwrap();
    let error = model.swap_adapter("p", directory.path()).unwrap_err().to_string();
    assert!(error.contains("it has the network that it is trained with, which no file holds"), "{error}");
}

#[test]
fn what_has_one_dimension_is_trained_as_second_factors_are() {
    let mut model = random();
    model.attach("full", FullConfig::default(), Key::from_seed(1)).unwrap();
    for parameter in parameters(&model) {
        let is_norm = parameter.name.contains("layer_norm");
        assert_eq!(parameter.second_factor, is_norm, "{}", parameter.whole_name());
    }
    let mut model = random();
    model.attach("vera", VeraConfig::new(["q", "v"]), Key::from_seed(1)).unwrap();
    let vectors = parameters(&model).into_iter().filter(|it| it.adapter.is_some() && it.second_factor);
    assert!(vectors.map(|it| it.name).all(|name| name.contains("vera_lambda_")));
}

#[test]
fn a_configuration_that_was_read_is_attached() {
    let method = MethodRegistry::peft()
        .read(&serde_json::json!({"peft_type": "LORA", "r": 4, "target_modules": ["q"]}))
        .unwrap();
    let mut model = random();
    model.attach_read("default", method, Key::from_seed(1)).unwrap();
    assert_eq!(trainable(&model), 3 * 2 * 4 * 16);
}

#[test]
fn token_ids_that_cannot_be_are_told_by_their_own_field() {
    let lora = LoraConfig { trainable_token_indices: vec![3, 3], ..LoraConfig::new(["q"]) };
    let lora = random().attach("default", lora, Key::from_seed(1)).unwrap_err().to_string();
    assert!(lora.starts_with("`trainable_token_indices` is [3, 3]"), "{lora}");
    let own = random().attach("default", TrainableTokensConfig::new([50]), Key::from_seed(1)).unwrap_err().to_string();
    assert!(own.starts_with("`token_indices` is [50]"), "{own}");
}
