//! Adapters made of others, against `add_weighted_adapter` of `peft`.

use burn::tensor::{Device, Tensor, TensorData};
use sideburn_adapters::methods::{Ia3Config, LoraConfig, MethodRegistry};
use sideburn_adapters::{AdaptedModel, AdapterError, Adapters, Combination, Key, ParameterReport, Targets};
use sideburn_t5::T5;

use sideburn_testing::{Golden, max_difference, relative_difference, values};

/// Where two of the adapters are.
const PLACE: &str = "decoder.block.1.layer.0.SelfAttention.v";
const PARTS: [(&str, f64); 2] = [("a", 0.7), ("b", 0.4)];

/// The model with adapters of these goldens, called by the last parts of their names.
fn model(adapters: &[&str]) -> T5 {
    let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    for adapter in adapters {
        let name = adapter.rsplit('/').next().unwrap();
        model.load_adapter(name, sideburn_testing::path(&format!("adapters/{adapter}"))).unwrap();
    }
    model
}

fn abc() -> T5 {
    model(&["combined/a", "combined/b", "combined/c"])
}

fn logits(model: &T5, active: &[&str]) -> Vec<f32> {
    let mut model = model.clone();
    model.set_active(active).unwrap();
    crate::logits::common_logits(&model)
}

/// The values of a tensor of an adapter.
fn tensor(model: &T5, adapter: &str, name: &str) -> Vec<f32> {
    values(model.adapter_tensors(adapter).unwrap()[&format!("base_model.model.{name}.weight")].val())
}

fn combined(parts: &[(&str, f64)], how: Combination) -> T5 {
    let mut model = abc();
    model.combine("new", parts, how).unwrap();
    model
}

#[test]
fn as_peft_combines() {
    let c = [("a", 0.7), ("c", 0.4)];
    for (golden, parts, how) in [
        ("linear", PARTS, Combination::Linear),
        ("cat", c, Combination::Cat),
        ("svd", c, Combination::Svd { rank: None }),
        ("ties", PARTS, Combination::Ties { density: 0.5 }),
        ("magnitude_prune", PARTS, Combination::MagnitudePrune { density: 0.5 }),
    ] {
        let directory = format!("adapters/combined/{golden}");
        let (model, saved) = (combined(&parts, how), tempfile::tempdir().unwrap());
        // Singular values are exact here; those of `peft`, in f32, move the logits by 8.9e-5.
        let io = if golden == "svd" { "exact" } else { "io" };
        let io = Golden::open(&format!("{directory}/{io}.safetensors"));
        let difference = max_difference(&logits(&model, &["new"]), &io.floats("logits"));
        println!("{golden}: logits differ by at most {difference:e}");
        assert!(difference <= 1e-4, "{golden}: logits differ by {difference:e}");

        model.save_adapter("new", saved.path()).unwrap();
        let config = |path: &std::path::Path| {
            MethodRegistry::peft().read_file(&path.join("adapter_config.json")).unwrap().to_json()
        };
        assert_eq!(config(saved.path()), config(&sideburn_testing::path(&directory)), "{golden}");
        let expected = Golden::open(&format!("{directory}/adapter_model.safetensors"));
        let tensors = model.adapter_tensors("new").unwrap();
        assert!(expected.names().iter().eq(tensors.keys()), "{golden}");
        let read = |name: &str| {
            Tensor::<2>::from_data(TensorData::new(expected.floats(name), expected.shape(name)), &Device::flex())
        };
        for (name, param) in &tensors {
            // The factors of a decomposition have no signs of their own; their product is compared.
            let [found, expected] = match (golden, name.strip_suffix("lora_A.weight")) {
                ("svd", None) => continue,
                ("svd", Some(place)) => {
                    let b = format!("{place}lora_B.weight");
                    [tensors[&b].val().matmul(param.val()), read(&b).matmul(read(name))]
                }
                _ => [param.val(), read(name)],
            };
            let difference = relative_difference(&values(found), &values(expected));
            println!("{golden}: {name} differs by {difference:e} relative");
            assert!(difference <= 1e-5, "{golden}: {name} differs by {difference:e}");
        }
    }
}

#[test]
fn an_exact_sum_is_that_of_active_adapters() {
    // A scaling by the square root of the rank, ranks and alphas by pattern, and factors of the embedding.
    let mut model = model(&["lora_rslora", "lora_rank_alpha_pattern", "lora_shared_embedding"]);
    let all = ["lora_rslora", "lora_rank_alpha_pattern", "lora_shared_embedding"];
    let expected = logits(&model, &all);
    model.combine("cat", &all.map(|name| (name, 1.0)), Combination::Cat).unwrap();
    model.combine("svd", &all.map(|name| (name, 1.0)), Combination::Svd { rank: Some(24) }).unwrap();
    model.combine("minus", &[("cat", -1.0)], Combination::Linear).unwrap();
    for active in [&["cat"] as &[_], &["svd"], &["cat", "minus", "svd"]] {
        let difference = max_difference(&logits(&model, active), &expected);
        println!("{active:?}: logits differ by at most {difference:e}");
        assert!(difference <= 1e-4, "{active:?}: logits differ by {difference:e}");
    }
}

#[test]
fn what_was_active_and_trainable_stays_so() {
    let mut model = abc();
    model.set_active(&["a", "b"]).unwrap();
    let (before, report) = (logits(&model, &["a", "b"]), ParameterReport::of(&model));
    model.combine("new", &PARTS, Combination::Linear).unwrap();
    let active = |model: &T5| -> Vec<String> {
        let active = model.adapters().list().iter().filter(|entry| entry.is_active());
        active.map(|entry| entry.name().to_owned()).collect()
    };
    assert_eq!(active(&model), ["a", "b"]);
    assert_eq!(logits(&model, &["a", "b"]), before);
    assert_eq!(ParameterReport::of(&model).trainable, report.trainable);
    assert_eq!(ParameterReport::of(&model).all - report.all, 3 * 2 * 4 * 64, "the factors of three places");
}

