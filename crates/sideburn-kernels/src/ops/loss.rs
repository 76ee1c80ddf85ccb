//! Cross-entropy, from logits or from what the output head makes them of.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{IndexingUpdateOp, Int, Shape, Tensor};

use super::adamw::{in_dtype, sum_dtype};
use super::matmul::{MatmulOps, product, product_with_transposed, transposed};
use super::tape::record;
use super::{assert_below, fused};

/// The negative log-likelihood, in nats, of each row's label under the softmax of its logits.
///
/// Every row counts: there is no label that means "ignore this row". Leave such rows out. The losses of logits in 16 bits
/// are in `f32`.
///
/// # Shapes
/// `logits [n, classes]`, `labels [n]` with values in `0..classes`, give `[n]`.
///
/// # Panics
/// If there is not one label for each row, or, on the CPU, a label is no class. A GPU is not asked: it would have to be
/// waited for.
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    assert_eq!(logits.dims()[0], labels.dims()[0], "every row of logits needs one label");
    assert_classes(&labels, logits.dims()[1]);
    Tensor::from_dispatch(Dispatch::cross_entropy(logits.into_dispatch(), labels.into_dispatch()))
}

/// The cross-entropy of the logits `hidden W^T`. On the CPU these are never all in memory: the kernel takes the classes
/// a chunk at a time with a running maximum (Milakov and Gimelshein, 2018), and sums the gradient of `hidden` in the
/// same pass, like attention whose keys are the classes (Dao et al., 2022).
///
/// With label smoothing (Szegedy et al., 2015, section 7) the loss of a row is `(1 - smoothing)` times that of its
/// label, plus `smoothing` times the mean over all classes, as `torch.nn.functional.cross_entropy` has it. The losses of
/// hidden states in 16 bits are in `f32`.
///
/// # Shapes
/// `hidden [n, d]`, `weight [classes, d]`, `labels [n]` with values in `0..classes`, give `[n]`, in nats. A weight in 16 bits may
/// meet hidden states in `f32`.
///
/// # Panics
/// If the shapes do not fit, `smoothing` is not in `[0, 1]`, or, on the CPU, a label is no class.
pub fn linear_cross_entropy(hidden: Tensor<2>, weight: Tensor<2>, labels: Tensor<1, Int>, smoothing: f64) -> Tensor<1> {
    assert_eq!(hidden.dims()[0], labels.dims()[0], "every row of hidden states needs one label");
    assert_eq!(hidden.dims()[1], weight.dims()[1], "hidden [n, d] and weight [classes, d] must fit");
    assert!((0.0..=1.0).contains(&smoothing), "label smoothing lies in [0, 1], not at {smoothing}");
    assert_classes(&labels, weight.dims()[0]);
    let [hidden, weight] = [hidden, weight].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::linear_cross_entropy(hidden, weight, labels.into_dispatch(), smoothing))
}

fn assert_classes(labels: &Tensor<1, Int>, classes: usize) {
    assert_below(classes, labels, |label| format!("label {label} is none of {classes} classes"));
}

/// The losses on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait LossOps: MatmulOps {
    /// See [`cross_entropy`].
    #[fusion(dtype = sum_dtype(logits), shape = Shape::from([logits[0]]))]
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> FloatTensor<Self> {
        composed::<Self>(logits, labels, 0.0)
    }

    /// Its gradient with respect to `logits`, from the gradient `[n]` of its output.
    #[fusion(dtype = logits, shape = logits)]
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed_backward::<Self>(logits, labels, gradient, 0.0)
    }

    /// See [`linear_cross_entropy`].
    #[fusion(dtype = sum_dtype(hidden), shape = Shape::from([hidden[0]]))]
    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        composed_head::<Self>(([hidden, weight], labels), smoothing)
    }

    /// The same with the gradient `[n, d]` of each row's loss with respect to its hidden state.
    #[fusion(meta = |hidden, _weight, _labels, _smoothing| (of_rows(hidden), hidden.clone()))]
    fn linear_cross_entropy_and_gradient(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        smoothing: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_head_and_gradient::<Self>(([hidden, weight], labels), smoothing)
    }

    /// The gradient with respect to `weight`, from the gradient `[n]` of the losses.
    #[fusion(dtype = weight, shape = weight)]
    fn linear_cross_entropy_backward_weight(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        gradient: FloatTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        composed_head_backward_weight::<Self>(([hidden, weight, gradient], labels), smoothing)
    }
}

/// Float tensors and the labels.
pub(crate) type Labelled<B, const N: usize> = ([FloatTensor<B>; N], IntTensor<B>);

