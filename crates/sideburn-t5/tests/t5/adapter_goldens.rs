//! Every method of fine-tuning on T5 against `peft`: logits, loss, gradients, merging, and files both ways.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use sideburn_adapters::methods::{MethodRegistry, PTuningConfig, PrefixTuningConfig, VeraConfig};
use sideburn_adapters::{AdaptedModel, Adapters, Key, Pass, TrainingHooks};
use sideburn_t5::{LanguageModel, T5};
use sideburn_weights::{SafetensorsFile, TensorSource};

use sideburn_testing::{Entry, Exception, Golden, max_difference, relative_difference, values};

/// The goldens that are an adapter.
fn goldens() -> Vec<Entry> {
    let is_adapter = |golden: &Entry| sideburn_testing::path(&golden.path).join("adapter_config.json").exists();
    sideburn_testing::goldens("adapters").into_iter().filter(is_adapter).collect()
}

fn open(golden: &Entry) -> Golden {
    Golden::open(&format!("{}/io.safetensors", golden.path))
}

fn base(golden: &Entry, device: &Device) -> T5 {
    T5::from_dir(sideburn_testing::path(&golden.base), device).unwrap()
}

fn adapted(golden: &Entry, device: &Device) -> T5 {
    let mut model = base(golden, device);
    model.load_adapter("default", sideburn_testing::path(&golden.path)).unwrap();
    model
}

/// The inputs that all goldens share.
struct Inputs {
    io: Golden,
}

impl Inputs {
    fn open() -> Self {
        Self { io: Golden::open("lora/t5_gated_untied/io.safetensors") }
    }

    fn logits(&self, model: &T5) -> Vec<f32> {
        self.logits_in(model, Pass::evaluate())
    }

    fn logits_in(&self, model: &T5, pass: Pass) -> Vec<f32> {
        crate::logits::logits_in(model, &self.io, pass)
    }

    /// What is minimised in training.
    fn loss(&self, model: &T5) -> Tensor<1> {
        let cross_entropy = self.cross_entropy(model);
        match TrainingHooks::begin(model, 1000).unwrap().penalty(model) {
            Some(penalty) => cross_entropy + penalty,
            None => cross_entropy,
        }
    }

    fn cross_entropy(&self, model: &T5) -> Tensor<1> {
        let batch = self.io.batch();
        model.token_losses(&batch, &mut Pass::evaluate()).unwrap().mean()
    }
}

/// Computes in another dtype.
struct Cast(DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let require_grad = param.is_require_grad();
        param.map(|tensor| Tensor::from_inner(tensor.inner().cast(self.0)).set_require_grad(require_grad))
    }
}

#[test]
fn logits_and_loss() {
    let inputs = Inputs::open();
    for golden in goldens() {
        let (name, io) = (golden.name(), open(&golden));
        let model = adapted(&golden, &Device::flex());
        let (mut found, mut expected) = (inputs.logits(&model), io.floats("logits"));
        match &golden.exception {
            Some(Exception::OnEmbedding) => expected = io.floats("merged_logits"),
            Some(Exception::InUntiedHead { tokens }) => {
                for logits in [&mut found, &mut expected] {
                    logits.chunks_mut(256).for_each(|row| tokens.iter().for_each(|token| row[*token] = 0.0));
                }
            }
            _ => {
                let mut losses = vec![("loss", inputs.loss(&model))];
                if io.names().contains(&"cross_entropy".to_owned()) {
                    losses.push(("cross_entropy", inputs.cross_entropy(&model)));
                }
                for (what, loss) in losses {
                    let difference = relative_difference(&values(loss), &io.floats(what));
                    println!("{name}: {what} differs by {difference:e} relative");
                    assert!(difference <= 1e-5, "{name}: {what} differs by {difference:e} relative");
                }
            }
        }
        let difference = max_difference(&found, &expected);
        println!("{name}: logits differ by at most {difference:e}");
        assert!(difference <= golden.tolerance as f32, "{name}: logits differ by {difference:e}");
    }
}

/// A model with an adapter that can be trained, although its file holds only what its network makes.
fn with_network(golden: &Entry, io: &Golden, device: &Device) -> T5 {
    let (mut model, key) = (base(golden, device), Key::from_seed(0));
    if golden.name() == "p_tuning" {
        let config = PTuningConfig { encoder_hidden_size: Some(16), ..PTuningConfig::new(5) };
        model.attach("default", config, key).unwrap();
    } else {
        let config =
            PrefixTuningConfig { prefix_projection: true, encoder_hidden_size: Some(16), ..PrefixTuningConfig::new(5) };
        model.attach("default", config, key).unwrap();
    }
    model.set_adapter_tensors("default", |tensor| Some(io.floats(&format!("param.{tensor}")))).unwrap();
    model
}

