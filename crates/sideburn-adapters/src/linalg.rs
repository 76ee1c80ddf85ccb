//! Decompositions of matrices, apart from any graph, in `f64` where the device has it.

use burn::linalg;
use burn::tensor::{DType, Tensor};

/// More sweeps of the QR iteration for a singular value than any matrix of numbers needs; two are usual.
const SWEEPS: usize = 100;

/// A singular value decomposition `U diag(s) V^T`, with the singular values from the largest to the smallest.
#[derive(Clone, Debug)]
pub(crate) struct Svd {
    /// `[m, k]`, with orthonormal columns.
    pub(crate) u: Tensor<2>,
    /// `[1, k]`.
    pub(crate) s: Tensor<2>,
    /// `[k, n]`, with orthonormal rows.
    pub(crate) vt: Tensor<2>,
}

impl Svd {
    /// That of `matrix [m, n]`, where `k = min(m, n)`. The singular values are no numbers if not all of the matrix is
    /// finite.
    pub(crate) fn of(matrix: Tensor<2>) -> Self {
        let matrix = wide(matrix);
        let finite = matrix.clone().is_finite().all().into_scalar::<bool>();
        let (u, s, vt) = linalg::svd::<2, 1>(if finite { matrix } else { matrix.zeros_like() }, SWEEPS);
        let s = s.unsqueeze();
        Self { u, s: if finite { s } else { s.full_like(f64::NAN) }, vt }
    }

    /// That of `left [m, r]` times `right [r, n]`, which is never formed: of a core that is `[r, r]` at most.
    pub(crate) fn of_product(left: Tensor<2>, right: Tensor<2>) -> Self {
        let (left, right) = (Self::of(left), Self::of(right));
        let core = Self::of((left.vt * left.s.transpose()).matmul(right.u * right.s));
        Self { u: left.u.matmul(core.u), s: core.s, vt: core.vt.matmul(right.vt) }
    }

    /// The `rank` largest singular values, or all if there are fewer, with signs that the matrix alone determines: the
    /// largest element in each row of `V^T` is positive.
    pub(crate) fn leading(self, rank: usize) -> Self {
        let rank = rank.min(self.s.dims()[1]);
        let vt = self.vt.narrow(0, 0, rank);
        let largest = vt.clone().abs().argmax(1);
        let signs = vt.clone().gather(1, largest).sign();
        Self { u: self.u.narrow(1, 0, rank) * signs.clone().transpose(), s: self.s.narrow(1, 0, rank), vt: vt * signs }
    }
}

/// The values alone, as precise as the device can hold them.
pub(crate) fn wide(matrix: Tensor<2>) -> Tensor<2> {
    let matrix = matrix.inner();
    let dtype = if matrix.device().supports_dtype(DType::F64) { DType::F64 } else { DType::F32 };
    matrix.cast(dtype)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use sideburn_kernels::Key;

    use super::*;

    fn random(shape: [usize; 2], seed: u64) -> Tensor<2> {
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| Key::from_seed(seed).normal(i as u64) as f32).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    /// The largest difference of elements.
    fn distance(a: Tensor<2>, b: Tensor<2>) -> f64 {
        (wide(a) - wide(b)).abs().max().into_scalar()
    }

    fn identity(n: usize) -> Tensor<2> {
        Tensor::eye(n, &Device::flex())
    }

    fn check(Svd { u, s, vt }: Svd, matrix: Tensor<2>, rank: usize) {
        let [m, n] = matrix.dims();
        let k = s.dims()[1];
        assert_eq!((u.dims(), vt.dims()), ([m, k], [k, n]));
        assert!(distance(u.clone().transpose().matmul(u.clone()), identity(k)) < 1e-12, "U of {m} x {n}");
        assert!(distance(vt.clone().matmul(vt.clone().transpose()), identity(k)) < 1e-12, "V of {m} x {n}");
        assert!(distance((u * s.clone()).matmul(vt), matrix) < 1e-11, "the product of {m} x {n}");
        let s: Vec<f64> = s.into_data().try_into_vec().unwrap();
        assert!(s.is_sorted_by(|a, b| a >= b), "{s:?}");
        assert!(s[rank - 1] > 1e-3 && s[rank..].iter().all(|s| (0.0..1e-12).contains(s)), "rank {rank}: {s:?}");
    }

    #[test]
    fn tall_wide_and_deficient_matrices() {
        for shape in [[1, 1], [9, 9], [64, 5], [5, 64], [7, 1], [1, 7]] {
            let rank = shape[0].min(shape[1]);
            check(Svd::of(random(shape, 1)), random(shape, 1), rank);
            check(Svd::of(random(shape, 1)).leading(rank), random(shape, 1), rank);
        }
        let (left, right) = (wide(random([20, 3], 2)), wide(random([3, 30], 3)));
        check(Svd::of(left.clone().matmul(right.clone())), left.matmul(right), 3);
    }

    #[test]
    fn a_product_is_decomposed_without_being_formed() {
        for (m, r, n) in [(30, 4, 20), (20, 4, 30), (6, 10, 5)] {
            let (left, right) = (random([m, r], 4), random([r, n], 5));
            let product = wide(left.clone()).matmul(wide(right.clone()));
            check(Svd::of_product(left, right), product, r.min(m).min(n));
        }
        let (left, right) = (random([30, 4], 4), random([4, 20], 5));
        let twice = (Tensor::cat(vec![left.clone(); 2], 1), Tensor::cat(vec![right.clone(); 2], 0));
        check(Svd::of_product(twice.0, twice.1), wide(left).matmul(wide(right)).mul_scalar(2.0), 4);
    }

    #[test]
    fn signs_follow_from_the_matrix() {
        let vt = |matrix| Svd::of(matrix).leading(3).vt;
        let matrix = random([8, 6], 6);
        assert_eq!(distance(vt(matrix.clone()), vt(-matrix.clone())), 0.0);
        let largest = vt(matrix).abs().max_dim(1);
        assert_eq!(distance(vt(random([8, 6], 6)).max_dim(1), largest), 0.0);
    }

    #[test]
    fn what_is_not_finite_has_no_singular_values() {
        for broken in [f32::NAN, f32::INFINITY] {
            let s = Svd::of(random([4, 3], 7) * broken).leading(2).s;
            assert!(s.is_nan().all().into_scalar::<bool>());
        }
    }
}
