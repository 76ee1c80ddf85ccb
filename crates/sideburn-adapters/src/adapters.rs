//! What can be done with the adapters of a model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use sideburn_kernels::Key;
use sideburn_quant::QuantizationConfig;
use sideburn_weights::TensorSource;

use crate::AdapterError;
use crate::base_weight::Precision;
use crate::combine::Combination;
use crate::footprint::BaseBytes;
use crate::in_peft::PeftDifference;
use crate::loftq::LoftqConfig;
use crate::method::Method;
use crate::model::AdaptedModel;

/// What can be done with the adapters of a model, and with its base weights. Every [`AdaptedModel`] has it.
pub trait Adapters: AdaptedModel + Module {
    /// Attaches a new adapter called `name`, alone active and alone trainable; all that was there before is frozen. Returns
    /// the names of the adapted sites.
    ///
    /// What is drawn at a site is a function of `key`, of the adapter's and of the site's name. Nothing is copied: the
    /// cost grows with the number of sites, not with the size of the base.
    ///
    /// # Errors
    /// If the name cannot be one or is taken, or the configuration means nothing or does not fit the model: every name in
    /// `target_modules` must match something. The model is then as before.
    fn attach(&mut self, name: &str, method: impl Method, key: Key) -> Result<Vec<String>, AdapterError> {
        crate::attach::attach(self, name, Arc::new(method), key)
    }

    /// [`attach`](Self::attach) for a method that was read, as [`MethodRegistry::read`](crate::methods::MethodRegistry::read)
    /// gives it.
    ///
    /// # Errors
    /// As there.
    fn attach_read(&mut self, name: &str, method: Arc<dyn Method>, key: Key) -> Result<Vec<String>, AdapterError> {
        crate::attach::attach(self, name, method, key)
    }

    /// Makes the adapters called `names`, and no others, active. With none, the model is its base.
    ///
    /// Costs a visit to every site; nothing is copied or initialised. What is trainable stays so.
    ///
    /// # Errors
    /// If one is unknown, named twice or merged, or they cannot be active at once. The model is then as before.
    fn set_active(&mut self, names: &[&str]) -> Result<(), AdapterError> {
        crate::choose::set_active(self, names)
    }

    /// Makes the adapters called `names`, and nothing else of the model, trainable.
    ///
    /// # Errors
    /// If one is unknown. The model is then as before.
    fn set_trainable(&mut self, names: &[&str]) -> Result<(), AdapterError> {
        crate::choose::set_trainable(self, names)
    }

    /// What `run` makes of the bare base; the active adapters are the same before and after.
    fn without_adapters<T>(&self, run: impl FnOnce(&Self) -> T) -> T {
        crate::choose::without_adapters(self, run)
    }

    /// Removes an adapter with all its tensors.
    ///
    /// # Errors
    /// If it is unknown, or merged into the base.
    fn delete(&mut self, name: &str) -> Result<(), AdapterError> {
        crate::choose::delete(self, name)
    }

    /// Saves the adapter called `name` as a directory that `peft.PeftModel.from_pretrained` reads, with the
    /// [`fingerprint`](Self::fingerprint) of its base, and a model card (`README.md`) unless there is one.
    ///
    /// Returns where `peft` would make something else of the adapter, as far as that is known.
    ///
    /// The directory appears whole or not at all; of an existing one only the files of the same names are replaced.
    ///
    /// # Errors
    /// If the model has no such adapter, its file would not hold all of it, or the directory cannot be written.
    fn save_adapter(&self, name: &str, directory: impl AsRef<Path>) -> Result<Vec<PeftDifference>, AdapterError> {
        crate::peft_dir::save_adapter(self, name, directory.as_ref())
    }

    /// Attaches the adapter in a PEFT directory to the model under `name`, alone active and alone trainable.
    ///
    /// # Errors
    /// If a file is missing or broken, the configuration asks for what is not supported, or its sites and the tensors do
    /// not fit the model: a missing, unexpected or misshapen tensor is an error that lists them all. The model is then as
    /// before.
    fn load_adapter(&mut self, name: &str, directory: impl AsRef<Path>) -> Result<(), AdapterError> {
        on_a_copy(self, |model| crate::peft_dir::load_adapter(model, name, directory.as_ref()))
    }