/// [`LossOps`] by kernels.
pub(crate) trait LossKernels: MatmulOps {
    /// Of the logits.
    fn try_cross_entropy(inputs: Labelled<Self, 1>) -> Result<FloatTensor<Self>, Labelled<Self, 1>> {
        Err(inputs)
    }

    /// Of the logits and the gradient.
    fn try_cross_entropy_backward(inputs: Labelled<Self, 2>) -> Result<FloatTensor<Self>, Labelled<Self, 2>> {
        Err(inputs)
    }

    /// Of the hidden states and the weight.
    fn try_head(inputs: Labelled<Self, 2>, _smoothing: f64) -> Result<FloatTensor<Self>, Labelled<Self, 2>> {
        Err(inputs)
    }

    /// The losses, and the gradients of the hidden states.
    fn try_head_and_gradient(
        inputs: Labelled<Self, 2>,
        _smoothing: f64,
    ) -> Result<[FloatTensor<Self>; 2], Labelled<Self, 2>> {
        Err(inputs)
    }

    /// Of the hidden states, the weight and the gradient.
    fn try_head_backward_weight(
        inputs: Labelled<Self, 3>,
        _smoothing: f64,
    ) -> Result<FloatTensor<Self>, Labelled<Self, 3>> {
        Err(inputs)
    }
}

impl<B: LossKernels> LossOps for B {
    fn cross_entropy(logits: FloatTensor<B>, labels: IntTensor<B>) -> FloatTensor<B> {
        fused("cross_entropy", ([logits], labels), B::try_cross_entropy, |([logits], labels)| {
            composed::<B>(logits, labels, 0.0)
        })
    }

    fn cross_entropy_backward(
        logits: FloatTensor<B>,
        labels: IntTensor<B>,
        gradient: FloatTensor<B>,
    ) -> FloatTensor<B> {
        fused(
            "cross_entropy_backward",
            ([logits, gradient], labels),
            B::try_cross_entropy_backward,
            |([logits, gradient], labels)| composed_backward::<B>(logits, labels, gradient, 0.0),
        )
    }

    fn linear_cross_entropy(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        labels: IntTensor<B>,
        smoothing: f64,
    ) -> FloatTensor<B> {
        fused(
            "linear_cross_entropy",
            ([hidden, weight], labels),
            |inputs| B::try_head(inputs, smoothing),
            |inputs| composed_head::<B>(inputs, smoothing),
        )
    }

    fn linear_cross_entropy_and_gradient(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        labels: IntTensor<B>,
        smoothing: f64,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        fused(
            "linear_cross_entropy_and_gradient",
            ([hidden, weight], labels),
            |inputs| B::try_head_and_gradient(inputs, smoothing).map(Into::into),
            |inputs| composed_head_and_gradient::<B>(inputs, smoothing),
        )
    }

    fn linear_cross_entropy_backward_weight(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        labels: IntTensor<B>,
        gradient: FloatTensor<B>,
        smoothing: f64,
    ) -> FloatTensor<B> {
        fused(
            "linear_cross_entropy_backward_weight",
            ([hidden, weight, gradient], labels),
            |inputs| B::try_head_backward_weight(inputs, smoothing),
            |inputs| composed_head_backward_weight::<B>(inputs, smoothing),
        )
    }
}

/// The loss of each row of a matrix.
#[cfg(feature = "gpu")]
fn of_rows(matrix: &burn::backend::fusion::custom::TensorSpec) -> burn::backend::fusion::custom::TensorSpec {
    burn::backend::fusion::custom::TensorSpec::new(Shape::from([matrix.shape[0]]), sum_dtype(matrix.dtype))
}

fn composed_head<B: MatmulOps>(([hidden, weight], labels): Labelled<B, 2>, smoothing: f64) -> FloatTensor<B> {
    composed::<B>(product_with_transposed::<B>(hidden, weight), labels, smoothing)
}

fn composed_head_and_gradient<B: MatmulOps>(
    ([hidden, weight], labels): Labelled<B, 2>,
    smoothing: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let logits = product_with_transposed::<B>(hidden, weight.clone());
    let dtype = sum_dtype(logits.dtype());
    let ones = B::float_ones(Shape::from([logits.shape()[0]]), &logits.device(), dtype.into());
    let of_logits = composed_backward::<B>(logits.clone(), labels.clone(), ones, smoothing);
    (composed::<B>(logits, labels, smoothing), product::<B>(of_logits, weight))
}

