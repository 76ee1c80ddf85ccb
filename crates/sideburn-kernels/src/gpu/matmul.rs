//! Products on a GPU, by one routine for each dtype and precision, so that none is tried out.
//!
//! `f32` is multiplied by a kernel of this crate. It reads its operands wherever they lie and stops at their edges, so
//! that it is compiled for small products and large ones alone, and for what it does beside: multiply by several matrices,
//! drop elements, add to what is there. Where tensor cores take a dtype, that is floats
//! of 16 bits, or `f32` if the user lets it be rounded, they are used, by CubeK's simplest routine for them.

use std::hash::Hash;

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
use sideburn_batch::Dropout;

use super::checked::checked;
use super::mask::{self, Mask};
use super::packed::{self, Codes};
use super::sums::sum_rows;
use super::{Primitive, UNITS, accepted, contiguous, element, fresh, fresh_of};
use crate::ops::many::Many;
use crate::ops::matmul::{MatmulKernels, MatmulOps, Packed, PackedInput, Shared as SharedInput, Side, wider};
use crate::runtime::precision::{MatmulPrecision, matmul_precision};

/// Units at each side of the square that a cube is.
const SIDE: usize = 16;
const _: () = assert!(SIDE * SIDE == UNITS);

/// Numbers that a unit takes from shared memory at once.
const QUAD: usize = 4;

/// The fewest terms of a sum that are worth a cube of their own.
const TERMS: usize = 256;

/// Bindings of a product that are not parts of its right matrix: the output, numbers, and what CubeCL adds.
const SPARE_BINDINGS: usize = 4;

/// Processors of a GPU that does not say how many it has.
const PROCESSORS: usize = 64;

impl MatmulKernels for CubeBackend {
    fn try_product(
        inputs: [Primitive; 2],
        scale: f64,
        dropout: Option<(Dropout, Side)>,
    ) -> Result<Primitive, [Primitive; 2]> {
        let shape = shape_of(&inputs);
        if shape.num_elements() == 0 || inputs[0].shape().num_elements() == 0 {
            let dtype = wider(inputs[0].dtype, inputs[1].dtype).into();
            return Ok(CubeBackend::float_zeros(shape, &inputs[0].device(), dtype));
        }
        let [lhs, rhs] = multiplied(inputs)?;
        if dropout.is_some() && are_for_tensor_cores(&lhs, &rhs) {
            return Err([lhs, rhs]);
        }
        if let Some(product) = by_tensor_cores(&lhs, &rhs) {
            return Ok(if scale == 1.0 { product } else { CubeBackend::float_mul_scalar(product, scale.into()) });
        }
        // The mask counts elements as they lie in memory.
        let (lhs, rhs) = match dropout {
            Some((_, Side::Lhs)) => (contiguous(lhs), rhs),
            Some((_, Side::Rhs)) => (lhs, contiguous(rhs)),
            None => (lhs, rhs),
        };
        let dropout = dropout.map(|(dropout, side)| (dropout, side.into()));
        checked("product", Product::variant([lhs.dtype, rhs.dtype], 1, dropout), [lhs, rhs], |[lhs, rhs]| {
            Product { scale, dropout, ..Product::of(lhs, rhs) }.run(shape)
        })
    }

    fn try_products((x, weights): SharedInput<Self>) -> Result<Primitive, SharedInput<Self>> {
        let (x, weights) = alike((x, weights))?;
        if has_tensor_cores(&x) {
            let stacked = CubeBackend::float_swap_dims(stacked(&weights), 0, 1);
            return by_tensor_cores(&x, &stacked).ok_or((x, weights));
        }
        let shape = Shape::from([x.shape()[0], weights.0.iter().map(|weight| weight.shape()[0]).sum()]);
        checked("products", Product::variant([x.dtype; 2], weights.0.len(), None), (x, weights), |(x, weights)| {
            let rhs = weights.0.into_iter().map(|weight| CubeBackend::float_swap_dims(weight, 0, 1)).collect();
            Product { rhs, ..Product::of_parts(x) }.run(shape)
        })
    }

