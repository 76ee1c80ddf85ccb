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

use super::mask::{self, MaskLaunch};
use super::sums::sum_rows;
use super::{Primitive, accepted, element, fresh, fresh_of};
use crate::ops::attention::{AttentionKernels, Form};
use kernels::{bias_kernel, forward_kernel, keys_kernel, queries_kernel};
use tiles::{LANES, SizesLaunch, Tiles, UNITS};

/// The widest head that fits into shared memory.
const WIDEST: usize = 128;

impl AttentionKernels for CubeBackend {
    fn try_attention(inputs: [Primitive; 4], form: &Form) -> Result<Primitive, [Primitive; 4]> {
        if form.visibility.keys.scattered_row(0).is_some() {
            return Err(inputs);
        }
        let [q, k, v, bias] = accepted(inputs)?;
        let (launch, visibility) = (Launch::new(&q, &k, form), &form.visibility);
        let tiles = launch.tiles(launch.forward_tiles());
        if !launch.fits(tiles) {
            return Err([q, k, v, bias]);
        }
        let (out, dtype) = (fresh(&q, q.shape()), element(&q));
        let (rows, client) = (launch.rows(), q.client.clone());
        // SAFETY: cubes beyond a row stop at once, and units read and write tokens of their row only, which
        // `visibility` has been checked to have, and columns of the bias for keys that are seen, which it has as well.
        unsafe {
            forward_kernel::launch_unchecked(
                &client,
                launch.cubes(visibility.queries.columns().div_ceil(tiles.own)),
                CubeDim::new_1d(UNITS as u32),
                q.into_tensor_arg(),
                k.into_tensor_arg(),
                v.into_tensor_arg(),
                bias.into_tensor_arg(),
                launch.rows_argument(rows),
                out.clone().into_tensor_arg(),
                launch.sizes(),
                launch.mask(),
                tiles,
                dtype,
            );
        }
        Ok(out)
    }

    fn try_attention_backward(
        inputs: [Primitive; 5],
        form: &Form,
        of_bias: bool,
    ) -> Result<[Primitive; 4], [Primitive; 5]> {
        let [q, k, v, bias, gradient] = accepted(inputs)?;
        let (launch, visibility) = (Launch::new(&q, &k, form), &form.visibility);
        let tiles = launch.tiles(launch.backward_tiles());
        if !launch.fits(tiles) {
            return Err([q, k, v, bias, gradient]);
        }
        let (client, dtype) = (q.client.clone(), element(&q));
        let [of_q, of_k, of_v] = [&q, &k, &v].map(|x| fresh(x, x.shape()));
        let queries = visibility.queries.rows() * visibility.heads * visibility.queries.columns();
        let [normalisers, pulls] = [(); 2].map(|()| fresh_of(&q, [queries], DType::F32));
        let (rows, dim) = (launch.rows(), CubeDim::new_1d(UNITS as u32));
        let blocks = |columns: usize| launch.cubes(columns.div_ceil(tiles.own));
        // SAFETY: as above. Each query of a row has a place of its own in `normalisers` and `pulls`.
        unsafe {
            queries_kernel::launch_unchecked(
                &client,
                blocks(visibility.queries.columns()),
                dim,
                q.clone().into_tensor_arg(),
                k.clone().into_tensor_arg(),
                v.clone().into_tensor_arg(),
                bias.clone().into_tensor_arg(),
                gradient.clone().into_tensor_arg(),
                launch.rows_argument(rows.clone()),
                of_q.clone().into_tensor_arg(),
                normalisers.clone().into_buffer_arg(),
                pulls.clone().into_buffer_arg(),
                launch.sizes(),
                launch.mask(),
                tiles,
                dtype,
            );
            keys_kernel::launch_unchecked(
                &client,
                blocks(visibility.keys.columns()),
                dim,
                q.clone().into_tensor_arg(),
                k.clone().into_tensor_arg(),
                v.clone().into_tensor_arg(),
                bias.clone().into_tensor_arg(),
                gradient.clone().into_tensor_arg(),
                launch.rows_argument(rows.clone()),
                of_k.clone().into_tensor_arg(),
                of_v.clone().into_tensor_arg(),
                normalisers.clone().into_buffer_arg(),
                pulls.clone().into_buffer_arg(),
                launch.sizes(),
                launch.mask(),
                tiles,
                dtype,
            );
        }
        let of_bias = match of_bias {
            false => bias,
            true => {
                let width = visibility.heads * bias.meta.shape()[1];
                let partial = fresh_of(&q, [visibility.queries.rows(), width], DType::F32);
                // SAFETY: as above. Each row and head has a place of its own in `partial`.
                unsafe {
                    bias_kernel::launch_unchecked(
                        &client,
                        launch.cubes(1),
                        dim,
                        q.into_tensor_arg(),
                        k.into_tensor_arg(),
                        v.into_tensor_arg(),
                        bias.clone().into_tensor_arg(),
                        gradient.into_tensor_arg(),
                        launch.rows_argument(rows),
                        partial.clone().into_buffer_arg(),
                        normalisers.into_buffer_arg(),
                        pulls.into_buffer_arg(),
                        launch.sizes(),
                        launch.mask(),
                        tiles,
                        dtype,
                    );
                }
                sum_rows(partial, &bias, bias.shape())
            }
        };
        Ok([of_q, of_k, of_v, of_bias])
    }
}

