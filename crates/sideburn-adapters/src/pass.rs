//! How a forward pass is run: for evaluation, or for training with the draws of one step.

use sideburn_kernels::Key;

/// The mode of one forward pass.
///
/// Dropout is on exactly when there is a key to draw it from, so a model cannot be evaluated with dropout on by
/// forgetting a switch, and a training step is a pure function of its inputs and its key.
///
/// ```
/// use sideburn_adapters::{Key, Pass};
///
/// assert!(!Pass::evaluate().is_train());
/// assert!(Pass::train(Key::from_seed(42).fold_in(0)).is_train());
/// ```
#[derive(Clone, Debug)]
pub struct Pass {
    draws: Option<Draws>,
}

#[derive(Clone, Debug)]
struct Draws {
    key: Key,
    next: u64,
}

impl Pass {
    /// A pass without dropout.
    pub const fn evaluate() -> Self {
        Self { draws: None }
    }

    /// A pass with dropout, every mask of which is a function of `key` and of its place in the pass.
    pub const fn train(key: Key) -> Self {
        Self { draws: Some(Draws { key, next: 0 }) }
    }

    /// Whether dropout is on.
    pub const fn is_train(&self) -> bool {
        self.draws.is_some()
    }

    /// What to pass to [`sideburn_kernels::low_rank`] and its like: `probability` with the key of the next place.
    ///
    /// `None` in evaluation. In training every call counts as a place, also at a probability of zero, so that one
    /// dropout rate does not move the masks of another.
    pub fn next_dropout(&mut self, probability: f64) -> Option<(f64, Key)> {
        let draws = self.draws.as_mut()?;
        let key = draws.key.fold_in(draws.next);
        draws.next += 1;
        (probability > 0.0).then_some((probability, key))
    }

    /// How many places of dropout the pass has come by; 0 in evaluation.
    pub const fn dropouts(&self) -> u64 {
        match &self.draws {
            Some(draws) => draws.next,
            None => 0,
        }
    }

    /// Applies dropout to `x` in training, and nothing in evaluation.
    pub fn dropout<const D: usize>(&mut self, x: burn::tensor::Tensor<D>, probability: f64) -> burn::tensor::Tensor<D> {
        match self.next_dropout(probability) {
            Some((probability, key)) => sideburn_kernels::dropout(x, probability, key),
            None => x,
        }
    }
}
