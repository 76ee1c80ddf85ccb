//! Linear layers that share an input, with branches for some of its rows, against plain loops in `f64`.

use crate::loops::{check_at_scale, numbers, values};
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use sideburn_kernels::{Dropout, KernelMode, Key, LinearOp, LowRank, adapted_linears, dropout, kernel_mode};

const KEY: Key = Key::from_seed(5);
const SCALE: f64 = 1.7;

/// Layers with branches.
#[derive(Debug)]
struct Case {
    /// Rows and width of the input.
    shape: [usize; 2],
    r: usize,
    /// The width of each layer's output.
    outs: Vec<usize>,
    /// Of each branch its layer, and its rows if they are not all.
    branches: Vec<(usize, Option<Vec<usize>>)>,
    probability: f64,
}

impl Case {
    fn key(&self, branch: usize) -> Key {
        KEY.fold_in(branch as u64)
    }

    fn rows(&self, branch: usize) -> Vec<usize> {
        self.branches[branch].1.clone().unwrap_or_else(|| (0..self.shape[0]).collect())
    }

    /// What the mask of a branch multiplies each element by.
    fn kept(&self, [rows, width]: [usize; 2], branch: usize) -> Vec<f64> {
        let ones = Tensor::<2>::ones([rows.max(1), width], &Device::flex());
        let kept = values(dropout(ones, Dropout::new(self.probability, self.key(branch))));
        kept.iter().map(|x| if *x == 0.0 { 0.0 } else { 1.0 / (1.0 - self.probability) }).collect()
    }

    fn branches_of(&self, layer: usize) -> impl Iterator<Item = usize> {
        (0..self.branches.len()).filter(move |branch| self.branches[*branch].0 == layer)
    }

    /// The input, the weights, and `A` and `B` of one branch after the other.
    fn inputs(&self) -> Vec<Vec<f64>> {
        let [n, d] = self.shape;
        let factors = self.branches.iter().flat_map(|(layer, _)| [self.r * d, self.outs[*layer] * self.r]);
        let weights = self.outs.iter().map(|out| out * d);
        std::iter::once(n * d).chain(weights).chain(factors).zip(1..).map(|(size, seed)| numbers(seed, size)).collect()
    }

    fn loops(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let ([n, d], x) = (self.shape, &inputs[0]);
        let layer = |(layer, out): (usize, &usize)| {
            let mut y = crate::loops::linear(x, &inputs[1 + layer], d);
            for branch in self.branches_of(layer) {
                let rows = self.rows(branch);
                let own: Vec<f64> = rows.iter().flat_map(|row| x[row * d..][..d].to_vec()).collect();
                let [a, b] = [0, 1].map(|factor| &inputs[1 + self.outs.len() + 2 * branch + factor]);
                let kept = self.kept([rows.len(), d], branch);
                let delta = crate::loops::low_rank(&own, a, b, &kept, [d, self.r], SCALE);
                for (row, delta) in rows.iter().zip(delta.chunks(*out)) {
                    y[row * out..][..*out].iter_mut().zip(delta).for_each(|(y, delta)| *y += delta);
                }
            }
            y
        };
        let layers: Vec<Vec<f64>> = self.outs.iter().enumerate().map(layer).collect();
        let of_row =
            |row: usize| layers.iter().zip(&self.outs).flat_map(move |(y, out)| y[row * out..][..*out].to_vec());
        (0..n).flat_map(of_row).collect()
    }

    fn fused(&self, x: &[Tensor<1>]) -> Tensor<1> {
        let ([n, d], device) = (self.shape, x[0].device());
        let matrix = |index: usize, rows: usize, columns: usize| x[index].clone().reshape([rows, columns]);
        let branch = |branch: usize| LowRank {
            a: matrix(1 + self.outs.len() + 2 * branch, self.r, d),
            b: matrix(2 + self.outs.len() + 2 * branch, self.outs[self.branches[branch].0], self.r),
            scale: SCALE,
            dropout: Dropout::new(self.probability, self.key(branch)),
            rows: self.branches[branch].1.as_ref().map(|rows| indices(rows, &device)),
        };
        let layer = |(layer, out): (usize, &usize)| LinearOp {
            weight: Some(matrix(1 + layer, *out, d).into()),
            branches: self.branches_of(layer).map(branch).collect(),
        };
        let width: usize = self.outs.iter().sum();
        adapted_linears(matrix(0, n, d), self.outs.iter().enumerate().map(layer).collect()).reshape([n * width])
    }

    fn check(&self) {
        // Gradients are sums over all outputs of all branches, twice over.
        check_at_scale([0.1, 10.0], &self.inputs(), |x| self.loops(x), |x| self.fused(x));
    }
}

fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    Tensor::from_data(TensorData::new(rows.clone(), [rows.len()]), device)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_that_share_an_input_are_the_loops(
        n in 1..12usize,
        d in prop::sample::select(vec![1, 3, 8, 64]),
        outs in prop::sample::select(vec![vec![1, 3, 2], vec![16, 16, 16], vec![5, 1, 8]]),
        r in 1..3usize,
        // With the last branch there are more tensors than one operation tells autodiff of.
        count in 0..5usize,
        chosen in prop::collection::vec(any::<bool>(), 3 * 12),
        drop: bool,
    ) {
        let some = |branch: usize| Some((0..n).filter(|row| chosen[branch * 12 + row]).collect());
        let mut branches = vec![(0, some(0)), (2, None), (0, some(1)), (2, some(2))];
        branches.truncate(count);
        Case { shape: [n, d], r, outs, branches, probability: if drop { 0.25 } else { 0.0 } }.check();
    }
}

#[test]
fn rows_of_many_blocks_are_the_loops() {
    // Rows one after the other, rows here and there, and all.
    let branches = vec![(0, Some((200..600).collect())), (1, Some((0..700).step_by(3).collect())), (1, None)];
    Case { shape: [700, 6], r: 2, outs: vec![4, 5], branches, probability: 0.1 }.check();
}

#[test]
fn rows_in_disorder_or_outside_are_refused() {
    if kernel_mode() == KernelMode::Composed {
        return; // Burn's primitives take rows as they come.
    }
    for rows in [vec![2, 1], vec![1, 1], vec![0, 4]] {
        let case = Case { shape: [4, 3], r: 1, outs: vec![2], branches: vec![(0, Some(rows))], probability: 0.0 };
        let inputs = [12, 6, 3, 2].map(|size| Tensor::zeros([size], &Device::flex()));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.fused(&inputs))).unwrap_err();
        let message = panic.downcast_ref::<&str>().copied().unwrap_or_default();
        assert!(message.contains("must be ascending rows of x"), "{message}");
    }
}

#[test]
#[should_panic(expected = "there is no layer to apply")]
fn no_layer_is_refused() {
    adapted_linears(Tensor::zeros([4, 3], &Device::flex()), Vec::new());
}
