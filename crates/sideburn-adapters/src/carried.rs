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
use crate::held::tensors_of;
use crate::methods::Replace;
use crate::outline::{Outline, Place, PlaceKind};
use crate::peft_names::{name_at, name_in_file};
use crate::{AdaptedModel, AdapterError};

/// Gives the adapter called `name` what `file` holds of embeddings and differs from the base, still to be filled. Returns
/// the names of tensors that are not to be read.
///
/// # Errors
/// If the vocabulary has another size than that of the model, or a tensor cannot be read.
pub(crate) fn carry_embeddings<M: AdaptedModel>(
    model: &mut M,
    outline: &Outline,
    name: &str,
    file: &dyn TensorSource,
) -> Result<BTreeSet<String>, AdapterError> {
    let own: BTreeSet<String> = tensors_of(model, name).map(|(key, _)| name_in_file(key)).collect();
    let mut passed_over = BTreeSet::new();
    for place in &outline.places {
        let [rows, width] = match place.kind {
            PlaceKind::Embedding { rows, width } => [rows, width],
            PlaceKind::Linear { out, input, .. } if place.name == outline.shape.head => [out, input],
            _ => continue,
        };
        let mut held = sites_in_file(place, outline);
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
        if outline.is_idle_to_save(place, &model.adapters().get(name)?.method().common().modules_to_save)
            || is_as_in_base(model, &place.name, &file.read_f32(&first)?)
        {
            passed_over.extend(held.iter().map(|site| name_at(site, "weight")));
        } else {
            add_carried(model, name, place, &Replace::carried(place, &held));
        }
    }
    Ok(passed_over)
}

/// The sites under whose names a file can hold the weight of an embedding or a head.
fn sites_in_file<'a>(place: &'a Place, outline: &'a Outline) -> Vec<&'a str> {
    let copies = outline.shape.embedding_copies.iter().filter(|_| place.is_embedding());
    let is_other_place =
        |copy: &str| outline.places.iter().any(|place| place.name == copy && !place.is_name_of_embedding());
    [place.name.as_str()].into_iter().chain(copies.copied().filter(|copy| !is_other_place(copy))).collect()
}

fn is_as_in_base<M: AdaptedModel>(model: &M, place: &str, values: &[f32]) -> bool {
    let base = model.weights().into_iter().find(|(name, _)| Place::name_of(name) == place);
    let base = base.expect("a place of the model").1.weight().dense().cast(DType::F32).into_data();
    base.try_into_vec::<f32>().expect("a tensor that was cast to f32") == values
}
