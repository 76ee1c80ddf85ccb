//! AdamW and the norm of many tensors on a GPU: one launch for as many tensors as it can bind.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::{CubeBackend, cubecl};

use super::checked::{Outputs, checked};
use super::sums::sum_of_cube;
use super::{Primitive, UNITS, accepted, contiguous, cube_each, element, fresh, fresh_of, shared_out, together};
use crate::ops::adamw::{AdamWStep, Coefficients, OptimizerKernels, in_dtype};
use crate::ops::many::Many;

/// Elements of a tensor that are worth a cube of their own in a sum, and the most cubes that a tensor has.
const LARGE: usize = 1 << 16;
const CUBES: usize = 256;

/// The most tensors that a launch goes through, for each of which a kernel has code of its own.
const TENSORS: usize = 16;

impl OptimizerKernels for CubeBackend {
    fn try_steps(
        inputs: [Many<Self>; 4],
        scale: &Primitive,
        steps: &[AdamWStep],
    ) -> Result<[Many<Self>; 3], [Many<Self>; 4]> {
        let [parameters, gradients, firsts, seconds] = inputs.map(|many| many.0);
        let tensors = parameters.into_iter().zip(gradients).zip(firsts).zip(seconds);
        let tensors: Vec<[Primitive; 4]> = tensors.map(|(((p, g), m), v)| [p, g, m, v]).collect();
        let made = match tensors.iter().all(|tensors| accepted(tensors.clone()).is_ok()) {
            true => {
                checked("adamw_steps", tensors[0][0].dtype, tensors, |tensors| Updated::make(tensors, scale, steps))
            }
            false => Err(tensors),
        };
        let columns = |tensors: Vec<[Primitive; 4]>| {
            let mut many = [(); 4].map(|()| Many(Vec::with_capacity(tensors.len())));
            tensors.into_iter().for_each(|tensors| many.iter_mut().zip(tensors).for_each(|(many, x)| many.0.push(x)));
            many
        };
        made.map(|updated| updated.0).map_err(columns)
    }

    fn try_norm(tensors: Many<Self>) -> Result<Primitive, Many<Self>> {
        if !tensors.0.iter().all(|x| accepted([x.clone()]).is_ok()) {
            return Err(tensors);
        }
        checked("norm", tensors.0[0].dtype, tensors, |tensors| norm(tensors.0))
    }
}

/// The norm of tensors that the kernels take.
fn norm(tensors: Vec<Primitive>) -> Primitive {
    let tensors: Vec<Primitive> = tensors.into_iter().map(contiguous).collect();
    let cubes = |x: &Primitive| x.shape().num_elements().div_ceil(LARGE).min(CUBES);
    let all: usize = tensors.iter().map(cubes).sum();
    let sums = fresh_of(&tensors[0], [all], DType::F32);
    let mut first = 0;
    for group in groups(&tensors, most_tensors(&sums, 1), |x| x.dtype) {
        let (client, dtype) = (sums.client.clone(), element(&tensors[group[0]]));
        let own = || group.iter().map(|index| &tensors[*index]);
        let of_group = own().map(cubes).sum();
        let (count, dim) = cube_each(&client, of_group);
        // SAFETY: cubes beyond those of the group stop at once, units stay within the elements of a tensor, and each
        // cube of each group has a place of its own in `sums`.
        unsafe {
            squares_kernel::launch_unchecked(
                &client,
                count,
                dim,
                own().map(|x| x.clone().into_tensor_arg()).collect(),
                own().map(|x| cubes(x) as u32).collect(),
                sums.clone().into_buffer_arg(),
                first as u32,
                of_group as u32,
                dtype,
            );
        }
        first += of_group;
    }
    let (client, norm) = (sums.client.clone(), fresh(&sums, [1]));
    let (count, dim) = cube_each(&client, 1);
    // SAFETY: units stay within the sums.
    unsafe {
        norm_kernel::launch_unchecked(&client, count, dim, sums.into_buffer_arg(), norm.clone().into_buffer_arg());
    }
    norm
}

/// How many tensors a launch can take, if each needs this many bindings.
fn most_tensors(like: &Primitive, bindings: usize) -> usize {
    // Some are for numbers, for what all tensors share, and for shapes.
    let free = (like.client.properties().hardware.max_bindings as usize).saturating_sub(4);
    (free / bindings).clamp(1, TENSORS)
}