/// What the launches of an attention have in common.
struct Launch<'a> {
    client: Client,
    form: &'a Form,
    width: usize,
    /// Whether each head of the queries has one of the keys.
    each_its_own: bool,
}

impl<'a> Launch<'a> {
    fn new(q: &Primitive, k: &Primitive, form: &'a Form) -> Self {
        let (own, seen) = (q.shape()[1], k.shape()[1]);
        Self { client: q.client.clone(), form, width: own / form.visibility.heads, each_its_own: own == seen }
    }

    /// Queries that a cube takes at once, and keys. Few queries, as in decoding, make small blocks.
    fn forward_tiles(&self) -> [usize; 2] {
        let keys = if self.width <= WIDEST / 2 { 32 } else { 16 };
        if self.form.visibility.queries.columns() <= LANES { [LANES, keys] } else { [32, keys] }
    }

    /// The same of the backward pass, which has more tiles to keep.
    fn backward_tiles(&self) -> [usize; 2] {
        if self.width <= WIDEST / 2 { [32, 16] } else { [16, 8] }
    }

    fn tiles(&self, [own, others]: [usize; 2]) -> Tiles {
        Tiles {
            width: self.width,
            own,
            others,
            causal: self.form.visibility.causal,
            biased: self.form.biased,
            drops: self.form.dropout.is_some(),
            aligned: self.form.visibility.keys.columns().is_multiple_of(Dropout::ELEMENTS_PER_DRAW),
        }
    }

    /// Whether heads and bias are as the kernels take them, the device has what they need, and the indices of the mask 32 bits.
    fn fits(&self, tiles: Tiles) -> bool {
        let hardware = &self.client.properties().hardware;
        let (queries, keys) = (&self.form.visibility.queries, &self.form.visibility.keys);
        let weights = [queries.rows(), self.form.visibility.heads, queries.columns(), keys.columns()];
        self.width <= WIDEST
            && self.each_its_own
            && !(tiles.biased && self.form.visibility.bias_by_place)
            && !self.form.visibility.at_end
            && tiles.shared_bytes() <= hardware.max_shared_memory_size
            && UNITS as u32 <= hardware.max_units_per_cube
            && weights.iter().map(|size| *size as u64).product::<u64>() < 1 << 32
    }

    /// A cube for each block of each head of each row.
    fn cubes(&self, blocks: usize) -> CubeCount {
        CubeCount::Static(blocks as u32, self.form.visibility.heads as u32, self.form.visibility.queries.rows() as u32)
    }

    /// For queries and keys of each row, where they begin, how many there are, and how many places they have.
    fn rows(&self) -> Handle {
        let places = |layout: &crate::RowLayout, row: usize| {
            let tokens = layout.row(row);
            [tokens.start as u32, tokens.len() as u32, layout.places(row) as u32]
        };
        let of_row =
            |row| [places(&self.form.visibility.queries, row), places(&self.form.visibility.keys, row)].concat();
        let rows: Vec<u32> = (0..self.form.visibility.queries.rows()).flat_map(of_row).collect();
        self.client.create_from_slice(u32::as_bytes(&rows))
    }

    fn rows_argument(&self, rows: Handle) -> BufferArg {
        // SAFETY: these are as many numbers as `rows` wrote.
        unsafe { BufferArg::from_raw_parts(rows, 6 * self.form.visibility.queries.rows()) }
    }

    fn sizes(&self) -> SizesLaunch {
        SizesLaunch::new(
            self.form.visibility.queries.columns() as u32,
            self.form.visibility.keys.columns() as u32,
            self.form.visibility.first_query as u32,
            (self.form.visibility.bias_origin - self.form.visibility.first_query.min(self.form.visibility.bias_origin))
                as u32,
        )
    }

    fn mask(&self) -> MaskLaunch {
        mask::argument(self.form.dropout)
    }
}
