//! Products on a GPU, by one routine for each dtype and precision, so that none is tried out.
//!
//! `f32` is multiplied by a kernel of this crate. It reads its operands wherever they lie and stops at their edges, so
//! that it is compiled twice at most, for small products and large ones. Where tensor cores take a dtype, that is floats
//! of 16 bits, or `f32` if the user lets it be rounded, they are used, by CubeK's simplest routine for them.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::{CubeBackend, cubecl};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::std::InputBinding;

use super::sums::sum_rows;
use super::{Primitive, UNITS, accepted, contiguous, element, fresh, fresh_of};
use crate::ops::matmul::{MatmulKernels, MatmulOps};
use crate::runtime::precision::{MatmulPrecision, matmul_precision};

/// Units at each side of the square that a cube is.
const SIDE: usize = 16;
const _: () = assert!(SIDE * SIDE == UNITS);

/// Numbers that a unit takes from shared memory at once.
const QUAD: usize = 4;

/// The fewest terms of a sum that are worth a cube of their own.
const TERMS: usize = 256;

/// Processors of a GPU that does not say how many it has.
const PROCESSORS: usize = 64;

impl MatmulKernels for CubeBackend {
    fn try_product(inputs: [Primitive; 2], scale: f64) -> Result<Primitive, [Primitive; 2]> {
        let shape = shape_of(&inputs);
        if shape.num_elements() == 0 || inputs[0].shape().num_elements() == 0 {
            let dtype = inputs[0].dtype.into();
            return Ok(CubeBackend::float_zeros(shape, &inputs[0].device(), dtype));
        }
        let [lhs, rhs] = accepted(inputs)?;
        if let Some(product) = by_tensor_cores(&lhs, &rhs) {
            return Ok(if scale == 1.0 { product } else { CubeBackend::float_mul_scalar(product, scale.into()) });
        }
        let sizes = Sizes::of(&lhs, &rhs);
        let (tiles, splits) = (sizes.tiles(), sizes.splits());
        if splits == 1 {
            let out = fresh(&lhs, shape);
            sizes.launch([lhs, rhs], &out, tiles, 1, scale, false);
            return Ok(out);
        }
        let partial = fresh_of(&lhs, [splits, shape.num_elements()], DType::F32);
        sizes.launch([lhs.clone(), rhs], &partial, tiles, splits, scale, false);
        Ok(sum_rows(partial, &lhs, shape))
    }

    fn try_product_onto(inputs: [Primitive; 3]) -> Result<Primitive, [Primitive; 3]> {
        let [onto, lhs, rhs] = accepted(inputs)?;
        if takes_tensor_cores(lhs.dtype) {
            let product = CubeBackend::product(lhs, rhs, 1.0);
            return Ok(CubeBackend::float_add(onto, product));
        }
        let onto = contiguous(onto);
        let onto = if onto.can_mut() && onto.is_nonoverlapping() { onto } else { onto.copy() };
        let sizes = Sizes::of(&lhs, &rhs);
        sizes.launch([lhs, rhs], &onto, sizes.tiles(), 1, 1.0, true);
        Ok(onto)
    }
}

fn shape_of([lhs, rhs]: &[Primitive; 2]) -> Shape {
    let (mut shape, last) = (lhs.shape(), lhs.shape().num_dims() - 1);
    shape[last] = rhs.shape()[last];
    shape
}

/// Whether tensor cores are to be used for products of this dtype, if there are any.
fn takes_tensor_cores(dtype: DType) -> bool {
    dtype != DType::F32 || matmul_precision() != MatmulPrecision::Highest
}

/// The product by tensor cores, if they are to be used and take it.
fn by_tensor_cores(lhs: &Primitive, rhs: &Primitive) -> Option<Primitive> {
    if !takes_tensor_cores(lhs.dtype) || lhs.client.properties().features.matmul.cmma.is_empty() {
        return None;
    }
    let (dtype, out) = (element(lhs), fresh(lhs, shape_of(&[lhs.clone(), rhs.clone()])));
    let mut types = MatmulElems::from_globals(&MatmulGlobalElems { lhs: dtype, rhs: dtype, out: dtype });
    let [left, right] = [lhs, rhs].map(|x| InputBinding::new(x.clone().binding(), dtype));
    let strategy = Strategy::SimpleCyclicCmma(Default::default()).into();
    launch_ref(&strategy, &lhs.client, left, right, out.clone().binding(), &mut types).ok().map(|()| out)
}

/// The sizes of a product of batches of matrices, `[batch, m, k]` times `[batch, k, n]`.
struct Sizes {
    client: Client,
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
}

