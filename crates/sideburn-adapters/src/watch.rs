//! Looking whether what layers read and give is finite.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;

/// What the layers of a pass tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<OnceLock<Seen>>);

/// A layer that has read or given something that is not finite.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Where the layer's weight is, in the model that the pass borrows.
    pub(crate) place: usize,
    /// Whether it is in what the layer reads.
    pub(crate) in_input: bool,
}

impl Watch {
    /// What was seen first.
    pub(crate) fn seen(&self) -> Option<Seen> {
        self.0.get().copied()
    }

    /// Looks at what the layer with its weight at this place reads or gives, unless something was seen before.
    pub(crate) fn look(&self, place: usize, in_input: bool, values: Tensor<2>) {
        if self.0.get().is_none() && !values.is_finite().all().into_scalar::<bool>() {
            // Whoever was first has told.
            let _ = self.0.set(Seen { place, in_input });
        }
    }
}
