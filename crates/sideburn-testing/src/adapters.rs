//! The goldens of adapters: what `peft` computes with each, whatever family of models it is on.

// How far the numbers are apart is worth seeing.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};

use burn::module::{ModuleMapper, Param};
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use sideburn_adapters::{Key, Pass, TrainingHooks, Weight};
use sideburn_batch::PromptBatch;
use sideburn_nn::LanguageModel;
use sideburn_weights::{SafetensorsFile, TensorSource};

use crate::{Entry, Exception, Golden, goldens, max_difference, path, relative_difference, values};

/// The goldens of the adapters of a family, and what the tests must know of it.
pub struct AdapterGoldens<M> {
    /// Where they are, below `testdata`.
    pub folder: &'static str,
    /// Reads a model directory.
    pub open: fn(&Path, &Device) -> M,
    /// The file that has the inputs of a golden; its own is given.
    pub inputs: fn(Golden) -> Golden,
    /// What a model says of these inputs, as the goldens have it.
    pub logits: fn(&M, &Golden, Pass) -> Vec<f32>,
    /// The batch of these inputs.
    pub batch: fn(&Golden) -> PromptBatch,
    /// A model that can be trained, where the file of an adapter holds only what its network makes; none if it cannot.
    pub with_network: fn(&Entry, M, &Golden) -> Option<M>,
}

