//! New adapters of every method: they begin by changing nothing, and their configurations survive the file.

use std::fmt::Debug;

use burn::tensor::Device;
use sideburn_adapters::methods::{
    AdaLoraConfig, LoHaConfig, LoKrConfig, Lycoris, MethodRegistry, OftConfig, VeraConfig,
};
use sideburn_adapters::{AdapterMeta, Adapters, Key, Method, Pass, TargetModules, Targets};
use sideburn_t5::{LanguageModel, T5};

use sideburn_testing::{Golden, values};

fn losses(model: &T5) -> Vec<f32> {
    let io = Golden::open("lora/t5_gated_untied/io.safetensors");
    let batch = io.batch();
    values(model.token_losses(&batch, &mut Pass::evaluate()).unwrap())
}

fn check<C: Method + Clone + PartialEq + Debug>(config: C) {
    let read = MethodRegistry::peft().read(&config.to_json()).unwrap();
    assert_eq!(read.downcast_ref::<C>(), Some(&config));
    let base = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    let adapted = |seed: u64| {
        let mut model = base.clone();
        model.attach("new", config.clone(), Key::from_seed(seed)).unwrap();
        let tensors = model.adapter_tensors("new").unwrap();
        let tensors: Vec<Vec<f32>> = tensors.into_values().map(|param| values(param.val())).collect();
        (model, tensors)
    };
    let ((model, first), (_, again), (_, other)) = (adapted(1), adapted(1), adapted(2));
    assert_eq!(losses(&model), losses(&base), "{config:?}");
    assert_eq!(first, again, "{config:?}: what is drawn is a function of the key");
    // OFT draws nothing, and VeRA has a seed of its own, in its configuration.
    let has_draws = !matches!(config.peft_type(), "OFT" | "VERA");
    assert_eq!(first != other, has_draws, "{config:?}: and of nothing else");
}

#[test]
fn new_adapters_change_nothing() {
    let targets = Targets { layers_to_transform: Some(vec![1]), ..["q", "wo"].into() };
    let meta = AdapterMeta { task_type: Some("SEQ_2_SEQ_LM".to_owned()), ..AdapterMeta::default() };
    let lycoris = Lycoris {
        r: 2,
        alpha: 1.5,
        rank_dropout: 0.25,
        module_dropout: 0.125,
        rank_pattern: [("SelfAttention.q".to_owned(), 3)].into(),
        alpha_pattern: [("wo".to_owned(), 4.0)].into(),
    };
    let kept = vec![false, true, true];
    check(AdaLoraConfig {
        init_r: 3,
        target_r: 2,
        lora_alpha: 1.5,
        lora_dropout: 0.25,
        tinit: 10,
        tfinal: 20,
        delta_t: 5,
        beta1: 0.5,
        beta2: 0.75,
        orth_reg_weight: 0.25,
        rank_pattern: [("encoder.block.1.layer.0.SelfAttention.q".to_owned(), kept)].into(),
        meta: meta.clone(),
        ..AdaLoraConfig::new(targets.clone(), 100)
    });
    check(LoHaConfig { lycoris: lycoris.clone(), targets: targets.clone(), meta: meta.clone() });
    check(LoKrConfig {
        lycoris,
        decompose_both: true,
        decompose_factor: Some(4),
        rank_dropout_scale: true,
        targets: targets.clone(),
        meta: meta.clone(),
    });
    let (projection_prng_key, vera_dropout, d_initial) = (7, 0.25, 0.5);
    let vera = VeraConfig::new(targets.clone());
    check(VeraConfig { r: 4, projection_prng_key, vera_dropout, d_initial, meta: meta.clone(), ..vera });
    for (r, oft_block_size, block_share, use_cayley_neumann, num_cayley_neumann_terms) in
        [(0, 32, false, true, 5), (4, 0, true, false, 3)]
    {
        let (targets, meta) = (targets.clone(), meta.clone());
        check(OftConfig {
            r,
            oft_block_size,
            block_share,
            use_cayley_neumann,
            num_cayley_neumann_terms,
            targets,
            meta,
        });
    }
}

#[test]
fn usual_layers_and_all_layers() {
    let usual = || Targets::default();
    let all = || Targets::from(TargetModules::all_linear());
    for targets in [usual, all] {
        check(AdaLoraConfig::new(targets(), 100));
        check(LoHaConfig::new(targets()));
        check(LoKrConfig::new(targets()));
        check(VeraConfig::new(targets()));
        check(OftConfig::new(targets()));
    }
}