    fn try_products_back((gradient, weights): SharedInput<Self>) -> Result<Primitive, SharedInput<Self>> {
        let (gradient, weights) = alike((gradient, weights))?;
        if has_tensor_cores(&gradient) {
            return by_tensor_cores(&gradient, &stacked(&weights)).ok_or((gradient, weights));
        }
        // Sums of few results are taken in parts, of each weight.
        let (rows, [terms, columns]) = (gradient.shape()[0], [gradient.shape()[1], weights.0[0].shape()[1]]);
        let processors = processors(&gradient.client);
        let sizes = Sizes { batch: 1, m: rows, n: vec![columns], k: terms, processors };
        if sizes.splits() > 1 {
            return Err((gradient, weights));
        }
        let variant = (gradient.dtype, weights.0.len());
        checked("products_back", variant, (gradient, weights), |(gradient, weights)| {
            products_back(gradient, weights.0, &sizes)
        })
    }

    fn try_product_onto(
        inputs: [Primitive; 3],
        column: usize,
        dropout: Option<Dropout>,
    ) -> Result<Primitive, [Primitive; 3]> {
        let [onto, lhs, rhs] = multiplied(inputs)?;
        if are_for_tensor_cores(&lhs, &rhs) {
            return Err([onto, lhs, rhs]);
        }
        let dropout = dropout.map(|dropout| (dropout, Drops::Out));
        let variant = (onto.dtype, Product::variant([lhs.dtype, rhs.dtype], 1, dropout));
        checked("product_onto", variant, [onto, lhs, rhs], |[onto, lhs, rhs]| {
            let onto = contiguous(onto);
            let onto = if onto.can_mut() && onto.is_nonoverlapping() { onto } else { onto.copy() };
            Product { dropout, ..Product::of(lhs, rhs) }.launch(&onto, 1, column, true);
            onto
        })
    }

    fn try_packed_product((x, weight): PackedInput<Self>, transposed: bool) -> Result<Primitive, PackedInput<Self>> {
        let x = match accepted([x]) {
            Ok([x]) if packed::is_taken(&weight) => x,
            Ok([x]) | Err([x]) => return Err((x, weight)),
        };
        if !has_tensor_cores(&x) {
            let variant = (x.dtype, Codes::new(&weight.layout, true));
            return checked("packed_product", variant, (x, weight), |(x, weight)| {
                packed_product(x, weight, transposed)
            });
        }
        let weight = packed::unpack(weight, x.dtype, true);
        let weight = if transposed { CubeBackend::float_swap_dims(weight, 0, 1) } else { weight };
        Ok(Self::product(x, weight, 1.0))
    }

    fn try_unpacked(weight: Packed<Self>, scaled: bool) -> Result<Primitive, Packed<Self>> {
        let dtype = if scaled { weight.layout.form.dtype } else { DType::F32 };
        if !packed::is_taken(&weight) || super::float(dtype).is_none() {
            return Err(weight);
        }
        let variant = (dtype, Codes::new(&weight.layout, scaled));
        checked("unpacked", variant, weight, |weight| packed::unpack(weight, dtype, scaled))
    }
}

/// An input and weights that a kernel takes together: they are of one dtype, the weights lie in memory in one way, as they
/// are read as one, and there are few.
fn alike((x, weights): SharedInput<CubeBackend>) -> Result<SharedInput<CubeBackend>, SharedInput<CubeBackend>> {
    let bindings = x.client.properties().hardware.max_bindings as usize;
    let is_taken = |weight: &Primitive| {
        accepted([x.clone(), weight.clone()]).is_ok() && weight.meta.strides() == weights.0[0].meta.strides()
    };
    let are_few = 1 + weights.0.len() + SPARE_BINDINGS <= bindings;
    if are_few && weights.0.iter().all(is_taken) { Ok((x, weights)) } else { Err((x, weights)) }
}

