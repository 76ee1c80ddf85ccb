//! Single files: what is written is what is read, and every kind of damage has its own message.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sideburn_weights::{
    Dtype, SafetensorsFile, Tensor, TensorSource, WeightsError, safetensors_bytes, write_safetensors,
    write_safetensors_lazily,
};
use tempfile::{TempDir, tempdir};

fn sample() -> Vec<(String, Tensor)> {
    let f32s = Tensor::from_f32(vec![2, 3], &[1.5, -2.0, 0.0, f32::MAX, f32::MIN_POSITIVE, 3.25]).unwrap();
    let small = Tensor::from_f32(vec![3], &[0.5, -1.25, 96.0]).unwrap();
    vec![
        ("encoder.weight".to_owned(), f32s),
        ("half".to_owned(), small.cast(Dtype::F16).unwrap()),
        ("brain".to_owned(), small.to_bf16().unwrap()),
        ("double".to_owned(), small.cast(Dtype::F64).unwrap()),
        ("empty".to_owned(), Tensor::from_f32(vec![0, 4], &[]).unwrap()),
        ("scalar".to_owned(), Tensor::from_f32(vec![], &[7.0]).unwrap()),
        ("codes".to_owned(), Tensor::new(Dtype::U8, vec![3], vec![1, 2, 255]).unwrap()),
    ]
}

fn metadata() -> HashMap<String, String> {
    ["format", "zeta", "alpha", "beta", "gamma"].map(|key| (key.to_owned(), format!("{key}: pt \"ü\""))).into()
}

/// A file of a header as given, its length in front, and `data` zero bytes after it.
fn forged(header: &str, data: usize) -> (TempDir, PathBuf) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    raw(&bytes)
}

fn raw(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let path = dir.path().join("forged.safetensors");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// The message of opening `path`, which must name the file.
fn refusal(path: &Path) -> String {
    let message = SafetensorsFile::open(path).unwrap_err().to_string();
    assert!(message.contains(path.to_str().unwrap()), "{message}");
    message
}

#[track_caller]
fn assert_refused(header: &str, data: usize, fragments: &[&str]) {
    let (_dir, path) = forged(header, data);
    let message = refusal(&path);
    for fragment in fragments {
        assert!(message.contains(fragment), "{fragment:?} is not in: {message}");
    }
}

/// A process-wide count, to which other tests add.
#[test]
fn what_is_read_is_counted() {
    let bytes = safetensors_bytes("one", [("x", Tensor::from_f32(vec![3], &[1.0; 3]).unwrap())], None).unwrap();
    let file = SafetensorsFile::from_bytes("one", bytes).unwrap();
    let before = sideburn_weights::bytes_read();
    file.read_f32("x").unwrap();
    assert!(sideburn_weights::bytes_read() >= before + 12);
}

/// Each is made when it is written, the widest dtype first; what cannot be made leaves what was there.
#[test]
fn tensors_are_made_as_they_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let tensor = |name: &str| match name {
        "bytes" => Tensor::new(Dtype::U8, vec![3], vec![1, 2, 3]).unwrap(),
        name => Tensor::from_f32(vec![2], &[name.len() as f32, 0.5]).unwrap(),
    };
    let names = ["bytes", "b", "aa"];
    let infos = || names.map(|name| (name.to_owned(), tensor(name).info()));
    let mut made = Vec::new();
    let make = |name: &str| {
        made.push(name.to_owned());
        Ok::<_, WeightsError>(tensor(name))
    };
    write_safetensors_lazily(&path, infos(), make, None).unwrap();
    assert_eq!(made, ["aa", "b", "bytes"]);
    let eager = safetensors_bytes("eager", names.map(|name| (name, tensor(name))), None).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), eager);

    let refuse = |name: &str| match name {
        "b" => Err(WeightsError::BadNames { path: "here".into(), names: Vec::new() }),
        name => Ok(tensor(name)),
    };
    let error = write_safetensors_lazily(&path, infos(), refuse, None).unwrap_err();
    assert!(matches!(error, WeightsError::BadNames { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), eager);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing half-written is left");
    let twice = [("x".to_owned(), tensor("b").info()), ("x".to_owned(), tensor("b").info())];
    let error = write_safetensors_lazily(&path, twice, |name| Ok::<_, WeightsError>(tensor(name)), None).unwrap_err();
    assert!(matches!(error, WeightsError::BadNames { .. }), "{error}");
}