/// The indices of items, those with one kind together and at most `most` in a group, in their order.
fn groups<T, K: PartialEq>(items: &[T], most: usize, kind: impl Fn(&T) -> K) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let has_room = |group: &&mut Vec<usize>| group.len() < most && kind(&items[group[0]]) == kind(item);
        match groups.iter_mut().find(has_room) {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    groups
}

/// Parameters and moments after updates.
struct Updated([Many<CubeBackend>; 3]);

impl Updated {
    fn make(tensors: Vec<[Primitive; 4]>, scale: &Primitive, steps: &[AdamWStep]) -> Self {
        let scale = in_dtype::<CubeBackend>(scale.clone(), DType::F32);
        let updates: Vec<Update> = tensors.into_iter().zip(steps).map(|(x, step)| Update::new(x, step)).collect();
        let most = most_tensors(&scale, Update::BINDINGS);
        for group in groups(&updates, most, |update| (update.parameter.dtype, update.vector, update.out.is_some())) {
            Update::launch(group.iter().map(|index| &updates[*index]), &scale);
        }
        let mut updated = [(); 3].map(|()| Many(Vec::with_capacity(updates.len())));
        for Update { parameter, first, second, out, .. } in updates {
            updated.iter_mut().zip([out.unwrap_or(parameter), first, second]).for_each(|(many, x)| many.0.push(x));
        }
        Self(updated)
    }
}

impl Outputs for Updated {
    fn outputs(&self) -> Vec<&Primitive> {
        self.0[0].0.iter().collect()
    }
}

/// One update, of tensors in row-major order.
struct Update {
    parameter: Primitive,
    gradient: Primitive,
    first: Primitive,
    second: Primitive,
    /// Where the new parameter goes, unless it takes the place of the old one.
    out: Option<Primitive>,
    /// Elements that a unit takes at once.
    vector: usize,
    coefficients: Coefficients,
}

impl Update {
    const BINDINGS: usize = 5;

    fn new([parameter, gradient, first, second]: [Primitive; 4], step: &AdamWStep) -> Self {
        let [first, second] = [first, second].map(overwritable);
        let [parameter, gradient] = [parameter, gradient].map(contiguous);
        // Whoever trains may keep the weights before an update: then these are left as they are.
        let in_place = parameter.can_mut() && parameter.is_nonoverlapping();
        let out = if in_place { None } else { Some(fresh(&parameter, parameter.shape())) };
        let count = parameter.shape().num_elements();
        let vector = together(count, &[&parameter, &gradient, &first, &second]);
        Self { parameter, gradient, first, second, out, vector, coefficients: step.coefficients() }
    }

    fn units(&self) -> usize {
        self.parameter.shape().num_elements() / self.vector
    }

    /// Makes updates of one dtype and vector, all of them in place or none.
    fn launch<'a>(updates: impl Iterator<Item = &'a Update> + Clone, scale: &Primitive) {
        let one = updates.clone().next().expect("a group has a member");
        let (client, dtype, vector) = (scale.client.clone(), element(&one.parameter), one.vector);
        let (cubes, dim) = shared_out(&client, updates.clone().map(Update::units).sum());
        let all = |part: fn(&Update) -> &Primitive| {
            updates.clone().map(|update| part(update).clone().into_tensor_arg()).collect()
        };
        let outs = updates.clone().filter_map(|update| Some(update.out.clone()?.into_tensor_arg())).collect();
        // SAFETY: each unit that does not stop at once has an element of one tensor, and nothing else holds those that
        // are written to.
        unsafe {
            adamw_kernel::launch_unchecked(
                &client,
                cubes,
                dim,
                vector,
                all(|update| &update.gradient),
                all(|update| &update.parameter),
                outs,
                all(|update| &update.first),
                all(|update| &update.second),
                scale.clone().into_buffer_arg(),
                updates.clone().map(|update| update.units() as u32).collect(),
                updates.map(|update| argument(update.coefficients)).collect(),
                dtype,
            );
        }
    }
}

/// The tensor in row-major order, to be written to: itself if nothing else holds it.
fn overwritable(x: Primitive) -> Primitive {
    let x = contiguous(x);
    if x.can_mut() && x.is_nonoverlapping() { x } else { x.copy() }
}

