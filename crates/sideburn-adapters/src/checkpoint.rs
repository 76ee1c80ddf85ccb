//! Activation checkpointing (Chen et al., 2016): a forward pass that keeps where blocks begin, and in the backward pass runs
//! each again.
//!
//! Burn's own works on single operations, and keeps their results wherever an input has no gradient, as the products with
//! frozen weights. Here the tape is cut at [`Boundary`] tensors. Nothing in between is recorded the first time; the backward
//! pass goes from boundary to boundary, from the last to the first, and records one block at a time. Dropout draws the same
//! masks again, since they follow from the place in the pass.

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};

use crate::cuts::{Boundary, Cut, Cuts, Origins};
use crate::pass::{Pass, TokenPass};

impl Pass {
    /// The same pass that keeps of its blocks no more than what goes in, and runs each again in [`backward`](Self::backward):
    /// `gradient_checkpointing` of `transformers`. Gradients are the same, to the last bit on the CPU, dropout included.
    ///
    /// A model whose adapters have something before its keys and values (prefix tuning) keeps everything nevertheless.
    pub fn with_checkpoints(mut self) -> Self {
        self.cuts = Some(Cuts::default());
        self
    }

    /// Whether blocks are to be run through [`TokenPass::checkpointed`].
    pub const fn has_checkpoints(&self) -> bool {
        self.cuts.is_some()
    }

    /// Goes back from `loss`, which was computed in this pass, to the gradients of all parameters. They come in parts: one, or
    /// with [checkpoints](Self::with_checkpoints) one for each block, from the last to the first. The gradient of a parameter is
    /// the sum of what all have for it. Whoever calls `loss.backward()` instead gets only what stands behind the last block.
    ///
    /// # Panics
    /// If `loss` depends on nothing that is trained.
    pub fn backward(&self, loss: &Tensor<1>) -> Vec<Gradients> {
        let mut cuts = self.cuts.as_ref().map(Cuts::take).unwrap_or_default();
        let mut slopes: Vec<Option<Tensor<2>>> = vec![None; cuts.len()];
        let mut gradients = loss.backward();
        gather(&cuts, &mut slopes, &mut gradients);
        let mut parts = vec![gradients];
        while let (Some(Cut { origin, .. }), Some(slope)) = (cuts.pop(), slopes.pop()) {
            // Nothing may have come of it.
            let Some(slope) = slope else { continue };
            let Origins { output, inputs } = origin();
            // The gradient of this sum with respect to the output is `slope`, exactly.
            let mut gradients = (output * slope).sum().backward();
            for (index, begun) in inputs {
                add(&mut slopes[index], begun.grad_remove(&mut gradients));
            }
            gather(&cuts, &mut slopes, &mut gradients);
            parts.push(gradients);
        }
        parts
    }
}

/// Takes the gradients of boundaries.
fn gather(cuts: &[Cut], slopes: &mut [Option<Tensor<2>>], gradients: &mut Gradients) {
    for (cut, slope) in cuts.iter().zip(slopes) {
        add(slope, cut.boundary.grad_remove(gradients));
    }
}

fn add(sum: &mut Option<Tensor<2>>, gradient: Option<Tensor<2>>) {
    *sum = match (sum.take(), gradient) {
        (Some(sum), Some(gradient)) => Some(sum + gradient),
        (sum, gradient) => sum.or(gradient),
    };
}

impl TokenPass<'_> {
    /// Cuts the tape at `x`, whose own tape is kept: for what blocks are given beside the output of the one before.
    pub fn boundary(&mut self, x: Tensor<2>) -> Boundary {
        match &self.cuts {
            Some(cuts) if x.is_tracked() => {
                cuts.cut(x.clone(), Box::new(move || Origins { output: x, inputs: Vec::new() }))
            }
            _ => Boundary::without_gradient(x),
        }
    }

    /// Runs a block without a tape, and cuts there. `run` is called with the block, `inputs` and the pass, and once more in the
    /// backward pass; what it sees beside them must not be trained.
    pub fn checkpointed<M: Module + Send + Sync + 'static>(
        &mut self,
        inputs: Vec<Boundary>,
        block: &M,
        run: impl Fn(&M, Vec<Tensor<2>>, &mut TokenPass<'_>) -> Tensor<2> + Send + Sync + 'static,
    ) -> Boundary {
        let (cuts, routes) = (self.cuts.take(), self.routes());
        let mut before = Pass::clone(self);
        let output = run(&block.valid(), inputs.iter().map(Boundary::values).collect(), self);
        let trains = inputs.iter().any(|input| input.index.is_some()) || has_trained(block);
        let boundary = match &cuts {
            Some(cuts) if trains => {
                let block = block.clone();
                let again = move || {
                    let begun: Vec<Tensor<2>> = inputs.iter().map(Boundary::begun).collect();
                    let output = run(&block, begun.clone(), &mut TokenPass::with_routes(&mut before, routes));
                    let indices = inputs.into_iter().map(|input| input.index);
                    Origins {
                        output,
                        inputs: indices.zip(begun).filter_map(|(index, begun)| Some((index?, begun))).collect(),
                    }
                };
                cuts.cut(output, Box::new(again))
            }
            _ => Boundary::without_gradient(output),
        };
        self.cuts = cuts;
        boundary
    }
}

/// Whether a parameter of `block` is trained.
fn has_trained<M: Module>(block: &M) -> bool {
    struct Trained(bool);
    impl burn::module::ModuleVisitor for Trained {
        fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
            self.0 |= param.is_require_grad();
        }
    }
    let mut trained = Trained(false);
    block.visit(&mut trained);
    trained.0
}