fn composed_head_backward_weight<B: MatmulOps>(
    ([hidden, weight, gradient], labels): Labelled<B, 3>,
    smoothing: f64,
) -> FloatTensor<B> {
    let dtype = weight.dtype();
    let logits = product_with_transposed::<B>(hidden.clone(), weight);
    let of_logits = composed_backward::<B>(logits, labels, gradient, smoothing);
    in_dtype::<B>(product::<B>(transposed::<B>(of_logits), hidden), dtype)
}

fn composed<B: Backend>(logits: FloatTensor<B>, labels: IntTensor<B>, smoothing: f64) -> FloatTensor<B> {
    let rows = logits.shape()[0];
    let dtype = sum_dtype(logits.dtype());
    let logits = in_dtype::<B>(logits, dtype);
    let index = B::int_reshape(labels, Shape::from([rows, 1]));
    let log_softmax = B::log_softmax(logits, 1);
    let picked = B::float_neg(B::float_gather(1, log_softmax.clone(), index));
    let loss = if smoothing > 0.0 {
        let mean = B::float_mul_scalar(B::float_mean_dim(log_softmax, 1), (-smoothing).into());
        B::float_add(B::float_mul_scalar(picked, (1.0 - smoothing).into()), mean)
    } else {
        picked
    };
    B::float_reshape(loss, Shape::from([rows]))
}

/// `gradient * (softmax(logits) - (1 - smoothing) one_hot(labels) - smoothing / classes)`.
fn composed_backward<B: Backend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    gradient: FloatTensor<B>,
    smoothing: f64,
) -> FloatTensor<B> {
    let ([rows, classes], dtype) = ([logits.shape()[0], logits.shape()[1]], logits.dtype());
    let logits = in_dtype::<B>(logits, sum_dtype(dtype));
    let column = B::float_reshape(gradient, Shape::from([rows, 1]));
    let index = B::int_reshape(labels, Shape::from([rows, 1]));
    let mut softmax = B::softmax(logits, 1);
    if smoothing > 0.0 {
        softmax = B::float_sub_scalar(softmax, (smoothing / classes as f64).into());
    }
    let softmax = B::float_mul(softmax, column.clone());
    let picked = B::float_mul_scalar(column, (smoothing - 1.0).into());
    in_dtype::<B>(B::float_scatter(1, softmax, index, picked, IndexingUpdateOp::Add), dtype)
}

impl<B: LossOps, C: CheckpointStrategy> LossOps for Autodiff<B, C> {
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> FloatTensor<Self> {
        record::<B, C, _, 1>(
            [logits],
            |[logits]| (B::cross_entropy(logits.clone(), labels.clone()), (logits, labels)),
            |(logits, labels), gradient, _| [Some(B::cross_entropy_backward(logits, labels, gradient))],
        )
    }

    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        #[derive(Clone, Debug)]
        struct Kept<B: Backend> {
            /// The gradient of each row's loss with respect to its hidden state.
            of_hidden: FloatTensor<B>,
            /// What the gradient of the weight is made of, if it is trained.
            for_weight: Option<([FloatTensor<B>; 2], IntTensor<B>, f64)>,
        }

        let is_trained = weight.is_tracked();
        if !is_trained && !hidden.is_tracked() {
            let forward = |[hidden, weight]: [_; 2]| (B::linear_cross_entropy(hidden, weight, labels, smoothing), ());
            return record::<B, C, _, 2>([hidden, weight], forward, |(), _, _| [None, None]);
        }
        record::<B, C, _, 2>(
            [hidden, weight],
            |[hidden, weight]| {
                let inputs = || ([hidden.clone(), weight.clone()], labels.clone(), smoothing);
                let for_weight = is_trained.then(inputs);
                let (loss, of_hidden) = B::linear_cross_entropy_and_gradient(hidden, weight, labels, smoothing);
                (loss, Kept::<B> { of_hidden, for_weight })
            },
            |Kept { of_hidden, for_weight }, gradient, [wants_hidden, _]| {
                let of_weight = for_weight.map(|([hidden, weight], labels, smoothing)| {
                    B::linear_cross_entropy_backward_weight(hidden, weight, labels, gradient.clone(), smoothing)
                });
                let of_hidden = wants_hidden.then(|| {
                    let column = B::float_reshape(gradient, Shape::from([of_hidden.shape()[0], 1]));
                    let column = in_dtype::<B>(column, of_hidden.dtype());
                    B::float_mul(of_hidden, column)
                });
                [of_hidden, of_weight]
            },
        )
    }
}
