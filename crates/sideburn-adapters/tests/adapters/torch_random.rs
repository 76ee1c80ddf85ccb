//! The projections of VeRA, which `peft` draws again from a seed: those of PyTorch, to the bit.

use sideburn_adapters::methods::VeraConfig;
use sideburn_adapters::{Adapters, Key};
use sideburn_weights::{SafetensorsFile, TensorSource};

use super::outside::Layers;

#[test]
fn numbers_are_those_of_pytorch_to_the_bit() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/torch/uniform.safetensors");
    let golden = SafetensorsFile::open(path).unwrap();
    for seed in [0, 42, (1 << 32) - 1, (1 << 32) + 42] {
        // `A [r, in]` and `B [out, r]` of the largest layer.
        let mut model = Layers::of_widths([211, 5, 2]);
        let config = VeraConfig { r: 3, projection_prng_key: seed, ..VeraConfig::new(["first", "second"]) };
        model.attach("default", config, Key::from_seed(0)).unwrap();
        let tensors = model.adapter_tensors("default").unwrap();
        for name in ["A", "B"] {
            let found: Vec<f32> = tensors[&format!("base_model.vera_{name}")].val().into_data().try_into_vec().unwrap();
            assert_eq!(found, golden.read_f32(&format!("{seed}.{name}")).unwrap(), "{name} of {seed}");
        }
    }
}