/// The weights of several layers as one, for the time of a product: a copy of them is far smaller than one of its results.
fn stacked(weights: &Many<CubeBackend>) -> Primitive {
    CubeBackend::float_cat(weights.0.clone(), 0)
}

/// `gradient W` with a weight in parts, each of which has some of the terms.
fn products_back(gradient: Primitive, weights: Vec<Primitive>, sizes: &Sizes) -> Primitive {
    let (client, tiles, columns) = (gradient.client.clone(), sizes.tiles(), sizes.n[0]);
    let out = fresh(&gradient, [sizes.m, columns]);
    let [_, term, column] = strides(&weights[0]);
    let steps = [strides(&gradient), [0, column, term]];
    let (numbers, types) = (numbers(sizes, 1, steps, 1.0, columns, 0), [element(&gradient); 3]);
    let terms = weights.iter().map(|weight| weight.shape()[0] as u32).collect();
    // SAFETY: as for other products; each part is read within its own terms.
    unsafe {
        stacked_kernel::launch_unchecked(
            &client,
            sizes.grid(tiles.side, 1),
            CubeDim::new_1d(UNITS as u32),
            QUAD,
            gradient.into_buffer_arg(),
            weights.into_iter().map(Primitive::into_tensor_arg).collect(),
            terms,
            out.clone().into_buffer_arg(),
            numbers,
            columns as u32,
            mask::argument(None),
            tiles,
            types,
        );
    }
    out
}

/// `x W^T` with a packed weight, or `x W`: of floats that tensor cores take by them, otherwise unpacked on the way.
fn packed_product(x: Primitive, weight: Packed<CubeBackend>, transposed: bool) -> Primitive {
    let layout = weight.layout;
    let ([out, input], k) = (layout.form.shape, x.shape()[1]);
    let n = if transposed { out } else { input };
    let steps = if transposed { [input, 1] } else { [1, input] };
    let sizes = Sizes { batch: 1, m: x.shape()[0], n: vec![n], k, processors: processors(&x.client) };
    let (splits, tiles) = (sizes.splits(), sizes.tiles());
    let product = fresh(&x, [sizes.m, n]);
    let target = if splits == 1 { product.clone() } else { fresh_of(&x, [splits, sizes.m * n], DType::F32) };
    let (client, [_, row, term], types) = (x.client.clone(), strides(&x), [element(&x), element(&target)]);
    let numbers = numbers(&sizes, splits, [[0, row, term], [0, steps[0], steps[1]]], 1.0, n, 0);
    let cubes = sizes.grid(tiles.side, splits);
    let [codes, scales, nested, map] = packed::arguments(weight);
    // SAFETY: as for other products; codes are read at places of the weight alone.
    unsafe {
        packed_kernel::launch_unchecked(
            &client,
            cubes,
            CubeDim::new_1d(UNITS as u32),
            QUAD,
            x.clone().into_buffer_arg(),
            codes,
            scales,
            nested,
            map,
            target.clone().into_buffer_arg(),
            numbers,
            n as u32,
            layout.offset.unwrap_or_default(),
            mask::argument(None),
            Codes::new(&layout, true),
            tiles,
            types,
        );
    }
    if splits == 1 { product } else { sum_rows(target, &x, product.shape()) }
}

fn shape_of([lhs, rhs]: &[Primitive; 2]) -> Shape {
    let (mut shape, last) = (lhs.shape(), lhs.shape().num_dims() - 1);
    shape[last] = rhs.shape()[last];
    shape
}

/// Whether a product of this tensor is for tensor cores, and there are some.
fn has_tensor_cores(x: &Primitive) -> bool {
    let are_wanted = x.dtype != DType::F32 || matmul_precision() != MatmulPrecision::Highest;
    are_wanted && !x.client.properties().features.matmul.cmma.is_empty()
}

