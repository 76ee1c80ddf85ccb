//! Which layer of a model first gives something that is not finite.

use std::fmt;
use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;

use crate::{AdaptedModel, BaseWeight, Pass};

/// Where a number that is not finite (a NaN, or an infinity) appears first in a forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// The layer, by the name of its weight.
    pub layer: String,
    /// Whether it is in what the layer reads, so that it comes from what is between this layer and the one before, such as
    /// a norm, attention or an activation; otherwise it is in what the layer gives.
    pub in_input: bool,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} of {}", if self.in_input { "input" } else { "output" }, self.layer)
    }
}

/// Runs a forward pass, in which each linear layer and table looks whether what it reads and gives is finite, and returns
/// the first that finds otherwise.
///
/// On a GPU that waits for every layer. A pass that is not run here looks at nothing, and costs nothing.
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// # use sideburn_adapters::{AdaptedModel, Key, Pass, first_not_finite};
/// # use sideburn_batch::{PromptBatch, TokenRows};
/// # use sideburn_t5::{LanguageModel, T5, T5Config};
/// # let config = T5Config { vocab_size: 50, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 2, ..T5Config::default() };
/// # let mut model = T5::random(&config, Key::from_seed(0), &Device::flex());
/// # let rows = || TokenRows::from_rows([[7, 8, 1]]);
/// # let batch = PromptBatch::new(rows()?, rows()?)?;
/// let losses = |model: &T5, pass: &mut Pass| drop(model.token_losses(&batch, pass));
/// assert_eq!(first_not_finite(&model, Pass::evaluate(), losses), None);
///
/// let broken = "encoder.block.1.layer.0.SelfAttention.k";
/// let (_, weight) = model.weights_mut().into_iter().find(|(name, _)| name == broken).unwrap();
/// weight.into_weight_mut().replace(Tensor::full([4 * 8, 16], f32::NAN, &Device::flex()));
/// let found = first_not_finite(&model, Pass::evaluate(), losses).unwrap();
/// assert_eq!(found.to_string(), "the output of encoder.block.1.layer.0.SelfAttention.k.weight");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn first_not_finite<M: AdaptedModel>(
    model: &M,
    pass: Pass,
    forward: impl FnOnce(&M, &mut Pass),
) -> Option<NotFinite> {
    let watch = Watch::default();
    forward(model, &mut pass.watched_by(watch.clone()));
    let Seen { place, in_input } = *watch.0.get()?;
    let tensors = model.weights().into_iter().flat_map(|(name, weight)| weight.tensors(&name).collect::<Vec<_>>());
    let (layer, _) = tensors.into_iter().find(|(_, weight)| Seen::place(weight) == place)?;
    Some(NotFinite { layer, in_input })
}

/// What the layers of a pass tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<OnceLock<Seen>>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Where the layer's weight is, in the model that the pass borrows.
    place: usize,
    in_input: bool,
}

impl Seen {
    fn place(weight: &BaseWeight) -> usize {
        std::ptr::from_ref(weight) as usize
    }
}

impl Watch {
    /// Looks at what the layer with this weight reads or gives, unless something was seen before.
    pub(crate) fn look(&self, weight: &BaseWeight, in_input: bool, values: Tensor<2>) {
        if self.0.get().is_none() && !values.is_finite().all().into_scalar::<bool>() {
            // Whoever was first has told.
            let _ = self.0.set(Seen { place: Seen::place(weight), in_input });
        }
    }
}