#[test]
fn a_saved_network_is_what_it_makes() {
    let inputs = Inputs::open();
    for name in ["p_tuning", "prefix_tuning_proj"] {
        let golden = sideburn_testing::golden(&format!("adapters/{name}"));
        let io = open(&golden);
        let model = with_network(&golden, &io, &Device::flex());
        let logits = inputs.logits(&model);
        let difference = max_difference(&logits, &io.floats("logits"));
        assert!(difference <= 1e-4, "{name}: logits differ by {difference:e}");
        let directory = tempfile::tempdir().unwrap();
        model.save_adapter("default", directory.path()).unwrap();
        let mut loaded = base(&golden, &Device::flex());
        loaded.load_adapter("default", directory.path()).unwrap();
        assert_eq!(inputs.logits(&loaded), logits, "{name}");
    }
}

/// The goldens were computed in f64, but for a few steps that `transformers` takes in f32.
#[test]
fn gradients() {
    let inputs = Inputs::open();
    for golden in goldens() {
        let (name, io) = (golden.name(), open(&golden));
        let device = Device::flex().autodiff();
        let model = match golden.exception {
            // The golden has none of the embedding's, or those of the head as well.
            Some(Exception::OnEmbedding | Exception::InUntiedHead { .. }) => continue,
            // Its LSTM cannot be trained here.
            Some(Exception::Network) if name == "p_tuning_lstm" => continue,
            Some(Exception::Network) => with_network(&golden, &io, &device),
            None => adapted(&golden, &device),
        };
        let model = model.map(&mut Cast(DType::F64));
        let gradients = inputs.loss(&model).backward();
        let (mut squared_error, mut squared_norm, mut compared) = (0.0, 0.0, 0);
        for (tensor, param) in model.adapter_tensors("default").unwrap() {
            let reference = format!("grad.{tensor}");
            if !io.names().contains(&reference) {
                continue;
            }
            compared += 1;
            if param.lazy_shape().num_elements() == 0 {
                continue;
            }
            let found = param.val().grad(&gradients).unwrap_or_else(|| panic!("{name}: no gradient of {tensor}"));
            let (found, expected) = (values(found.cast(DType::F32)), io.floats(&reference));
            squared_error += found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            squared_norm += expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        }
        let expected = io.names().iter().filter(|name| name.starts_with("grad.")).count();
        let difference = (squared_error / squared_norm).sqrt();
        println!("{name}: {compared} gradients differ by {difference:e} relative");
        assert_eq!(compared, expected, "{name}: gradients compared");
        assert!(difference <= 1e-5, "{name}: gradients differ by {difference:e}");
    }
}

/// Moves every trained parameter a little in a random direction, and sums up by how much the loss should follow.
struct Nudge<'a> {
    gradients: &'a Gradients,
    step: f64,
    place: u64,
    expected: f64,
}

impl ModuleMapper for Nudge<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = param.val().grad(self.gradients) else { return param };
        self.place += 1;
        let key = Key::from_seed(6).fold_in(self.place);
        let direction: Vec<f64> = (0..gradient.shape().num_elements() as u64).map(|index| key.normal(index)).collect();
        let direction = TensorData::new(direction, gradient.shape());
        let direction = Tensor::<D>::from_data(direction, (&gradient.device(), DType::F64));
        self.expected += (gradient * direction.clone()).sum().into_scalar::<f64>();
        param.map(|tensor| Tensor::from_inner(tensor.inner() + direction.mul_scalar(self.step)))
    }
}

#[test]
fn gradients_are_what_the_loss_does() {
    let inputs = Inputs::open();
    // DoRA lets no gradient through its norms on purpose (section 4.3 of the paper).
    for golden in goldens().into_iter().filter(|golden| golden.name() != "lora_dora") {
        let (name, device) = (golden.name(), Device::flex().autodiff());
        let model = match golden.exception {
            Some(Exception::Network) if name != "p_tuning_lstm" => with_network(&golden, &open(&golden), &device),
            _ => adapted(&golden, &device),
        };
        let model = model.map(&mut Cast(DType::F64));
        let gradients = inputs.loss(&model).backward();
        let step = 1e-6;
        let mut nudge = Nudge { gradients: &gradients, step, place: 0, expected: 0.0 };
        let above = model.clone().map(&mut nudge);
        let expected = nudge.expected;
        let below = model.map(&mut Nudge { gradients: &gradients, step: -step, place: 0, expected: 0.0 });
        let [above, below] = [above, below].map(|model| inputs.loss(&model).inner().into_scalar::<f64>());
        let difference = ((above - below) / (2.0 * step) / expected - 1.0).abs();
        println!("{name}: differences of the loss differ from its gradient by {difference:e} relative");
        assert!(difference <= 1e-4, "{name}: {difference:e}");
    }
}