    /// Replaces the tensors of the attached adapter `name` by those of a PEFT directory, which must hold an adapter of the
    /// same configuration. Whether it is active, and what is trainable, stays.
    ///
    /// # Errors
    /// As for [`load_adapter`](Self::load_adapter), or if the configuration is another. The model is then as before.
    fn swap_adapter(&mut self, name: &str, directory: impl AsRef<Path>) -> Result<(), AdapterError> {
        on_a_copy(self, |model| crate::peft_dir::swap_adapter(model, name, directory.as_ref()))
    }

    /// The tensors of an adapter, by their names in its file; those that are not saved have names of their own.
    ///
    /// # Errors
    /// If there is no such adapter.
    fn adapter_tensors(&self, name: &str) -> Result<BTreeMap<String, &Param<Tensor<2>>>, AdapterError> {
        crate::peft_dir::adapter_tensors(self, name)
    }

    /// Replaces tensors of an adapter: by the values, in row-major order, that `values` gives for their names, which are those
    /// of [`adapter_tensors`](Self::adapter_tensors). What is trainable stays so.
    ///
    /// # Errors
    /// If there is no such adapter, or there are not as many values as a tensor has. The model is then as before.
    fn set_adapter_tensors(
        &mut self,
        name: &str,
        values: impl Fn(&str) -> Option<Vec<f32>>,
    ) -> Result<(), AdapterError> {
        on_a_copy(self, |model| crate::peft_dir::set_adapter_tensors(model, name, &values))
    }

    /// Makes one LoRA adapter of several, each with a weight, and attaches it as `name`: `add_weighted_adapter` of `peft`.
    /// What is active and what is trainable stay as they are.
    ///
    /// The new adapter has its scaling, 1, and one rank everywhere, filled up with zeros; it has the first one's dropout and
    /// [`AdapterMeta`](crate::AdapterMeta). Where an adapter has nothing, the others are combined without it. One that began as a part of the base
    /// ([`LoraInit`](crate::methods::LoraInit)) takes part as plain LoRA of twice its rank. `peft` takes over `use_rslora` and `use_dora` of the first
    /// adapter as well, which makes another update of the same factors.
    ///
    /// # Errors
    /// If an adapter is unknown, named twice, merged, or more than plain LoRA; if ranks differ where factors are added up; if
    /// a number is out of range; or if the new name cannot be one or is taken. The model is then as before.
    fn combine(&mut self, name: &str, adapters: &[(&str, f64)], how: Combination) -> Result<(), AdapterError> {
        on_a_copy(self, |model| crate::combine::combine(model, name, adapters, how))
    }

    /// Makes plain LoRA of an adapter that began as a part of the base ([`LoraInit`](crate::methods::LoraInit)), and attaches it as `name`: of twice the
    /// rank, and computing the same. What is active and what is trainable stay as they are.
    ///
    /// `path_initial_model_for_weight_conversion` of `peft`: the factors are `[A; A_0]` and `[B, -B_0]`.
    ///
    /// # Errors
    /// If the adapter is unknown, merged, plain LoRA already, or has more than factors; or if the new name cannot be one or is
    /// taken. The model is then as before.
    fn to_plain_lora(&mut self, adapter: &str, name: &str) -> Result<(), AdapterError> {
        on_a_copy(self, |model| crate::combine::to_plain_lora(model, adapter, name))
    }

    /// Works the active adapters into the base weights, after which they cost nothing. Returns their names.
    ///
    /// Packed weights become floats, as few adapters are fine enough to come through another rounding to 4 or 8 bits; who
    /// wants them packed again asks [`quantize_base`](Self::quantize_base) for it, and [`merge_drift`](Self::merge_drift) what
    /// that costs.
    ///
    /// The weights from before are kept for [`unmerge`](Self::unmerge), which costs as much memory as the adapted sites; a merged adapter
    /// is not active until then. The computed outputs change by rounding alone: the test against `peft` allows 2e-4 where
    /// logits have a standard deviation of 4.
    ///
    /// # Errors
    /// If an adapter cannot be merged, or would make a weight that is not finite. The model is then as before.
    fn merge(&mut self) -> Result<Vec<String>, AdapterError> {
        on_a_copy(self, crate::merge::merge)
    }

