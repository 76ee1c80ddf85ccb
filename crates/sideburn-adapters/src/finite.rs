//! Which layer of a model first gives something that is not finite.

use std::fmt;

use crate::watch::{Seen, Watch};
use crate::{AdaptedModel, Pass};

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
pub fn first_not_finite<M: AdaptedModel>(
    model: &M,
    pass: Pass,
    forward: impl FnOnce(&M, &mut Pass),
) -> Option<NotFinite> {
    let watch = Watch::default();
    forward(model, &mut pass.watched_by(watch.clone()));
    let Seen { place, in_input } = watch.seen()?;
    let tensors = model.weights().into_iter().flat_map(|(name, weight)| weight.tensors(&name).collect::<Vec<_>>());
    let (layer, _) = tensors.into_iter().find(|(_, weight)| weight.place() == place)?;
    Some(NotFinite { layer, in_input })
}
