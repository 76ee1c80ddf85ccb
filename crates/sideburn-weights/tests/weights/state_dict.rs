//! One name, two formats: which file is opened, and that both give the same tensors.

use std::fs;
use std::path::{Path, PathBuf};

use sideburn_weights::{StateDict, TensorSource, WeightsError};
use tempfile::{TempDir, tempdir};

const STEM: &str = "adapter_model";

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/torch").join(name)
}

/// A directory with copies of reference files under new names.
fn directory(copies: &[(&str, &str)]) -> TempDir {
    let dir = tempdir().unwrap();
    for (name, golden) in copies {
        fs::copy(testdata(golden), dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn both_formats_give_the_same_tensors() {
    let safe = directory(&[("adapter_model.safetensors", "expected.safetensors")]);
    let torch = directory(&[("adapter_model.bin", "ordered_dict.pt")]);
    let (safe, torch) = (StateDict::open(&safe, STEM).unwrap(), StateDict::open(&torch, STEM).unwrap());
    assert!(safe.path().ends_with("adapter_model.safetensors") && torch.path().ends_with("adapter_model.bin"));
    assert_eq!(safe.names().len(), 21);
    assert!(safe.names().eq(torch.names()));
    for name in safe.names() {
        assert_eq!(safe.info(name), torch.info(name), "{name}");
        assert_eq!(safe.read(name).unwrap(), torch.read(name).unwrap(), "{name}");
    }
    assert_eq!(safe.read_f32("bf16").unwrap(), torch.read_f32("bf16").unwrap());
    assert_eq!((safe.metadata("format"), torch.metadata("format")), (None, None));
}

#[test]
fn safetensors_win() {
    let dir = directory(&[("adapter_model.safetensors", "expected.safetensors"), ("adapter_model.bin", "dict.pt")]);
    assert!(matches!(StateDict::open(&dir, STEM), Ok(StateDict::Safetensors(_))));
    // Also broken ones: what they were meant to say is not known.
    fs::write(dir.path().join("adapter_model.safetensors"), "{}").unwrap();
    assert!(matches!(StateDict::open(&dir, STEM), Err(WeightsError::Truncated { .. })));
}

#[test]
fn without_either_both_are_named() {
    let dir = directory(&[("pytorch_model.bin", "dict.pt")]);
    let error = StateDict::open(&dir, STEM).unwrap_err().to_string();
    assert!(error.ends_with("has neither adapter_model.safetensors nor adapter_model.bin; check the path"), "{error}");
}