fn are_for_tensor_cores(lhs: &Primitive, rhs: &Primitive) -> bool {
    lhs.dtype == rhs.dtype && has_tensor_cores(lhs)
}

/// The tensors, if they can be multiplied: each is as kernels take it, and their dtypes may differ.
fn multiplied<const N: usize>(tensors: [Primitive; N]) -> Result<[Primitive; N], [Primitive; N]> {
    let fits = |x: &Primitive| accepted([x.clone()]).is_ok() && x.device == tensors[0].device;
    if tensors.iter().all(fits) { Ok(tensors) } else { Err(tensors) }
}

/// The product by tensor cores, if they are to be used and take it.
fn by_tensor_cores(lhs: &Primitive, rhs: &Primitive) -> Option<Primitive> {
    if !are_for_tensor_cores(lhs, rhs) {
        return None;
    }
    let (dtype, out) = (element(lhs), fresh(lhs, shape_of(&[lhs.clone(), rhs.clone()])));
    let mut types = MatmulElems::from_globals(&MatmulGlobalElems { lhs: dtype, rhs: dtype, out: dtype });
    let [left, right] = [lhs, rhs].map(|x| InputBinding::new(x.clone().binding(), dtype));
    let strategy = Strategy::SimpleCyclicCmma(Default::default()).into();
    launch_ref(&strategy, &lhs.client, left, right, out.clone().binding(), &mut types).ok().map(|()| out)
}

/// Batches of matrices, `scale * [batch, m, k]` times `[batch, k, n]`; a matrix is a batch of one. The right one may be in
/// parts, side by side.
struct Product {
    lhs: Primitive,
    rhs: Vec<Primitive>,
    scale: f64,
    dropout: Option<(Dropout, Drops)>,
}

impl Product {
    fn of(lhs: Primitive, rhs: Primitive) -> Self {
        Self { rhs: vec![as_batch(rhs)], ..Self::of_parts(as_batch(lhs)) }
    }

    fn of_parts(lhs: Primitive) -> Self {
        Self { lhs, rhs: Vec::new(), scale: 1.0, dropout: None }
    }

    /// What its kernel is compiled for, but for the size of tiles.
    fn variant(dtypes: [DType; 2], parts: usize, dropout: Option<(Dropout, Drops)>) -> impl Hash {
        (dtypes, parts, dropout.map(|(_, drops)| drops))
    }

    /// A tensor on the device in the dtype of the product.
    fn fresh(&self, shape: Shape) -> Primitive {
        fresh_of(&self.lhs, shape, wider(self.lhs.dtype, self.rhs[0].dtype))
    }

    fn sizes(&self) -> Sizes {
        let (left, columns) = (self.lhs.shape(), self.rhs.iter().map(|rhs| rhs.shape().iter().last().copied()));
        let dims = left.num_dims();
        Sizes {
            batch: left.iter().take(dims - 2).product(),
            m: left[dims - 2],
            n: columns.map(|columns| columns.expect("a matrix")).collect(),
            k: left[dims - 1],
            processors: processors(&self.lhs.client),
        }
    }

    /// The product, of this shape.
    fn run(self, shape: Shape) -> Primitive {
        let splits = self.sizes().splits();
        if splits == 1 {
            let out = self.fresh(shape);
            self.launch(&out, 1, 0, false);
            return out;
        }
        let partial = fresh_of(&self.lhs, [splits, shape.num_elements()], DType::F32);
        let like = self.fresh(Shape::from([1]));
        self.launch(&partial, splits, 0, false);
        sum_rows(partial, &like, shape)
    }

