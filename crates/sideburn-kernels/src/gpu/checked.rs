//! Kernels that a device may refuse to compile.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use burn_cubecl::tensor::CubeTensor;

use crate::runtime::refused::refuse;

/// Whether what was tried once could be compiled, by operation and variant.
static TRIED: Mutex<Option<HashMap<(&'static str, u64), bool>>> = Mutex::new(None);

/// Runs the kernels of an operation on a GPU. The first time that it does so with this variant, which says what kernels are
/// compiled for, their compilation is waited for. If the device refuses it, the inputs come back, this time and from then
/// on, so that the operation can be composed, and [`refused_kernels`](crate::refused_kernels) names it.
pub fn checked<I: Clone, O: Outputs>(
    name: &'static str,
    variant: impl Hash,
    inputs: I,
    run: impl FnOnce(I) -> O,
) -> Result<O, I> {
    let mut hasher = DefaultHasher::new();
    variant.hash(&mut hasher);
    let key = (name, hasher.finish());
    let tried = || TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    // What runs may be made of operations that are checked themselves.
    let known = tried().get_or_insert_default().get(&key).copied();
    match known {
        Some(true) => return Ok(run(inputs)),
        Some(false) => return Err(inputs),
        None => {}
    }
    let kept = inputs.clone();
    let made = run(inputs);
    let refusal = made.outputs().into_iter().find_map(refusal);
    tried().get_or_insert_default().insert(key, refusal.is_none());
    match refusal {
        None => Ok(made),
        Some(reason) => {
            refuse(name, reason);
            Err(kept)
        }
    }
}

/// Why the kernel that should have written a tensor was not compiled, if it was not. Other failures are met on reading.
fn refusal(output: &CubeTensor) -> Option<String> {
    let text = output.client.check([&output.handle]).err()?.to_string();
    let is_refusal = ["A compilation error happened", "Too many resources were requested"];
    if !is_refusal.iter().any(|start| text.contains(start)) {
        return None;
    }
    // What comes behind is a stack of calls.
    let lines = text.lines().map(str::trim).take_while(|line| !line.to_lowercase().starts_with("backtrace"));
    Some(lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" "))
}

/// What the kernels of an operation have written.
pub trait Outputs {
    /// A tensor for each kernel.
    fn outputs(&self) -> Vec<&CubeTensor>;
}

impl Outputs for CubeTensor {
    fn outputs(&self) -> Vec<&CubeTensor> {
        vec![self]
    }
}

impl<const N: usize> Outputs for [CubeTensor; N] {
    fn outputs(&self) -> Vec<&CubeTensor> {
        self.iter().collect()
    }
}
