//! Where the tape of a pass is cut.

use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;

/// A tensor at which the tape of a pass is cut.
#[derive(Clone, Debug)]
pub struct Boundary {
    tensor: Tensor<2>,
    /// Its number among those that want a gradient.
    pub(crate) index: Option<usize>,
}

impl Boundary {
    /// One at which nothing is cut, since nobody asks for its gradient.
    pub(crate) fn without_gradient(tensor: Tensor<2>) -> Self {
        Self { tensor, index: None }
    }

    /// The tensor, for what comes behind the last block.
    pub fn into_tensor(self) -> Tensor<2> {
        self.tensor
    }

    /// The numbers, on no tape.
    pub(crate) fn values(&self) -> Tensor<2> {
        self.tensor.clone().inner()
    }

    /// The same numbers at the beginning of a tape.
    pub(crate) fn begun(&self) -> Tensor<2> {
        let values = self.values().autodiff();
        if self.index.is_some() { values.require_grad() } else { values }
    }
}

/// The boundaries of a pass that want a gradient, in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cuts(Arc<Mutex<Vec<Cut>>>);

/// A boundary, and what it was made of.
pub(crate) struct Cut {
    pub(crate) boundary: Tensor<2>,
    pub(crate) origin: Origin,
}

/// Makes a tensor again, with its tape, and the boundaries before it by their numbers.
pub(crate) type Origin = Box<dyn FnOnce() -> Origins + Send + Sync>;

/// A tensor with its tape, and the boundaries where that begins.
pub(crate) struct Origins {
    pub(crate) output: Tensor<2>,
    pub(crate) inputs: Vec<(usize, Tensor<2>)>,
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cut").field("boundary", &self.boundary).finish_non_exhaustive()
    }
}

impl Cuts {
    fn all(&self) -> MutexGuard<'_, Vec<Cut>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A boundary with these numbers, which wants a gradient.
    pub(crate) fn cut(&self, values: Tensor<2>, origin: Origin) -> Boundary {
        let tensor = values.inner().autodiff().require_grad();
        let mut cuts = self.all();
        cuts.push(Cut { boundary: tensor.clone(), origin });
        Boundary { tensor, index: Some(cuts.len() - 1) }
    }

    /// Those that there are, which go from here.
    pub(crate) fn take(&self) -> Vec<Cut> {
        mem::take(&mut *self.all())
    }
}