    /// Writes the product into the columns of `out` from `column` on, or adds it to what is there.
    fn launch(self, out: &Primitive, splits: usize, column: usize, onto: bool) {
        let sizes = self.sizes();
        let Self { lhs, rhs, scale, dropout } = self;
        let types = [element(&lhs), element(&rhs[0]), element(out)];
        let [rhs_batch, rhs_term, rhs_column] = strides(&rhs[0]);
        let columns: usize = sizes.n.iter().sum();
        let line = if onto { out.shape()[1] } else { columns };
        let tiles = Tiles { drops: dropout.map(|(_, drops)| drops), ..sizes.tiles() };
        let steps = [strides(&lhs), [rhs_batch, rhs_column, rhs_term]];
        let numbers = numbers(&sizes, splits, steps, scale, line, column);
        let cubes = sizes.grid(tiles.side, splits);
        let client = lhs.client.clone();
        // SAFETY: units read and write elements of matrices of these sizes alone; `out` has a number for each of the
        // products, of each split.
        unsafe {
            product_kernel::launch_unchecked(
                &client,
                cubes,
                CubeDim::new_1d(UNITS as u32),
                QUAD,
                lhs.into_buffer_arg(),
                rhs.into_iter().map(Primitive::into_tensor_arg).collect(),
                sizes.n.iter().map(|n| *n as u32).collect(),
                out.clone().into_buffer_arg(),
                numbers,
                mask::argument(dropout.map(|(dropout, _)| dropout)),
                onto,
                tiles,
                types,
            );
        }
    }
}

/// Of the operands, steps from matrix to matrix, from one own row or column to the next, and from term to term.
fn numbers(
    sizes: &Sizes,
    splits: usize,
    [lhs, rhs]: [[usize; 3]; 2],
    scale: f64,
    line: usize,
    column: usize,
) -> NumbersLaunch {
    // Quads of a tile lie along its own rows and columns. Neighbouring units take the next ones, unless their memory runs
    // along the sum.
    let operand = |[batch, own, term]: [usize; 3]| {
        OperandLaunch::new(batch as u32, own as u32, term as u32, u32::from(term < own))
    };
    NumbersLaunch::new(
        sizes.batch as u32,
        splits as u32,
        sizes.k.div_ceil(splits).next_multiple_of(Tiles::DEPTH) as u32,
        sizes.m as u32,
        sizes.k as u32,
        operand(lhs),
        operand(rhs),
        scale as f32,
        line as u32,
        column as u32,
    )
}

/// The processors of a GPU.
fn processors(client: &Client) -> usize {
    client.properties().hardware.num_streaming_multiprocessors.map_or(PROCESSORS, |count| count as usize)
}

/// The sizes of a product.
struct Sizes {
    batch: usize,
    m: usize,
    /// Of each part.
    n: Vec<usize>,
    k: usize,
    processors: usize,
}

impl Sizes {
    fn cubes(&self, side: usize) -> usize {
        self.m.div_ceil(side) * self.n.iter().map(|n| n.div_ceil(side)).sum::<usize>() * self.batch
    }

    /// A cube for each square of each matrix of each split.
    fn grid(&self, side: usize, splits: usize) -> CubeCount {
        CubeCount::Static(
            self.n.iter().map(|n| n.div_ceil(side) as u32).sum(),
            self.m.div_ceil(side) as u32,
            (self.batch * splits) as u32,
        )
    }

    /// Large ones, if that leaves no processor idle.
    fn tiles(&self) -> Tiles {
        Tiles { side: if self.cubes(128) >= self.processors { 128 } else { 64 }, drops: None }
    }

    /// Parts that sums are taken in, so that a small product of long sums does not leave most of the GPU idle.
    fn splits(&self) -> usize {
        let cubes = self.cubes(self.tiles().side);
        if cubes >= self.processors { 1 } else { (2 * self.processors / cubes).min(self.k / TERMS).max(1) }
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

/// What a kernel is compiled for: the side of the square of the product that a cube computes, and where elements are
/// dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiles {
    side: usize,
    drops: Option<Drops>,
}

/// Whose elements are dropped, counted from row to row of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Drops {
    Lhs,
    Rhs,
    Out,
}

