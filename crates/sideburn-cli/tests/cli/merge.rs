//! `sideburn adapter merge`.

use super::*;

#[test]
fn merged_models_are_models() {
    let directory = tempdir().unwrap();
    let base = directory.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(BASE).join(file), base.join(file)).unwrap();
    }
    fs::write(base.join("tokenizer.json"), "{}").unwrap();
    fs::write(base.join("notes.txt"), "not for the world").unwrap();
    let output = directory.path().join("deep/merged");

    let found = json(0, args!["adapter", "merge", golden(ADAPTER), "--base", base, "--output", output]);
    assert_eq!((&found["precision"], &found["copied"]), (&json!("f32"), &json!(["tokenizer.json"])));
    let drift = found["drift"].as_f64().unwrap();
    assert!((0.0..2e-4).contains(&drift), "{drift}");
    assert!(found["effect"].as_f64().unwrap() > 1.0, "{found}");
    let mut files: Vec<_> = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]);

    // What peft computes with the adapter beside the base.
    let reference = adapter_reference(ADAPTER, directory.path());
    let verified = json(0, args!["verify", "--model", output, "--reference", reference, "--tolerance", "2e-4"]);
    assert_eq!(verified["passed"], json!(true));

    let merge = args!["adapter", "merge", golden(ADAPTER), "--base", base, "--output", output, "--precision", "bf16"];
    let rounded = json(0, merge)["drift"].as_f64().unwrap();
    assert!(rounded > 1e-2, "{rounded}");
    let dtypes = read(&output.join("model.safetensors"));
    assert!(dtypes.values().all(|tensor| tensor.dtype() == Dtype::BF16));
}

#[test]
fn what_cannot_be_merged_leaves_nothing_behind() {
    let directory = tempdir().unwrap();
    let output = directory.path().join("merged");
    let merge = |adapter: &Path| error(args!["adapter", "merge", adapter, "--base", golden(BASE), "--output", output]);
    assert_contains(&merge(&golden("adapters/prompt_tuning")), &["cannot be merged"]);
    assert_contains(&merge(with_nan().path()), &["element 3", "NaN"]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    let base = directory.path().join("base");
    fs::create_dir(&base).unwrap();
    let onto_itself = error(args!["adapter", "merge", golden(ADAPTER), "--base", base, "--output", base]);
    assert_contains(&onto_itself, &["is the base itself"]);
}

/// A model of a stranger must not name files of the reader's.
#[cfg(unix)]
#[test]
fn merge_follows_no_link_out_of_the_base() {
    use std::os::unix::fs::symlink;

    let directory = tempdir().unwrap();
    let secret = directory.path().join("id_ed25519");
    fs::write(&secret, "private").unwrap();
    let base = directory.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(BASE).join(file), base.join(file)).unwrap();
    }
    symlink(&secret, base.join("vocab.json")).unwrap();
    symlink("../id_ed25519", base.join("merges.txt")).unwrap();
    symlink("/dev/zero", base.join("tokenizer.json")).unwrap();
    symlink("nothing", base.join("added_tokens.json")).unwrap();
    symlink(directory.path(), base.join("up")).unwrap();
    symlink("up/id_ed25519", base.join("tokenizer_config.json")).unwrap();
    fs::create_dir(base.join("spiece.model")).unwrap();
    fs::write(base.join("special"), "{}").unwrap();
    symlink("special", base.join("special_tokens_map.json")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(base.join("tokenizer.model")).status();
    let has_fifo = fifo.is_ok_and(|status| status.success());

    let output = directory.path().join("merged");
    let merge = args!["adapter", "merge", golden(ADAPTER), "--base", base, "--output", output];
    let found = json(0, merge.clone());
    assert_eq!(found["copied"], json!(["special_tokens_map.json"]));
    assert_eq!(fs::read_to_string(output.join("special_tokens_map.json")).unwrap(), "{}");
    assert!(fs::read_dir(&output).unwrap().all(|entry| entry.unwrap().file_type().unwrap().is_file()), "no links");
    let left_out: BTreeMap<_, _> = found["not_copied"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["file"].as_str().unwrap(), file["reason"].as_str().unwrap()))
        .collect();
    for file in ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"] {
        assert_contains(left_out[file], &["a link out of the directory"]);
    }
    assert_contains(left_out["added_tokens.json"], &["leads nowhere"]);
    assert_eq!(left_out["spiece.model"], "not a regular file");
    assert!(!has_fifo || left_out["tokenizer.model"] == "not a regular file", "{left_out:?}");
    fs::remove_dir_all(&output).unwrap();
    assert_contains(&run(merge).stdout, &["not copied  vocab.json: a link out of the directory"]);
}

/// In the cache of `huggingface_hub` every file is a link to `../../blobs/`.
#[cfg(unix)]
#[test]
fn merge_copies_from_the_cache_of_the_hub() {
    use std::os::unix::fs::symlink;

    let directory = tempdir().unwrap();
    let entry = directory.path().join("models--some--model");
    let (blobs, snapshot) = (entry.join("blobs"), entry.join("snapshots/0123456789abcdef"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for (blob, name) in [("a", "config.json"), ("b", "model.safetensors")] {
        fs::copy(golden(BASE).join(name), blobs.join(blob)).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    fs::write(blobs.join("c"), "{}").unwrap();
    symlink("../../blobs/c", snapshot.join("tokenizer.json")).unwrap();
    // Blobs of another entry are none of this model's.
    let other = directory.path().join("models--some--other/blobs");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("d"), "{}").unwrap();
    symlink("../../../models--some--other/blobs/d", snapshot.join("vocab.json")).unwrap();

    let output = directory.path().join("merged");
    let found = json(0, args!["adapter", "merge", golden(ADAPTER), "--base", snapshot, "--output", output]);
    assert_eq!(found["copied"], json!(["tokenizer.json"]));
    assert_eq!(found["not_copied"][0]["file"], json!("vocab.json"));
    assert_eq!(fs::read_to_string(output.join("tokenizer.json")).unwrap(), "{}");
}
