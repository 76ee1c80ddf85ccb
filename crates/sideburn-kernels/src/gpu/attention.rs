//! Attention on a GPU: a cube for each block of queries of each head of each row, scores in shared memory only.
//!
//! Nothing is kept between the passes but what Burn's tape keeps. The forward pass goes through the keys with a running
//! maximum (Dao et al., 2022). The backward pass does so again for the gradient of the queries, which leaves each
//! query's normaliser behind, and then through the queries for that of the keys and values.
//!
//! There are two sorts of these kernels: [`kernels`] for any GPU and any dtype, and [`cores`] for floats of 16 bits where there
//! are tensor cores.

mod cores;
mod kernels;
mod tiles;

use std::hash::Hash;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::server::Handle;
use sideburn_batch::Dropout;

use super::checked::{Outputs, checked};
use super::mask::{self, MaskLaunch};
use super::sums::sum_rows;
use super::{Primitive, accepted, contiguous, element, fresh, fresh_of};
use crate::ops::adamw::in_dtype;
use crate::ops::attention::{AttentionKernels, Columns, Form, SelfForm, Visibility};
use cores::Cores;
use kernels::bias_kernel;
use tiles::{ColumnsLaunch, LANES, SizesLaunch, Tiles, UNITS};

/// The widest head that fits into shared memory.
const WIDEST: usize = 128;

/// Sides of the largest matrices that a plane multiplies at once.
const WIDEST_MATRIX: u32 = 16;

/// What gradients of scores in `f16` are multiplied by on tensor cores: they are smaller than those of the output by the
/// weights, of which a row has hundreds.
const LIFT: u32 = 64;

/// Launches the kernel of this name of either sort.
macro_rules! launch {
    ($client:expr, $cubes:expr, $kernels:expr, $kernel:ident($($argument:expr),* $(,)?), $dtype:expr) => {
        match $kernels {
            Kernels::Plain(tiles) => {
                let dim = CubeDim::new_1d(UNITS as u32);
                kernels::$kernel::launch_unchecked($client, $cubes, dim, $($argument,)* tiles, $dtype);
            }
            Kernels::Cores(cores) => {
                let dim = CubeDim::new_1d(cores.units() as u32);
                cores::$kernel::launch_unchecked($client, $cubes, dim, $($argument,)* cores, $dtype);
            }
        }
    };
}

impl AttentionKernels for CubeBackend {
    fn try_attention(inputs: [Primitive; 4], form: &Form) -> Result<Primitive, [Primitive; 4]> {
        let inputs = accepted(inputs)?;
        let launch = Launch::new(&inputs, form);
        let sorts = launch.forward_kernels(inputs[0].dtype);
        by_first("attention", inputs[0].dtype, sorts, inputs, |inputs, kernels| launch.forward(inputs, kernels))
    }

    fn try_attention_backward(
        inputs: [Primitive; 5],
        form: &Form,
        of_bias: bool,
    ) -> Result<[Primitive; 4], [Primitive; 5]> {
        let inputs = accepted(inputs)?;
        let launch = Launch::new(&inputs, form);
        let sorts = launch.backward_kernels(inputs[0].dtype, of_bias);
        let variant = (inputs[0].dtype, of_bias);
        by_first("attention_backward", variant, sorts, inputs, |[q, k, v, bias, gradient], kernels| {
            let [of_q, of_k, of_v] = [&q, &k, &v].map(|x| fresh(x, x.shape()));
            let of_bias = launch.backward([q, k, v, bias], gradient, [&of_q, &of_k, &of_v], of_bias, kernels);
            [of_q, of_k, of_v, of_bias]
        })
    }

