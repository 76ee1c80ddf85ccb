//! Attention on a GPU: a cube for each block of queries of each head of each row, scores in shared memory only.
//!
//! Nothing is kept between the passes but what Burn's tape keeps. The forward pass goes through the keys with a running
//! maximum (Dao et al., 2022). The backward pass does so again for the gradient of the queries, which leaves each
//! query's normaliser behind, and then through the queries for that of the keys and values.

mod kernels;
mod tiles;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::server::Handle;
use sideburn_batch::Dropout;

use super::checked::checked;
use super::mask::{self, MaskLaunch};
use super::sums::sum_rows;
use super::{Primitive, accepted, contiguous, element, fresh, fresh_of};
use crate::ops::adamw::in_dtype;
use crate::ops::attention::{AttentionKernels, Columns, Form, SelfForm, Visibility};
use kernels::{bias_kernel, forward_kernel, keys_kernel, queries_kernel};
use tiles::{ColumnsLaunch, LANES, SizesLaunch, Tiles, UNITS};

/// The widest head that fits into shared memory.
const WIDEST: usize = 128;

impl AttentionKernels for CubeBackend {
    fn try_attention(inputs: [Primitive; 4], form: &Form) -> Result<Primitive, [Primitive; 4]> {
        let inputs = accepted(inputs)?;
        let launch = Launch::new(&inputs, form);
        let tiles = launch.forward_tiles();
        if !launch.fits(tiles) {
            return Err(inputs);
        }
        checked("attention", (inputs[0].dtype, tiles), inputs, |inputs| launch.forward(inputs))
    }

    fn try_attention_backward(
        inputs: [Primitive; 5],
        form: &Form,
        of_bias: bool,
    ) -> Result<[Primitive; 4], [Primitive; 5]> {
        let inputs = accepted(inputs)?;
        let launch = Launch::new(&inputs, form);
        if !launch.fits_backward(of_bias) {
            return Err(inputs);
        }
        let variant = (inputs[0].dtype, launch.backward_tiles(), of_bias);
        checked("attention_backward", variant, inputs, |[q, k, v, bias, gradient]| {
            let [of_q, of_k, of_v] = [&q, &k, &v].map(|x| fresh(x, x.shape()));
            let of_bias = launch.backward([q, k, v, bias], gradient, [&of_q, &of_k, &of_v], of_bias);
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
        let tiles = launch.forward_tiles();
        if !launch.fits(tiles) {
            return Err([qkv, bias, cos_sin]);
        }
        checked("self_attention", (qkv.dtype, tiles), [qkv, bias, cos_sin], |[qkv, bias, _]| {
            launch.forward([qkv.clone(), qkv.clone(), qkv, bias])
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
        if !launch.fits_backward(of_bias) {
            return Err([qkv, bias, cos_sin, gradient]);
        }
        let (variant, inputs) = ((qkv.dtype, launch.backward_tiles(), of_bias), [qkv, bias, cos_sin, gradient]);
        checked("self_attention_backward", variant, inputs, |[qkv, bias, _, gradient]| {
            // Each kernel has columns of its own in it.
            let of_qkv = fresh(&qkv, qkv.shape());
            let of_bias = launch.backward([qkv.clone(), qkv.clone(), qkv, bias], gradient, [&of_qkv; 3], of_bias);
            [of_qkv, of_bias]
        })
    }
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

    fn forward(&self, [q, k, v, bias]: [Primitive; 4]) -> Primitive {
        let (tiles, dtype) = (self.forward_tiles(), element(&q));
        let out = fresh(&q, [q.shape()[0], self.visibility.heads * self.width]);
        // SAFETY: cubes beyond a row stop at once, and units read and write tokens of their row only, which
        // `visibility` has been checked to have, and columns of the bias for keys that are seen, which it has as well.
        unsafe {
            forward_kernel::launch_unchecked(
                &self.client,
                self.cubes(self.visibility.queries.columns().div_ceil(tiles.own), self.visibility.heads),
                CubeDim::new_1d(UNITS as u32),
                q.into_tensor_arg(),
                k.into_tensor_arg(),
                v.into_tensor_arg(),
                bias.into_tensor_arg(),
                self.angles(),
                self.rows_argument(self.rows()),
                out.clone().into_tensor_arg(),
                self.sizes(),
                self.mask(),
                tiles,
                dtype,
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
    ) -> Primitive {
        let (tiles, dtype, visibility) = (self.backward_tiles(), element(&q), self.visibility);
        let queries = visibility.queries.rows() * visibility.heads * visibility.queries.columns();
        let [normalisers, pulls] = [(); 2].map(|()| fresh_of(&q, [queries], DType::F32));
        let (rows, dim) = (self.rows(), CubeDim::new_1d(UNITS as u32));
        // SAFETY: as above. Each query of a row has a place of its own in `normalisers` and `pulls`.
        unsafe {
            queries_kernel::launch_unchecked(
                &self.client,
                self.cubes(visibility.queries.columns().div_ceil(tiles.own), visibility.heads),
                dim,
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
                tiles,
                dtype,
            );
            keys_kernel::launch_unchecked(
                &self.client,
                self.cubes(visibility.keys.columns().div_ceil(tiles.own), self.kv_heads),
                dim,
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
                tiles,
                dtype,
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
                dim,
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
                tiles,
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

    /// Whether heads, keys and bias are as the kernels take them, the device has what they need, and the indices of the mask
    /// are 32 bits.
    fn fits(&self, tiles: Tiles) -> bool {
        let hardware = &self.client.properties().hardware;
        let (queries, keys) = (&self.visibility.queries, &self.visibility.keys);
        let weights = [queries.rows(), self.visibility.heads, queries.columns(), keys.columns()];
        self.width <= WIDEST
            && keys.scattered_row(0).is_none()
            && !(tiles.at_end && tiles.biased && !tiles.by_place)
            // A unit has both elements of each pair.
            && (!tiles.turned || self.width.is_multiple_of(2 * LANES))
            && tiles.shared_bytes() <= hardware.max_shared_memory_size
            && UNITS as u32 <= hardware.max_units_per_cube
            && weights.iter().map(|size| *size as u64).product::<u64>() < 1 << 32
    }

    /// The same of the backward pass. A bias by place is summed in other ways, and hardly ever trained.
    fn fits_backward(&self, of_bias: bool) -> bool {
        let tiles = self.backward_tiles();
        self.fits(tiles) && !(of_bias && (tiles.by_place || tiles.at_end))
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