/// Computes in another dtype.
pub struct Cast(pub DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let require_grad = param.is_require_grad();
        param.map(|tensor| Tensor::from_inner(tensor.inner().cast(self.0)).set_require_grad(require_grad))
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

impl<M: LanguageModel> AdapterGoldens<M> {
    /// The goldens that are an adapter.
    fn goldens(&self) -> Vec<Entry> {
        let is_adapter = |golden: &Entry| path(&golden.path).join("adapter_config.json").exists();
        goldens(self.folder).into_iter().filter(is_adapter).collect()
    }

    /// The numbers of a golden.
    pub fn numbers(golden: &Entry) -> Golden {
        Golden::open(&format!("{}/io.safetensors", golden.path))
    }

    fn io(&self, golden: &Entry) -> Golden {
        (self.inputs)(Self::numbers(golden))
    }

    /// The base of a golden.
    pub fn base(&self, golden: &Entry, device: &Device) -> M {
        (self.open)(&path(&golden.base), device)
    }

    /// The base of a golden with its adapter.
    pub fn adapted(&self, golden: &Entry, device: &Device) -> M {
        let mut model = self.base(golden, device);
        model.load_adapter("default", path(&golden.path)).unwrap();
        model
    }

    /// What a model says of the inputs of a golden.
    pub fn logits(&self, model: &M, golden: &Entry) -> Vec<f32> {
        (self.logits)(model, &self.io(golden), Pass::evaluate())
    }

    /// What is minimised in training.
    fn loss(&self, model: &M, golden: &Entry) -> Tensor<1> {
        let cross_entropy = self.cross_entropy(model, golden);
        match TrainingHooks::begin(model, 1000).unwrap().penalty(model) {
            Some(penalty) => cross_entropy + penalty,
            None => cross_entropy,
        }
    }

    fn cross_entropy(&self, model: &M, golden: &Entry) -> Tensor<1> {
        model.token_losses(&(self.batch)(&self.io(golden)), &mut Pass::evaluate()).unwrap().mean()
    }

    /// Logits and loss, those of training as well.
    pub fn logits_and_loss(&self) {
        for golden in self.goldens() {
            let (name, io) = (golden.name(), Self::numbers(&golden));
            let model = self.adapted(&golden, &Device::flex());
            let (mut found, mut expected) = (self.logits(&model, &golden), io.floats("logits"));
            match &golden.exception {
                Some(Exception::OnEmbedding) => expected = io.floats("merged_logits"),
                Some(Exception::InUntiedHead { tokens }) => {
                    for logits in [&mut found, &mut expected] {
                        logits.chunks_mut(256).for_each(|row| tokens.iter().for_each(|token| row[*token] = 0.0));
                    }
                }
                _ => {
                    let mut losses = vec![("loss", self.loss(&model, &golden))];
                    if io.names().contains(&"cross_entropy".to_owned()) {
                        losses.push(("cross_entropy", self.cross_entropy(&model, &golden)));
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

    /// The gradients of all that is trained. The goldens were computed in f64, but for a few steps that `transformers` takes
    /// in f32.
    pub fn gradients(&self) {
        for golden in self.goldens() {
            let (name, io) = (golden.name(), Self::numbers(&golden));
            let device = Device::flex().autodiff();
            let model = match golden.exception {
                // The golden has none of the embedding's, or those of the head as well.
                Some(Exception::OnEmbedding | Exception::InUntiedHead { .. }) => continue,
                Some(Exception::Network) => match (self.with_network)(&golden, self.base(&golden, &device), &io) {
                    Some(model) => model,
                    None => continue,
                },
                None => self.adapted(&golden, &device),
            };
            let model = model.map(&mut Cast(DType::F64));
            let gradients = self.loss(&model, &golden).backward();
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

    /// The loss follows its gradient.
    pub fn gradients_are_what_the_loss_does(&self) {
        // DoRA lets no gradient through its norms on purpose (section 4.3 of the paper).
        for golden in self.goldens().into_iter().filter(|golden| !golden.name().ends_with("lora_dora")) {
            let (name, device) = (golden.name(), Device::flex().autodiff());
            let model = match golden.exception {
                Some(Exception::Network) => {
                    let base = self.base(&golden, &device);
                    (self.with_network)(&golden, base, &Self::numbers(&golden))
                        .unwrap_or_else(|| self.adapted(&golden, &device))
                }
                _ => self.adapted(&golden, &device),
            };
            let model = model.map(&mut Cast(DType::F64));
            let gradients = self.loss(&model, &golden).backward();
            let step = 1e-6;
            let mut nudge = Nudge { gradients: &gradients, step, place: 0, expected: 0.0 };
            let above = model.clone().map(&mut nudge);
            let expected = nudge.expected;
            let below = model.map(&mut Nudge { gradients: &gradients, step: -step, place: 0, expected: 0.0 });
            let [above, below] = [above, below].map(|model| self.loss(&model, &golden).inner().into_scalar::<f64>());
            let difference = ((above - below) / (2.0 * step) / expected - 1.0).abs();
            println!("{name}: differences of the loss differ from its gradient by {difference:e} relative");
            assert!(difference <= 1e-4, "{name}: {difference:e}");
        }
    }

    /// Merging changes nothing, and unmerging gives back every bit.
    pub fn merged_and_unmerged(&self) {
        for golden in self.goldens() {
            let (name, io) = (golden.name(), Self::numbers(&golden));
            let plain = self.base(&golden, &Device::flex());
            let mut model = self.adapted(&golden, &Device::flex());
            let unmerged = self.logits(&model, &golden);
            if let Err(error) = model.merge() {
                let reason = golden.not_merged.as_ref().unwrap_or_else(|| panic!("{name}: {error}"));
                assert!(error.to_string().contains(reason), "{name}: {error}");
                assert_eq!(self.logits(&model, &golden), unmerged, "{name}: as before");
                continue;
            }
            assert!(golden.not_merged.is_none(), "{name}: it was merged");
            let merged = self.logits(&model, &golden);
            if io.names().contains(&"merged_logits".to_owned()) {
                let distance = max_difference(&merged, &io.floats("merged_logits"));
                println!("{name}: merged logits are {distance:e} from those of peft");
                assert!(distance <= 2e-4, "{name}: merged logits are {distance:e} from those of peft");
            }
            let drift = max_difference(&merged, &unmerged);
            println!("{name}: merging moves the logits by {drift:e}");
            assert!(drift <= 2e-4, "{name}: merging moved the logits by {drift:e}");
            model.unmerge().unwrap();
            assert_eq!(self.logits(&model, &golden), unmerged, "{name}: active again");
            model.set_active(&[]).unwrap();
            for ((place, before), (_, after)) in plain.weights().iter().zip(model.weights()) {
                assert_eq!(bits(before), bits(&after), "{name}: {place} is as it was");
            }
        }
    }

    /// The files come out as they went in. With `SIDEBURN_EXPORT` set to a folder, the adapters are written there, for
    /// `testdata/check_round_trip_with_peft.py`.
    pub fn what_is_saved_is_what_was_loaded(&self) {
        let temporary = tempfile::tempdir().unwrap();
        let saved = std::env::var_os("SIDEBURN_EXPORT").map_or(temporary.path().to_owned(), PathBuf::from);
        for golden in self.goldens() {
            let name = golden.name();
            let (original, copy) = (path(&golden.path), saved.join(name));
            let model = self.adapted(&golden, &Device::flex());
            model.save_adapter("default", &copy).unwrap();
            let file = |directory: &Path| SafetensorsFile::open(directory.join("adapter_model.safetensors")).unwrap();
            let (before, after) = (file(&original), file(&copy));
            assert!(before.names().eq(after.names()), "{name}");
            for tensor in before.names() {
                assert_eq!(before.read(tensor).unwrap(), after.read(tensor).unwrap(), "{name}: {tensor}");
            }
            let mut again = self.base(&golden, &Device::flex());
            again.load_adapter("default", &copy).unwrap();
            let config = |model: &M| model.adapters().get("default").unwrap().method().to_json();
            assert_eq!(config(&again), config(&model), "{name}");
        }
    }
}

fn bits(weight: &Weight<'_>) -> Vec<u32> {
    values(weight.weight().dense()).into_iter().map(f32::to_bits).collect()
}
