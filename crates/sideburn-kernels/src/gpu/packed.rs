//! Packed weights on a GPU: unpacked number by number, into a matrix or on the way into a product's shared memory.

use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::{CubeBackend, cubecl};
use sideburn_quant::{FourBit, QuantType};

use super::{Primitive, accepted, contiguous, float, fresh_of, shared_out};
use crate::ops::matmul::Packed;
use crate::ops::packed::{Kind, Layout, Parts};

/// Numbers that there are of 4 bits.
pub(super) const CODES: usize = 16;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Codes {
    /// The numbers that 4 bits stand for; without them, codes are integers of 8 bits.
    quant_type: Option<QuantType>,
    /// Codes that share a scale: of a block, or of a row.
    block_size: usize,
    /// Whether scales are in 8 bits themselves.
    nested: bool,
    /// Whether codes are scaled at all.
    scaled: bool,
}

impl Codes {
    pub(super) fn new(layout: &Layout, scaled: bool) -> Self {
        let (quant_type, block_size) = match layout.form.kind {
            Kind::FourBit { quant_type, block_size } => (Some(quant_type), block_size),
            Kind::Int8 { .. } => (None, layout.form.shape[1]),
        };
        Self { quant_type, block_size, nested: layout.offset.is_some(), scaled }
    }
}

/// Arguments of a kernel that reads a packed weight: codes, scales, nested codes and map, in row-major order.
pub(super) fn arguments(Parts { codes, scales, nested, map, .. }: Packed<CubeBackend>) -> [BufferArg; 4] {
    [codes, scales, nested, map].map(|x| contiguous(x).into_buffer_arg())
}

/// Whether a weight can be read: in words, with scales in `f32`, and fewer codes than 32 bits count.
pub(super) fn is_taken(weight: &Packed<CubeBackend>) -> bool {
    let [out, input] = weight.layout.form.shape;
    weight.layout.form.in_words
        && weight.codes.dtype == DType::I32
        && ((out * input) as u64) < 1 << 32
        && accepted([weight.scales.clone(), weight.map.clone()]).is_ok_and(|[scales, _]| scales.dtype == DType::F32)
}

/// The weight as floats `[out, in]` in a dtype that kernels take.
pub(super) fn unpack(weight: Packed<CubeBackend>, dtype: DType, scaled: bool) -> Primitive {
    let layout = weight.layout;
    let [out, input] = layout.form.shape;
    let (client, floats) = (weight.codes.client.clone(), fresh_of(&weight.codes, [out, input], dtype));
    let words = (out * input).div_ceil(if Codes::new(&layout, scaled).quant_type.is_some() { 8 } else { 4 });
    let (cubes, dim) = shared_out(&client, words);
    let [codes, scales, nested, map] = arguments(weight);
    // SAFETY: units beyond the words stop at once, and the others write codes that there are.
    unsafe {
        unpack_kernel::launch_unchecked(
            &client,
            cubes,
            dim,
            codes,
            scales,
            nested,
            map,
            floats.clone().into_buffer_arg(),
            words as u32,
            layout.offset.unwrap_or_default(),
            Codes::new(&layout, scaled),
            float(dtype).expect("a dtype that the kernels take"),
        );
    }
    floats
}

#[cube(launch_unchecked)]
fn unpack_kernel<F: Float>(
    codes: &[u32],
    scales: &[f32],
    nested: &[u32],
    map: &[f32],
    floats: &mut [F],
    words: u32,
    offset: f32,
    #[comptime] form: Codes,
    #[define(F)] _dtype: ElemType,
) {
    let mut table = Shared::<[f32]>::new_slice(CODES);
    fill(&mut table, form);
    sync_cube();
    if ABSOLUTE_POS >= words as usize {
        terminate!();
    }
    let in_word = comptime!(if form.quant_type.is_some() { 8usize } else { 4 });
    #[unroll]
    for place in 0..in_word {
        let index = ABSOLUTE_POS * in_word + place;
        if index < floats.len() {
            floats[index] = F::cast_from(number(codes, scales, nested, map, &table, offset, index, form));
        }
    }
}

/// Puts the numbers that 4 bits stand for into memory that the cube shares.
#[cube]
pub(super) fn fill(table: &mut Shared<[f32]>, #[comptime] form: Codes) {
    if comptime!(form.quant_type.is_some()) {
        #[unroll]
        for code in 0..CODES {
            if UNIT_POS == code as u32 {
                table[code] = f32::new(comptime!(form.quant_type.map_or(0.0, |quant_type| quant_type.code()[code])));
            }
        }
    }
}

/// The number with this index, from row to row.
#[cube]
pub(super) fn number(
    codes: &[u32],
    scales: &[f32],
    nested: &[u32],
    map: &[f32],
    table: &Shared<[f32]>,
    offset: f32,
    index: usize,
    #[comptime] form: Codes,
) -> f32 {
    let mut value = if comptime!(form.quant_type.is_some()) {
        // Of a byte the upper half comes first.
        let shift = (index / 2 % 4 * 8 + (1 - index % 2) * 4) as u32;
        table[((codes[index / 8] >> shift) & 15) as usize]
    } else {
        let byte = byte_at(codes, index);
        f32::cast_from(byte) - select(byte >= 128, 256.0f32, 0.0f32)
    };
    if comptime!(form.scaled) {
        let block = index / form.block_size;
        value *= if comptime!(form.nested) {
            let rest = map[byte_at(nested, block) as usize];
            rest * scales[block / comptime!(FourBit::NESTED_BLOCK_SIZE)] + offset
        } else {
            scales[block]
        };
        if comptime!(form.quant_type.is_none()) {
            value *= comptime!(1.0f32 / 127.0);
        }
    }
    value
}

#[cube]
fn byte_at(words: &[u32], index: usize) -> u32 {
    (words[index / 4] >> ((index % 4 * 8) as u32)) & 255
}
