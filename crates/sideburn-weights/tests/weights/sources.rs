//! Where tensors may come from: files, bytes, readers, and sources of somebody else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sideburn_weights::{
    Dtype, ModelFiles, ReadAt, SafetensorsFile, Tensor, TensorInfo, TensorSource, TorchFile, WeightsError,
    safetensors_bytes,
};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/torch").join(name)
}

fn number(value: f32) -> Tensor {
    Tensor::from_f32(vec![1], &[value]).unwrap()
}

fn shard(tensors: &[(&str, f32)]) -> Vec<u8> {
    safetensors_bytes("shard", tensors.iter().map(|(name, value)| (*name, number(*value))), None).unwrap()
}

/// All names, with what stands under them.
fn all(source: &dyn TensorSource) -> Vec<(String, TensorInfo, Tensor)> {
    let one = |name: &str| (name.to_owned(), source.info(name).unwrap().clone(), source.read(name).unwrap());
    source.names().map(one).collect()
}

#[test]
fn bytes_are_what_the_file_is() {
    let path = testdata("expected.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    let of_bytes = SafetensorsFile::from_bytes("downloaded", bytes.clone()).unwrap();
    let shared: Arc<[u8]> = bytes.into();
    let of_shared = SafetensorsFile::from_reader("shared", shared).unwrap();
    assert_eq!(all(&file).len(), 21);
    assert_eq!(all(&file), all(&of_bytes));
    assert_eq!(all(&file), all(&of_shared));
    let message = of_bytes.read("i65").unwrap_err().to_string();
    assert!(message.starts_with("\"downloaded\" has no tensor \"i65\"; it has 21 tensors"), "{message}");

    for name in ["dict.pt", "legacy.pt", "big_endian.pt"] {
        let of_bytes = TorchFile::from_bytes(name, std::fs::read(testdata(name)).unwrap()).unwrap();
        assert_eq!(all(&of_bytes), all(&file), "{name}");
    }
    let message = SafetensorsFile::from_bytes("cut", b"short".to_vec()).unwrap_err().to_string();
    assert!(message.contains("\"cut\" is cut short: the length of the header needs 8 bytes"), "{message}");
}

#[test]
fn written_bytes_are_what_is_written_to_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.safetensors");
    let metadata = || Some([("format".to_owned(), "pt".to_owned())].into());
    sideburn_weights::write_safetensors(&path, [("a", number(1.0)), ("b", number(2.0))], metadata()).unwrap();
    let bytes = safetensors_bytes("x", [("b", number(2.0)), ("a", number(1.0))], metadata()).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    let message = safetensors_bytes("twice", [("a", number(1.0)), ("a", number(1.0))], None).unwrap_err().to_string();
    assert!(message.contains("cannot write \"twice\"") && message.ends_with("these do not: \"a\""), "{message}");
}

#[test]
fn shards_need_no_directory() {
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "copy of a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    let open = |name: &str| {
        SafetensorsFile::from_bytes(
            name,
            if name == "m-1.safetensors" { shard(&[("a", 1.0)]) } else { shard(&[("b", 2.0)]) },
        )
    };
    let model = ModelFiles::from_shards("the index", index, open).unwrap();
    assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(model.read_f32("b").unwrap(), [2.0]);
    assert_eq!(model.promised("copy of a"), Some("m-1.safetensors"));
    assert_eq!(
        (model.path(), model.file_of("a").unwrap().path()),
        (Path::new("the index"), Path::new("m-1.safetensors"))
    );

    // Nothing is opened by a name that leads elsewhere, and what opening says is passed on.
    let index = br#"{"weight_map": {"a": "../m-1.safetensors"}}"#;
    let open = |name: &str| -> Result<SafetensorsFile, WeightsError> { panic!("{name} was opened") };
    let error = ModelFiles::from_shards("the index", index, open).unwrap_err();
    assert!(matches!(error, WeightsError::UnsafeShardNames { .. }));
    let index = br#"{"weight_map": {"a": "m-1.safetensors"}}"#;
    let error =
        ModelFiles::from_shards("the index", index, |name| SafetensorsFile::from_bytes(name, vec![])).unwrap_err();
    assert!(error.to_string().contains("\"m-1.safetensors\" is cut short"), "{error}");

    let single = ModelFiles::from(SafetensorsFile::from_bytes("one", shard(&[("a", 1.0)])).unwrap());
    assert_eq!((single.path(), single.promised("b")), (Path::new("one"), None));
}

/// Bytes behind a connection that is lost once the header has been read.
struct Lost(Vec<u8>);

impl ReadAt for Lost {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buffer.len() as u64 == self.size() {
            return Err(io::Error::other("the connection is lost"));
        }
        self.0.read_exact_at(buffer, offset)
    }
}

#[test]
fn a_reader_that_fails_is_an_error() {
    let file = SafetensorsFile::from_reader("far away", Lost(shard(&[("a", 1.0)]))).unwrap();
    let message = file.read("a").unwrap_err().to_string();
    assert_eq!(message, "reading a tensor of \"far away\" failed: the connection is lost");
}

/// The numbers from 0 on, under the names "0", "1", ...: a source that this crate knows nothing of.
#[derive(Debug)]
struct Counting(Vec<String>, TensorInfo);

impl TensorSource for Counting {
    fn path(&self) -> &Path {
        Path::new("numbers")
    }

    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        Box::new(self.0.iter().map(String::as_str))
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.0.iter().any(|known| known == name).then_some(&self.1)
    }

    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        self.info(name).ok_or_else(|| WeightsError::tensor_not_found(self, name))?;
        Tensor::new(Dtype::U8, vec![1], vec![name.parse().unwrap()])
    }
}

#[test]
fn a_source_of_somebody_else() {
    let counting = Counting((0..3).map(|n| n.to_string()).collect(), TensorInfo { dtype: Dtype::U8, shape: vec![1] });
    let source: &dyn TensorSource = &counting;
    assert_eq!(all(source).len(), 3);
    assert!(source.contains("2") && !source.contains("3"));
    assert_eq!((source.metadata("format"), source.promised("3")), (None, None));
    let message = source.read_f32("1").unwrap_err().to_string();
    assert!(message.starts_with("tensor \"1\" of \"numbers\" has dtype U8, expected F32"), "{message}");
    let message = source.read("22").unwrap_err().to_string();
    assert!(
        message.contains("\"numbers\" has no tensor \"22\"; it has 3 tensors, the nearest name is \"2\""),
        "{message}"
    );
}