#[test]
fn every_dtype_comes_back() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, sample(), Some(metadata())).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.path(), path);
    assert_eq!(*file.all_metadata(), metadata());
    let names: Vec<_> = file.names().collect();
    assert_eq!(names, ["brain", "codes", "double", "empty", "encoder.weight", "half", "scalar"]);
    for (name, tensor) in sample() {
        assert_eq!(file.read(&name).unwrap(), tensor, "{name}");
        let info = file.info(&name).unwrap();
        assert_eq!((info.dtype, info.shape.as_slice()), (tensor.dtype(), tensor.shape()));
        assert_eq!(info.num_elements(), tensor.shape().iter().product::<usize>());
    }
    for name in ["half", "brain", "double"] {
        assert_eq!(file.read_f32(name).unwrap(), [0.5, -1.25, 96.0], "{name}");
    }
    assert!(file.info("absent").is_none());
}

#[test]
fn bytes_depend_on_the_input_alone() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, sample(), Some(metadata())).unwrap();
    let first = std::fs::read(&path).unwrap();
    for _ in 0..20 {
        let mut tensors = sample();
        tensors.reverse();
        write_safetensors(&path, tensors, Some(metadata())).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn files_are_those_of_the_reference_implementation() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let one_key = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    for metadata in [None, Some(HashMap::new()), Some(one_key)] {
        write_safetensors(&path, sample(), metadata.clone()).unwrap();
        let tensors = sample();
        let views = tensors.iter().map(|(name, tensor)| {
            let view = safetensors::tensor::TensorView::new(tensor.dtype(), tensor.shape().to_vec(), tensor.bytes());
            (name.as_str(), view.unwrap())
        });
        assert_eq!(std::fs::read(&path).unwrap(), safetensors::serialize(views, metadata).unwrap());
    }
}

#[test]
fn a_file_cut_at_any_byte_says_so() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, sample(), None).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        match SafetensorsFile::open(&path).unwrap_err() {
            WeightsError::Truncated { found, expected, .. } => {
                assert_eq!(found, len as u64);
                assert!(found < expected && expected <= whole.len() as u64);
            }
            other => panic!("{len} bytes: {other}"),
        }
    }
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let message = refusal(&path);
    let sizes = format!("header and tensors needs {} bytes, the file has {}", whole.len(), whole.len() - 1);
    assert!(message.contains(&sizes), "{message}");

    std::fs::write(&path, [whole.as_slice(), b"x"].concat()).unwrap();
    let message = refusal(&path);
    let sizes = format!("take {} bytes, the file has {}", whole.len(), whole.len() + 1);
    assert!(message.contains("too long") && message.contains(&sizes), "{message}");
}

#[test]
fn a_file_cut_after_opening_is_an_error() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, sample(), None).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
    let message = file.read("encoder.weight").unwrap_err().to_string();
    assert!(message.contains("reading a tensor of"), "{message}");
}

#[test]
fn what_is_not_a_file() {
    let dir = tempdir().unwrap();
    let message = refusal(&dir.path().join("absent.safetensors"));
    assert!(message.contains("does not exist"), "{message}");
    assert!(refusal(dir.path()).contains("not a regular file"));
}

#[test]
fn header_lengths() {
    let (_dir, path) = raw(&[u64::MAX.to_le_bytes().as_slice(), b"{}"].concat());
    let message = refusal(&path);
    assert!(message.contains("header of 18446744073709551615 bytes, more than the limit of 100000000"), "{message}");

    let (_dir, path) = raw(&[100u64.to_le_bytes().as_slice(), b"{}"].concat());
    let message = refusal(&path);
    assert!(message.contains("the header needs 108 bytes, the file has 10"), "{message}");

    let (_dir, path) = raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n");
    assert!(refusal(&path).contains("git lfs pull"));
}

#[test]
fn headers_that_are_not_valid() {
    assert_refused("", 0, &["header of", "EOF"]);
    assert_refused("[]", 0, &["expected a JSON object"]);
    assert_refused("{\"a\":", 0, &["key \"a\"", "EOF", "line 1 column"]);
    assert_refused("{} {}", 0, &["trailing characters"]);
    assert_refused(&"[".repeat(10_000), 0, &["expected a JSON object"]);
    assert_refused(&format!("{{\"a\":{}", "[".repeat(10_000)), 0, &["key \"a\""]);
    assert_refused("{\"__metadata__\":{\"a\":1}}", 0, &["__metadata__", "key \"a\"", "expected a string"]);
    assert_refused(
        r#"{"a\u001b[2J":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
        4,
        &[r#""a\u{1b}[2J""#, "unknown variant `F99`", "F32"],
    );
    assert_refused(
        r#"{"a":{"dtype":"F\u001b[2J","shape":[1],"data_offsets":[0,4]}}"#,
        4,
        &[r"unknown variant `F\u{1b}[2J`"],
    );
    assert_refused(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, &["key \"a\"", "-1"]);
    assert_refused(r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4, &["key \"a\"", "data_offsets"]);
    let (_dir, path) = raw(&[3u64.to_le_bytes().as_slice(), b"{\xff}"].concat());
    assert!(refusal(&path).contains("utf-8"));
}

#[test]
fn keys_that_come_twice() {
    let tensor = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    assert_refused(
        &format!(r#"{{"a":{tensor},"b":{tensor},"a":{tensor},"b":{tensor},"a":{tensor}}}"#),
        4,
        &["same JSON key twice: \"a\", \"b\";"],
    );
    assert_refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0, &["\"__metadata__.k\""]);
    assert_refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, &["\"__metadata__\""]);
}