impl Sizes {
    fn of(lhs: &Primitive, rhs: &Primitive) -> Self {
        let (left, right) = (lhs.shape(), rhs.shape());
        let dims = left.num_dims();
        Self {
            client: lhs.client.clone(),
            batch: left.iter().take(dims - 2).product(),
            m: left[dims - 2],
            n: right[dims - 1],
            k: left[dims - 1],
        }
    }

    fn processors(&self) -> usize {
        self.client.properties().hardware.num_streaming_multiprocessors.map_or(PROCESSORS, |count| count as usize)
    }

    fn cubes(&self, side: usize) -> usize {
        self.m.div_ceil(side) * self.n.div_ceil(side) * self.batch
    }

    /// Large ones, if that leaves no processor idle.
    fn tiles(&self) -> Tiles {
        if self.cubes(128) >= self.processors() { Tiles { side: 128 } } else { Tiles { side: 64 } }
    }

    /// Parts that sums are taken in, so that a small product of long sums does not leave most of the GPU idle.
    fn splits(&self) -> usize {
        let cubes = self.cubes(self.tiles().side);
        if cubes >= self.processors() { 1 } else { (2 * self.processors() / cubes).min(self.k / TERMS).max(1) }
    }

    fn launch(&self, inputs: [Primitive; 2], out: &Primitive, tiles: Tiles, splits: usize, scale: f64, onto: bool) {
        let types = [element(&inputs[0]), element(out)];
        let [lhs, rhs] = inputs.map(as_batch);
        // Quads of a tile lie along its own rows and columns. Neighbouring units take the next ones, unless their memory
        // runs along the sum.
        let along = |strides: [usize; 2]| u32::from(strides[1] < strides[0]);
        let [_, lhs_row, lhs_term] = strides(&lhs);
        let [_, rhs_term, rhs_column] = strides(&rhs);
        let per_split = self.k.div_ceil(splits).next_multiple_of(Tiles::DEPTH);
        let numbers = NumbersLaunch::new(
            self.batch as u32,
            splits as u32,
            per_split as u32,
            self.m as u32,
            self.n as u32,
            self.k as u32,
            operand(strides(&lhs)[0], lhs_row, lhs_term, along([lhs_row, lhs_term])),
            operand(strides(&rhs)[0], rhs_column, rhs_term, along([rhs_column, rhs_term])),
            scale as f32,
        );
        let cubes = CubeCount::Static(
            self.n.div_ceil(tiles.side) as u32,
            self.m.div_ceil(tiles.side) as u32,
            (self.batch * splits) as u32,
        );
        // SAFETY: units read and write elements of matrices of these sizes alone; `out` has a number for each of the
        // products, of each split.
        unsafe {
            product_kernel::launch_unchecked(
                &self.client,
                cubes,
                CubeDim::new_1d(UNITS as u32),
                QUAD,
                lhs.into_buffer_arg(),
                rhs.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                numbers,
                onto,
                tiles,
                types,
            );
        }
    }
}

/// The tensor with one dimension before its matrices. A matrix is read with the first index 0.
fn as_batch(x: Primitive) -> Primitive {
    let (shape, dims) = (x.shape(), x.shape().num_dims());
    if dims <= 3 {
        return x;
    }
    let batch = shape.iter().take(dims - 2).product();
    CubeBackend::float_reshape(x, Shape::from([batch, shape[dims - 2], shape[dims - 1]]))
}

/// Of the batch, the rows and the columns.
fn strides(x: &Primitive) -> [usize; 3] {
    let strides = x.meta.strides();
    match x.meta.shape().num_dims() {
        2 => [0, strides[0], strides[1]],
        _ => [strides[0], strides[1], strides[2]],
    }
}

/// What a kernel is compiled for: the side of the square of the product that a cube computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiles {
    side: usize,
}

impl Tiles {
    /// Terms of the sums that are in shared memory at once.
    const DEPTH: usize = 16;

    /// Quads at the side.
    fn quads(self) -> usize {
        self.side / QUAD
    }

    /// Quads that a unit has of each side.
    fn own(self) -> usize {
        self.side / SIDE / QUAD
    }

    /// Quads of a tile that a unit brings into shared memory.
    fn loads(self) -> usize {
        self.quads() * Self::DEPTH / UNITS
    }
}

/// Where an operand lies: steps from matrix to matrix, from one of its own rows (or columns) to the next, and from term
/// to term of the sums; and whether neighbouring units read neighbouring terms.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Operand {
    batch: u32,
    own: u32,
    term: u32,
    along: u32,
}

fn operand(batch: usize, own: usize, term: usize, along: u32) -> OperandLaunch {
    OperandLaunch::new(batch as u32, own as u32, term as u32, along)
}