    fn try_self_attention(inputs: [Primitive; 3], form: &SelfForm) -> Result<Primitive, [Primitive; 3]> {
        let [qkv, bias, cos_sin] = inputs;
        let [qkv, bias] = match accepted([qkv, bias]) {
            Ok(inputs) => inputs,
            Err([qkv, bias]) => return Err([qkv, bias, cos_sin]),
        };
        let launch = Launch::of_tokens(&qkv, &cos_sin, form);
        let (dtype, sorts) = (qkv.dtype, launch.forward_kernels(qkv.dtype));
        by_first("self_attention", dtype, sorts, [qkv, bias, cos_sin], |[qkv, bias, _], kernels| {
            launch.forward([qkv.clone(), qkv.clone(), qkv, bias], kernels)
        })
    }

    fn try_self_attention_backward(
        inputs: [Primitive; 4],
        form: &SelfForm,
        of_bias: bool,
    ) -> Result<[Primitive; 2], [Primitive; 4]> {
        let [qkv, bias, cos_sin, gradient] = inputs;
        let [qkv, bias, gradient] = match accepted([qkv, bias, gradient]) {
            Ok(inputs) => inputs,
            Err([qkv, bias, gradient]) => return Err([qkv, bias, cos_sin, gradient]),
        };
        let launch = Launch::of_tokens(&qkv, &cos_sin, form);
        let (variant, sorts) = ((qkv.dtype, of_bias), launch.backward_kernels(qkv.dtype, of_bias));
        let inputs = [qkv, bias, cos_sin, gradient];
        by_first("self_attention_backward", variant, sorts, inputs, |[qkv, bias, _, gradient], kernels| {
            // Each kernel has columns of its own in it.
            let (of_qkv, inputs) = (fresh(&qkv, qkv.shape()), [qkv.clone(), qkv.clone(), qkv, bias]);
            let of_bias = launch.backward(inputs, gradient, [&of_qkv; 3], of_bias, kernels);
            [of_qkv, of_bias]
        })
    }
}

/// A sort of kernels, with what they are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kernels {
    /// For any GPU.
    Plain(Tiles),
    /// For tensor cores.
    Cores(Cores),
}

impl Kernels {
    /// Tokens that a cube computes results for.
    fn own(self) -> usize {
        match self {
            Self::Plain(tiles) | Self::Cores(Cores { tiles, .. }) => tiles.own,
        }
    }
}

/// Runs an operation by the first sort of kernels that the device can compile.
fn by_first<I: Clone, O: Outputs>(
    name: &'static str,
    variant: impl Hash,
    sorts: Vec<Kernels>,
    inputs: I,
    run: impl Fn(I, Kernels) -> O,
) -> Result<O, I> {
    sorts
        .into_iter()
        .try_fold(inputs, |inputs, kernels| {
            match checked(name, (&variant, kernels), inputs, |inputs| run(inputs, kernels)) {
                Ok(outputs) => Err(outputs),
                Err(inputs) => Ok(inputs),
            }
        })
        .map_or_else(Ok, Err)
}

/// What the launches of an attention have in common.
struct Launch<'a> {
    client: Client,
    visibility: &'a Visibility,
    biased: bool,
    dropout: Option<Dropout>,
    /// Of a head.
    width: usize,
    kv_heads: usize,
    /// Where queries, keys and values are in their matrices.
    columns: [Columns; 3],
    /// What queries are multiplied by.
    scale: f64,
    /// The angles of each token, by which queries and keys are turned.
    angles: Option<Primitive>,
}

impl<'a> Launch<'a> {
    /// Of queries, keys and values in matrices of their own.
    fn new<const N: usize>(inputs: &[Primitive; N], form: &'a Form) -> Self {
        let heads = form.visibility.heads;
        let [q, k] = [&inputs[0], &inputs[1]];
        let (columns, of_keys) = (q.shape()[1], k.shape()[1]);
        let (width, kv_heads) = (columns / heads, of_keys * heads / columns);
        let [own, seen] = [columns / kv_heads, width].map(|stride| Columns { first: 0, stride });
        Self {
            client: q.client.clone(),
            visibility: &form.visibility,
            biased: form.biased,
            dropout: form.dropout,
            width,
            kv_heads,
            columns: [own, seen, seen],
            scale: 1.0,
            angles: None,
        }
    }

