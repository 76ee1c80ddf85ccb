//! PyTorch files: what torch saved is what is read, and a pickle that wants more than tensors gets nothing.
//!
//! `testdata/make_torch_files.py` made the files in `testdata/torch/`; hostile ones are assembled here. One test reads
//! published adapters below the directory that `SIDEBURN_TEST_DATA` names.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rawzip::{CompressionMethod, ZipArchiveWriter};
use sideburn_weights::{Dtype, SafetensorsFile, Tensor, TensorSource, TorchFile, WeightsError};
use tempfile::{TempDir, tempdir};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/torch").join(name)
}

fn raw(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let path = dir.path().join("forged.pt");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// A zip archive of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    for (name, bytes) in entries {
        let (mut entry, config) = archive.new_file(name).compression_method(CompressionMethod::STORE).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        std::io::Write::write_all(&mut writer, bytes).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap()
}

/// A file of `torch.save` with that pickle, and a storage `0` of four F32 elements: 1, 2, 3 and 4.
fn torch_file(pickle: &[u8]) -> Vec<u8> {
    let storage = [1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
    zip(&[("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &storage), ("a/version", b"3\n")])
}

fn open(bytes: &[u8]) -> Result<TorchFile, WeightsError> {
    let (_dir, path) = raw(bytes);
    TorchFile::open(path)
}

#[track_caller]
fn assert_refused(bytes: &[u8], fragments: &[&str]) -> WeightsError {
    let error = open(bytes).unwrap_err();
    let message = error.to_string();
    for fragment in ["forged.pt"].iter().chain(fragments) {
        assert!(message.contains(fragment), "{fragment:?} is not in: {message}");
    }
    error
}

// ------------------------------------------------------------------------------------------- an assembler of pickles

fn text(text: &str) -> Vec<u8> {
    [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

fn int(int: i128) -> Vec<u8> {
    [b"\x8a\x10", int.to_le_bytes().as_slice()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".as_slice(), &items.concat(), b"t"].concat()
}

fn ints(items: &[i128]) -> Vec<u8> {
    tuple(&items.iter().copied().map(int).collect::<Vec<_>>())
}

const FLOATS: &[u8] = b"ctorch\nFloatStorage\n";
const NO_HOOKS: &[u8] = b"ccollections\nOrderedDict\n)R";

fn storage(key: &str, numel: i128) -> Vec<u8> {
    [tuple(&[text("storage"), FLOATS.to_vec(), text(key), text("cpu"), int(numel)]), b"Q".to_vec()].concat()
}

fn tensor_of(storage: Vec<u8>, offset: i128, shape: &[i128], strides: &[i128]) -> Vec<u8> {
    let parts = [storage, int(offset), ints(shape), ints(strides), b"\x89".to_vec(), NO_HOOKS.to_vec()];
    [b"ctorch._utils\n_rebuild_tensor_v2\n".as_slice(), &tuple(&parts), b"R"].concat()
}

fn tensor(offset: i128, shape: &[i128], strides: &[i128]) -> Vec<u8> {
    tensor_of(storage("0", 4), offset, shape, strides)
}

fn state_dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<u8> = entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"\x80\x02}(".as_slice(), &entries, b"u."].concat()
}

/// The tensor `w` of a state dict that has no other.
fn read_one(value: Vec<u8>) -> Result<Tensor, WeightsError> {
    let (_dir, path) = raw(&torch_file(&state_dict(&[("w", value)])));
    TorchFile::open(path)?.read("w")
}

// ------------------------------------------------------------------------------------------------------- what is read

#[test]
fn tensors_are_those_that_torch_saved() {
    let expected = SafetensorsFile::open(testdata("expected.safetensors")).unwrap();
    for name in ["ordered_dict.pt", "dict.pt", "protocol5.pt", "big_endian.pt", "legacy.pt"] {
        let file = TorchFile::open(testdata(name)).unwrap();
        assert_eq!(file.path(), testdata(name));
        assert_eq!(file.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
        for tensor in expected.names() {
            assert_eq!(file.info(tensor), expected.info(tensor), "{name}: {tensor}");
            assert_eq!(file.read(tensor).unwrap(), expected.read(tensor).unwrap(), "{name}: {tensor}");
        }
        assert_eq!(file.read_f32("view.expanded").unwrap(), [2.5, 2.5, 2.5, 3.5, 3.5, 3.5]);
        assert!(file.info("absent").is_none());
        let message = file.read("transposed").unwrap_err().to_string();
        assert!(message.contains("it has 21 tensors, the nearest name is \"view.transposed\""), "{message}");
        let message = file.read_f32("i64").unwrap_err().to_string();
        assert!(message.contains("tensor \"i64\" of") && message.contains("has dtype I64"), "{message}");
    }
}

#[test]
fn published_adapters() {
    let Some(shared) = std::env::var_os("SIDEBURN_TEST_DATA") else {
        eprintln!("skipped: SIDEBURN_TEST_DATA does not name a directory with data/peft");
        return;
    };
    let mut read = 0;
    for dir in fs::read_dir(Path::new(&shared).join("data/peft")).unwrap() {
        let dir = dir.unwrap().path();
        let path = dir.join("adapter_model.bin");
        if !path.exists() {
            continue;
        }
        let config = fs::read_to_string(dir.join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let size = |key: &str| config[key].as_u64().unwrap() as usize;
        let file = TorchFile::open(&path).unwrap();
        assert!(file.names().len() > 0);
        for name in file.names() {
            let shape = &file.info(name).unwrap().shape;
            match name {
                "prompt_embeddings" => assert_eq!(*shape, [size("num_virtual_tokens"), size("token_dim")]),
                _ if name.contains("lora_A") => assert_eq!((shape.len(), shape[0]), (2, size("r")), "{name}"),
                _ if name.contains("lora_B") => assert_eq!((shape.len(), shape[1]), (2, size("r")), "{name}"),
                _ => panic!("{path:?}: {name}"),
            }
            let values = file.read_f32(name).unwrap();
            assert!(values.iter().all(|value| value.abs() < 100.0), "{name}");
            assert!(values.iter().any(|value| *value != 0.0), "{name}");
        }
        read += 1;
    }
    assert!(read > 0, "no adapter_model.bin");
}

#[test]
fn views_of_one_storage() {
    let floats = |value| read_one(value).unwrap().to_f32().unwrap();
    assert_eq!(floats(tensor(0, &[4], &[1])), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(floats(tensor(0, &[2, 2], &[1, 2])), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(floats(tensor(1, &[2], &[2])), [2.0, 4.0]);
    assert_eq!(floats(tensor(3, &[], &[])), [4.0]);
    assert_eq!(floats(tensor(1, &[3, 2], &[0, 1])), [2.0, 3.0, 2.0, 3.0, 2.0, 3.0]);
    // Windows that overlap, as `unfold` makes them.
    assert_eq!(floats(tensor(0, &[3, 2], &[1, 1])), [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]);
    // A stride that is never taken may be anything.
    assert_eq!(floats(tensor(0, &[1, 4], &[1 << 60, 1])), [1.0, 2.0, 3.0, 4.0]);
    assert!(floats(tensor(4, &[0, 1 << 60, 1 << 60], &[1 << 60; 3])).is_empty());
    assert_eq!(floats(tensor(0, &[1 << 16], &[0])), vec![1.0; 1 << 16]);

    let parameter = |value: Vec<u8>| {
        [b"ctorch._utils\n_rebuild_parameter\n(".as_slice(), &value, b"\x88", NO_HOOKS, b"tR"].concat()
    };
    assert_eq!(floats(parameter(tensor(0, &[1], &[1]))), [1.0]);
}

// ---------------------------------------------------------------------------------------------------- what is refused

#[test]
fn files_of_torch_that_are_not_state_dicts() {
    let message = |name| TorchFile::open(testdata(name)).unwrap_err().to_string();
    let module = message("module.pt");
    assert!(module.contains("asks for the global \"torch.nn.modules.linear.Linear\" at byte 2"), "{module}");
    assert!(module.contains("nothing of this one was run") && module.contains("re-save"), "{module}");
    let training = message("training.pt");
    assert!(training.contains("not tensors are \"epoch\" (an int), \"model\" (a dict)"), "{training}");
    let complex = message("complex.pt");
    assert!(complex.contains("the global \"torch.ComplexFloatStorage\""), "{complex}");

    for (pickle, fragment) in [
        (b"\x80\x02].".to_vec(), "it holds a list"),
        (b"\x80\x02N.".to_vec(), "it holds None"),
        (tensor(0, &[1], &[1]).into_iter().chain(*b".").collect(), "it holds a tensor"),
        (b"\x80\x02}(K\x01Nu.".to_vec(), "it has an int for a key"),
        (state_dict(&[("w", b"N".to_vec()), ("w", b"N".to_vec())]), "it has the key \"w\" twice"),
        (state_dict(&[("w", storage("0", 4))]), "\"w\" (a storage)"),
        (state_dict(&[("\x1b[2J", b"G12345678".to_vec())]), "\"\\u{1b}[2J\" (a float)"),
    ] {
        let error = assert_refused(&torch_file(&pickle), &["not a state dict of tensors", fragment]);
        assert!(matches!(error, WeightsError::NotAStateDict { .. }));
    }
}

/// Nothing could be run: there is nothing behind a global. What the refusal must do is to name it.
#[test]
fn pickles_that_ask_for_more_than_tensors() {
    let call = |global: &[u8]| [global, &tuple(&[text("touch /tmp/owned")]), b"R."].concat();
    let floats = |rest: &[u8]| [FLOATS, rest].concat();
    let hooks = |rest: &[u8]| [NO_HOOKS, rest].concat();
    let id = |items: &[Vec<u8>]| [tuple(items), b"Q.".to_vec()].concat();
    let conjugate = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(".as_slice(),
        &storage("0", 4),
        &int(0),
        &ints(&[1]),
        &ints(&[1]),
        b"\x89",
        NO_HOOKS,
        b"}",
        &text("conj"),
        b"\x88stR.",
    ];
    for (pickle, found) in [
        // A global that is called, however it is named and called.
        (call(b"cos\nsystem\n"), "the global \"os.system\" at byte 0"),
        (call(b"\x80\x02cposix\nsystem\n"), "the global \"posix.system\" at byte 2"),
        (call(b"cbuiltins\neval\n"), "the global \"builtins.eval\""),
        (call(b"c__builtin__\nexec\n"), "the global \"__builtin__.exec\""),
        (call(b"ctorch.hub\nload\n"), "the global \"torch.hub.load\""),
        (call(b"ctorch\nload\n"), "the global \"torch.load\""),
        (call(b"ccollections\nOrderedDict.update\n"), "the global \"collections.OrderedDict.update\""),
        (call(b"c\x1b[2J\nsystem\n"), "the global \"\\u{1b}[2J.system\""),
        (call(b"\x80\x04\x8c\x02os\x8c\x06system\x93"), "the global \"os.system\" at byte 14"),
        (b"(X\x01\x00\x00\x00xios\nsystem\n.".to_vec(), "the global \"os.system\" at byte 7"),
        (b"(cos\nsystem\nX\x01\x00\x00\x00xo.".to_vec(), "the global \"os.system\" at byte 1"),
        (state_dict(&[("w", b"csubprocess\nPopen\n)R".to_vec())]), "the global \"subprocess.Popen\""),
        // Objects made without a call, even of what is known.
        (b"(itorch\nFloatStorage\n.".to_vec(), "the opcode INST"),
        ([b"(", FLOATS, b"o."].concat(), "the opcode OBJ"),
        (floats(b")\x81."), "the opcode NEWOBJ"),
        (floats(b")}\x92."), "the opcode NEWOBJ_EX"),
        (b"\x82\x01.".to_vec(), "the opcode EXT1"),
        (b"\x83\x01\x00.".to_vec(), "the opcode EXT2"),
        (b"\x84\x01\x00\x00\x00.".to_vec(), "the opcode EXT4"),
        (b"I1\n.".to_vec(), "the opcode INT"),
        (b"C\x01a.".to_vec(), "the opcode SHORT_BINBYTES"),
        // State given to what has none.
        (b"]}b.".to_vec(), "the opcode BUILD for what is not an OrderedDict"),
        (b"}}b.".to_vec(), "BUILD"),
        (floats(b"}b."), "BUILD"),
        ([tensor(0, &[1], &[1]), b"}b.".to_vec()].concat(), "BUILD"),
        (hooks(b"N}\x86b."), "BUILD"),
        // Calls of what is known with something else, and of what is not a function.
        (floats(b")R."), "a call of FloatStorage with unusual arguments"),
        (b"ccollections\nOrderedDict\n]\x85R.".to_vec(), "a call of OrderedDict with unusual arguments"),
        (b"ctorch._utils\n_rebuild_parameter\nN\x88N\x87R.".to_vec(), "a call of _rebuild_parameter with"),
        (conjugate.concat(), "a call of _rebuild_tensor_v2 with"),
        (hooks(b")R."), "a call of a dict"),
        ([text("os.system"), b")R.".to_vec()].concat(), "a call of a str"),
        (floats(b"]R."), "a call with a list of arguments"),
        // Persistent ids that are not storages.
        (b"Pmodule\n.".to_vec(), "the opcode PERSID"),
        (b"K\x01Q.".to_vec(), "a persistent id that is an int"),
        (b")Q.".to_vec(), "a persistent id that is a tuple"),
        (id(&[text("module"), FLOATS.to_vec()]), "the persistent id \"module\""),
        (
            id(&[text("storage"), text("torch.FloatStorage"), text("0"), text("cpu"), int(1)]),
            "\"storage\" with unusual",
        ),
    ] {
        for bytes in [torch_file(&pickle), [b"\x80\x02", pickle.as_slice()].concat()] {
            let error = open(&bytes).unwrap_err();
            assert!(matches!(error, WeightsError::UnsafePickle { .. }), "{found}: {error}");
        }
        assert_refused(&torch_file(&pickle), &[found, "nothing of this one was run", "re-save"]);
    }
}

#[test]
fn the_state_of_a_training_run_is_no_weights() {
    // What `rng_state.pth` begins with: a call of NumPy's.
    let random = torch_file(&state_dict(&[("numpy", b"cnumpy.core.multiarray\n_reconstruct\n)R".to_vec())]));
    let settings = torch_file(&state_dict(&[("lr", int(1))]));
    let dir = tempdir().unwrap();
    for (name, bytes) in [("rng_state.pth", &random), ("rng_state_3.pth", &random), ("scheduler.pt", &settings)] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = TorchFile::open(&path).unwrap_err();
        assert!(matches!(error, WeightsError::RunState { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(name) && message.contains("holds no weights; these are in another file"), "{message}");
    }
}

#[test]
fn pickles_that_are_not_valid() {
    let long = "x".repeat(256);
    for (pickle, what) in [
        (b"".to_vec(), "byte 0 of its pickle: 1 bytes needed, 0 left"),
        (b"\x80\x06N.".to_vec(), "protocol 6, expected 2 to 5"),
        (b"\xff.".to_vec(), "0xff is not an opcode"),
        (b".".to_vec(), "more or less than one value"),
        (b"NN.".to_vec(), "more or less than one value"),
        (b"N(.".to_vec(), "more or less than one value"),
        (b"N.N".to_vec(), "its pickle ends at byte 2 of 3"),
        (b"\x85.".to_vec(), "byte 0 of its pickle: a value is needed"),
        (b"N(\x85.".to_vec(), "byte 2 of its pickle: a value is needed"),
        (b"t.".to_vec(), "a mark is needed"),
        (b"h\x07.".to_vec(), "the memo has no value 7"),
        (b"q\x07.".to_vec(), "a value is needed"),
        (b"NNa.".to_vec(), "items for what is not a list"),
        (b"](Nu.".to_vec(), "entries for what is not a dict"),
        (b"}(Nu.".to_vec(), "a key without a value"),
        (b"\x8c\x02\xed\xa0.".to_vec(), "not UTF-8"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.".to_vec(), "18446744073709551615 bytes needed, 1 left"),
        (b"X\xff\xff\xff\xff.".to_vec(), "4294967295 bytes needed, 1 left"),
        (b"\x8b\xff\xff\xff\x7f.".to_vec(), "2147483647 bytes needed, 1 left"),
        (b"\x95\x02\x00\x00\x00\x00\x00\x00\x00N.N".to_vec(), "ends at byte 11 of 12"),
        (b"\x95\x03\x00\x00\x00\x00\x00\x00\x00N.".to_vec(), "a frame of 3 bytes that goes on after the end"),
        ([b"\x8a\x11".as_slice(), &[1; 17], b"."].concat(), "an integer of 17 bytes"),
        (b"cos".to_vec(), "a global's name that does not end"),
        (format!("c{long}\nx\n.").into_bytes(), "a global's name that does not end, or is too long"),
        ([text(&long), text("x"), b"\x93.".to_vec()].concat(), "two strings, or too long"),
        (b"NN\x93.".to_vec(), "two strings, or too long"),
    ] {
        let error = assert_refused(&torch_file(&pickle), &["not a valid PyTorch file", what, "re-save"]);
        assert!(matches!(error, WeightsError::BadTorchFile { .. }));
    }
}

#[test]
fn depth_sharing_and_size_cost_nothing() {
    const DEPTH: usize = 100_000;
    let nested = |open: &[u8], close: &[u8]| [open.repeat(DEPTH), close.repeat(DEPTH - 1), b".".to_vec()].concat();
    assert_refused(&torch_file(&nested(b"]", b"a")), &["it holds a list"]);
    assert_refused(&torch_file(&[b")", nested(b"", b"\x85").as_slice()].concat()), &["it holds a tuple"]);
    let dicts = [b"}K\x00".repeat(DEPTH), b"N".to_vec(), b"s".repeat(DEPTH), b".".to_vec()].concat();
    assert_refused(&torch_file(&dicts), &["it has an int for a key"]);
    assert_refused(&torch_file(&nested(b"(", b"t")), &["more or less than one value"]);

    // Each doubles the one before; a list and a dict that hold themselves.
    let laughs = [b"]".as_slice(), &b"q\x00h\x00\x86".repeat(DEPTH), b"."].concat();
    assert_refused(&torch_file(&laughs), &["it holds a tuple"]);
    assert_refused(&torch_file(b"]q\x00h\x00a."), &["it holds a list"]);
    assert_refused(&torch_file(b"}q\x00X\x01\x00\x00\x00wh\x00s."), &["\"w\" (a dict)"]);
    let same = [b"\x80\x02}".as_slice(), &text(&"w".repeat(1 << 20)), b"q\x00Ns", &b"h\x00Ns".repeat(DEPTH), b"."];
    assert_refused(&torch_file(&same.concat()), &["twice"]);

    // Whatever a million instructions pile up is small, and there are no more of them.
    for instruction in [b"N".as_slice(), b"]", b"(", b")", b"\x94", b"r\xff\xff\xff\xff", b"h\x00", b"h\x00a"] {
        let pile = [b"]q\x00".as_slice(), &instruction.repeat(1 << 20), b"."].concat();
        assert_refused(&torch_file(&pile), &["more than", "the limit"]);
    }
    // Tensors of many dimensions that are said in five bytes each: function and arguments are remembered.
    let parts = [storage("0", 4), int(0), ints(&[1; 64]), ints(&[1; 64]), b"\x89".to_vec(), NO_HOOKS.to_vec()];
    let remembered = [b"ctorch._utils\n_rebuild_tensor_v2\nq\x00".as_slice(), &tuple(&parts), b"q\x01"].concat();
    let pile = [&remembered, b"h\x00h\x01R".repeat(340_000).as_slice(), b"."].concat();
    assert_refused(&torch_file(&pile), &["values of more than", "the limit"]);
    let large = vec![b'N'; (16 << 20) + 1];
    assert_refused(&torch_file(&large), &["its data.pkl has 16777217 bytes, more than the limit of 16777216"]);
    // A shape may be shared a million times, so it must be short.
    assert_refused(&torch_file(&state_dict(&[("w", tensor(0, &[1; 65], &[1; 65]))])), &["65 dimensions"]);
}

#[test]
fn tensors_that_do_not_fit_their_storage() {
    let max = i128::from(u64::MAX);
    for (value, what) in [
        (tensor(0, &[5], &[1]), "leaves its storage of 4 elements"),
        (tensor(1, &[4], &[1]), "F32 of shape [4], strides [1], offset 1: leaves"),
        (tensor(0, &[2, 2], &[3, 2]), "leaves"),
        (tensor(4, &[], &[]), "leaves"),
        (tensor(5, &[0], &[1]), "leaves"),
        (tensor(max, &[1], &[1]), "leaves"),
        (tensor(1, &[2], &[max]), "leaves"),
        (tensor(0, &[3, 2], &[max / 2, 2]), "leaves"),
        (tensor(0, &[1 << 40], &[0]), "1099511627776 elements are to come from a storage of 4"),
        (tensor(0, &[(1 << 16) + 1], &[0]), "65537 elements are to come from a storage of 4"),
        (tensor(0, &[1 << 32, 1 << 32], &[0, 0]), "the shape's product overflows"),
        (tensor(0, &[1 << 62], &[0]), "the size in bits overflows"),
        (tensor(0, &[2, 2], &[2]), "as many strides as dimensions"),
        (tensor_of(storage("0", 3), 0, &[1], &[1]), "its storage has 16 bytes, expected 3 F32 elements"),
        (tensor_of(storage("0", 1 << 62), 0, &[1], &[1]), "its storage has 16 bytes"),
        (tensor_of(storage("1", 4), 0, &[1], &[1]), "its storage \"1\" is not in the file"),
        (tensor_of(storage("../data/0", 4), 0, &[1], &[1]), "its storage \"../data/0\" is not in the file"),
        (tensor_of(storage("/etc/passwd", 4), 0, &[1], &[1]), "its storage \"/etc/passwd\" is not in the file"),
    ] {
        let error = assert_refused(&torch_file(&state_dict(&[("w", value)])), &["tensor \"w\" of", what]);
        assert!(matches!(error, WeightsError::TensorLayout { .. }));
    }
    for (value, what) in [
        (tensor(-1, &[1], &[1]), "-1 elements"),
        (tensor(0, &[-4], &[1]), "-4 elements"),
        (tensor(0, &[2], &[-1]), "-1 elements"),
        (tensor(0, &[1 << 64], &[0]), "18446744073709551616 elements"),
        (tensor_of(storage("0", -4), 0, &[1], &[1]), "-4 elements"),
        (tensor_of(text("0"), 0, &[1], &[1]), "a tensor without a storage"),
        (tensor_of(b"N".to_vec(), 0, &[1], &[1]), "a tensor without a storage"),
    ] {
        let error = assert_refused(&torch_file(&state_dict(&[("w", value)])), &[what]);
        assert!(matches!(error, WeightsError::BadTorchFile { .. }));
    }
}

#[test]
fn archives_that_torch_does_not_write() {
    let pickle = state_dict(&[]);
    let version = ("a/version", b"3\n".as_slice());
    let data = ("a/data.pkl", pickle.as_slice());
    assert_eq!(open(&zip(&[data, version])).unwrap().names().len(), 0);
    let long = "a".repeat(1025);
    for (entries, what) in [
        (vec![version], "exactly one NAME/data.pkl"),
        (vec![data, version, ("b/data.pkl", &pickle)], "exactly one NAME/data.pkl"),
        (vec![("data.pkl", pickle.as_slice()), version], "exactly one NAME/data.pkl"),
        (vec![data], "its version is not a number from 1 to 10"),
        (vec![data, ("a/version", b"11")], "its version is not"),
        (vec![data, ("a/version", b"-")], "its version is not"),
        (vec![data, ("a/version", &[b'1'; 17])], "its version has 17 bytes, more than the limit of 16"),
        (vec![data, version, ("a/byteorder", b"middle")], "its byteorder is neither little nor big"),
        (vec![data, version, data], "the entry \"a/data.pkl\" of its zip archive is there twice"),
        (vec![data, version, (&long, b"")], "a name that is too long"),
    ] {
        assert_refused(&zip(&entries), &[what]);
    }

    let whole = zip(&[data, version]);
    let directory = whole.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    let end = whole.windows(4).position(|bytes| bytes == b"PK\x05\x06").unwrap();
    // In a record of the directory: flags at 8, method at 10, sizes at 20 and 24, place of the entry at 42. In the end:
    // the number of entries at 10, the place of the directory at 16.
    for (at, bytes, what) in [
        (directory + 8, [0x01, 0, 0, 0].as_slice(), "is compressed or encrypted"),
        (directory + 10, &[8, 0], "the entry \"a/data.pkl\" of its zip archive is compressed or encrypted"),
        (directory + 20, &[1, 0, 0, 0], "is compressed or encrypted"),
        (directory + 20, &[0xfe; 8], "reaches into the directory"),
        (directory + 42, &[0xff, 0xff, 0xff, 0x7f], "zip archive is damaged"),
        (directory + 42, &[1], "zip archive is damaged"),
        (directory, b"xx", "zip archive is damaged"),
        (end + 10, &[3], "declares 3 entries and has 2"),
        (end + 16, &[0xff; 3], "zip archive is damaged"),
        (end, b"xx", "zip archive is damaged"),
    ] {
        let mut forged = whole.clone();
        forged[at..at + bytes.len()].copy_from_slice(bytes);
        assert_refused(&forged, &[what]);
    }
    assert_refused(&[whole.as_slice(), b"x"].concat(), &["its zip archive ends at byte", "the file has"]);
    assert_refused(&[whole.as_slice(), &whole].concat(), &[]);
}

#[test]
fn legacy_files_that_torch_does_not_write() {
    let whole = fs::read(testdata("legacy.pt")).unwrap();
    assert!(open(&whole).is_ok());
    assert_refused(&[whole.as_slice(), b"x"].concat(), &["its storages end at byte 2770, the file has 2771"]);
    assert_refused(b"\x80\x02K\x01.", &["first value is not PyTorch's magic number"]);
    let magic = &whole[..whole.iter().position(|byte| *byte == b'.').unwrap() + 1];
    assert_refused(&[magic, b"K\x01."].concat(), &["its version is not 1001"]);

    // After the version: a description that is not looked at, a state dict, keys and storages.
    let forge = |keys: &[u8], storages: &[u8]| {
        let dict = state_dict(&[("w", tensor(0, &[1], &[1]))]);
        [magic, b"M\xe9\x03.N.", &dict, keys, b".", storages].concat()
    };
    let keys = [b"](".as_slice(), &text("0"), b"e"].concat();
    let storage = [4u64.to_le_bytes().as_slice(), &[0; 16]].concat();
    assert!(open(&forge(&keys, &storage)).is_ok());
    assert_refused(&forge(b"N", &storage), &["keys of its storages are not a list of strings"]);
    assert_refused(&forge(b"]", b""), &["its storage \"0\" is not in the file"]);
    assert_refused(&forge(b"](X\x01\x00\x00\x001e", &storage), &["a storage \"1\" that nothing refers to"]);
    let twice = [b"](".as_slice(), &text("0"), &text("0"), b"e"].concat();
    assert_refused(&forge(&twice, &storage.repeat(2)), &["the storage \"0\" twice"]);
    assert_refused(&forge(&keys, &storage[..4]), &["it ends within 8 bytes from byte"]);
    for numel in [5u64, 1 << 62, u64::MAX] {
        let forged = [numel.to_le_bytes().as_slice(), &[0; 16]].concat();
        assert_refused(&forge(&keys, &forged), &["goes on after the end of the file"]);
    }
    let short = [3u64.to_le_bytes().as_slice(), &[0; 12]].concat();
    assert_refused(&forge(&keys, &short), &["its storage has 12 bytes, expected 4 F32 elements"]);
}

#[test]
fn what_is_not_a_torch_file() {
    let dir = tempdir().unwrap();
    let message = |path: &Path| TorchFile::open(path).unwrap_err().to_string();
    assert!(message(&dir.path().join("absent.pt")).contains("does not exist"));
    assert!(message(dir.path()).contains("not a regular file"));
    assert_refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", &["git lfs pull"]);
    for bytes in [b"".as_slice(), b"P", b"\x80", b"\x80\x01N.", &fs::read(testdata("expected.safetensors")).unwrap()] {
        assert_refused(bytes, &["neither as a zip archive nor as a pickle"]);
    }
}

// ----------------------------------------------------------------------------------------------------- what is damaged

#[test]
fn a_file_cut_at_any_byte_is_an_error() {
    for name in ["ordered_dict.pt", "legacy.pt"] {
        let whole = fs::read(testdata(name)).unwrap();
        let (_dir, path) = raw(b"");
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(TorchFile::open(&path).is_err(), "{name}, {len} bytes");
        }
        fs::write(&path, &whole).unwrap();
        let file = TorchFile::open(&path).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
        let message = file.read("f32").unwrap_err().to_string();
        assert!(message.contains("reading a tensor of"), "{message}");
    }
}

/// Opens whatever it is, and reads all of it if that is possible.
fn read_all(bytes: &[u8]) -> Result<usize, WeightsError> {
    let (_dir, path) = raw(bytes);
    let file = TorchFile::open(path)?;
    for name in file.names() {
        let tensor = file.read(name)?;
        assert_eq!(tensor.shape(), file.info(name).unwrap().shape);
        let _ = tensor.to_f32();
    }
    Ok(file.names().len())
}

/// Instructions that may follow each other, whole and broken.
fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let tensor = tensor(0, &[2], &[1]);
    let parts = [FLOATS.to_vec(), NO_HOOKS.to_vec(), text("w"), int(2), storage("0", 4), tensor, b"}".to_vec()];
    prop_oneof![
        prop::sample::select(b"(.GJKMNQRX]abcehijqrstu)}\x80\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x93\x94\x95".to_vec())
            .prop_map(|byte| vec![byte]),
        prop::sample::select(parts.to_vec()),
        any::<u8>().prop_map(|byte| vec![byte]),
        (0u8..4).prop_map(|place| vec![b'q', place]),
        (0u8..4).prop_map(|place| vec![b'h', place]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(
        head in prop::sample::select(vec![b"".to_vec(), b"PK\x03\x04".to_vec(), b"\x80\x02".to_vec()]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert!(read_all(&[head, bytes].concat()).is_err());
    }

    #[test]
    fn arbitrary_instructions_never_panic(
        instructions in prop::collection::vec(instruction(), 0..30),
        end in prop::sample::select(vec![b"".to_vec(), b".".to_vec(), b"s.".to_vec(), b"u.".to_vec()]),
    ) {
        let _ = read_all(&torch_file(&[instructions.concat(), end].concat()));
    }

    #[test]
    fn damaged_files_never_panic(
        name in prop::sample::select(vec!["ordered_dict.pt", "protocol5.pt", "legacy.pt"]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = fs::read(testdata(name)).unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = read_all(&bytes);
    }

    /// Damage where it hurts: in the pickle alone.
    #[test]
    fn damaged_pickles_never_panic(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut pickle = state_dict(&[("v", tensor(0, &[2, 2], &[1, 2])), ("w", tensor(1, &[3], &[1]))]);
        let at = at.index(pickle.len());
        pickle[at] = byte;
        let _ = read_all(&torch_file(&pickle));
    }

    #[test]
    fn views_are_those_of_plain_indexing(
        offset in 0usize..3,
        dims in prop::collection::vec((0usize..4, 0usize..5), 0..4),
    ) {
        let values: Vec<f32> = (0..64u8).map(f32::from).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (shape, strides): (Vec<_>, Vec<_>) = dims.iter().copied().unzip();
        let wide = |sizes: &[usize]| sizes.iter().map(|&size| size as i128).collect::<Vec<_>>();
        let view = tensor_of(storage("0", 64), offset as i128, &wide(&shape), &wide(&strides));
        let pickle = state_dict(&[("w", view)]);
        let (_dir, path) = raw(&zip(&[("a/data.pkl", &pickle), ("a/data/0", &bytes), ("a/version", b"3")]));
        let found = TorchFile::open(path).unwrap().read("w").unwrap();

        let mut expected = vec![offset];
        for &(size, stride) in &dims {
            expected = expected.iter().flat_map(|at| (0..size).map(move |i| at + i * stride)).collect();
        }
        let expected: Vec<f32> = expected.into_iter().map(|at| values[at]).collect();
        prop_assert_eq!((found.dtype(), found.shape()), (Dtype::F32, shape.as_slice()));
        prop_assert_eq!(found.to_f32().unwrap(), expected);
    }
}
