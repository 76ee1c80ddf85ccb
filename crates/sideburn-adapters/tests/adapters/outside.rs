//! A method that is not of this crate: it trains, is saved, and is loaded again by the `peft_type` of its file.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde_json::{Map, Value, json};
use sideburn_adapters::author::{
    About, BoundLinear, Call, CanCombineWith, Fields, Init, LinearRule, ModelOutline, Plan, Rule, RuleTensors, Site,
    TensorSpec, Weights,
};
use sideburn_adapters::methods::{LoraConfig, PromptTuningConfig, TrainableTokensConfig};
use sideburn_adapters::{
    AdaptedLinear, AdaptedModel, AdapterError, AdapterMeta, AdapterSet, Adapters, Key, Method, ModelShape, Pass,
    Targets, list_weights,
};
use sideburn_kernels::RowLayout;
use sideburn_weights::{SafetensorsFile, TensorSource, write_safetensors};
use tempfile::tempdir;

/// One factor for each output of a layer, to the power of `power`.
#[derive(Clone, Debug)]
struct GainConfig {
    power: i32,
    targets: Targets,
    meta: AdapterMeta,
}

impl GainConfig {
    fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        Ok(Self {
            power: fields.required("power", "a whole number")?,
            targets: Targets::read(fields)?,
            meta: AdapterMeta::read(fields)?,
        })
    }
}

impl Method for GainConfig {
    fn about(&self) -> About<'_> {
        About {
            peft_type: "GAIN",
            meta: &self.meta,
            targets: Some(&self.targets),
            combines_with: CanCombineWith::Alone,
        }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        match self.power {
            0 => Err(AdapterError::InvalidField { field: "power", found: "0".into(), expected: "another number" }),
            _ => Ok(()),
        }
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::from_iter([("power".to_owned(), json!(self.power))]);
        self.targets.write(&mut fields);
        fields
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let sites = self.targets.select(model, Site::is_linear, model.shape.usual.lora)?;
        Plan::of_linears(sites, |site| Ok(Gain { width: site.linear()[0], power: self.power }))
    }
}

#[derive(Debug)]
struct Gain {
    width: usize,
    power: i32,
}

impl Rule for Gain {
    fn tensors(&self) -> Vec<TensorSpec> {
        vec![TensorSpec::new("gain", [self.width], Init::Ones)]
    }
}

impl LinearRule for Gain {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        Box::new(BoundGain(own.get("gain").powi_scalar(self.power)))
    }
}

/// `[1, out]`.
struct BoundGain(Tensor<2>);

impl BoundLinear for BoundGain {
    fn output(&self, y: Tensor<2>, _call: &Call<'_>, _pass: &mut Pass) -> Tensor<2> {
        y * self.0.clone()
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        Ok(Weights { weight: base.weight * self.0.clone().transpose(), ..base })
    }
}

#[derive(Module, Debug)]
pub(crate) struct Layers {
    first: AdaptedLinear,
    second: AdaptedLinear,
    adapters: AdapterSet,
}

impl Layers {
    /// Two layers: from the first width to the second, and to the third.
    pub(crate) fn of_widths([input, inner, out]: [usize; 3]) -> Self {
        let device = Device::flex().autodiff();
        let layer = |out, input, seed| AdaptedLinear::random(out, input, 0.5, Key::from_seed(seed), &device);
        Self { first: layer(inner, input, 0), second: layer(out, inner, 1), adapters: AdapterSet::default() }
    }

    fn forward(&self) -> Tensor<2> {
        let (pass, rows) = (&mut Pass::evaluate(), RowLayout::packed(&[1, 1], &self.device()));
        let pass = &mut self.adapters.enter(pass, &rows).unwrap();
        let x = Tensor::from_floats([[1.0, -2.0, 0.5], [0.3, 0.7, -0.1]], &self.device());
        self.second.forward(self.first.forward(x, pass), pass)
    }

    fn values(&self) -> Vec<f32> {
        self.forward().into_data().try_into_vec().unwrap()
    }
}

impl AdaptedModel for Layers {
    list_weights! { |model, list, borrow, each, some| {
        list.push(("first".to_owned(), borrow!(model.first).into()));
        list.push(("second".to_owned(), borrow!(model.second).into()));
    }}

    fn shape(&self) -> ModelShape {
        ModelShape::of_layers()
    }

    fn device(&self) -> Device {
        self.first.device()
    }

    fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut AdapterSet {
        &mut self.adapters
    }
}