    /// Of queries, keys and values side by side.
    fn of_tokens(qkv: &Primitive, cos_sin: &Primitive, SelfForm { form, projections, rotary }: &'a SelfForm) -> Self {
        let heads = form.visibility.heads;
        let width = projections.width(heads, qkv.shape()[1]);
        Self {
            client: qkv.client.clone(),
            visibility: &form.visibility,
            biased: form.biased,
            dropout: form.dropout,
            width,
            kv_heads: projections.kv_heads,
            columns: projections.columns(heads, width),
            scale: projections.scale,
            angles: rotary.then(|| contiguous(in_dtype::<CubeBackend>(cos_sin.clone(), DType::F32))),
        }
    }

    fn forward(&self, [q, k, v, bias]: [Primitive; 4], kernels: Kernels) -> Primitive {
        let dtype = element(&q);
        let out = fresh(&q, [q.shape()[0], self.visibility.heads * self.width]);
        // SAFETY: cubes beyond a row stop at once, and units read and write tokens of their row only, which
        // `visibility` has been checked to have, and columns of the bias for keys that are seen, which it has as well.
        unsafe {
            launch!(
                &self.client,
                self.cubes(self.visibility.queries.columns().div_ceil(kernels.own()), self.visibility.heads),
                kernels,
                forward_kernel(
                    q.into_tensor_arg(),
                    k.into_tensor_arg(),
                    v.into_tensor_arg(),
                    bias.into_tensor_arg(),
                    self.angles(),
                    self.rows_argument(self.rows()),
                    out.clone().into_tensor_arg(),
                    self.sizes(),
                    self.mask(),
                ),
                dtype
            );
        }
        out
    }

    /// Writes the gradients of queries, keys and values, and gives that of the bias if it is wanted.
    fn backward(
        &self,
        [q, k, v, bias]: [Primitive; 4],
        gradient: Primitive,
        [of_q, of_k, of_v]: [&Primitive; 3],
        of_bias: bool,
        kernels: Kernels,
    ) -> Primitive {
        let (dtype, visibility) = (element(&q), self.visibility);
        let queries = visibility.queries.rows() * visibility.heads * visibility.queries.columns();
        let [normalisers, pulls] = [(); 2].map(|()| fresh_of(&q, [queries], DType::F32));
        let rows = self.rows();
        // SAFETY: as above. Each query of a row has a place of its own in `normalisers` and `pulls`.
        unsafe {
            launch!(
                &self.client,
                self.cubes(visibility.queries.columns().div_ceil(kernels.own()), visibility.heads),
                kernels,
                queries_kernel(
                    q.clone().into_tensor_arg(),
                    k.clone().into_tensor_arg(),
                    v.clone().into_tensor_arg(),
                    bias.clone().into_tensor_arg(),
                    self.angles(),
                    gradient.clone().into_tensor_arg(),
                    self.rows_argument(rows.clone()),
                    of_q.clone().into_tensor_arg(),
                    normalisers.clone().into_buffer_arg(),
                    pulls.clone().into_buffer_arg(),
                    self.sizes(),
                    self.mask(),
                ),
                dtype
            );
            launch!(
                &self.client,
                self.cubes(visibility.keys.columns().div_ceil(kernels.own()), self.kv_heads),
                kernels,
                keys_kernel(
                    q.clone().into_tensor_arg(),
                    k.clone().into_tensor_arg(),
                    v.clone().into_tensor_arg(),
                    bias.clone().into_tensor_arg(),
                    self.angles(),
                    gradient.clone().into_tensor_arg(),
                    self.rows_argument(rows.clone()),
                    of_k.clone().into_tensor_arg(),
                    of_v.clone().into_tensor_arg(),
                    normalisers.clone().into_buffer_arg(),
                    pulls.clone().into_buffer_arg(),
                    self.sizes(),
                    self.mask(),
                ),
                dtype
            );
        }
        if !of_bias {
            return bias;
        }
        let partial = fresh_of(&q, [visibility.queries.rows(), visibility.heads * bias.meta.shape()[1]], DType::F32);
        // SAFETY: as above. Each row and head has a place of its own in `partial`.
        unsafe {
            bias_kernel::launch_unchecked(
                &self.client,
                self.cubes(1, visibility.heads),
                CubeDim::new_1d(UNITS as u32),
                q.into_tensor_arg(),
                k.into_tensor_arg(),
                v.into_tensor_arg(),
                bias.clone().into_tensor_arg(),
                self.angles(),
                gradient.into_tensor_arg(),
                self.rows_argument(rows),
                partial.clone().into_buffer_arg(),
                normalisers.into_buffer_arg(),
                pulls.into_buffer_arg(),
                self.sizes(),
                self.mask(),
                self.backward_tiles(),
                dtype,
            );
        }
        sum_rows(partial, &bias, bias.shape())
    }

