//! Decompositions of matrices, apart from any graph, in `f64` where the device has it.

use burn::linalg;
use burn::tensor::{DType, Tensor, TensorData};
use sideburn_kernels::{Key, matmul};

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
        let core = Self::of(matmul(left.vt * left.s.transpose(), right.u * right.s));
        Self { u: matmul(left.u, core.u), s: core.s, vt: matmul(core.vt, right.vt) }
    }

    /// The `rank` largest singular values of `matrix`, about: by `rounds` of subspace iteration that begins with columns
    /// drawn with `key` (Halko et al., 2011, algorithm 4.4). As `torch.svd_lowrank`.
    pub(crate) fn sketched(matrix: Tensor<2>, rank: usize, rounds: usize, key: Key) -> Self {
        let matrix = wide(matrix);
        let [_, n] = matrix.dims();
        let draws: Vec<f32> = (0..(n * rank) as u64).map(|index| key.normal(index) as f32).collect();
        let sketch = wide(Tensor::from_data(TensorData::new(draws, [n, rank]), &matrix.device()));
        let mut basis = Self::of(matmul(matrix.clone(), sketch)).u;
        for _ in 0..rounds {
            let rows = Self::of(matmul(matrix.clone().transpose(), basis)).u;
            basis = Self::of(matmul(matrix.clone(), rows)).u;
        }
        let core = Self::of(matmul(basis.clone().transpose(), matrix));
        Self { u: matmul(basis, core.u), ..core }
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

/// `Q [m, n]` of `Q R = matrix [m, n]` where `m >= n`: orthonormal columns such that no element on the diagonal of R is
/// negative, by Householder's reflections. Burn's own QR makes a square Q first.
pub(crate) fn orthonormal(matrix: Tensor<2>) -> Tensor<2> {
    let matrix = wide(matrix);
    let [m, n] = matrix.dims();
    let mut columns: Vec<f64> = matrix.clone().transpose().into_data().iter().collect();
    let mut reflections = Vec::with_capacity(n);
    for k in 0..n {
        let mut v = columns[k * m..][..m].to_vec();
        v[..k].fill(0.0);
        v[k] += norm(&v).copysign(v[k]);
        let norm = norm(&v);
        if norm > 0.0 {
            v.iter_mut().for_each(|x| *x /= norm);
        }
        columns[k * m..].chunks_exact_mut(m).for_each(|column| reflect(column, &v));
        reflections.push(v);
    }
    let mut q = vec![0.0; m * n];
    for (k, column) in q.chunks_exact_mut(m).enumerate() {
        column[k] = if columns[k * m + k] < 0.0 { -1.0 } else { 1.0 };
        reflections.iter().rev().for_each(|v| reflect(column, v));
    }
    Tensor::from_data(TensorData::new(q, [n, m]), (&matrix.device(), matrix.dtype())).transpose()
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `x - 2 v (v x)`, for a `v` of length 1 or 0.
fn reflect(x: &mut [f64], v: &[f64]) {
    let twice = 2.0 * x.iter().zip(v).map(|(x, v)| x * v).sum::<f64>();
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= twice * v);
}

/// The values alone, as precise as the device can hold them.
pub(crate) fn wide(matrix: Tensor<2>) -> Tensor<2> {
    let matrix = matrix.inner();
    let dtype = if matrix.device().supports_dtype(DType::F64) { DType::F64 } else { DType::F32 };
    matrix.cast(dtype)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

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
    fn a_sketch_finds_the_largest() {
        let product = |Svd { u, s, vt }| (u * s).matmul(vt);
        let low = wide(random([40, 4], 8)).matmul(wide(random([4, 30], 9)));
        check(Svd::sketched(low.clone(), 4, 0, Key::from_seed(0)).leading(4), low, 4);
        for (m, n) in [(40, 30), (30, 40)] {
            // Its fifth singular value is about a tenth of the fourth.
            let matrix =
                wide(random([m, 4], 10)).matmul(wide(random([4, n], 11))) + wide(random([m, n], 12)).mul_scalar(0.1);
            let expected = product(Svd::of(matrix.clone()).leading(4));
            let errors = [0, 1, 2, 20].map(|rounds| {
                let found = Svd::sketched(matrix.clone(), 4, rounds, Key::from_seed(0)).leading(4);
                distance(product(found), expected.clone())
            });
            assert!(errors.is_sorted_by(|a, b| a > b) && errors[3] < 1e-12, "{errors:?}");
        }
    }

    #[test]
    fn columns_become_orthonormal() {
        let zeros = Tensor::zeros([9, 1], &Device::flex());
        for matrix in [
            random([9, 9], 11),
            random([64, 5], 12),
            random([1, 1], 13),
            Tensor::cat(vec![random([9, 2], 14), zeros, random([9, 2], 14), random([9, 1], 15)], 1),
        ] {
            let [_, n] = matrix.dims();
            let q = orthonormal(matrix.clone());
            let r = q.clone().transpose().matmul(wide(matrix.clone()));
            assert!(distance(q.clone().transpose().matmul(q.clone()), identity(n)) < 1e-12, "orthonormal");
            assert!(distance(q.matmul(r.clone()), matrix) < 1e-12, "the columns of the matrix, and no others");
            let r: Vec<f64> = r.into_data().try_into_vec().unwrap();
            assert!((0..n).all(|i| r[i * n + i] > -1e-12 && r[i * n..][..i].iter().all(|x| x.abs() < 1e-12)), "{r:?}");
        }
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