#[test]
fn a_method_from_outside_is_trained_saved_and_loaded() {
    let base = Layers::of_widths([3, 4, 2]);
    let mut model = base.clone();
    let config = GainConfig { power: 2, targets: ["first", "second"].into(), meta: AdapterMeta::default() };
    assert_eq!(model.attach("mine", config, Key::from_seed(2)).unwrap(), ["first", "second"]);
    assert_eq!(model.values(), base.values(), "factors of one");

    // A step of gradient descent.
    let gradients = model.forward().square().sum().backward();
    let tensors = model.adapter_tensors("mine").unwrap();
    let slopes =
        |name: &str| -> Vec<f32> { tensors[name].grad(&gradients).unwrap().into_data().try_into_vec().unwrap() };
    let mut trained = model.clone();
    trained
        .set_adapter_tensors("mine", |name| Some(slopes(name).into_iter().map(|slope| 1.0 - 0.01 * slope).collect()))
        .unwrap();
    assert!(
        model.linears().iter().all(|(_, site)| site.weight().dense().grad(&gradients).is_none()),
        "the base is frozen"
    );
    let sum = |model: &Layers| model.values().iter().map(|y| y * y).sum::<f32>();
    assert!(sum(&trained) < sum(&base), "{} is not below {}", sum(&trained), sum(&base));

    let directory = tempdir().unwrap();
    trained.save_adapter("mine", directory.path()).unwrap();
    let mut loaded = base.clone();
    let error = loaded.load_adapter("mine", directory.path()).unwrap_err().to_string();
    assert!(error.contains("`peft_type` is \"GAIN\", which this version does not have"), "{error}");
    loaded.adapters_mut().methods_mut().add("GAIN", |fields| Ok(Arc::new(GainConfig::read(fields)?)));
    loaded.load_adapter("mine", directory.path()).unwrap();
    assert_eq!(loaded.values(), trained.values());
    let entry = loaded.adapters().get("mine").unwrap();
    assert_eq!(entry.method().downcast_ref::<GainConfig>().unwrap().power, 2);

    loaded.merge().unwrap();
    let drift = loaded.values().iter().zip(trained.values()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(drift < 1e-5, "{drift:e}");
}

#[test]
fn the_halves_of_two_adapters_are_told_apart() {
    let base = Layers::of_widths([3, 4, 2]);
    let mut model = base.clone();
    let config = LoraConfig { r: 2, lora_dropout: 0.1, ..LoraConfig::new(["first"]) };
    model.attach("default", config, Key::from_seed(0)).unwrap();
    let directory = tempdir().unwrap();
    model.save_adapter("default", directory.path()).unwrap();
    let file = directory.path().join("adapter_config.json");
    let saved = std::fs::read_to_string(&file).unwrap();
    let load = |from: &str, to: &str| {
        assert!(saved.contains(from), "{saved}");
        std::fs::write(&file, saved.replace(from, to)).unwrap();
        base.clone().load_adapter("default", directory.path())
    };
    // What says nothing of the result may be changed by hand.
    load("\"base_model_name_or_path\": null", "\"base_model_name_or_path\": \"t5\"").unwrap();
    load("\"lora_dropout\": 0.1", "\"lora_dropout\": 0.2").unwrap();
    let error = load("\"lora_alpha\": 8", "\"lora_alpha\": 16").unwrap_err().to_string();
    assert!(error.contains("adapter_config.json: this is not the configuration that"), "{error}");
    assert!(error.contains("adapter_model.safetensors was saved with") && error.contains("undo the change"), "{error}");

    // Files of `peft` remember no configuration.
    let weights = directory.path().join("adapter_model.safetensors");
    let tensors = SafetensorsFile::open(&weights).unwrap();
    let tensors: Vec<_> = tensors.names().map(|name| (name.to_owned(), tensors.read(name).unwrap())).collect();
    write_safetensors(&weights, tensors, None).unwrap();
    load("\"lora_alpha\": 8", "\"lora_alpha\": 16").unwrap();
}

#[test]
fn methods_for_tokens_need_an_embedding() {
    let mut model = Layers::of_widths([3, 4, 2]);
    let prompt = model.attach("p", PromptTuningConfig::new(4), Key::from_seed(1)).unwrap_err().to_string();
    assert_eq!(
        prompt,
        "PROMPT_TUNING has nothing to adapt: the model has no embedding; choose a method for its layers"
    );
    let tokens = model.attach("t", TrainableTokensConfig::new([1]), Key::from_seed(1)).unwrap_err().to_string();
    assert!(tokens.starts_with("TRAINABLE_TOKENS has nothing to adapt"), "{tokens}");
    assert!(model.adapters().list().is_empty());
}