    /// Queries that a cube takes at once, and keys. Few queries, as in decoding, make small blocks.
    fn forward_tiles(&self) -> Tiles {
        let keys = if self.width <= WIDEST / 2 { 32 } else { 16 };
        self.tiles(if self.visibility.queries.columns() <= LANES { [LANES, keys] } else { [32, keys] })
    }

    /// The same of the backward pass, which has more tiles to keep.
    fn backward_tiles(&self) -> Tiles {
        self.tiles(if self.width <= WIDEST / 2 { [32, 16] } else { [16, 8] })
    }

    fn tiles(&self, [own, others]: [usize; 2]) -> Tiles {
        Tiles {
            width: self.width,
            own,
            others,
            causal: self.visibility.causal,
            at_end: self.visibility.at_end,
            together: self.visibility.heads / self.kv_heads,
            biased: self.biased,
            by_place: self.biased && self.visibility.bias_by_place,
            turned: self.angles.is_some(),
            drops: self.dropout.is_some(),
            aligned: self.visibility.keys.columns().is_multiple_of(Dropout::ELEMENTS_PER_DRAW),
        }
    }

    /// Kernels of the forward pass, the fastest first.
    fn forward_kernels(&self, dtype: DType) -> Vec<Kernels> {
        let (tiles, cores) = (self.forward_tiles(), self.cores(dtype, Cores::forward_bytes));
        let plain = self.fits(tiles).then_some(Kernels::Plain(tiles));
        cores.into_iter().chain(plain).collect()
    }

    /// The same of the backward pass. A bias by place is summed in other ways, and hardly ever trained; one by distance is
    /// summed by a plain kernel.
    fn backward_kernels(&self, dtype: DType, of_bias: bool) -> Vec<Kernels> {
        let (tiles, cores) = (self.backward_tiles(), self.cores(dtype, Cores::backward_bytes));
        let is_plain = self.fits(tiles);
        if of_bias && (tiles.by_place || tiles.at_end || !is_plain) {
            return Vec::new();
        }
        cores.into_iter().chain(is_plain.then_some(Kernels::Plain(tiles))).collect()
    }

