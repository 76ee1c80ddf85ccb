//! Products of matrices that lie anywhere in memory, over the `gemm` crate.

use std::marker::PhantomData;
use std::ops::Range;

use gemm::Parallelism;

/// A matrix in a slice, with any strides.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Mat<'a> {
    /// The row-major matrix of these rows.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Its rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The row with this index.
    pub(crate) fn row(&self, index: usize) -> &'a [f32] {
        assert!(self.column_stride == 1 && index < self.rows, "row {index} of {}", self.rows);
        &self.values[index * self.row_stride..][..self.columns]
    }

    /// The transposed matrix.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Some of its rows.
    pub(crate) fn rows(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let start = (range.start * self.row_stride).min(self.values.len());
        Self { values: &self.values[start..], rows: range.len(), ..self }
    }

    /// Some of its columns.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        self.t().rows(range).t()
    }

    /// Its values, row after row, if that is how they lie.
    pub(crate) fn row_major(&self) -> &'a [f32] {
        assert!(self.column_stride == 1 && self.row_stride == self.columns, "the matrix is a view");
        &self.values[..self.rows * self.columns]
    }

    /// One past the largest index that an element has in the slice.
    fn extent(&self) -> usize {
        extent(self.rows, self.columns, self.row_stride, self.column_stride)
    }
}

fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 }
}

/// A row-major matrix to be written, whose rows may lie apart.
pub(crate) struct MatMut<'a> {
    place: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// The row-major matrix of these rows.
    pub(crate) fn new(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { place: values.as_mut_ptr(), rows, columns, row_stride: columns, borrow: PhantomData }
    }

    /// Its row with this index.
    pub(crate) fn row(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: the row is part of the matrix, which is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.place.add(index * self.row_stride), self.columns) }
    }

    /// Its rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Its first rows.
    pub(crate) fn first_rows(self, rows: usize) -> Self {
        assert!(rows <= self.rows, "{rows} rows of {}", self.rows);
        Self { rows, ..self }
    }

    /// Where it begins, and how far its rows are apart.
    pub(crate) fn place(&mut self) -> (*mut f32, usize) {
        (self.place, self.row_stride)
    }

    /// The same matrix for tasks that write parts of it.
    pub(crate) fn into_parts(self) -> Parts<'a> {
        let Self { place, rows, columns, row_stride, borrow } = self;
        Parts { place, rows, columns, row_stride, borrow }
    }

    /// The same matrix, borrowed for a shorter time.
    pub(crate) fn by_ref(&mut self) -> MatMut<'_> {
        MatMut { borrow: PhantomData, ..*self }
    }
}

/// A row-major matrix of which tasks write disjoint parts at the same time.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    place: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it hands out nothing but parts, which their takers promise to be disjoint.
unsafe impl Send for Parts<'_> {}
// SAFETY: as above.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    pub(crate) fn new(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { place: values.as_mut_ptr(), rows, columns, row_stride: columns, borrow: PhantomData }
    }

    /// The part in these rows and columns.
    ///
    /// # Safety
    /// No element of it may be in another part that is in use.
    pub(crate) unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) -> MatMut<'a> {
        assert!(rows.end <= self.rows && columns.end <= self.columns, "a part outside the matrix");
        let offset = rows.start * self.row_stride + columns.start;
        MatMut {
            // Of an empty part, the place may be outside the matrix; it is never gone to.
            place: self.place.wrapping_add(offset),
            rows: rows.len(),
            columns: columns.len(),
            row_stride: self.row_stride,
            borrow: PhantomData,
        }
    }
}

/// What happens to the values that were in the matrix before a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// They are overwritten.
    Forgotten,
    /// The product is added to them.
    Kept,
}

/// Who computes a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workers {
    /// This thread, one of many that have work of their own.
    One,
    /// All threads of the pool, where the product is worth it.
    All,
}

/// Multiplications below which a product is not shared out.
const SHARED_FROM: usize = 1 << 20;