#[test]
fn dare_draws_from_its_key() {
    let dare = |density, seed| Combination::DareLinear { density, key: Key::from_seed(seed) };
    let dare_ties = |density, seed| Combination::DareTies { density, key: Key::from_seed(seed) };
    let factors =
        |how| ["lora_A", "lora_B"].map(|factor| tensor(&combined(&PARTS, how), "new", &format!("{PLACE}.{factor}")));
    assert_eq!(factors(dare(1.0, 1)), factors(Combination::Linear), "nothing is dropped");
    assert_eq!(factors(dare_ties(1.0, 1)), factors(Combination::Ties { density: 1.0 }));
    for how in [dare, dare_ties] {
        assert_eq!(factors(how(0.5, 1)), factors(how(0.5, 1)), "a function of the key");
        let [[a, b], [other_a, other_b]] = [factors(how(0.5, 1)), factors(how(0.5, 2))];
        assert!(a != other_a && b != other_b && a != b);
    }

    // Of one adapter, with a scaling of 2: what is kept is divided by the density.
    for how in [dare, dare_ties] {
        let model = combined(&[("a", 0.5)], how(0.25, 3));
        for factor in ["lora_A", "lora_B"] {
            let name = format!("{PLACE}.{factor}");
            let (before, after) = (tensor(&model, "a", &name), tensor(&model, "new", &name));
            let kept = after.iter().filter(|x| **x != 0.0).count();
            assert!((40..=88).contains(&kept), "{kept} of 256 are kept");
            assert!(before.iter().zip(&after).all(|(before, after)| *after == 0.0 || *after == before * 4.0));
        }
    }
}

#[test]
fn what_cannot_be_combined() {
    let key = Key::from_seed(0);
    let mut model = abc();
    let targets = || Targets::from([PLACE]);
    model.attach("ia3", Ia3Config::default(), key).unwrap();
    model.attach("dora", LoraConfig { use_dora: true, ..LoraConfig::new(targets()) }, key).unwrap();
    model.attach("bias", LoraConfig { lora_bias: true, ..LoraConfig::new(targets()) }, key).unwrap();
    model.attach("head", LoraConfig::new(["lm_head"]), key).unwrap();
    let mut copies = LoraConfig::new(targets());
    copies.meta.modules_to_save = vec!["encoder.final_layer_norm".to_owned()];
    model.attach("copies", copies, key).unwrap();
    model.attach("nan", LoraConfig::new(targets()), key).unwrap();
    model.set_adapter_tensors("nan", |name| name.ends_with("lora_A.weight").then(|| vec![f32::NAN; 512])).unwrap();
    model.attach("merged", LoraConfig::new(targets()), key).unwrap();
    model.merge().unwrap();

    let linear = Combination::Linear;
    let refused = |name: &str, parts: &[(&str, f64)], how| {
        let mut model = model.clone();
        let error = model.combine(name, parts, how).unwrap_err().to_string();
        assert_eq!(model.adapters().list().len(), 10, "as before");
        error
    };
    for (parts, how, expected) in [
        (&[] as &[(&str, f64)], linear, "`adapters` is none, expected at least one"),
        (&[("a", 1.0), ("z", 1.0)], linear, "no adapter called \"z\""),
        (&[("a", 1.0), ("merged", 1.0)], linear, "unmerge it first"),
        (&[("a", 1.0), ("a", 1.0)], linear, "no other adapter can be made of \"a\": it is named twice"),
        (&[("a", f64::NAN)], linear, "its weight is NaN"),
        (&[("a", 1.0), ("ia3", 1.0)], linear, "made of \"ia3\": it is IA3; take adapters of LORA"),
        (
            &[("dora", 1.0)],
            linear,
            "it has lora_A.weight and lora_B.weight and lora_magnitude_vector at decoder.block.1",
        ),
        (&[("bias", 1.0)], linear, "and lora_B.bias at decoder.block.1"),
        (&[("head", 1.0)], linear, "it has base_layer.weight at lm_head"),
        (&[("copies", 1.0)], linear, "it has weight at encoder.final_layer_norm"),
        (&[("nan", 1.0)], linear, "made of \"nan\": decoder.block.1.layer.0.SelfAttention.v would not be finite"),
        (&[("nan", 1.0)], Combination::Svd { rank: None }, "would not be finite"),
        (
            &[("a", 1.0), ("c", 1.0)],
            linear,
            "its rank at decoder.block.1.layer.0.SelfAttention.v is 2, that of \"a\" is 4; take Cat",
        ),
        (&PARTS, Combination::Svd { rank: Some(0) }, "`svd_rank` is 0"),
        (&PARTS, Combination::Ties { density: 0.0 }, "`density` is 0, expected a share in (0, 1]"),
        (&PARTS, Combination::MagnitudePrune { density: 1.5 }, "`density` is 1.5"),
        (&PARTS, Combination::DareLinear { density: f64::NAN, key }, "`density` is NaN"),
    ] {
        let error = refused("new", parts, how);
        assert!(error.contains(expected), "{parts:?} {how:?}: {error}");
    }
    assert!(refused("b", &PARTS, linear).contains("already has an adapter called \"b\""));
    assert!(refused("x/y", &PARTS, linear).contains("cannot be called"));
    let error = abc().combine("new", &[("a", 1.0), ("c", 1.0)], Combination::Ties { density: 0.5 });
    assert!(matches!(error, Err(AdapterError::NotCombinable { name, .. }) if name == "c"));
}
