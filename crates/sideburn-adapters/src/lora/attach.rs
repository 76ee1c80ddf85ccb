//! Attaching a fresh LoRA adapter to a model.

use sideburn_kernels::Key;

use super::{LoraConfig, LoraLayer};
use crate::{AdaptedModel, AdapterError, freeze};

/// Attaches a new adapter called `name` to every site that `config.target_modules` selects, and freezes all that was
/// there before. Returns the names of the adapted sites.
///
/// What is drawn at a site is a function of `key`, of the adapter's and of the site's name. Nothing is copied: the
/// cost grows with the number of sites, not with the size of the base.
///
/// # Errors
/// If the configuration means nothing, a target matches no site, or the model has an adapter of that name. The model
/// is then as before.
pub fn attach_lora<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    config: &LoraConfig,
    key: Key,
) -> Result<Vec<String>, AdapterError> {
    config.validate()?;
    let sites: Vec<String> = model.sites().into_iter().map(|(site, _)| site).collect();
    if model.sites().iter().any(|(_, linear)| linear.adapter(name).is_some()) {
        return Err(AdapterError::NameTaken { name: name.to_owned() });
    }
    let chosen = config.target_modules.select(&sites, model.output_head())?;
    freeze(model);
    let key = key.fold_in_name(name);
    let mut adapted = Vec::new();
    for ((site, linear), _) in model.sites_mut().into_iter().zip(chosen).filter(|(_, chosen)| *chosen) {
        let layer = LoraLayer::init(name, linear.shape(), config, key.fold_in_name(&site), &linear.device());
        linear.attach(layer);
        adapted.push(site);
    }
    Ok(adapted)
}
