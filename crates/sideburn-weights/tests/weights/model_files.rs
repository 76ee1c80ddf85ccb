//! Model directories: whole, sharded, incomplete, contradictory and hostile.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sideburn_weights::{ModelFiles, Tensor, TensorSource, WeightsError, write_safetensors};
use tempfile::{TempDir, tempdir};

const INDEX: &str = "model.safetensors.index.json";

fn tensor(value: f32) -> Tensor {
    Tensor::from_f32(vec![1], &[value]).unwrap()
}

fn write_shard(path: &Path, tensors: &[(&str, f32)]) {
    write_safetensors(path, tensors.iter().map(|(name, value)| (*name, tensor(*value))), None).unwrap();
}

fn write_index(dir: &Path, entries: &[(&str, &str)]) {
    let entries: Vec<_> = entries.iter().map(|(name, file)| format!("{name:?}: {file:?}")).collect();
    let json = format!("{{\"metadata\": {{\"total_size\": 12}}, \"weight_map\": {{{}}}}}", entries.join(", "));
    fs::write(dir.join(INDEX), json).unwrap();
}

/// Tensors `a` and `b` in one shard, `c` in another.
fn sharded() -> TempDir {
    let dir = tempdir().unwrap();
    write_shard(&dir.path().join("m-1.safetensors"), &[("a", 1.0), ("b", 2.0)]);
    write_shard(&dir.path().join("m-2.safetensors"), &[("c", 3.0)]);
    write_index(dir.path(), &[("a", "m-1.safetensors"), ("b", "m-1.safetensors"), ("c", "m-2.safetensors")]);
    dir
}

#[track_caller]
fn assert_refused(path: &Path, fragments: &[&str]) -> WeightsError {
    let error = ModelFiles::open(path).unwrap_err();
    let message = error.to_string();
    for fragment in fragments {
        assert!(message.contains(fragment), "{fragment:?} is not in: {message}");
    }
    error
}

#[test]
fn shards_are_one_namespace() {
    let dir = sharded();
    for path in [dir.path().to_owned(), dir.path().join(INDEX)] {
        let model = ModelFiles::open(path).unwrap();
        assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(model.contains("c") && !model.contains("d"));
        assert_eq!(model.info("b").unwrap().shape, [1]);
        assert_eq!(model.file_of("c").unwrap().path(), dir.path().join("m-2.safetensors"));
        assert_eq!(model.files().len(), 2);
        assert_eq!(model.read("b").unwrap(), tensor(2.0));
        assert_eq!(model.read_f32("c").unwrap(), [3.0]);
        assert!(model.info("d").is_none() && model.file_of("d").is_none());
        let message = model.read("d").unwrap_err().to_string();
        assert!(message.contains("has no tensor \"d\"; it has 3 tensors"), "{message}");
    }
}

#[test]
fn a_whole_file_comes_before_an_index() {
    let dir = sharded();
    write_shard(&dir.path().join("model.safetensors"), &[("whole", 9.0)]);
    assert_eq!(ModelFiles::open(dir.path()).unwrap().names().collect::<Vec<_>>(), ["whole"]);
    let model = ModelFiles::open(dir.path().join("m-2.safetensors")).unwrap();
    assert_eq!(model.names().collect::<Vec<_>>(), ["c"]);
}

#[test]
fn directories_without_weights() {
    let dir = tempdir().unwrap();
    assert_refused(&dir.path().join("absent"), &["absent", "does not exist"]);
    assert_refused(
        dir.path(),
        &["neither model.safetensors nor pytorch_model.bin, nor an index of either", "directory of a model?"],
    );

    for state in ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth"] {
        fs::write(dir.path().join(state), b"").unwrap();
    }
    assert!(matches!(ModelFiles::open(dir.path()), Err(WeightsError::NoWeights { found, .. }) if found.is_empty()));
    fs::copy(torch("dict.pt"), dir.path().join("weights.pt")).unwrap();
    write_shard(&dir.path().join("adapter_model.safetensors"), &[("a", 1.0)]);
    assert_refused(dir.path(), &["it has \"adapter_model.safetensors\", \"weights.pt\"", "path of the file you mean"]);
    assert_eq!(ModelFiles::open(dir.path().join("weights.pt")).unwrap().names().len(), 21);
}