    /// Kernels for tensor cores, if there are some for this dtype, and queries to fill them.
    fn cores(&self, dtype: DType, bytes: fn(Cores) -> usize) -> Option<Kernels> {
        let (properties, f32) = (self.client.properties(), ElemType::Float(FloatKind::F32));
        let hardware = &properties.hardware;
        let element = super::float(dtype).filter(|_| dtype != DType::F32)?;
        let taken = properties.features.matmul.cmma.iter().filter(|config| {
            let is_square = config.m == config.n && config.m <= WIDEST_MATRIX && config.k <= WIDEST_MATRIX;
            is_square && [config.a_type, config.b_type, config.cd_type] == [element, element, f32]
        });
        let config = taken.max_by_key(|config| (config.m, config.k))?;
        let is_known = hardware.plane_size_min == hardware.plane_size_max;
        if !is_known || self.visibility.queries.columns() <= LANES {
            return None;
        }
        let (side, depth) = (config.m as usize, config.k as usize);
        let lift = if dtype == DType::F16 { LIFT } else { 1 };
        let of_others = |others| {
            let tiles = self.tiles([Cores::own(side), others]);
            Cores { tiles, side, depth, plane: hardware.plane_size_max as usize, lift }
        };
        let fits = |cores: &Cores| {
            self.are_taken(cores.tiles)
                && cores.fit()
                && bytes(*cores) <= hardware.max_shared_memory_size
                && cores.units() as u32 <= hardware.max_units_per_cube
        };
        [32, 16].into_iter().map(of_others).find(fits).map(Kernels::Cores)
    }

    /// Whether the plain kernels take the shapes, and the device has what they need.
    fn fits(&self, tiles: Tiles) -> bool {
        let hardware = &self.client.properties().hardware;
        self.are_taken(tiles)
            // A unit has both elements of each pair.
            && (!tiles.turned || self.width.is_multiple_of(2 * LANES))
            && tiles.shared_bytes() <= hardware.max_shared_memory_size
            && UNITS as u32 <= hardware.max_units_per_cube
    }

    /// Whether heads, keys and bias are as the kernels take them, and the indices of the mask are 32 bits.
    fn are_taken(&self, tiles: Tiles) -> bool {
        let (queries, keys) = (&self.visibility.queries, &self.visibility.keys);
        let weights = [queries.rows(), self.visibility.heads, queries.columns(), keys.columns()];
        self.width <= WIDEST
            && keys.scattered_row(0).is_none()
            && !(tiles.at_end && tiles.biased && !tiles.by_place)
            && weights.iter().map(|size| *size as u64).product::<u64>() < 1 << 32
    }

    /// A cube for each block of each head of each row.
    fn cubes(&self, blocks: usize, heads: usize) -> CubeCount {
        CubeCount::Static(blocks as u32, heads as u32, self.visibility.queries.rows() as u32)
    }

    /// For queries and keys of each row, where they begin, how many there are, and how many places they have.
    fn rows(&self) -> Handle {
        let places = |layout: &crate::RowLayout, row: usize| {
            let tokens = layout.row(row);
            [tokens.start as u32, tokens.len() as u32, layout.places(row) as u32]
        };
        let of_row = |row| [places(&self.visibility.queries, row), places(&self.visibility.keys, row)].concat();
        let rows: Vec<u32> = (0..self.visibility.queries.rows()).flat_map(of_row).collect();
        self.client.create_from_slice(u32::as_bytes(&rows))
    }

    fn rows_argument(&self, rows: Handle) -> BufferArg {
        // SAFETY: these are as many numbers as `rows` wrote.
        unsafe { BufferArg::from_raw_parts(rows, 6 * self.visibility.queries.rows()) }
    }

    fn angles(&self) -> SequenceArg<OwnedTensor<f32>> {
        self.angles.iter().map(|angles| angles.clone().into_tensor_arg()).collect()
    }

    fn sizes(&self) -> SizesLaunch {
        let Visibility { heads, queries, keys, first_query, bias_origin, .. } = self.visibility;
        let [q, k, v] = self.columns.map(|Columns { first, stride }| ColumnsLaunch::new(first as u32, stride as u32));
        SizesLaunch::new(
            queries.columns() as u32,
            keys.columns() as u32,
            *first_query as u32,
            bias_origin.saturating_sub(*first_query) as u32,
            *heads as u32,
            self.scale as f32,
            q,
            k,
            v,
        )
    }

    fn mask(&self) -> MaskLaunch {
        mask::argument(self.dropout)
    }
}
