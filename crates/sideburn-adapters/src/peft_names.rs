//! What tensors of adapters are called in the files of `peft`.

use crate::rule::TensorKey;

/// The name of a tensor in `adapter_model.safetensors`: `base_model.model.{site}.{part}`, and of one that belongs to the
/// adapter as a whole `base_model.{part}`, or `prompt_...` for what stands before the rows, of which `base_model` has no
/// part.
pub(crate) fn name_in_file(key: &TensorKey) -> String {
    let TensorKey { site, part } = key;
    match site.as_str() {
        "" if part.starts_with("prompt_") => part.clone(),
        "" => format!("base_model.{part}"),
        site => format!("base_model.model.{site}.{part}"),
    }
}

/// The name of a tensor that `site` has.
pub(crate) fn name_at(site: &str, part: &str) -> String {
    name_in_file(&TensorKey { site: site.to_owned(), part: part.to_owned() })
}
