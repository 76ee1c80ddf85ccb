//! LoRA of models that are not made for this crate: any Burn module, through Burn's own adapters.
//!
//! Burn attaches LoRA to a parameter, not to a layer ([`Module::apply_lora`]). That works for every module and costs what
//! the layers of this crate avoid: each forward pass forms the dense weight `W + s A B`, and each backward pass a gradient
//! of its size. `docs/benchmarks.md` has figures. Nor is there dropout, a name, or a second adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{LoraAdapter, Module, ModuleVisitor, Param, Reparameterizer};
use burn::tensor::{Device, Tensor, TensorData};
use sideburn_weights::TensorSource;

use crate::method::Method;
use crate::methods::LoraConfig;
use crate::peft_dir::{AdapterDir, Files, pretty};
use crate::peft_names::name_at;
use crate::tensors::to_file;
use crate::{AdapterError, Misshapen, TargetModules};

/// Saves the LoRA adapters that Burn has attached to `module` as a directory that `peft` and this crate read.
///
/// `lora_alpha` is the `alpha` of the [`Lora`](burn::module::Lora) that made them, which Burn does not tell. `site` gives
/// the Hugging Face name of the layer whose weight Burn calls by this path, such as
/// `encoder.block.0.layer.0.SelfAttention.q` for `encoder.0.attention.q.weight`. Weights are `[in, out]`, as in Burn's
/// `Linear`.
///
/// # Errors
/// If there is no adapter, two have one name, or the directory cannot be written.
pub fn save_burn_lora<M: Module>(
    module: &M,
    lora_alpha: f64,
    site: impl Fn(&str) -> String,
    directory: impl AsRef<Path>,
) -> Result<(), AdapterError> {
    let mut found = Found::default();
    module.visit(&mut found);
    let (mut tensors, mut ranks) = (BTreeMap::new(), BTreeMap::new());
    for (path, factor) in &found.factors {
        let [rows, columns] = factor.dims();
        let (weight, name, r) = match (path.strip_suffix(".lora.a"), path.strip_suffix(".lora.b")) {
            (Some(weight), _) => (weight, "lora_A", columns),
            (_, Some(weight)) => (weight, "lora_B", rows),
            _ => continue,
        };
        let site = site(weight);
        let tensor = to_file(factor.clone().transpose(), vec![columns, rows]);
        if tensors.insert(name_at(&site, &format!("{name}.weight")), tensor).is_some() {
            return Err(AdapterError::SiteTaken { weight: weight.to_owned(), site });
        }
        ranks.insert(site, r);
    }
    let Some(r) = ranks.values().next().copied() else {
        return Err(AdapterError::NoBurnLora { parameters: found.factors.into_iter().map(|(path, _)| path).collect() });
    };
    // Burn has one rank for a whole module, but a module can be made of several.
    let others = ranks.iter().filter(|(_, own)| **own != r);
    let config = LoraConfig {
        r,
        lora_alpha,
        rank_pattern: others.map(|(site, own)| (regex::escape(site), *own)).collect(),
        ..LoraConfig::new(TargetModules::Names(ranks.keys().cloned().collect()))
    };
    let config = config.to_json();
    Files { text: pretty(&config), config, tensors, base: None, card: None }.write(directory.as_ref())
}

/// Attaches the LoRA adapter in a PEFT directory to any Burn module, as an adapter of Burn's; all other parameters are
/// frozen. `site` is as for [`save_burn_lora`].
///
/// # Errors
/// If a file is missing or broken, the adapter is more than plain LoRA or rsLoRA, or a tensor is missing, unexpected or
/// misshapen; all are listed.
pub fn load_burn_lora<M: Module>(
    module: M,
    site: impl Fn(&str) -> String,
    directory: impl AsRef<Path>,
) -> Result<M, AdapterError> {
    let saved = AdapterDir::open(directory)?;
    let (method, file) = (saved.method()?, saved.tensors());
    let Some(config) = method.downcast_ref::<LoraConfig>().filter(|config| config.is_plain()) else {
        let value = format!("{:?} with more than two factors at each layer", method.peft_type());
        return Err(AdapterError::UnsupportedField { field: "peft_type".into(), value });
    };
    let mut attaching = Attaching {
        config,
        file,
        site,
        unexpected: file.names().map(str::to_owned).collect(),
        missing: Vec::new(),
        misshapen: Vec::new(),
        failed: None,
    };
    let adapted = module.apply_reparameterization(&mut attaching);
    let Attaching { unexpected, missing, misshapen, failed, .. } = attaching;
    if let Some(error) = failed {
        return Err(error);
    }
    if missing.is_empty() && misshapen.is_empty() && unexpected.is_empty() {
        return Ok(adapted);
    }
    let (path, unexpected) = (file.path().to_owned(), unexpected.into_iter().collect());
    Err(AdapterError::TensorsDoNotFit { path, missing, unexpected, misshapen })
}

/// The matrices of a module, with their paths; factors of LoRA are called `WEIGHT.lora.a` and `WEIGHT.lora.b`.
#[derive(Default)]
struct Found {
    at: Vec<String>,
    factors: Vec<(String, Tensor<2>)>,
}

impl ModuleVisitor for Found {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.at.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.at.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D == 2 {
            let shape: Vec<usize> = param.lazy_shape().as_slice().to_vec();
            self.factors.push((self.at.join("."), param.val().reshape([shape[0], shape[1]])));
        }
    }
}

/// Makes adapters of Burn's from the tensors of a file.
struct Attaching<'a, S> {
    config: &'a LoraConfig,
    file: &'a dyn TensorSource,
    site: S,
    unexpected: BTreeSet<String>,
    missing: Vec<String>,
    misshapen: Vec<Misshapen>,
    failed: Option<AdapterError>,
}

impl<S: Fn(&str) -> String> Attaching<'_, S> {
    /// The adapter for a weight `[in, out]`, if the file has one.
    fn adapter(
        &mut self,
        path: &str,
        [input, out]: [usize; 2],
        device: &Device,
    ) -> Result<Option<LoraAdapter>, AdapterError> {
        let site = (self.site)(path);
        let (r, scale) = self.config.rank_and_scaling(&site)?;
        let names = ["A", "B"].map(|factor| name_at(&site, &format!("lora_{factor}.weight")));
        if names.iter().all(|name| self.file.info(name).is_none()) {
            return Ok(None);
        }
        let mut factors = Vec::new();
        for (name, expected) in names.into_iter().zip([[r, input], [out, r]]) {
            self.unexpected.remove(&name);
            match self.file.info(&name) {
                None => self.missing.push(name),
                Some(info) if info.shape != expected => {
                    let found = info.shape.to_vec();
                    self.misshapen.push(Misshapen { tensor: name, found, expected: expected.into() });
                }
                Some(_) => {
                    let data = TensorData::new(self.file.read_f32(&name)?, expected);
                    factors.push(Param::from_tensor(Tensor::<2>::from_data(data, device).transpose().detach()));
                }
            }
        }
        let mut factors = factors.into_iter();
        Ok(match (factors.next(), factors.next()) {
            (Some(a), Some(b)) => Some(LoraAdapter { a, b, scale }),
            _ => None,
        })
    }
}

impl<S: Fn(&str) -> String> Reparameterizer for &mut Attaching<'_, S> {
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LoraAdapter>) {
        let base = param.set_require_grad(false);
        let [input, out] = *base.lazy_shape().as_slice() else { return (base, None) };
        match self.adapter(path, [input, out], &base.lazy_device()) {
            Ok(adapter) => (base, adapter),
            Err(error) => {
                self.failed.get_or_insert(error);
                (base, None)
            }
        }
    }
}
