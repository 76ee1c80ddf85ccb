//! The optimisers: their names, what each remembers of a parameter, and their arithmetic but for AdamW's.

use burn::tensor::{Bool, DType, Tensor};
use serde::{Deserialize, Serialize};
use sideburn_kernels::{AdamWStep, norm};

/// The optimiser: `optim` of `transformers.TrainingArguments`.
///
/// | name | bytes of state an element | copy of what it trains |
/// |---|---|---|
/// | `adamw_torch` | 8 | of less than half of a model |
/// | `adamw_bnb_8bit` | 2.03 | always |
/// | `lion_32bit`, `sgd` with momentum | 4 | always |
/// | `adafactor`, of a matrix `[r, c]` | `4 (r + c) / (r c)` | always |
/// | `sgd` without momentum | 0 | always |
///
/// The copy is what [`Run`](crate::Run) goes back to after a loss that is not finite; an update by AdamW can be computed
/// back instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Optim {
    /// AdamW (Loshchilov and Hutter, 2019), `torch.optim.AdamW`.
    #[default]
    #[serde(rename = "adamw_torch")]
    AdamwTorch,
    /// Adafactor (Shazeer and Stern, 2018) at the scheduled learning rate: `Adafactor` of `transformers` with
    /// `scale_parameter` and `relative_step` off.
    #[serde(rename = "adafactor")]
    Adafactor,
    /// Lion (Chen et al., 2023), `Lion` of bitsandbytes in 32 bits. Its learning rate is 3 to 10 times smaller than AdamW's.
    #[serde(rename = "lion_32bit")]
    Lion32bit,
    /// `torch.optim.SGD`, with the momentum of [`OptimArgs`].
    #[serde(rename = "sgd")]
    Sgd,
    /// AdamW with moments in 8 bits, `AdamW` of bitsandbytes with `optim_bits=8`, as on the CPU. Parameters of less than 4,096
    /// elements keep moments of 32 bits.
    #[serde(rename = "adamw_bnb_8bit", alias = "adamw_8bit")]
    AdamwBnb8bit,
}

/// What optimisers take beside `learning_rate`, `weight_decay` and AdamW's numbers: `optim_args` of `transformers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimArgs {
    /// What is left of the last update in the next by [`Optim::Sgd`]; 0 by default.
    pub momentum: f64,
}

/// Elements from which bitsandbytes keeps moments in 8 bits: `min_8bit_size`.
pub(crate) const MIN_8BIT_SIZE: usize = 4096;

impl Optim {
    /// The names of what it remembers of a parameter `[rows, columns]`, as PyTorch and bitsandbytes call it, and the shape of
    /// each.
    pub(crate) fn state(self, args: &OptimArgs, [rows, columns]: [usize; 2]) -> Vec<(&'static str, [usize; 2])> {
        let whole = [rows, columns];
        match self {
            Self::AdamwTorch => vec![("exp_avg", whole), ("exp_avg_sq", whole)],
            Self::AdamwBnb8bit => vec![("state1", whole), ("state2", whole)],
            Self::Lion32bit => vec![("state1", whole)],
            Self::Sgd if args.momentum == 0.0 => Vec::new(),
            Self::Sgd => vec![("momentum_buffer", whole)],
            // Of one row the factors would come to the same.
            Self::Adafactor if rows == 1 => vec![("exp_avg_sq", whole)],
            Self::Adafactor => vec![("exp_avg_sq_row", [rows, 1]), ("exp_avg_sq_col", [1, columns])],
        }
    }
}

/// A parameter, its gradient and what is remembered of it, before an update.
pub(crate) struct Update {
    pub(crate) parameter: Tensor<2>,
    pub(crate) gradient: Tensor<2>,
    pub(crate) state: Vec<Tensor<2>>,
    pub(crate) step: AdamWStep,
}

