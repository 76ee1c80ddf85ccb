//! Embeddings that a file of `peft` holds although its configuration does not name them.
//!
//! `peft` writes the embedding and the output head of the base into the file where `save_embedding_layers` says so, or
//! where the vocabulary has another size than that of the base on the hub. It reads them into the base. Here the base stays
//! as it is for other adapters: what is equal to the base is passed over, and of what differs the adapter has a copy of its
//! own, which is not trained.

use std::collections::BTreeSet;

use burn::tensor::DType;
use sideburn_weights::TensorSource;

use crate::attach::add_carried;
use crate::methods::Replace;
use crate::model_slots::tensors_of;
use crate::outline::{ModelOutline, Site, SiteKind};
use crate::peft_names::{name_at, name_in_file};
use crate::{AdaptedModel, AdapterError};

/// Gives the adapter called `name` what `file` holds of embeddings and differs from the base, still to be filled. Returns
/// the names of tensors that are not to be read.
///
/// # Errors
/// If the vocabulary has another size than that of the model, or a tensor cannot be read.
pub(crate) fn carry_embeddings(
    model: &mut dyn AdaptedModel,
    outline: &ModelOutline,
    name: &str,
    file: &dyn TensorSource,
) -> Result<BTreeSet<String>, AdapterError> {
    let own: BTreeSet<String> = tensors_of(model, name).map(|(key, _)| name_in_file(key)).collect();
    let mut passed_over = BTreeSet::new();
    for site in &outline.sites {
        let [rows, width] = match site.kind {
            SiteKind::Embedding { rows, width } => [rows, width],
            SiteKind::Linear { out, input, .. } if site.name == outline.shape.head => [out, input],
            _ => continue,
        };
        let mut held = sites_in_file(site, outline);
        held.retain(|site| {
            let tensor = name_at(site, "weight");
            file.info(&tensor).is_some() && !own.contains(&tensor)
        });
        let Some(first) = held.first().map(|site| name_at(site, "weight")) else { continue };
        let found = file.info(&first).expect("a tensor that is there").shape.to_vec();
        match found[..] {
            [found, columns] if columns == width && found != rows => {
                let (path, tensor) = (file.path().to_owned(), first);
                return Err(AdapterError::OtherVocabulary { path, tensor, found, expected: rows });
            }
            [found, columns] if [found, columns] == [rows, width] => {}
            _ => continue, // It is none of the model's, and is told as unexpected.
        }
        if outline.is_idle_to_save(site, &model.adapters().get(name)?.method().meta().modules_to_save)
            || is_as_in_base(model, &site.name, &file.read_f32(&first)?)
        {
            passed_over.extend(held.iter().map(|site| name_at(site, "weight")));
        } else {
            add_carried(model, name, site, &Replace::carried(site, &held));
        }
    }
    Ok(passed_over)
}

/// The sites under whose names a file can hold the weight of an embedding or a head.
fn sites_in_file<'a>(site: &'a Site, outline: &'a ModelOutline) -> Vec<&'a str> {
    let copies = outline.shape.embedding_copies.iter().filter(|_| site.is_embedding());
    let is_other_place =
        |copy: &str| outline.sites.iter().any(|site| site.name == copy && !site.is_name_of_embedding());
    [site.name.as_str()].into_iter().chain(copies.copied().filter(|copy| !is_other_place(copy))).collect()
}

fn is_as_in_base(model: &dyn AdaptedModel, site: &str, values: &[f32]) -> bool {
    let base = model.weights().into_iter().find(|(name, _)| Site::name_of(name) == site);
    let base = base.expect("a site of the model").1.weight().dense().cast(DType::F32).into_data();
    base.try_into_vec::<f32>().expect("a tensor that was cast to f32") == values
}