#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    keep: f32,
    rate: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    unbias1: f32,
    unbias2: f32,
    epsilon: f32,
}

fn argument(k: Coefficients) -> NumbersLaunch {
    NumbersLaunch::new(k.keep, k.rate, k.beta1, k.rest1, k.beta2, k.rest2, k.unbias1, k.unbias2, k.epsilon)
}

#[cube(launch_unchecked)]
fn adamw_kernel<F: Float, N: Size>(
    gradients: &Sequence<OwnedTensor<Vector<F, N>>>,
    parameters: &mut Sequence<OwnedTensor<Vector<F, N>>>,
    outs: &mut Sequence<OwnedTensor<Vector<F, N>>>,
    firsts: &mut Sequence<OwnedTensor<Vector<F, N>>>,
    seconds: &mut Sequence<OwnedTensor<Vector<F, N>>>,
    scale: &[f32],
    units: &Sequence<u32>,
    numbers: &Sequence<Numbers>,
    #[define(F)] _dtype: ElemType,
) {
    let in_place = comptime!(outs.len() == 0);
    let mut start = 0usize.runtime();
    #[unroll]
    for index in 0..comptime!(gradients.len()) {
        let count = units[index] as usize;
        if ABSOLUTE_POS >= start && ABSOLUTE_POS < start + count {
            let at = ABSOLUTE_POS - start;
            let parameter = parameters[index][at];
            let mut new = parameter;
            if scale[0] > 0.0 {
                let k = numbers.index(index);
                let g = Vector::<f32, N>::cast_from(gradients[index][at]) * Vector::new(scale[0]);
                let p = Vector::<f32, N>::cast_from(parameter);
                let m = Vector::<f32, N>::cast_from(firsts[index][at]);
                let v = Vector::<f32, N>::cast_from(seconds[index][at]);
                let m = m * Vector::new(k.beta1) + g * Vector::new(k.rest1);
                let v = v * Vector::new(k.beta2) + g * g * Vector::new(k.rest2);
                let root = v.sqrt() * Vector::new(k.unbias2) + Vector::new(k.epsilon);
                let update = m * Vector::new(k.unbias1) / root;
                firsts.index_mut(index)[at] = Vector::cast_from(m);
                seconds.index_mut(index)[at] = Vector::cast_from(v);
                new = Vector::cast_from(p * Vector::new(k.keep) - update * Vector::new(k.rate));
            }
            if comptime!(in_place) {
                parameters.index_mut(index)[at] = new;
            } else {
                outs.index_mut(index)[at] = new;
            }
        }
        start += count;
    }
}

/// The sum of the squares that each cube takes over its part of a tensor, at `first` and behind.
#[cube(launch_unchecked)]
fn squares_kernel<F: Float>(
    tensors: &Sequence<OwnedTensor<F>>,
    cubes: &Sequence<u32>,
    sums: &mut [f32],
    first: u32,
    all: u32,
    #[define(F)] _dtype: ElemType,
) {
    if CUBE_POS >= all as usize {
        terminate!();
    }
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    let mut start = 0usize.runtime();
    #[unroll]
    for index in 0..comptime!(tensors.len()) {
        let count = cubes[index] as usize;
        if CUBE_POS >= start && CUBE_POS < start + count {
            let mut at = (CUBE_POS - start) * UNITS + UNIT_POS as usize;
            while at < tensors[index].len() {
                let x = f32::cast_from(tensors[index][at]);
                sum += x * x;
                at += count * UNITS;
            }
        }
        start += count;
    }
    let total = sum_of_cube(sum, &mut shared);
    if UNIT_POS == 0 {
        sums[first as usize + CUBE_POS] = total;
    }
}

/// The root of the sum of all sums.
#[cube(launch_unchecked)]
fn norm_kernel(sums: &[f32], norm: &mut [f32]) {
    if CUBE_POS >= 1 {
        terminate!();
    }
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    let mut at = UNIT_POS as usize;
    while at < sums.len() {
        sum += sums[at];
        at += UNITS;
    }
    let total = sum_of_cube(sum, &mut shared);
    if UNIT_POS == 0 {
        norm[0] = f32::sqrt(total);
    }
}