impl From<Side> for Drops {
    fn from(side: Side) -> Self {
        match side {
            Side::Lhs => Self::Lhs,
            Side::Rhs => Self::Rhs,
        }
    }
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

#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    batch: u32,
    splits: u32,
    per_split: u32,
    m: u32,
    k: u32,
    lhs: Operand,
    rhs: Operand,
    scale: f32,
    /// Columns of the output, and the first of those that are written.
    line: u32,
    column: u32,
}

/// A square of the product for each cube, and four by four numbers of it, or sixteen times four, for each unit.
#[cube(launch_unchecked)]
fn product_kernel<L: Float, R: Float, O: Float, N: Size>(
    lhs: &[L],
    rhs: &Sequence<OwnedTensor<R>>,
    columns: &Sequence<u32>,
    out: &mut [O],
    numbers: Numbers,
    mask: Mask,
    #[comptime] onto: bool,
    #[comptime] tiles: Tiles,
    #[define(L, R, O)] _types: [ElemType; 3],
) {
    let mut lhs_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!(Tiles::DEPTH * tiles.quads()));
    let mut rhs_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!(Tiles::DEPTH * tiles.quads()));
    let mut sums = no_sums::<N>(tiles);
    let batch = (CUBE_POS_Z / numbers.splits) as usize;
    let split = CUBE_POS_Z % numbers.splits;

    // The part that this cube has columns of, where it begins in the output, and how wide it is.
    let mut part = 0u32.runtime();
    let mut before = 0u32.runtime();
    let mut tile = CUBE_POS_X;
    let mut n = columns[0];
    #[unroll]
    for next in 1..comptime!(rhs.len()) {
        let of_part = (n + comptime!(tiles.side as u32 - 1)) / comptime!(tiles.side as u32);
        if part == comptime!(next as u32 - 1) && tile >= of_part {
            tile -= of_part;
            before += n;
            part = next as u32;
            n = columns[next];
        }
    }
    let (m, n) = (numbers.m as usize, n as usize);
    let (first_row, first_column) = (CUBE_POS_Y as usize * tiles.side, tile as usize * tiles.side);
    let end = min(numbers.k, (split + 1) * numbers.per_split) as usize;
    let mut start = (split * numbers.per_split) as usize;
    let (of_rows, of_columns) =
        (comptime!(tiles.drops == Some(Drops::Lhs)), comptime!(tiles.drops == Some(Drops::Rhs)));
    while start < end {
        load::<L, N>(lhs, &mut lhs_tile, &numbers.lhs, &mask, batch, first_row, m, start, end, of_rows, tiles);
        #[unroll]
        for index in 0..comptime!(rhs.len()) {
            if part == index as u32 {
                let weight = rhs[index].as_slice();
                load::<R, N>(
                    weight,
                    &mut rhs_tile,
                    &numbers.rhs,
                    &mask,
                    batch,
                    first_column,
                    n,
                    start,
                    end,
                    of_columns,
                    tiles,
                );
            }
        }
        sync_cube();
        add_products::<N>(&lhs_tile, &rhs_tile, &mut sums, tiles);
        sync_cube();
        start += Tiles::DEPTH;
    }

    let line = numbers.line as usize;
    let matrix = (split as usize * numbers.batch as usize + batch) * m * line;
    let first = matrix + (numbers.column + before) as usize;
    write::<O, N>(&sums, out, first, line, first_row, first_column, m, n, numbers.scale, &mask, onto, tiles);
}

