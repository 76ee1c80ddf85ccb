//! Quantised weights against bitsandbytes, and what is refused.

mod configs;
mod goldens;
mod properties;
mod states;
mod ten_million;

use sideburn_weights::{SafetensorsFile, TensorSource};

/// The numbers of bitsandbytes.
fn goldens() -> SafetensorsFile {
    SafetensorsFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/goldens.safetensors")).unwrap()
}

/// The shape and the numbers of a weight of the goldens.
fn weight(goldens: &SafetensorsFile, name: &str) -> ([usize; 2], Vec<f32>) {
    let shape = goldens.info(name).unwrap_or_else(|| panic!("no tensor {name}")).shape.clone();
    (shape.try_into().unwrap(), goldens.read_f32(name).unwrap())
}