    /// Restores the base weights from before all merges, bit for bit, and makes the adapters that were merged active.
    ///
    /// # Errors
    /// If the adapters that were merged one after the other cannot be active at once. The model is then as before.
    fn unmerge(&mut self) -> Result<Vec<String>, AdapterError> {
        on_a_copy(self, crate::merge::unmerge)
    }

    /// Works the active adapters into the base weights, and removes all adapters: what is left is a plain base model.
    ///
    /// # Errors
    /// As for [`merge`](Self::merge). The model is then as before.
    fn merge_and_unload(&mut self) -> Result<Vec<String>, AdapterError> {
        on_a_copy(self, crate::merge::merge_and_unload)
    }

    /// How far merging the active adapters would move what `compute` makes of the model: the largest absolute difference, or
    /// NaN if there is one. The model stays as it is.
    ///
    /// For logits of a batch, say, it tells before [`merge`](Self::merge) what rounding will cost there.
    ///
    /// # Errors
    /// As for [`merge`](Self::merge), or if `compute` fails.
    ///
    /// # Panics
    /// If `compute` gives tensors of two shapes.
    fn merge_drift<E: From<AdapterError>, const D: usize>(
        &self,
        compute: impl Fn(&Self) -> Result<Tensor<D>, E>,
    ) -> Result<f32, E> {
        crate::merge::merge_drift(self, compute)
    }

    /// Fills the model from `source`, frozen, in `f32`; linear layers that bitsandbytes has quantised stay packed as they are.
    /// While one tensor is put in its place the next is read; a few are in memory at once.
    ///
    /// `name_of` gives a tensor of the source the name that the model has for it, which is most often its own; or none, if
    /// it has no place in the model on purpose, such as a second copy of a tied embedding.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or misshapen, all of which are listed, or cannot be read; if the parts of a
    /// quantised weight contradict each other; before anything is read, if the main memory does not suffice. The model may then
    /// be half filled and is not to be used.
    fn load_base(
        &mut self,
        source: &dyn TensorSource,
        name_of: impl Fn(&str) -> Option<&str>,
    ) -> Result<(), AdapterError> {
        crate::base::load_base(self, source, &name_of, None)
    }