/// `out = scale * left * right`, or `out += scale * left * right`.
pub(crate) fn product(out: MatMut<'_>, left: Mat<'_>, right: Mat<'_>, scale: f32, before: Before, workers: Workers) {
    let (m, n, k) = (out.rows, out.columns, left.columns);
    assert_eq!((left.rows, right.rows, right.columns), (m, k, n), "the matrices of a product must fit");
    assert!(left.extent() <= left.values.len() && right.extent() <= right.values.len(), "a matrix outside its slice");
    if m == 0 || n == 0 {
        return;
    }
    let is_shared = workers == Workers::All && m * n * k >= SHARED_FROM;
    let parallelism = if is_shared { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: all elements of the three matrices are inside their slices (for `out`, its constructors see to it), and
    // `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.place,
            1,
            out.row_stride as isize,
            before == Before::Kept,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_matrices_are_multiplied() {
        let left: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let right: Vec<f32> = (0..20).map(|x| 1.0 - x as f32).collect();
        let mut out = vec![1.0; 15];
        // Rows 1 and 2 of `left [3, 4]`, times columns 1 to 3 of `right [4, 5]`, into columns 2 to 4 of `out [3, 5]`.
        let (left, right) = (Mat::new(&left, 3, 4).rows(1..3), Mat::new(&right, 4, 5).columns(1..4));
        let parts = Parts::new(&mut out, 3, 5);
        // SAFETY: there is one part.
        product(unsafe { parts.part(1..3, 2..5) }, left, right, 2.0, Before::Kept, Workers::One);
        for row in 0..3 {
            for column in 0..5 {
                let sum: f32 = (0..4)
                    .map(|k| {
                        let right = 1.0 - (k * 5 + column.max(1) - 1) as f32;
                        (row * 4 + k) as f32 * right
                    })
                    .sum();
                let expected = if row > 0 && column > 1 { 1.0 + 2.0 * sum } else { 1.0 };
                assert_eq!(out[row * 5 + column], expected, "{row} {column}");
            }
        }
    }

    /// Products of every form, with edges of tiles, panels and blocks, against sums in `f64`.
    #[test]
    fn products_are_their_sums() {
        let numbers = |count: usize, step: f32| (0..count).map(|at| (at as f32 * step).sin()).collect::<Vec<f32>>();
        let shapes = [
            [1, 3, 5],
            [4, 8, 8],
            [12, 32, 16],
            [13, 33, 17],
            [23, 70, 40],
            [100, 64, 600],
            [97, 1030, 20],
            [300, 40, 130],
            [64, 64, 1100],
        ];
        for [m, n, k] in shapes {
            let (left, right) = (numbers(m * k, 0.7), numbers(k * n, 0.3));
            let exact = |left: Mat<'_>, right: Mat<'_>| {
                let at = |x: Mat<'_>, row: usize, column: usize| {
                    f64::from(x.values[row * x.row_stride + column * x.column_stride])
                };
                let sum = |i: usize, j: usize| (0..k).map(|term| at(left, i, term) * at(right, term, j)).sum::<f64>();
                (0..m * n).map(|place| sum(place / n, place % n)).collect::<Vec<f64>>()
            };
            for (left, right, workers) in [
                (Mat::new(&left, m, k), Mat::new(&right, k, n), Workers::One),
                (Mat::new(&left, k, m).t(), Mat::new(&right, k, n), Workers::All),
                (Mat::new(&left, m, k), Mat::new(&right, n, k).t(), Workers::All),
                (Mat::new(&left, k, m).t(), Mat::new(&right, n, k).t(), Workers::One),
            ] {
                let exact = exact(left, right);
                for (before, scale) in [(Before::Forgotten, 1.0), (Before::Kept, -0.5)] {
                    let mut out = vec![3.0f32; m * n];
                    product(MatMut::new(&mut out, m, n), left, right, scale, before, workers);
                    let kept = if before == Before::Kept { 3.0 } else { 0.0 };
                    for (at, (found, exact)) in out.iter().zip(&exact).enumerate() {
                        let error = f64::from(*found) - (kept + f64::from(scale) * exact);
                        assert!(error.abs() <= 3e-7 * k as f64, "{m} x {n} x {k}, {at}: {found} for {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn without_terms_a_product_is_zero() {
        let mut out = vec![3.0; 4];
        product(
            MatMut::new(&mut out, 2, 2),
            Mat::new(&[], 2, 0),
            Mat::new(&[], 0, 2),
            1.0,
            Before::Forgotten,
            Workers::All,
        );
        assert_eq!(out, [0.0; 4]);
    }

    #[test]
    #[should_panic(expected = "the matrices of a product must fit")]
    fn what_does_not_fit_is_refused() {
        let mut out = vec![0.0; 4];
        product(
            MatMut::new(&mut out, 2, 2),
            Mat::new(&[0.0; 4], 2, 2),
            Mat::new(&[0.0; 6], 3, 2),
            1.0,
            Before::Kept,
            Workers::One,
        );
    }
}