/// The product of a matrix and one in parts, each of which has some of the terms, in the same way.
#[cube(launch_unchecked)]
fn stacked_kernel<L: Float, R: Float, O: Float, N: Size>(
    lhs: &[L],
    rhs: &Sequence<OwnedTensor<R>>,
    terms: &Sequence<u32>,
    out: &mut [O],
    numbers: Numbers,
    n: u32,
    mask: Mask,
    #[comptime] tiles: Tiles,
    #[define(L, R, O)] _types: [ElemType; 3],
) {
    let mut lhs_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!(Tiles::DEPTH * tiles.quads()));
    let mut rhs_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!(Tiles::DEPTH * tiles.quads()));
    let mut sums = no_sums::<N>(tiles);
    let (m, n) = (numbers.m as usize, n as usize);
    let (first_row, first_column) = (CUBE_POS_Y as usize * tiles.side, CUBE_POS_X as usize * tiles.side);
    // The part, where its terms begin among all, and how many they are.
    let mut part = 0u32.runtime();
    let mut before = 0usize.runtime();
    let mut count = terms[0] as usize;
    let mut start = 0usize.runtime();
    while part < comptime!(rhs.len() as u32) {
        let (own, end) = (before + start, before + count);
        load::<L, N>(lhs, &mut lhs_tile, &numbers.lhs, &mask, 0, first_row, m, own, end, false, tiles);
        #[unroll]
        for index in 0..comptime!(rhs.len()) {
            if part == index as u32 {
                let weight = rhs[index].as_slice();
                load::<R, N>(
                    weight,
                    &mut rhs_tile,
                    &numbers.rhs,
                    &mask,
                    0,
                    first_column,
                    n,
                    start,
                    count,
                    false,
                    tiles,
                );
            }
        }
        sync_cube();
        add_products::<N>(&lhs_tile, &rhs_tile, &mut sums, tiles);
        sync_cube();
        start += Tiles::DEPTH;
        if start >= count {
            before += count;
            start = 0usize;
            part += 1;
            #[unroll]
            for next in 1..comptime!(rhs.len()) {
                if part == next as u32 {
                    count = terms[next] as usize;
                }
            }
        }
    }
    let line = numbers.line as usize;
    write::<O, N>(&sums, out, 0, line, first_row, first_column, m, n, numbers.scale, &mask, false, tiles);
}

/// The product of a matrix and a packed weight, transposed or not, in the same way.
#[cube(launch_unchecked)]
fn packed_kernel<F: Float, O: Float, N: Size>(
    lhs: &[F],
    codes: &[u32],
    scales: &[f32],
    nested: &[u32],
    map: &[f32],
    out: &mut [O],
    numbers: Numbers,
    n: u32,
    offset: f32,
    mask: Mask,
    #[comptime] form: Codes,
    #[comptime] tiles: Tiles,
    #[define(F, O)] _types: [ElemType; 2],
) {
    let mut lhs_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!(Tiles::DEPTH * tiles.quads()));
    let mut rhs_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!(Tiles::DEPTH * tiles.quads()));
    let mut table = Shared::<[f32]>::new_slice(packed::CODES);
    packed::fill(&mut table, form);
    sync_cube();
    let mut sums = no_sums::<N>(tiles);
    let (m, n, split) = (numbers.m as usize, n as usize, CUBE_POS_Z);
    let (first_row, first_column) = (CUBE_POS_Y as usize * tiles.side, CUBE_POS_X as usize * tiles.side);
    let end = min(numbers.k, (split + 1) * numbers.per_split) as usize;
    let mut start = (split * numbers.per_split) as usize;
    let quads = comptime!(tiles.quads());
    while start < end {
        load::<F, N>(lhs, &mut lhs_tile, &numbers.lhs, &mask, 0, first_row, m, start, end, false, tiles);
        #[unroll]
        for load in 0..comptime!(tiles.loads()) {
            let index = UNIT_POS as usize + load * UNITS;
            let is_along = numbers.rhs.along == 1;
            let term = select(is_along, index % Tiles::DEPTH, index / quads);
            let quad = select(is_along, index / Tiles::DEPTH, index % quads);
            let mut unpacked = Vector::<f32, N>::empty();
            #[unroll]
            for lane in 0..QUAD {
                let own = first_column + quad * QUAD + lane;
                let mut number = 0.0f32;
                if own < n && start + term < end {
                    let place = own * numbers.rhs.own as usize + (start + term) * numbers.rhs.term as usize;
                    number = packed::number(codes, scales, nested, map, &table, offset, place, form);
                }
                unpacked.insert(lane, f32::cast_from(F::cast_from(number)));
            }
            rhs_tile[term * quads + quad] = unpacked;
        }
        sync_cube();
        add_products::<N>(&lhs_tile, &rhs_tile, &mut sums, tiles);
        sync_cube();
        start += Tiles::DEPTH;
    }
    let line = numbers.line as usize;
    write::<O, N>(
        &sums,
        out,
        split as usize * m * line,
        line,
        first_row,
        first_column,
        m,
        n,
        numbers.scale,
        &mask,
        false,
        tiles,
    );
}