#[test]
fn merged_and_unmerged() {
    let inputs = Inputs::open();
    for golden in goldens() {
        let (name, io) = (golden.name(), open(&golden));
        let plain = base(&golden, &Device::flex());
        let mut model = adapted(&golden, &Device::flex());
        let unmerged = inputs.logits(&model);
        if let Err(error) = model.merge() {
            let reason = golden.not_merged.as_ref().unwrap_or_else(|| panic!("{name}: {error}"));
            assert!(error.to_string().contains(reason), "{name}: {error}");
            assert_eq!(inputs.logits(&model), unmerged, "{name}: as before");
            continue;
        }
        assert!(golden.not_merged.is_none(), "{name}: it was merged");
        let merged = inputs.logits(&model);
        if io.names().contains(&"merged_logits".to_owned()) {
            let distance = max_difference(&merged, &io.floats("merged_logits"));
            println!("{name}: merged logits are {distance:e} from those of peft");
            assert!(distance <= 2e-4, "{name}: merged logits are {distance:e} from those of peft");
        }
        let drift = max_difference(&merged, &unmerged);
        println!("{name}: merging moves the logits by {drift:e}");
        assert!(drift <= 2e-4, "{name}: merging moved the logits by {drift:e}");
        model.unmerge().unwrap();
        assert_eq!(inputs.logits(&model), unmerged, "{name}: active again");
        model.set_active(&[]).unwrap();
        for ((place, before), (_, after)) in plain.weights().iter().zip(model.weights()) {
            assert_eq!(bits(before), bits(&after), "{name}: {place} is as it was");
        }
    }
}

fn bits(weight: &sideburn_adapters::Weight<'_>) -> Vec<u32> {
    values(weight.weight().dense()).into_iter().map(f32::to_bits).collect()
}

/// With `SIDEBURN_EXPORT` set to a folder, the adapters are written there, for `testdata/check_round_trip_with_peft.py`.
#[test]
fn what_is_saved_is_what_was_loaded() {
    let temporary = tempfile::tempdir().unwrap();
    let saved = std::env::var_os("SIDEBURN_EXPORT").map_or(temporary.path().to_owned(), std::path::PathBuf::from);
    for golden in goldens() {
        let name = golden.name();
        let (original, copy) = (sideburn_testing::path(&golden.path), saved.join(name));
        let model = adapted(&golden, &Device::flex());
        model.save_adapter("default", &copy).unwrap();
        let file =
            |directory: &std::path::Path| SafetensorsFile::open(directory.join("adapter_model.safetensors")).unwrap();
        let (before, after) = (file(&original), file(&copy));
        assert!(before.names().eq(after.names()), "{name}");
        for tensor in before.names() {
            assert_eq!(before.read(tensor).unwrap(), after.read(tensor).unwrap(), "{name}: {tensor}");
        }
        let mut again = base(&golden, &Device::flex());
        again.load_adapter("default", &copy).unwrap();
        let config = |model: &T5| model.adapters().get("default").unwrap().method().to_json();
        assert_eq!(config(&again), config(&model), "{name}");
    }
}

/// The matrices of VeRA that `peft` drew, once in a file and once not.
#[test]
fn what_is_drawn_again_is_drawn_to_the_bit() {
    for (name, file, prefix) in [("vera", "adapter_model", ""), ("vera_unsaved_projection", "io", "drawn.")] {
        let golden = Golden::open(&format!("adapters/{name}/{file}.safetensors"));
        let method = MethodRegistry::peft()
            .read_file(&sideburn_testing::path(&format!("adapters/{name}/adapter_config.json")))
            .unwrap();
        let config = method.downcast_ref::<VeraConfig>().unwrap().clone();
        let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
        model.attach("new", config, Key::from_seed(5)).unwrap();
        let tensors = model.adapter_tensors("new").unwrap();
        for matrix in ["base_model.vera_A", "base_model.vera_B"] {
            assert_eq!(values(tensors[matrix].val()), golden.floats(&format!("{prefix}{matrix}")), "{name}, {matrix}");
        }
    }
}
