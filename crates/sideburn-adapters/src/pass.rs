//! How a forward pass is run: for evaluation, or for training with the draws of one step; and with which adapters.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use sideburn_kernels::{Dropout, Key};

use crate::cuts::Cuts;
use crate::watch::Watch;

/// The mode of one forward pass.
///
/// Dropout is on exactly when there is a key to draw it from, so a model cannot be evaluated with dropout on by
/// forgetting a switch, and a training step is a pure function of its inputs and its key.
///
/// A pass runs with the active adapters of the model, or with the one that it [names for each row](Self::with_adapters).
/// It is of a whole batch. Layers take a [`TokenPass`], which is the pass over one matrix of tokens, and which
/// [`AdapterSet::enter`](crate::AdapterSet::enter) makes of it.
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
    /// The adapter of each row of the batch.
    rows: Option<Arc<[Option<String>]>>,
    /// What layers tell of numbers that are not finite, if they are to look.
    watch: Option<Watch>,
    label_smoothing: f64,
    neftune_noise_alpha: Option<f64>,
    /// Where the tape is cut, if blocks are to run again in the backward pass.
    pub(crate) cuts: Option<Cuts>,
}

#[derive(Clone, Debug)]
struct Draws {
    key: Key,
    next: u64,
}

impl Pass {
    /// A pass without dropout.
    pub const fn evaluate() -> Self {
        Self::new(None)
    }

    /// A pass with dropout, every mask of which is a function of `key` and of its place in the pass.
    pub const fn train(key: Key) -> Self {
        Self::new(Some(Draws { key, next: 0 }))
    }

    const fn new(draws: Option<Draws>) -> Self {
        Self { draws, rows: None, watch: None, label_smoothing: 0.0, neftune_noise_alpha: None, cuts: None }
    }

    /// The same pass in which a token's loss is `1 - factor` of its own and `factor` of the mean over the vocabulary:
    /// `label_smoothing_factor` of `transformers`.
    pub fn with_label_smoothing(self, factor: f64) -> Self {
        Self { label_smoothing: factor, ..self }
    }

    /// What part of a token's loss is the mean over the vocabulary.
    pub const fn label_smoothing(&self) -> f64 {
        self.label_smoothing
    }

    /// The same pass with noise on the embedded tokens, if it trains (NEFTune; Jain et al., 2023): `neftune_noise_alpha` of
    /// `transformers`.
    pub fn with_neftune_noise(self, alpha: f64) -> Self {
        Self { neftune_noise_alpha: Some(alpha), ..self }
    }

    /// The size of that noise, and the key that it is drawn from where tokens are embedded for `reader`, a half of the model
    /// or all of it.
    pub fn neftune_noise(&self, reader: &str) -> Option<(f64, Key)> {
        let key = self.draws.as_ref()?.key.fold_in_name("neftune").fold_in_name(reader);
        Some((self.neftune_noise_alpha?, key))
    }

    /// The same pass with another choice of adapters: row `i` of the batch runs with the adapter called `rows[i]`, whether
    /// it is active or not, or with the bare base. `adapter_names` of `peft`.
    pub fn with_adapters<S: Into<String>>(self, rows: impl IntoIterator<Item = Option<S>>) -> Self {
        Self { rows: Some(rows.into_iter().map(|name| name.map(Into::into)).collect()), ..self }
    }

    /// The adapter that is named for each row, if any are.
    pub fn adapters(&self) -> Option<&[Option<String>]> {
        self.rows.as_deref()
    }

    pub(crate) fn watched_by(self, watch: Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// What is to be told of numbers that are not finite, if anything is.
    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// Keeps only these rows of the batch, in this order.
    pub fn select_rows(&mut self, rows: &[usize]) {
        if let Some(named) = &self.rows {
            self.rows = Some(rows.iter().map(|row| named[*row].clone()).collect());
        }
    }

    /// Whether dropout is on.
    pub const fn is_train(&self) -> bool {
        self.draws.is_some()
    }

    /// What to pass to [`sideburn_kernels::low_rank`] and its like: `probability` with the key of the next place.
    ///
    /// `None` in evaluation. In training every call counts as a place, also at a probability of zero, so that one
    /// dropout rate does not move the masks of another.
    pub fn next_dropout(&mut self, probability: f64) -> Option<Dropout> {
        let draws = self.draws.as_mut()?;
        let key = draws.key.fold_in(draws.next);
        draws.next += 1;
        Dropout::new(probability, key)
    }

    /// How many places of dropout the pass has come by; 0 in evaluation.
    pub const fn dropouts(&self) -> u64 {
        match &self.draws {
            Some(draws) => draws.next,
            None => 0,
        }
    }

    /// Applies dropout to `x` in training, and nothing in evaluation.
    pub fn dropout<const D: usize>(&mut self, x: Tensor<D>, probability: f64) -> Tensor<D> {
        sideburn_kernels::dropout(x, self.next_dropout(probability))
    }
}

/// A [`Pass`] over one matrix of tokens: it knows which token runs with which adapter.
///
/// A batch comes by several matrices, such as those of the encoder's tokens and of the decoder's. Layers take a
/// `TokenPass` alone, so that a model cannot apply a layer without saying which tokens it sees, and rows never run with
/// the adapter of others.
#[derive(Debug)]
pub struct TokenPass<'p> {
    pass: &'p mut Pass,
    routes: Option<Arc<Routes>>,
}