/// The sums of a unit, all zero.
#[cube]
fn no_sums<N: Size>(#[comptime] tiles: Tiles) -> Array<Vector<f32, N>> {
    let count = comptime!(tiles.own() * tiles.own() * QUAD);
    let mut sums = Array::<Vector<f32, N>>::new(count);
    #[unroll]
    for sum in 0..count {
        sums[sum] = Vector::new(0.0f32);
    }
    sums
}

/// Adds the products of two tiles to the sums of this unit.
#[cube]
fn add_products<N: Size>(
    lhs: &Shared<[Vector<f32, N>]>,
    rhs: &Shared<[Vector<f32, N>]>,
    sums: &mut Array<Vector<f32, N>>,
    #[comptime] tiles: Tiles,
) {
    let own = comptime!(tiles.own());
    let (row, column) = ((UNIT_POS as usize) / SIDE, (UNIT_POS as usize) % SIDE);
    for term in 0..Tiles::DEPTH {
        let line = term * comptime!(tiles.quads());
        #[unroll]
        for i in 0..own {
            let of_rows = lhs[line + row + i * SIDE];
            #[unroll]
            for j in 0..own {
                let of_columns = rhs[line + column + j * SIDE];
                #[unroll]
                for lane in 0..QUAD {
                    let sum = comptime!((i * own + j) * QUAD + lane);
                    sums[sum] = fma(Vector::new(of_rows.extract(lane)), of_columns, sums[sum]);
                }
            }
        }
    }
}

/// Writes the sums of this unit into `[m, n]` numbers of a matrix that begin at `first`, with lines of `line` numbers; or
/// adds them to what is there.
#[cube]
fn write<O: Float, N: Size>(
    sums: &Array<Vector<f32, N>>,
    out: &mut [O],
    first: usize,
    line: usize,
    first_row: usize,
    first_column: usize,
    m: usize,
    n: usize,
    scale: f32,
    mask: &Mask,
    #[comptime] onto: bool,
    #[comptime] tiles: Tiles,
) {
    let own = comptime!(tiles.own());
    let (row, column) = ((UNIT_POS as usize) / SIDE, (UNIT_POS as usize) % SIDE);
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
                        let at = first + row * line + column + place;
                        let mut value = sum.extract(place) * scale;
                        if comptime!(tiles.drops == Some(Drops::Out)) {
                            value *= mask.at((row * n + column + place) as u32);
                        }
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
    mask: &Mask,
    batch: usize,
    first: usize,
    count: usize,
    start: usize,
    end: usize,
    #[comptime] drops: bool,
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
            let place = select(inside, at + own * operand.own as usize, 0);
            let mut number = f32::cast_from(x[place]);
            if comptime!(drops) {
                // A matrix that lies in memory row by row.
                number *= mask.at(place as u32);
            }
            numbers.insert(lane, select(inside, number, 0.0f32));
        }
        tile[term * quads + quad] = numbers;
    }
}