    /// The same, and packs the linear layers that `config` quantises as they are read: all but those that it names or, where
    /// it names none, the output head; and never those that the family [keeps in f32](AdaptedModel::keep_in_fp32_modules).
    /// In memory is the packed model, and a few tensors as they are stored. Without a `config` nothing is packed.
    ///
    /// # Errors
    /// As for [`load_base`](Self::load_base), and if a weight cannot be quantised, for it is not finite.
    fn load_base_quantized<'a>(
        &mut self,
        source: &dyn TensorSource,
        name_of: impl Fn(&str) -> Option<&str>,
        config: impl Into<Option<&'a QuantizationConfig>>,
    ) -> Result<(), AdapterError> {
        crate::base::load_base(self, source, &name_of, config.into())
    }

    /// Packs the linear layers that `config` quantises, frozen, where they are: after a [merge](Self::merge), say, which leaves
    /// floats. Returns their names. What is packed already is packed anew.
    ///
    /// # Errors
    /// If a weight cannot be quantised, for it is not finite. The model is then as before.
    fn quantize_base(&mut self, config: &QuantizationConfig) -> Result<Vec<String>, AdapterError> {
        crate::base::quantize_base(self, config)
    }

    /// Computes in integers of 8 bits from now on, for inference on a CPU: `compute_type="int8"` of CTranslate2.
    ///
    /// Every linear layer, the output head and the embedding are packed, frozen, each row with a scale of its own; in each pass
    /// that does not train, each row of a layer's input is rounded to integers, too, and integers are multiplied. Norms,
    /// attention and adapters stay in `f32`; adapters can be attached, loaded and chosen before and after.
    /// [`merge`](Self::merge) leaves floats: merge first.
    ///
    /// Results do not depend on the instructions that the machine has. `docs/benchmarks.md` says how far they are from those
    /// in `f32`. A file that is [written](Self::save_base) of the model has the rounded weights, packed where `transformers`
    /// reads them packed.
    ///
    /// # Errors
    /// If a weight cannot be quantised, for it is not finite or above the range of `f16`. The model is then as before.
    fn compute_in_int8(&mut self) -> Result<(), AdapterError> {
        on_a_copy(self, crate::base::compute_in_int8)
    }

    /// Lets the LoRA adapter called `name` begin as what quantising has lost of the layers that it adapts: LoftQ, by which low
    /// ranks and few bits lose less. `original` holds the weights from before the base was packed, under their Hugging Face
    /// names; they are read one by one. Returns the names of the sites.
    ///
    /// As `replace_lora_weights_loftq` of `peft` does, and for more than one [`loftq_iter`](LoftqConfig::loftq_iter) as its
    /// `init_lora_weights="loftq"`: then the base is packed anew. The product of the factors is divided by LoRA's scaling,
    /// which `peft` leaves out, so that base and adapter together are near the original at any `lora_alpha`; where it is `r`,
    /// both are the same.
    ///
    /// ```no_run
    /// use burn::tensor::Device;
    /// use sideburn_adapters::methods::LoraConfig;
    /// use sideburn_adapters::{AdapterError, Adapters, Key, LoftqConfig};
    /// use sideburn_weights::ModelFiles;
    ///
    /// fn begin(packed: &mut impl Adapters) -> Result<(), AdapterError> {
    ///     let lora = LoraConfig { r: 16, lora_alpha: 16.0, ..LoraConfig::new(["q", "v"]) };
    ///     packed.attach("summaries", lora, Key::from_seed(0))?;
    ///     packed.init_loftq("summaries", &ModelFiles::open("flan-t5-xxl")?, LoftqConfig::default())?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// If there is no such adapter, it is more than plain LoRA, or adapts no packed layer; if an original is missing,
    /// misshapen or not finite. The model is then as before.
    fn init_loftq(
        &mut self,
        name: &str,
        original: &dyn TensorSource,
        config: LoftqConfig,
    ) -> Result<Vec<String>, AdapterError> {
        on_a_copy(self, |model| crate::loftq::init_loftq(model, name, original, config))
    }

    /// How many bytes the base takes, if its linear layers are packed as `config` says beside those that are already. Nothing is
    /// initialised.
    fn base_bytes(&self, config: Option<&QuantizationConfig>) -> BaseBytes {
        crate::footprint::base_bytes(self, config)
    }

    /// How the base is quantised, if it is: what `config.json` has as `quantization_config`.
    fn quantization(&self) -> Option<QuantizationConfig> {
        crate::base::quantization(self)
    }

    /// Writes the base weights of the model, without adapters, to a safetensors file under their Hugging Face names; packed
    /// ones with the states that bitsandbytes has.
    ///
    /// # Errors
    /// If the file cannot be written; what was there before is then untouched.
    fn save_base(&self, file: impl AsRef<Path>, precision: Precision) -> Result<(), AdapterError> {
        crate::base::save_base(self, file.as_ref(), precision)
    }

    /// A short text that tells the base weights of the model from those of another, whatever adapters it has, merged
    /// ones too.
    ///
    /// It depends on the names and shapes of all weights, and on at most 64 elements of each, evenly spread, as `f32`; so it
    /// costs little however large the model is. Equal weights have equal fingerprints on every device, but the same model
    /// stored in another precision has another: rounding changes the elements.
    fn fingerprint(&self) -> String {
        crate::fingerprint::fingerprint(self)
    }
}

impl<M: AdaptedModel + Module> Adapters for M {}

/// Makes a change to a copy of the model, which shares its tensors, and puts the copy in its place if all went well.
fn on_a_copy<M: Adapters, T>(
    model: &mut M,
    change: impl FnOnce(&mut dyn AdaptedModel) -> Result<T, AdapterError>,
) -> Result<T, AdapterError> {
    let mut changed = model.clone();
    let result = change(&mut changed)?;
    *model = changed;
    Ok(result)
}
