//! Operations with a backward pass of their own on autodiff's tape.

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

/// A backward pass: from what was kept and the gradient of the output to the gradients of the inputs, of which those
/// that are wanted must be there.
pub type BackwardPass<B, S, const N: usize> = fn(S, FloatTensor<B>, [bool; N]) -> [Option<FloatTensor<B>>; N];

/// Runs an operation and puts it on the tape. `forward` returns the output and what `backward` is to be given; if no
/// input is tracked, that is dropped at once.
pub fn record<B: Backend, C: CheckpointStrategy, S: Clone + Debug + Send + 'static, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    forward: impl FnOnce([FloatTensor<B>; N]) -> (FloatTensor<B>, S),
    backward: BackwardPass<B, S, N>,
) -> FloatTensor<Autodiff<B, C>> {
    let mut parents = Vec::with_capacity(N);
    let inputs = inputs.map(|input| {
        let (input, guard) = input.into_parts();
        parents.push(guard);
        input
    });
    let (output, kept) = forward(inputs);
    record_output::<B, C, S, N>(parents, output, kept, backward)
}

/// Puts what came of an operation with these `N` parents on the tape.
pub(crate) fn record_output<B: Backend, C: CheckpointStrategy, S: Clone + Debug + Send + 'static, const N: usize>(
    parents: Vec<NodeGuard>,
    output: FloatTensor<B>,
    kept: S,
    backward: BackwardPass<B, S, N>,
) -> FloatTensor<Autodiff<B, C>> {
    let parents: [NodeGuard; N] = parents.try_into().expect("as many parents as the backward pass has gradients");
    match Recorded(backward).prepare::<C>(parents).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(kept, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

#[derive(Debug)]
struct Recorded<B: Backend, S, const N: usize>(BackwardPass<B, S, N>);

impl<B: Backend, S: Clone + Debug + Send + 'static, const N: usize> Backward<B, N> for Recorded<B, S, N> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = (self.0)(ops.state, gradient, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient.expect("a gradient for every input that wants one"));
            }
        }
    }
}