#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    batch: u32,
    splits: u32,
    per_split: u32,
    m: u32,
    n: u32,
    k: u32,
    lhs: Operand,
    rhs: Operand,
    scale: f32,
}

/// A square of the product for each cube, and four by four numbers of it, or sixteen times four, for each unit.
#[cube(launch_unchecked)]
fn product_kernel<F: Float, O: Float, N: Size>(
    lhs: &[F],
    rhs: &[F],
    out: &mut [O],
    numbers: Numbers,
    #[comptime] onto: bool,
    #[comptime] tiles: Tiles,
    #[define(F, O)] _types: [ElemType; 2],
) {
    let mut lhs_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!(Tiles::DEPTH * tiles.quads()));
    let mut rhs_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!(Tiles::DEPTH * tiles.quads()));
    let own = comptime!(tiles.own());
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(own * own * QUAD));
    #[unroll]
    for sum in 0..comptime!(own * own * QUAD) {
        sums[sum] = Vector::new(0.0f32);
    }
    let batch = (CUBE_POS_Z / numbers.splits) as usize;
    let split = CUBE_POS_Z % numbers.splits;
    let (first_row, first_column) = (CUBE_POS_Y as usize * tiles.side, CUBE_POS_X as usize * tiles.side);
    let (row, column) = ((UNIT_POS as usize) / SIDE, (UNIT_POS as usize) % SIDE);
    let end = min(numbers.k, (split + 1) * numbers.per_split) as usize;
    let mut start = (split * numbers.per_split) as usize;
    while start < end {
        load::<F, N>(lhs, &mut lhs_tile, &numbers.lhs, batch, first_row, numbers.m as usize, start, end, tiles);
        load::<F, N>(rhs, &mut rhs_tile, &numbers.rhs, batch, first_column, numbers.n as usize, start, end, tiles);
        sync_cube();
        for term in 0..Tiles::DEPTH {
            let line = term * comptime!(tiles.quads());
            #[unroll]
            for i in 0..own {
                let of_rows = lhs_tile[line + row + i * SIDE];
                #[unroll]
                for j in 0..own {
                    let of_columns = rhs_tile[line + column + j * SIDE];
                    #[unroll]
                    for lane in 0..QUAD {
                        let sum = comptime!((i * own + j) * QUAD + lane);
                        sums[sum] = fma(Vector::new(of_rows.extract(lane)), of_columns, sums[sum]);
                    }
                }
            }
        }
        sync_cube();
        start += Tiles::DEPTH;
    }

    let (m, n) = (numbers.m as usize, numbers.n as usize);
    let matrix = (split as usize * numbers.batch as usize + batch) * m * n;
    #[unroll]
    for i in 0..own {
        #[unroll]
        for lane in 0..QUAD {
            let row = first_row + (row + i * SIDE) * QUAD + lane;
            #[unroll]
            for j in 0..own {
                let column = first_column + (column + j * SIDE) * QUAD;
                let sum = sums[comptime!((i * own + j) * QUAD + lane)];
                #[unroll]
                for place in 0..QUAD {
                    if row < m && column + place < n {
                        let at = matrix + row * n + column + place;
                        let mut value = sum.extract(place) * numbers.scale;
                        if comptime!(onto) {
                            value += f32::cast_from(out[at]);
                        }
                        out[at] = O::cast_from(value);
                    }
                }
            }
        }
    }
}

/// Brings terms `start..` of the sums of a tile into shared memory: for each term its quads, zero beyond the edges.
#[cube]
fn load<F: Float, N: Size>(
    x: &[F],
    tile: &mut Shared<[Vector<f32, N>]>,
    operand: &Operand,
    batch: usize,
    first: usize,
    count: usize,
    start: usize,
    end: usize,
    #[comptime] tiles: Tiles,
) {
    let quads = comptime!(tiles.quads());
    #[unroll]
    for load in 0..comptime!(tiles.loads()) {
        let index = UNIT_POS as usize + load * UNITS;
        let is_along = operand.along == 1;
        let term = select(is_along, index % Tiles::DEPTH, index / quads);
        let quad = select(is_along, index / Tiles::DEPTH, index % quads);
        let at = batch * operand.batch as usize + (start + term) * operand.term as usize;
        let mut numbers = Vector::<f32, N>::empty();
        #[unroll]
        for lane in 0..QUAD {
            let own = first + quad * QUAD + lane;
            let inside = own < count && start + term < end;
            let number = f32::cast_from(x[select(inside, at + own * operand.own as usize, 0)]);
            numbers.insert(lane, select(inside, number, 0.0f32));
        }
        tile[term * quads + quad] = numbers;
    }
}
