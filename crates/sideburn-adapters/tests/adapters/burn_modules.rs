//! LoRA of ordinary Burn modules, to and from PEFT directories.

use burn::module::{Lora, LoraAdapter, Module, ModuleMapper, Param, ParamGroup};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use sideburn_adapters::methods::LoraConfig;
use sideburn_adapters::peft::{load_burn_lora, save_burn_lora};
use sideburn_adapters::{
    AdaptedLinear, AdaptedModel, AdapterSet, Adapters, Key, ModelShape, Pass, Weight, WeightMut, random_weight,
};
use sideburn_kernels::RowLayout;

/// A model of somebody else's.
#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        let (up, down) = (LinearConfig::new(6, 5), LinearConfig::new(5, 4).with_bias(false));
        Self { up: up.init(device), down: down.init(device) }.map(&mut Randomise(Key::from_seed(0)))
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward(self.up.forward(x))
    }
}

/// The same model, made for this crate.
#[derive(Module, Debug)]
struct Adapted {
    up: AdaptedLinear,
    down: AdaptedLinear,
    adapters: AdapterSet,
}

impl Adapted {
    fn of(mlp: &Mlp) -> Self {
        let layer = |linear: &Linear| {
            AdaptedLinear::from_weights(linear.weight.base().transpose(), linear.bias.as_ref().map(Param::val))
        };
        Self { up: layer(&mlp.up), down: layer(&mlp.down), adapters: AdapterSet::default() }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let rows = RowLayout::packed(&vec![1; x.dims()[0]], &x.device());
        let (pass, adapters) = (&mut Pass::evaluate(), &self.adapters);
        let pass = &mut adapters.enter(pass, &rows).unwrap();
        let hidden = self.up.forward(x, pass);
        self.down.forward(hidden, pass)
    }
}

impl AdaptedModel for Adapted {
    fn weights(&self) -> Vec<(String, Weight<'_>)> {
        vec![("mlp.up".into(), Weight::Linear(&self.up)), ("mlp.down".into(), Weight::Linear(&self.down))]
    }

    fn weights_mut(&mut self) -> Vec<(String, WeightMut<'_>)> {
        vec![("mlp.up".into(), WeightMut::Linear(&mut self.up)), ("mlp.down".into(), WeightMut::Linear(&mut self.down))]
    }

    fn shape(&self) -> ModelShape {
        ModelShape::of_layers()
    }

    fn device(&self) -> Device {
        self.up.device()
    }

    fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut AdapterSet {
        &mut self.adapters
    }
}

/// Draws anew whatever is trained, the same values every time.
struct Randomise(Key);

impl ModuleMapper for Randomise {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_require_grad() {
            return param;
        }
        self.0 = self.0.fold_in(1);
        param.map(|tensor| random_weight(tensor.dims(), 0.5, self.0, &tensor.device()).val().require_grad())
    }
}

fn site(path: &str) -> String {
    format!("mlp.{}", path.strip_suffix(".weight").unwrap_or(path))
}

/// Whether no element is further apart than rounding explains, seen from the largest.
fn close(a: Tensor<2>, b: Tensor<2>) -> bool {
    let largest = |x: Tensor<2>| x.abs().max().into_scalar::<f32>();
    largest(a.clone() - b) <= 1e-5 * largest(a)
}

#[test]
fn an_adapter_of_burn_goes_to_a_peft_directory_and_back() {
    let device = Device::flex().autodiff();
    let base = Mlp::new(&device);
    let x = || Tensor::<2>::ones([3, 6], &device);
    let lora = Lora::new(2, 3.0).set_param_group(ParamGroup::from_paths(vec!["up.weight", "down.weight"]));
    let trained = base.clone().apply_lora(lora).map(&mut Randomise(Key::from_seed(2)));
    let y = trained.forward(x());
    assert!(!close(y.clone(), base.forward(x())), "the adapter does something");

    let directory = tempfile::tempdir().unwrap();
    save_burn_lora(&trained, 3.0, site, directory.path()).unwrap();
    let again = load_burn_lora(base.clone(), site, directory.path()).unwrap();
    assert!(close(again.forward(x()), y.clone()));
    assert!(again.up.weight.reparameterization::<LoraAdapter>().is_some());
    assert!(!again.up.weight.base().is_require_grad(), "the base is frozen");

    let mut adapted = Adapted::of(&base);
    adapted.load_adapter("default", directory.path()).unwrap();
    assert!(close(adapted.forward(x()), y), "the layers of this crate compute the same");
}

#[test]
fn an_adapter_of_ours_goes_to_any_burn_module() {
    let device = Device::flex().autodiff();
    let base = Mlp::new(&device);
    let x = || Tensor::<2>::ones([3, 6], &device);
    let mut adapted = Adapted::of(&base);
    let config = LoraConfig {
        r: 4,
        lora_alpha: 6.0,
        use_rslora: true,
        rank_pattern: [("up".to_owned(), 1)].into(),
        ..LoraConfig::new(["up", "down"])
    };
    adapted.attach("default", config, Key::from_seed(1)).unwrap();
    let adapted = adapted.map(&mut Randomise(Key::from_seed(2)));
    let directory = tempfile::tempdir().unwrap();
    adapted.save_adapter("default", directory.path()).unwrap();
    let module = load_burn_lora(base, site, directory.path()).unwrap();
    assert!(close(module.forward(x()), adapted.forward(x())));
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::flex();
    let base = Mlp::new(&device);
    let directory = tempfile::tempdir().unwrap();
    let error = save_burn_lora(&base, 3.0, site, directory.path()).unwrap_err().to_string();
    assert!(error.contains("no LoRA adapter of Burn's") && error.contains("up.weight"), "{error}");

    let lora = Lora::new(2, 3.0).set_param_group(ParamGroup::from_paths(vec!["up.weight", "down.weight"]));
    let trained = base.clone().apply_lora(lora);
    let error = save_burn_lora(&trained, 3.0, |_| "same".into(), directory.path()).unwrap_err().to_string();
    assert!(error.contains("down.weight is the second weight that is called \"same\""), "{error}");
    save_burn_lora(&trained, 3.0, site, directory.path()).unwrap();
    let error = load_burn_lora(base.clone(), |path| format!("other.{path}"), directory.path()).unwrap_err().to_string();
    assert!(error.contains("unexpected (4)"), "{error}");
    let swapped = |path: &str| site(if path == "up.weight" { "down.weight" } else { "up.weight" });
    let error = load_burn_lora(base.clone(), swapped, directory.path()).unwrap_err().to_string();
    assert!(error.contains("misshapen") && error.contains("mlp.up.lora_A.weight is [2, 6]"), "{error}");

    let mut adapted = Adapted::of(&base);
    let dora = LoraConfig { use_dora: true, r: 2, ..LoraConfig::new(["up", "down"]) };
    adapted.attach("default", dora, Key::from_seed(1)).unwrap();
    adapted.save_adapter("default", directory.path()).unwrap();
    let error = load_burn_lora(base, site, directory.path()).unwrap_err().to_string();
    assert!(error.contains("more than two factors"), "{error}");
}