fn torch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/torch").join(name)
}

const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// A directory with these files of `torch.save`, and an index that gives each all of its tensors.
fn sharded_torch(shards: &[(&str, &str)]) -> TempDir {
    let dir = tempdir().unwrap();
    let mut entries = Vec::new();
    for (name, golden) in shards {
        fs::copy(torch(golden), dir.path().join(name)).unwrap();
        let file = ModelFiles::open(dir.path().join(name)).unwrap();
        entries.extend(file.names().map(|tensor| format!("{tensor:?}: {name:?}")));
    }
    fs::write(dir.path().join(TORCH_INDEX), format!("{{\"weight_map\": {{{}}}}}", entries.join(", "))).unwrap();
    dir
}

#[test]
fn a_model_of_torch_files_is_read_as_its_safetensors() {
    let expected = ModelFiles::open(torch("expected.safetensors")).unwrap();
    let dir = tempdir().unwrap();
    fs::copy(torch("ordered_dict.pt"), dir.path().join("pytorch_model.bin")).unwrap();
    let whole = ModelFiles::open(dir.path()).unwrap();
    assert!(whole.path().ends_with("pytorch_model.bin") && whole.names().eq(expected.names()));
    for name in expected.names() {
        assert_eq!(whole.read(name).unwrap(), expected.read(name).unwrap(), "{name}");
    }
    assert_eq!(whole.read_f32("bf16").unwrap(), expected.read_f32("bf16").unwrap());

    let shards =
        [("pytorch_model-00001-of-00002.bin", "dict.pt"), ("pytorch_model-00002-of-00002.bin", "lora_rslora.bin")];
    let dir = sharded_torch(&shards);
    let model = ModelFiles::open(dir.path()).unwrap();
    let second = ModelFiles::open(torch("lora_rslora.bin")).unwrap();
    assert_eq!(model.names().len(), 21 + second.names().len());
    for name in second.names() {
        assert_eq!(model.read(name).unwrap(), second.read(name).unwrap(), "{name}");
    }
    assert_eq!(model.read("view.transposed").unwrap(), expected.read("view.transposed").unwrap());

    // Safetensors come first, of one file or of many.
    write_shard(&dir.path().join("m-1.safetensors"), &[("a", 1.0)]);
    write_index(dir.path(), &[("a", "m-1.safetensors")]);
    assert_eq!(ModelFiles::open(dir.path()).unwrap().names().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn torch_files_that_are_no_weights_are_refused() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    // A global that runs a command, as `pickle.dumps` writes the result of a `__reduce__` that asks for it.
    let pickle = b"\x80\x02cposix\nsystem\nX\x02\0\0\0idR.";
    let refused = || {
        let error =
            assert_refused(dir.path(), &["pytorch_model.bin", "asks for", "posix", "nothing of this one was run"]);
        assert!(matches!(error, WeightsError::UnsafePickle { .. }));
    };
    fs::write(&path, pickle).unwrap();
    refused();
    let mut archive = rawzip::ZipArchiveWriter::new(Vec::new());
    for (name, bytes) in [("a/data.pkl", &pickle[..]), ("a/version", b"3\n")] {
        let (mut entry, config) =
            archive.new_file(name).compression_method(rawzip::CompressionMethod::STORE).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        std::io::Write::write_all(&mut writer, bytes).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    fs::write(&path, archive.finish().unwrap()).unwrap();
    refused();

    fs::copy(torch("training.pt"), &path).unwrap();
    assert_refused(dir.path(), &["is not a state dict of tensors", "\"epoch\""]);
    fs::copy(torch("module.pt"), &path).unwrap();
    assert_refused(dir.path(), &["asks for", "torch.nn.modules"]);
    let whole = fs::read(torch("dict.pt")).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert_refused(dir.path(), &["not a valid PyTorch file"]);
    fs::write(&path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n").unwrap();
    assert_refused(dir.path(), &["Git LFS"]);
}

#[test]
fn an_index_of_torch_files_names_nothing_else() {
    let dir = sharded_torch(&[("m-1.bin", "dict.pt")]);
    let write = |shard: &str| {
        fs::write(dir.path().join(TORCH_INDEX), format!("{{\"weight_map\": {{\"f32\": {shard:?}}}}}")).unwrap();
    };
    write_shard(&dir.path().join("m.safetensors"), &[("f32", 1.0)]);
    for (shard, why) in [
        ("m.safetensors", "does not end in .bin"),
        ("../m-1.bin", "leaves the directory"),
        ("/m-1.bin", "an absolute path"),
        ("m-1.pt", "does not end in .bin"),
    ] {
        write(shard);
        let error = assert_refused(dir.path(), &[why, TORCH_INDEX]);
        assert!(matches!(error, WeightsError::UnsafeShardNames { .. }));
    }
    write("absent.bin");
    assert_refused(dir.path(), &["are missing: \"absent.bin\""]);
    write("m-1.bin");
    // The other tensors of the file are in no index.
    assert!(matches!(assert_refused(dir.path(), &["disagree"]), WeightsError::IndexMismatch { .. }));
    // And an index of safetensors names no pickle.
    write_index(dir.path(), &[("f32", "m-1.bin")]);
    assert_refused(dir.path(), &["does not end in .safetensors", INDEX]);
}

#[test]
fn an_index_that_is_not_valid() {
    let dir = tempdir().unwrap();
    for (json, fragments) in [
        ("", ["is not valid", "EOF"]),
        ("[]", ["is not valid", "expected a JSON object"]),
        ("{\"metadata\": {}}", ["is not valid", "no \"weight_map\""]),
        ("{\"weight_map\": {}}", ["is not valid", "is empty"]),
        ("{\"weight_map\": {\"a\": 1}}", ["key \"a\"", "expected a string"]),
        ("{\"weight_map\": {\"a\": \"m.safetensors\", \"a\": \"n.safetensors\"}}", ["JSON key twice: \"a\"", INDEX]),
        ("{\"weight_map\": {\"a\": \"m\"}, \"weight_map\": {\"a\": \"m\"}}", ["twice: \"weight_map\"", INDEX]),
    ] {
        fs::write(dir.path().join(INDEX), json).unwrap();
        assert_refused(dir.path(), &fragments);
    }
    let deep = format!("{{\"x\": {}", "[".repeat(1 << 20));
    fs::write(dir.path().join(INDEX), deep).unwrap();
    assert_refused(dir.path(), &["is not valid", "EOF"]);
    fs::File::create(dir.path().join(INDEX)).unwrap().set_len((64 << 20) + 1).unwrap();
    assert_refused(dir.path(), &["has 67108865 bytes, more than the limit of 67108864"]);
}

#[test]
fn shard_names_that_leave_the_directory() {
    let outer = sharded();
    let dir = outer.path().join("model");
    fs::create_dir(&dir).unwrap();
    let absolute = outer.path().join("m-2.safetensors");
    let absolute = absolute.to_str().unwrap();
    write_index(&dir, &[("a", "../m-1.safetensors"), ("b", "ok.safetensors"), ("c", absolute), ("d", "x/../../y")]);
    let quoted = format!("{absolute:?} (an absolute path)");
    let fragments = ["\"../m-1.safetensors\" (leaves", &quoted, "\"x/../../y\" (leaves", "must not"];
    let error = assert_refused(&dir, &fragments);
    assert!(matches!(error, WeightsError::UnsafeShardNames { names, .. } if names.len() == 3));
}

#[test]
fn missing_shards_are_all_listed() {
    let dir = sharded();
    write_index(dir.path(), &[("a", "m-1.safetensors"), ("c", "gone-2.safetensors"), ("b", "gone-1.safetensors")]);
    assert_refused(dir.path(), &["missing: \"gone-1.safetensors\", \"gone-2.safetensors\";", INDEX]);
    fs::create_dir(dir.path().join("gone-1.safetensors")).unwrap();
    fs::create_dir(dir.path().join("gone-2.safetensors")).unwrap();
    assert_refused(dir.path(), &["gone-1.safetensors\" is not a regular file"]);
}

#[test]
fn a_damaged_shard_is_named() {
    let dir = sharded();
    fs::write(dir.path().join("m-2.safetensors"), b"short").unwrap();
    assert_refused(dir.path(), &["m-2.safetensors\" is cut short"]);
}

#[test]
fn a_tensor_in_two_shards() {
    let dir = sharded();
    write_shard(&dir.path().join("m-2.safetensors"), &[("a", 4.0), ("b", 5.0), ("c", 3.0)]);
    let both = "(in \"m-1.safetensors\", \"m-2.safetensors\")";
    assert_refused(dir.path(), &["more than one shard", &format!("\"a\" {both}, \"b\" {both}")]);
}

#[test]
fn an_index_that_its_shards_contradict() {
    let dir = sharded();
    write_index(dir.path(), &[("a", "m-2.safetensors"), ("b", "m-1.safetensors")]);
    assert_refused(
        dir.path(),
        &[
            r#""a" (named "m-2.safetensors", found in "m-1.safetensors")"#,
            r#"not in the index: "c" (in "m-2.safetensors")"#,
        ],
    );
}

/// As in `google/flan-t5-xl`, whose index has the second copies of a tied embedding.
#[test]
fn an_index_that_names_tensors_no_shard_holds() {
    let dir = sharded();
    let (one, two) = ("m-1.safetensors", "m-2.safetensors");
    write_index(dir.path(), &[("a", one), ("b", one), ("c", two), ("copy of a", two), ("copy of c", one)]);
    let model = ModelFiles::open(dir.path()).unwrap();
    assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(!model.contains("copy of a") && model.info("copy of a").is_none());
    assert_eq!((model.promised("copy of a"), model.promised("copy of c")), (Some(two), Some(one)));
    assert_eq!((model.promised("a"), model.promised("d")), (None, None));
    assert!(matches!(model.read("copy of a"), Err(WeightsError::TensorNotFound { .. })));
}

#[cfg(unix)]
mod links {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn that_lead_outside_are_refused() {
        let dir = sharded();
        let elsewhere = tempdir().unwrap();
        let secret = elsewhere.path().join("secret.safetensors");
        fs::rename(dir.path().join("m-2.safetensors"), &secret).unwrap();
        symlink(&secret, dir.path().join("m-2.safetensors")).unwrap();
        let target = format!("\"m-2.safetensors\" -> {:?}", secret.canonicalize().unwrap());
        assert_refused(dir.path(), &["symbolic links that lead outside", &target]);

        // By way of a linked folder as well.
        write_index(dir.path(), &[("a", "m-1.safetensors"), ("c", "sub/secret.safetensors")]);
        symlink(elsewhere.path(), dir.path().join("sub")).unwrap();
        assert_refused(dir.path(), &["lead outside", "\"sub/secret.safetensors\" -> "]);

        // A link to nowhere is a missing shard.
        fs::remove_file(&secret).unwrap();
        assert_refused(dir.path(), &["missing: \"sub/secret.safetensors\""]);
    }

    #[test]
    fn that_stay_inside_are_followed() {
        let dir = sharded();
        fs::rename(dir.path().join("m-2.safetensors"), dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("m-2.safetensors")).unwrap();
        assert_eq!(ModelFiles::open(dir.path()).unwrap().read_f32("c").unwrap(), [3.0]);
        // The directory itself may be a link, and a whole model.safetensors may be one.
        let outer = tempdir().unwrap();
        symlink(dir.path(), outer.path().join("model")).unwrap();
        assert!(ModelFiles::open(outer.path().join("model")).unwrap().contains("a"));
        symlink(dir.path().join("real"), outer.path().join("model.safetensors")).unwrap();
        assert!(ModelFiles::open(outer.path()).unwrap().contains("c"));
    }

    #[test]
    fn a_dangling_whole_file_is_not_passed_over() {
        let dir = sharded();
        symlink("gone", dir.path().join("model.safetensors")).unwrap();
        assert_refused(dir.path(), &["model.safetensors\" does not exist"]);
    }

    /// A cache entry `org/name` whose snapshot is all links into its blobs, as huggingface_hub lays it out.
    fn cache_entry(cache: &Path, name: &str) -> std::path::PathBuf {
        let entry = cache.join(name);
        let snapshot = entry.join("snapshots/0123abcd");
        fs::create_dir_all(&snapshot).unwrap();
        fs::rename(sharded().keep(), entry.join("blobs")).unwrap();
        for file in ["m-1.safetensors", "m-2.safetensors", INDEX] {
            symlink(Path::new("../../blobs").join(file), snapshot.join(file)).unwrap();
        }
        snapshot
    }

    #[test]
    fn of_a_hub_cache_lead_into_its_own_blobs() {
        let cache = tempdir().unwrap();
        let snapshot = cache_entry(cache.path(), "models--org--name");
        assert_eq!(ModelFiles::open(&snapshot).unwrap().names().len(), 3);

        // Not into those of another entry, not beside the blobs, and not in a directory that only looks like a cache.
        let other = cache_entry(cache.path(), "models--org--other");
        fs::remove_file(snapshot.join("m-2.safetensors")).unwrap();
        symlink(other.join("m-2.safetensors"), snapshot.join("m-2.safetensors")).unwrap();
        assert_refused(&snapshot, &["lead outside", "models--org--other/blobs/m-2.safetensors"]);
        fs::remove_file(snapshot.join("m-2.safetensors")).unwrap();
        write_shard(&cache.path().join("models--org--name/beside.safetensors"), &[("c", 3.0)]);
        symlink("../../beside.safetensors", snapshot.join("m-2.safetensors")).unwrap();
        assert_refused(&snapshot, &["lead outside"]);
        let plain = cache_entry(cache.path(), "plain--org--name");
        assert_refused(&plain, &["lead outside"]);
    }

    #[test]
    fn of_a_hub_cache_lead_into_blobs_that_entries_share() {
        let cache = tempdir().unwrap();
        let snapshot = cache_entry(cache.path(), "models--org--name");
        // `utils/_shared_blobs.py` of huggingface_hub 2.4: a blob is a link itself.
        let shared = cache.path().join("blobs/ab");
        fs::create_dir_all(&shared).unwrap();
        let blob = cache.path().join("models--org--name/blobs/m-2.safetensors");
        fs::rename(&blob, shared.join("abcd")).unwrap();
        symlink("../../blobs/ab/abcd", &blob).unwrap();
        // A folder that only has the name is none.
        assert_refused(&snapshot, &["lead outside", "blobs/ab/abcd"]);
        fs::write(cache.path().join("blobs/.huggingface-shared-blobs"), "1\n").unwrap();
        assert_eq!(ModelFiles::open(&snapshot).unwrap().read_f32("c").unwrap(), [3.0]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_indices_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join(INDEX), bytes).unwrap();
        prop_assert!(ModelFiles::open(dir.path()).is_err());
    }

    #[test]
    fn arbitrary_shard_names_open_nothing_outside(name in "(\\.|/|\\.\\./|[a-z:\\\\]){0,12}(m-1.safetensors)?") {
        // One set of shards for all names: writing them syncs the disk.
        static OUTER: std::sync::LazyLock<TempDir> = std::sync::LazyLock::new(sharded);
        let dir = tempfile::tempdir_in(OUTER.path()).unwrap();
        let dir = dir.path();
        write_index(dir, &[("a", &name), ("b", &name)]);
        prop_assert!(ModelFiles::open(dir).is_err());
    }
}