#[test]
fn offsets_that_do_not_fit() {
    let entry = |name: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":[{from},{to}]}}"#)
    };
    let both = |b_from, b_to| format!("{{{},{}}}", entry("a", 0, 8), entry("b", b_from, b_to));
    assert_refused(&both(4, 12), 12, &["tensor \"b\"", "overlaps tensor \"a\"", "ends at byte 8"]);
    assert_refused(&both(0, 8), 8, &["overlaps"]);
    assert_refused(&both(12, 20), 20, &["tensor \"b\"", "hole after tensor \"a\"", "byte 12"]);
    assert_refused(&format!("{{{}}}", entry("a", 8, 16)), 16, &["hole after the start of the data"]);
    assert_refused(&both(8, 12), 12, &["F32 of shape [2] takes 8 bytes, its offsets are 8 to 12"]);
    assert_refused(&format!("{{{}}}", entry("a", 0, usize::MAX)), 8, &["takes 8 bytes"]);
    assert_refused(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, &["tensor \"a\""]);
    assert_refused(
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}}"#,
        8,
        &["tensor \"a\"", "overflows"],
    );
    assert_refused(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2, &["not a whole number of bytes"]);
}

#[test]
fn the_wrong_tensor_or_dtype() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, sample(), None).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    let message = file.read_f32("codes").unwrap_err().to_string();
    let expected = format!("tensor \"codes\" of {path:?} has dtype U8, expected F32, F16, BF16 or F64");
    assert!(message.contains(&expected), "{message}");
    let message = file.read("model.encoder.weight").unwrap_err().to_string();
    assert!(message.contains("has no tensor \"model.encoder.weight\"; it has 7 tensors"), "{message}");
    assert!(message.contains("nearest name is \"encoder.weight\""), "{message}");
    let message = file.read("lm_head").unwrap_err().to_string();
    assert!(message.contains("none with a similar name"), "{message}");
}

#[test]
fn names_that_cannot_be_written() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let one = Tensor::from_f32(vec![1], &[1.0]).unwrap();
    let tensors = [("b", &one), ("__metadata__", &one), ("a", &one), ("b", &one), ("b", &one)];
    let message = write_safetensors(&path, tensors, None).unwrap_err().to_string();
    assert!(message.contains("do not: \"__metadata__\", \"b\""), "{message}");
    assert!(!path.exists());
}

/// Opens whatever it is, and reads all of it if that is possible.
fn read_all(bytes: &[u8]) -> Result<(), WeightsError> {
    let (_dir, path) = raw(bytes);
    let file = SafetensorsFile::open(&path)?;
    for name in file.names() {
        let tensor = file.read(name)?;
        let _ = tensor.to_f32();
    }
    Ok(())
}

fn valid() -> Vec<u8> {
    let (_dir, path) = raw(b"");
    write_safetensors(&path, sample(), Some(metadata())).unwrap();
    std::fs::read(&path).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_all(&bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in "[\\[{\"a:F320,}\\]dtypeshaof_ ]{0,60}", data in 0usize..20) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        let _ = read_all(&bytes);
    }

    #[test]
    fn damaged_files_never_panic_and_never_read_more_than_the_reference(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        static VALID: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(valid);
        let mut bytes = VALID.clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if read_all(&bytes).is_ok() {
            prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
        }
    }
}

proptest! {
    // Few cases: each syncs the disk four times.
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn floats_come_back(values in prop::collection::vec(any::<f32>(), 0..40)) {
        let (_dir, path) = raw(b"");
        let tensor = Tensor::from_f32(vec![values.len()], &values).unwrap();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
            let cast = tensor.cast(dtype).unwrap();
            write_safetensors(&path, [("t", &cast)], None).unwrap();
            let back = SafetensorsFile::open(&path).unwrap().read("t").unwrap();
            prop_assert_eq!(&back, &cast);
            // Wider and back again changes nothing.
            prop_assert_eq!(back.cast(Dtype::F64).unwrap().cast(dtype).unwrap(), cast);
        }
    }
}