impl<'p> TokenPass<'p> {
    /// The pass over tokens that belong to these rows of the batch.
    pub(crate) fn new(pass: &'p mut Pass, token_rows: impl FnOnce() -> Vec<usize>, device: &Device) -> Self {
        let routes = pass.rows.as_ref().map(|rows| Arc::new(Routes::new(rows, &token_rows(), device)));
        Self { pass, routes }
    }

    /// The pass over tokens that run with these adapters.
    pub(crate) fn with_routes(pass: &'p mut Pass, routes: Option<Arc<Routes>>) -> Self {
        Self { pass, routes }
    }

    /// Which tokens run with which adapter, if the pass names them.
    pub(crate) fn routes(&self) -> Option<Arc<Routes>> {
        self.routes.clone()
    }
}

impl Deref for TokenPass<'_> {
    type Target = Pass;

    fn deref(&self) -> &Pass {
        self.pass
    }
}

impl DerefMut for TokenPass<'_> {
    fn deref_mut(&mut self) -> &mut Pass {
        self.pass
    }
}

/// Which rows of a token matrix run with which adapter.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    /// The adapters, each once; `None` is the bare base.
    adapters: Vec<Option<String>>,
    /// How many tokens each has.
    sizes: Vec<usize>,
    /// The tokens of each in ascending order, unless one has them all.
    rows: Vec<Option<Tensor<1, Int>>>,
    /// The tokens, sorted by adapter.
    order: Tensor<1, Int>,
    /// Where each token stands among the sorted ones.
    inverse: Tensor<1, Int>,
}

impl Routes {
    fn new(rows: &[Option<String>], token_rows: &[usize], device: &Device) -> Self {
        let mut adapters: Vec<&Option<String>> = rows.iter().collect();
        adapters.sort();
        adapters.dedup();
        let (mut order, mut sizes) = (Vec::with_capacity(token_rows.len()), Vec::new());
        for adapter in &adapters {
            let before = order.len();
            order.extend((0..token_rows.len()).filter(|token| &&rows[token_rows[*token]] == adapter));
            sizes.push(order.len() - before);
        }
        let mut inverse = vec![0; order.len()];
        for (place, token) in order.iter().enumerate() {
            inverse[*token] = place;
        }
        let tensor = |indices: Vec<usize>| {
            let indices: Vec<i32> = indices.into_iter().map(|index| index as i32).collect();
            let length = indices.len();
            Tensor::from_data(TensorData::new(indices, [length]), device)
        };
        let (order, inverse) = (tensor(order), tensor(inverse));
        let several = sizes.len() > 1;
        let rows = ranges(&sizes).map(|(start, size)| several.then(|| order.clone().narrow(0, start, size))).collect();
        Self { adapters: adapters.into_iter().cloned().collect(), sizes, rows, order, inverse }
    }

    pub(crate) fn adapters(&self) -> &[Option<String>] {
        &self.adapters
    }

    /// The rows of each adapter in the matrix, in ascending order, unless it has them all.
    pub(crate) fn rows(&self) -> &[Option<Tensor<1, Int>>] {
        &self.rows
    }

    /// The tokens of each adapter.
    pub(crate) fn split(&self, x: Tensor<2>) -> Vec<Tensor<2>> {
        self.split_sorted(x.select(0, self.order.clone()))
    }

    /// The same, where tokens are already sorted by adapter.
    pub(crate) fn split_sorted(&self, x: Tensor<2>) -> Vec<Tensor<2>> {
        self.ranges().map(|(start, size)| x.clone().narrow(0, start, size)).collect()
    }

    /// The same for token ids.
    pub(crate) fn split_ids(&self, ids: &Tensor<1, Int>) -> Vec<Tensor<1, Int>> {
        let sorted = ids.clone().select(0, self.order.clone());
        self.ranges().map(|(start, size)| sorted.clone().narrow(0, start, size)).collect()
    }

    /// The token matrix of which `parts` are the parts.
    pub(crate) fn join(&self, parts: Vec<Tensor<2>>) -> Tensor<2> {
        Tensor::cat(parts, 0).select(0, self.inverse.clone())
    }

    fn ranges(&self) -> impl Iterator<Item = (usize, usize)> {
        ranges(&self.sizes)
    }
}

/// Where parts of these sizes begin, one after the other, and their sizes.
fn ranges(sizes: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    sizes.iter().scan(0, |start, size| {
        *start += size;
        Some((*start - size, *size))
    })
}