impl Update {
    /// The parameter and the state after an update by Adafactor, Lion or SGD with `scale` times the gradient; if `scale` is not
    /// above zero, as they were. It is computed in `f32` where the parameter has 16 bits.
    pub(crate) fn apply(self, optim: Optim, args: &OptimArgs, scale: &Tensor<1>) -> (Tensor<2>, Vec<Tensor<2>>) {
        let (stored, dtype) = (self.parameter.dtype(), sum_dtype(self.parameter.dtype()));
        let scale = scale.clone().cast(dtype);
        let stays = scale.clone().greater_elem(0.0).bool_not();
        let gradient = self.gradient.cast(dtype) * scale.unsqueeze();
        let (before, old) = (self.parameter, self.state);
        let (parameter, state) = match optim {
            Optim::Adafactor => adafactor(before.clone().cast(dtype), gradient, &old, &self.step),
            Optim::Lion32bit => lion(before.clone().cast(dtype), gradient, &old, &self.step),
            Optim::Sgd => sgd(before.clone().cast(dtype), gradient, &old, args, &self.step),
            Optim::AdamwTorch | Optim::AdamwBnb8bit => unreachable!("AdamW has kernels of its own"),
        };
        let state = state.into_iter().zip(old).map(|(new, old)| unless(&stays, new, old)).collect();
        (unless(&stays, parameter.cast(stored), before), state)
    }
}

/// What sums are in: not in 16 bits.
pub(crate) fn sum_dtype(dtype: DType) -> DType {
    if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype }
}

fn unless(stays: &Tensor<1, Bool>, new: Tensor<2>, old: Tensor<2>) -> Tensor<2> {
    new.clone().mask_where(stays.clone().unsqueeze::<2>().expand(new.dims()), old)
}

/// `update = sign(beta1 m + (1 - beta1) g)`, then `m = beta2 m + (1 - beta2) g`: algorithm 2 of the paper, and
/// `_optimizer_update_32bit_cpu` of bitsandbytes.
fn lion(p: Tensor<2>, g: Tensor<2>, state: &[Tensor<2>], step: &AdamWStep) -> (Tensor<2>, Vec<Tensor<2>>) {
    let mixed = |beta: f64| state[0].clone().mul_scalar(beta) + g.clone().mul_scalar(1.0 - beta);
    let update = mixed(step.beta1).sign().mul_scalar(step.learning_rate);
    (p.mul_scalar(1.0 - step.learning_rate * step.weight_decay) - update, vec![mixed(step.beta2)])
}

/// `g += weight_decay p; m = momentum m + g; p -= learning_rate m`. PyTorch begins with `m = g`, which is the same.
fn sgd(
    p: Tensor<2>,
    g: Tensor<2>,
    state: &[Tensor<2>],
    args: &OptimArgs,
    step: &AdamWStep,
) -> (Tensor<2>, Vec<Tensor<2>>) {
    let g = g + p.clone().mul_scalar(step.weight_decay);
    let moved: Vec<Tensor<2>> = state.iter().map(|m| m.clone().mul_scalar(args.momentum) + g.clone()).collect();
    let update = moved.first().unwrap_or(&g).clone().mul_scalar(step.learning_rate);
    (p - update, moved)
}

/// Algorithm 4 of the paper without a first moment and with the learning rate as it is given; `Adafactor.step` of
/// `transformers.optimization`, whose constants these are.
fn adafactor(p: Tensor<2>, g: Tensor<2>, state: &[Tensor<2>], step: &AdamWStep) -> (Tensor<2>, Vec<Tensor<2>>) {
    const EPSILON: f64 = 1e-30;
    const DECAY_RATE: f64 = -0.8;
    const CLIP_THRESHOLD: f64 = 1.0;
    let beta2 = 1.0 - f64::from(step.time).powf(DECAY_RATE);
    let squares = g.clone().square().add_scalar(EPSILON);
    let moved = |old: &Tensor<2>, new: Tensor<2>| old.clone().mul_scalar(beta2) + new.mul_scalar(1.0 - beta2);
    let (update, state) = match state {
        [row, column] => {
            let row = moved(row, squares.clone().mean_dim(1));
            let column = moved(column, squares.mean_dim(0));
            let of_row = row.clone().div(row.clone().mean_dim(0)).sqrt().recip();
            (g * of_row * column.clone().sqrt().recip(), vec![row, column])
        }
        [all] => {
            let all = moved(all, squares);
            (g * all.clone().sqrt().recip(), vec![all])
        }
        _ => unreachable!("a matrix has two factors, a vector none"),
    };
    // The root mean square, by a sum whose order is fixed.
    let elements = update.shape().num_elements() as f64;
    let size = norm([update.clone().into()]).div_scalar(elements.sqrt() * CLIP_THRESHOLD).clamp_min(1.0);
    let update = update / size.unsqueeze() * step.learning_rate;
    (p.mul_scalar(1.0 - step.weight_decay * step.learning_rate) - update, state)
}
