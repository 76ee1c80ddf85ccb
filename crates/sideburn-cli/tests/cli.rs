//! The program as it is run: what it prints, and how it exits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sideburn::adapters::Precision;
use sideburn::prelude::*;
use sideburn::weights::{Dtype, SafetensorsFile, Tensor, write_safetensors};
use tempfile::{TempDir, tempdir};

const BASE: &str = "t5_gated_untied";
const ADAPTER: &str = "adapters/lora_rslora";
const Q_B: &str = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight";

fn golden(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(relative)
}

/// Arguments of the program: text, or paths.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { vec![$(std::ffi::OsString::from(&$arg)),*] };
}

struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(args: Vec<std::ffi::OsString>) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_sideburn")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs the program with `--json`. All that it prints must be one object.
#[track_caller]
fn json(code: i32, mut args: Vec<std::ffi::OsString>) -> Value {
    args.push("--json".into());
    let run = run(args);
    assert_eq!(run.code, code, "{}{}", run.stdout, run.stderr);
    assert_eq!(run.stderr, "");
    serde_json::from_str(&run.stdout).unwrap()
}

/// Runs the program, which must fail, and returns what it says of that.
#[track_caller]
fn error(args: Vec<std::ffi::OsString>) -> String {
    let run = run(args);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{}", run.stderr);
    run.stderr
}

#[track_caller]
fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let file = SafetensorsFile::open(path).unwrap();
    file.names().map(|name| (name.to_owned(), file.read(name).unwrap())).collect()
}

/// A copy of an adapter, with other tensors.
fn changed(adapter: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> TempDir {
    let directory = tempdir().unwrap();
    fs::copy(golden(adapter).join("adapter_config.json"), directory.path().join("adapter_config.json")).unwrap();
    let mut tensors = read(&golden(adapter).join("adapter_model.safetensors"));
    change(&mut tensors);
    write_safetensors(directory.path().join("adapter_model.safetensors"), tensors, None).unwrap();
    directory
}

fn with_nan() -> TempDir {
    changed(ADAPTER, |tensors| {
        let b = tensors.get_mut(Q_B).unwrap();
        let mut values = b.to_f32().unwrap();
        values[3] = f32::NAN;
        *b = Tensor::from_f32(b.shape().to_vec(), &values).unwrap();
    })
}

/// [`ADAPTER`] as older releases of `peft` wrote it.
fn pickled() -> TempDir {
    let directory = tempdir().unwrap();
    fs::copy(golden(ADAPTER).join("adapter_config.json"), directory.path().join("adapter_config.json")).unwrap();
    fs::copy(golden("torch/lora_rslora.bin"), directory.path().join("adapter_model.bin")).unwrap();
    directory
}

#[test]
fn help_shows_examples() {
    let help = run(args!["--help"]);
    assert_eq!(help.code, 0);
    assert_contains(&help.stdout, &["Examples:", "sideburn adapter merge my-adapter --base", "Exit status"]);
    for command in ["inspect", "check", "merge", "combine", "convert"] {
        assert_eq!(run(args!["adapter", command, "--help"]).code, 0);
        assert_contains(&error(args!["adapter", command]), &["required arguments"]);
    }
    assert_contains(&error(args!["adapter", "inspekt"]), &["'inspect'"]);
}

// --------------------------------------------------------------------------------------------------------- inspect

#[test]
fn inspect_shows_configuration_and_norms() {
    let found = json(0, args!["adapter", "inspect", golden(ADAPTER), "--sites"]);
    for (field, expected) in [
        ("peft_type", json!("LORA")),
        ("base_model_name_or_path", json!("base/t5_gated_untied")),
        ("task_type", json!("SEQ_2_SEQ_LM")),
        ("peft_version", json!("0.21.2")),
        ("unsupported", Value::Null),
        ("ranks", json!([4])),
        ("sites", json!(12)),
        ("tensors", json!(24)),
        ("parameters", json!(6144)),
        ("bytes", json!(24576)),
    ] {
        assert_eq!(found[field], expected, "{field}");
    }

    // s B A of one site, formed for once: s is 8 / sqrt(4).
    let tensors = read(&golden(ADAPTER).join("adapter_model.safetensors"));
    let b = tensors[Q_B].to_f32().unwrap();
    let a = tensors[&Q_B.replace("lora_B", "lora_A")].to_f32().unwrap();
    let mut square = 0.0;
    for row in b.chunks(4) {
        for column in 0..64 {
            let element: f64 = (0..4).map(|k| f64::from(row[k]) * f64::from(a[k * 64 + column])).sum();
            square += (4.0 * element).powi(2);
        }
    }
    let sites = found["site_list"].as_array().unwrap();
    let site = sites.iter().find(|site| site["site"] == "encoder.block.0.layer.0.SelfAttention.q").unwrap();
    assert_eq!((&site["rank"], &site["scaling"]), (&json!(4), &json!(4.0)));
    assert!((site["norm"].as_f64().unwrap() / square.sqrt() - 1.0).abs() < 1e-9, "{site} is not {}", square.sqrt());
    let largest = sites.iter().map(|site| site["norm"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(found["updates"]["largest"], json!(largest));
    assert_eq!(found["norms"]["lora_A.weight"]["tensors"], json!(12));

    let text = run(args!["adapter", "inspect", golden(ADAPTER)]).stdout;
    assert_contains(&text, &["type          LORA\n", "parameters    6,144 in 24 tensors\n", "s B A "]);
    assert!(!text.contains("encoder.block.0"), "{text}");
}

#[test]
fn inspect_shows_every_method() {
    let sizes = |adapter: &str| {
        let found = json(0, args!["adapter", "inspect", golden(adapter)]);
        ["peft_type", "sites", "tensors"].map(|field| found[field].clone())
    };
    assert_eq!(sizes("adapters/ia3_default"), [json!("IA3"), json!(16), json!(16)]);
    assert_eq!(sizes("adapters/prefix_tuning"), [json!("PREFIX_TUNING"), json!(0), json!(1)]);
    assert_eq!(sizes("adapters/ln_tuning"), [json!("LN_TUNING"), json!(12), json!(12)]);
    assert_eq!(sizes("adapters/lora_modules_to_save_lm_head"), [json!("LORA"), json!(4), json!(9)]);
    assert_eq!(sizes("adapters/vera")[1], json!(10), "whatever can be loaded");

    let found = json(0, args!["adapter", "inspect", pickled().path()]);
    assert_eq!((&found["file"], &found["parameters"]), (&json!("adapter_model.bin"), &json!(6144)));
}

#[test]
fn inspect_says_what_is_not_supported() {
    let directory = changed(ADAPTER, |_| {});
    let config = directory.path().join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"use_bdlora\": null", "\"use_bdlora\": {\"blocks\": 2}")).unwrap();
    let found = json(0, args!["adapter", "inspect", directory.path()]);
    assert_contains(found["unsupported"].as_str().unwrap(), &["adapter_config.json", "use_bdlora"]);
    assert_eq!(found["updates"], Value::Null, "what it adds to a weight is not known");
}

#[test]
fn inspect_refuses_what_is_no_adapter() {
    assert_contains(&error(args!["adapter", "inspect", golden(BASE)]), &["error: ", "adapter_config.json"]);
    let directory = changed(ADAPTER, |_| {});
    fs::remove_file(directory.path().join("adapter_model.safetensors")).unwrap();
    let message = error(args!["adapter", "inspect", directory.path()]);
    assert_contains(&message, &["adapter_model.safetensors", "adapter_model.bin"]);
}

// ----------------------------------------------------------------------------------------------------------- check

/// Checks an adapter on [`BASE`], and returns the checks by name.
#[track_caller]
fn check(code: i32, adapter: &Path, more: &[&str]) -> BTreeMap<String, (String, String)> {
    let mut args = args!["adapter", "check", adapter, "--base", golden(BASE)];
    args.extend(more.iter().map(std::ffi::OsString::from));
    let found = json(code, args);
    assert_eq!(found["passed"], json!(code == 0));
    let text = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
    let checks = found["checks"].as_array().unwrap().iter();
    checks.map(|check| (text(check, "check"), (text(check, "verdict"), text(check, "detail")))).collect()
}

#[track_caller]
fn assert_verdicts(checks: &BTreeMap<String, (String, String)>, other_than_ok: &[(&str, &str)]) {
    let found: Vec<_> = checks.iter().filter(|(_, (verdict, _))| verdict != "ok").collect();
    let found: Vec<_> = found.iter().map(|(name, (verdict, _))| (name.as_str(), verdict.as_str())).collect();
    assert_eq!(found, other_than_ok);
}

#[test]
fn check_passes_what_was_saved_on_this_base() {
    let checks = check(0, &golden("exported"), &["--strict"]);
    assert_eq!(checks.len(), 8);
    assert_verdicts(&checks, &[]);
    let text = run(args!["adapter", "check", golden("exported"), "--base", golden(BASE)]).stdout;
    assert_contains(&text, &["ok  fingerprint    that of the base\n", "exported fits "]);
}

#[test]
fn check_warns_of_an_unknown_base() {
    assert_verdicts(&check(0, &golden(ADAPTER), &[]), &[("fingerprint", "warning")]);
    assert_verdicts(&check(1, &golden(ADAPTER), &["--strict"]), &[("fingerprint", "warning")]);
}

#[test]
fn check_tells_bases_apart() {
    // Rounded, the base is as good as another one that the adapter fits.
    let rounded = tempdir().unwrap();
    T5::from_dir(golden(BASE), &Device::flex()).unwrap().save_dir(&rounded, Precision::Bf16).unwrap();
    let found = json(0, args!["adapter", "check", golden("exported"), "--base", rounded.path()]);
    let fingerprint = &found["checks"][7];
    assert_eq!(fingerprint["verdict"], "warning");
    assert_contains(fingerprint["detail"].as_str().unwrap(), &["in another precision", " in the file, v1-"]);

    let other = golden("../assets/t5-mini");
    let found = json(1, args!["adapter", "check", golden("exported"), "--base", other]);
    let verdict = |check: usize| found["checks"][check]["verdict"].as_str().unwrap();
    assert_eq!([verdict(4), verdict(5), verdict(6), verdict(7)], ["ok", "ok", "failed", "failed"]);
    assert_contains(found["checks"][6]["detail"].as_str().unwrap(), &["is [4, 64], the model has [4, 192]"]);
    assert_contains(found["checks"][7]["detail"].as_str().unwrap(), &["it was made on another base"]);
}

#[test]
fn check_warns_of_what_was_never_trained() {
    let checks = check(0, &golden("trajectory/t5_gated_untied__lora/initial_adapter"), &[]);
    assert_verdicts(&checks, &[("fingerprint", "warning"), ("training", "warning")]);
    assert_contains(&checks["training"].1, &["zero at 12 of 12 sites"]);
    let checks = check(0, &golden("adapters/ia3_default"), &[]);
    assert_verdicts(&checks, &[("fingerprint", "warning"), ("training", "not_checked")]);
}

#[test]
fn check_warns_of_targets_that_nothing_has() {
    let directory = changed(ADAPTER, |_| {});
    let config = directory.path().join("adapter_config.json");
    let mut fields: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    fields["target_modules"] = json!(["q", "v", "query_key_value", "c_attn"]);
    fs::write(&config, fields.to_string()).unwrap();
    let checks = check(0, directory.path(), &[]);
    assert_verdicts(&checks, &[("fingerprint", "warning"), ("places", "warning")]);
    assert_eq!(checks["places"].1, "target_modules that nothing in the base has: query_key_value, c_attn");
    let found = json(0, args!["adapter", "check", directory.path(), "--base", golden(BASE)]);
    assert_eq!(found["unmatched_targets"], json!(["query_key_value", "c_attn"]));
    let text = run(args!["adapter", "check", directory.path(), "--base", golden(BASE)]).stdout;
    assert_contains(&text, &["warning  places         target_modules that nothing in the base has: query_key_value"]);

    fields["target_modules"] = json!(["query_key_value", "c_attn"]);
    fs::write(&config, fields.to_string()).unwrap();
    let checks = check(1, directory.path(), &[]);
    assert_eq!(checks["places"].0, "failed");
    assert_contains(&checks["places"].1, &["[\"query_key_value\", \"c_attn\"] match nothing in the model"]);
}

#[test]
fn check_lists_names_that_do_not_fit() {
    let directory = changed(ADAPTER, |tensors| {
        let b = tensors.remove(Q_B).unwrap();
        tensors.insert("surplus".to_owned(), b);
    });
    let checks = check(1, directory.path(), &[]);
    assert_verdicts(&checks, &[("fingerprint", "warning"), ("names", "failed")]);
    assert_eq!(checks["names"].1, format!("missing: {Q_B}\nunexpected: surplus"));
}

#[test]
fn check_finds_values_that_are_not_finite() {
    let checks = check(1, with_nan().path(), &[]);
    assert_eq!(checks["values"], ("failed".to_owned(), format!("{Q_B}: element 3 is NaN")));
    assert_eq!(checks["names"].0, "not_checked");
}

#[test]
fn check_finds_broken_files() {
    let directory = changed(ADAPTER, |_| {});
    let file = directory.path().join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let checks = check(1, directory.path(), &[]);
    assert_eq!(checks["file"].0, "failed");
    assert_contains(&checks["file"].1, &["cut short"]);
    assert_eq!(checks["shapes"].0, "not_checked");

    let config = directory.path().join("adapter_config.json");
    fs::write(&file, bytes).unwrap();
    fs::copy(golden("adapters/adalora/adapter_config.json"), &config).unwrap();
    let text = fs::read_to_string(&config).unwrap().replace("\"ADALORA\"", "\"NEXT_YEARS_METHOD\"");
    fs::write(&config, text).unwrap();
    assert_contains(&check(1, directory.path(), &[])["configuration"].1, &["NEXT_YEARS_METHOD"]);
    fs::remove_file(config).unwrap();
    assert_contains(&check(1, directory.path(), &[])["configuration"].1, &["adapter_config.json"]);
}

#[test]
fn check_needs_an_adapter_and_a_base() {
    let message = error(args!["adapter", "check", "nowhere", "--base", golden(BASE)]);
    assert_contains(&message, &["nowhere is not a directory"]);
    let message = error(args!["adapter", "check", golden(ADAPTER), "--base", golden(ADAPTER)]);
    assert_contains(&message, &["config.json"]);
}

// ----------------------------------------------------------------------------------------------------------- merge

/// A reference of the inputs that all adapters share, with the logits of one of them.
fn adapter_reference(adapter: &str, directory: &Path) -> PathBuf {
    let mut tensors = read(&golden("lora/t5_gated_untied/io.safetensors"));
    tensors.retain(|name, _| !name.starts_with("grad."));
    let mut own = read(&golden(adapter).join("io.safetensors"));
    own.retain(|name, _| ["logits", "loss"].contains(&name.as_str()));
    tensors.extend(own);
    let path = directory.join("reference.safetensors");
    write_safetensors(&path, tensors, None).unwrap();
    path
}

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
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json"]);

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

// --------------------------------------------------------------------------------------------------------- combine

fn combine(adapters: &[&str], options: &str, output: &Path) -> Vec<std::ffi::OsString> {
    let mut args = args!["adapter", "combine", "--base", golden(BASE), "--output", output];
    args.extend(options.split(' ').filter(|option| !option.is_empty()).map(Into::into));
    args.extend(adapters.iter().map(|adapter| golden(&format!("adapters/combined/{adapter}")).into()));
    args
}

/// The library is held against `peft` in its own tests; here only what the options mean is.
#[test]
fn combined_adapters_are_those_of_peft() {
    for (golden_of, other, options) in [
        ("cat", "c", ""),
        ("svd", "c", "--combination-type svd"),
        ("linear", "b", "--combination-type linear"),
        ("ties", "b", "--combination-type ties --density 0.5"),
        ("magnitude_prune", "b", "--combination-type magnitude_prune --density 0.5"),
    ] {
        let directory = tempdir().unwrap();
        let output = directory.path().join("deep/combined");
        let args = combine(&["a", other], &format!("--weights 0.7,0.4 {options}"), &output);
        let found = json(0, args);
        assert_eq!(found["combination_type"], json!(golden_of));
        // `c` is where `a` is, `b` at one place more.
        let sites = if other == "c" { 2 } else { 3 };
        assert_eq!((&found["sites"], &found["adapters"][1]["weight"]), (&json!(sites), &json!(0.4)));
        let expected = golden(&format!("adapters/combined/{golden_of}"));
        let read = |directory: &Path| read(&directory.join("adapter_model.safetensors"));
        let (own, expected) = (read(&output), read(&expected));
        assert!(own.keys().eq(expected.keys()), "{golden_of}");
        for (name, tensor) in own {
            assert_eq!(tensor.shape(), expected[&name].shape(), "{golden_of}: {name}");
            if golden_of != "svd" {
                let values = [tensor.to_f32().unwrap(), expected[&name].to_f32().unwrap()];
                let difference = values[0].iter().zip(&values[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(difference <= 1e-5, "{golden_of}: {name} differs by {difference:e}");
            }
        }
        // It is an adapter like any other, and remembers its base.
        let checks = check(0, &output, &["--strict"]);
        assert_verdicts(&checks, &[]);
    }
}

#[test]
fn combine_has_a_seed_and_a_rank() {
    let directory = tempdir().unwrap();
    let tensors = |options: &str, output: &str| {
        let output = directory.path().join(output);
        assert_eq!(json(0, combine(&["a", "b"], options, &output))["rank"], json!(4));
        read(&output.join("adapter_model.safetensors"))
    };
    let dare = "--combination-type dare_ties --density 0.5";
    let [first, again, other] =
        [("1", "1"), ("2", "1"), ("3", "2")].map(|(output, seed)| tensors(&format!("{dare} --seed {seed}"), output));
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert_eq!(tensors("--combination-type dare_linear --density 0.5", "4").len(), 6);

    let output = directory.path().join("5");
    let found = json(0, combine(&["a", "c"], "--weights -1,2.5 --combination-type svd --svd-rank 3", &output));
    assert_eq!((&found["rank"], &found["parameters"]), (&json!(3), &json!(2 * 3 * 128)));
    let text = run(combine(&["a"], "", &directory.path().join("6"))).stdout;
    assert_contains(&text, &["written ", "cat         1 * ", "combined/a\n", "rank        4\n"]);
}

#[test]
fn what_cannot_be_combined_leaves_nothing_behind() {
    let directory = tempdir().unwrap();
    let output = directory.path().join("combined");
    let refused = |adapters: &[&str], options: &str| error(combine(adapters, options, &output));
    for (adapters, options, expected) in [
        (&["a", "b"] as &[&str], "--weights 1", "--weights has 1 numbers for 2 adapters"),
        (&["a", "b"], "--weights 1,some", "invalid value 'some'"),
        (&["a", "b"], "--weights 1,NaN", "its weight is NaN"),
        (&["a", "b"], "--combination-type ties", "needs a --density"),
        (&["a", "b"], "--combination-type ties --density 2", "`density` is 2"),
        (&["a", "b"], "--density 0.5", "--density means nothing for this"),
        (&["a", "b"], "--svd-rank 5", "--svd-rank means nothing for this"),
        (&["a", "b"], "--combination-type ties --density 0.5 --seed 1", "--seed means nothing for this"),
        (&["a", "b"], "--combination-type dare", "dare_linear"),
        (&["a", "../ia3_default"], "", "made of \"2\": it is IA3; take adapters of LORA"),
        (&["a", "c"], "--combination-type linear", "its rank at "),
        (&["a", "nothing"], "", "adapter_config.json"),
        (&[], "", "required arguments"),
    ] {
        assert_contains(&refused(adapters, options), &[expected]);
    }
    assert_contains(&refused(&["a", "../ia3_default"], ""), &["\"1\" is ", "combined/a, \"2\" is "]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    // Nothing is written over; an empty directory is as good as none.
    fs::create_dir(&output).unwrap();
    assert_eq!(run(combine(&["a", "b"], "", &output)).code, 0);
    let before = read(&output.join("adapter_model.safetensors"));
    assert_contains(&refused(&["b"], ""), &["is there already"]);
    assert_eq!(read(&output.join("adapter_model.safetensors")), before);
    let file = directory.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert_contains(&error(combine(&["a"], "", &file)), &["is there already"]);
}

// --------------------------------------------------------------------------------------------------------- convert

#[test]
fn converted_adapters_have_the_same_tensors() {
    let (from, to) = (pickled(), tempdir().unwrap());
    let found = json(0, args!["adapter", "convert", from.path(), "--output", to.path()]);
    assert_eq!(found["tensors"], json!(24));
    let file = |directory: &Path| read(&directory.join("adapter_model.safetensors"));
    assert_eq!(file(to.path()), file(&golden(ADAPTER)));
    // In place, and once more.
    for _ in 0..2 {
        assert_eq!(run(args!["adapter", "convert", from.path(), "--output", from.path()]).code, 0);
    }
    assert_eq!(file(from.path()), file(&golden(ADAPTER)));
}

#[test]
fn convert_refuses_what_is_no_adapter() {
    let (from, to) = (pickled(), tempdir().unwrap());
    fs::copy(golden("torch/module.pt"), from.path().join("adapter_model.bin")).unwrap();
    let convert = || error(args!["adapter", "convert", from.path(), "--output", to.path()]);
    assert_contains(&convert(), &["adapter_model.bin", "nothing of this one was run"]);
    fs::write(from.path().join("adapter_config.json"), "{}").unwrap();
    fs::copy(golden("torch/lora_rslora.bin"), from.path().join("adapter_model.bin")).unwrap();
    assert_contains(&convert(), &["adapter_config.json", "peft_type"]);
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
}

// ---------------------------------------------------------------------------------------------------------- verify

/// A reference of [`BASE`] with the tokens that transformers writes, changed.
fn reference(change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> (TempDir, PathBuf) {
    let mut tensors = read(&golden(BASE).join("io.safetensors"));
    let known = ["input_ids", "attention_mask", "decoder_input_ids", "labels", "logits", "loss"];
    tensors.retain(|name, _| known.contains(&name.as_str()));
    let generation: Value = serde_json::from_slice(&fs::read(golden(BASE).join("generation.json")).unwrap()).unwrap();
    let rows: Vec<Vec<i64>> = serde_json::from_value(generation["greedy"]["sequences"].clone()).unwrap();
    tensors.insert("greedy_ids".to_owned(), whole_numbers([rows.len(), rows[0].len()], &rows.concat()));
    change(&mut tensors);
    let directory = tempdir().unwrap();
    let path = directory.path().join("reference.safetensors");
    write_safetensors(&path, tensors, None).unwrap();
    (directory, path)
}

fn whole_numbers(shape: [usize; 2], values: &[i64]) -> Tensor {
    Tensor::new(Dtype::I64, shape.to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect()).unwrap()
}

/// Changes one whole number of a tensor.
fn set(tensors: &mut BTreeMap<String, Tensor>, name: &str, index: usize, value: i64) {
    let tensor = &tensors[name];
    let mut bytes = tensor.bytes().to_vec();
    bytes[index * 8..][..8].copy_from_slice(&value.to_le_bytes());
    let changed = Tensor::new(Dtype::I64, tensor.shape().to_vec(), bytes).unwrap();
    tensors.insert(name.to_owned(), changed);
}

fn verify(reference: &Path) -> Vec<std::ffi::OsString> {
    args!["verify", "--model", golden(BASE), "--reference", reference]
}

/// The verdict of each tensor.
fn verdicts(found: &Value) -> Vec<(&str, &str)> {
    let tensors = found["tensors"].as_array().unwrap().iter();
    tensors.map(|check| (check["tensor"].as_str().unwrap(), check["verdict"].as_str().unwrap())).collect()
}

#[test]
fn verify_passes_what_transformers_computes() {
    let (_directory, path) = reference(|_| {});
    let found = json(0, verify(&path));
    assert_eq!(verdicts(&found), [("logits", "ok"), ("loss", "ok"), ("greedy_ids", "ok")]);
    let logits = found["tensors"][0]["largest_difference"].as_f64().unwrap();
    assert!((0.0..1e-4).contains(&logits), "{logits}");
    assert_eq!(found["tensors"][2]["rows"], json!(4));
    let text = run(verify(&path)).stdout;
    assert_contains(&text, &["ok  logits      differs by at most ", "ok  greedy_ids  4 rows equal\n", " agrees with "]);
}

#[test]
fn verify_passes_what_peft_computes() {
    let directory = tempdir().unwrap();
    for adapter in [ADAPTER, "adapters/prefix_tuning"] {
        let mut args = verify(&adapter_reference(adapter, directory.path()));
        args.extend(args!["--adapter", golden(adapter)]);
        assert_eq!(verdicts(&json(0, args)), [("logits", "ok"), ("loss", "ok")], "{adapter}");
    }
    let without = json(1, verify(&adapter_reference(ADAPTER, directory.path())));
    assert_eq!(verdicts(&without), [("logits", "failed"), ("loss", "failed")]);
}

#[test]
fn verify_fails_beyond_the_tolerance() {
    let (_directory, path) = reference(|tensors| {
        let mut logits = tensors["logits"].to_f32().unwrap();
        logits[100] += 0.5;
        tensors.insert("logits".to_owned(), Tensor::from_f32(vec![4, 7, 256], &logits).unwrap());
    });
    let found = json(1, verify(&path));
    assert_eq!(found["passed"], json!(false));
    assert_eq!(verdicts(&found), [("logits", "failed"), ("loss", "ok"), ("greedy_ids", "ok")]);
    let tolerant = |tolerance: &str| [verify(&path), args!["--tolerance", tolerance]].concat();
    assert_eq!(run(tolerant("0.6")).code, 0);
    assert_eq!(run(tolerant("0.4")).code, 1);
    assert_contains(&error(tolerant("a little")), &["--tolerance"]);
}

#[test]
fn verify_fails_on_what_is_not_a_number() {
    let (_directory, path) = reference(|tensors| {
        tensors.insert("loss".to_owned(), Tensor::from_f32(vec![1], &[f32::NAN]).unwrap());
    });
    let found = json(1, verify(&path));
    assert_eq!(found["tensors"][1], json!({ "tensor": "loss", "verdict": "failed", "largest_difference": null }));
}

#[test]
fn verify_fails_on_other_tokens() {
    let (_directory, path) = reference(|tensors| set(tensors, "greedy_ids", 2 * 25 + 5, 7));
    let found = json(1, verify(&path));
    assert_eq!(found["tensors"][2]["rows_that_differ"], json!(1));
    let first = json!({ "row": 2, "column": 5, "found": 119, "expected": 7 });
    assert_eq!(found["tensors"][2]["first_difference"], first);
    let text = run(verify(&path)).stdout;
    assert_contains(&text, &["FAILED  greedy_ids  1 of 4 rows differ, first row 2, column 5: 119, expected 7"]);
}

#[test]
fn verify_lists_what_it_does_not_check() {
    let (_directory, path) = reference(|tensors| {
        let ids = tensors["greedy_ids"].clone();
        tensors.extend([("beam4_ids".to_owned(), ids.clone()), ("attentions".to_owned(), ids)]);
        tensors.remove("labels");
    });
    let found = json(0, verify(&path));
    let checked = [("logits", "ok"), ("greedy_ids", "ok")];
    let others = ["attentions", "beam4_ids", "loss"].map(|name| (name, "not_checked"));
    assert_eq!(verdicts(&found), [checked.as_slice(), &others].concat());
    assert_eq!(found["tensors"][3]["reason"], "there is no beam search yet");
    assert_eq!(found["tensors"][4]["reason"], "there are no `labels`");

    // A hole in the labels.
    let (_directory, path) = reference(|tensors| set(tensors, "labels", 1, -100));
    let found = json(0, verify(&path));
    assert_eq!(found["tensors"][1]["verdict"], "not_checked");
    assert_contains(found["tensors"][1]["reason"].as_str().unwrap(), &["row 0 of `labels` is not padded on the right"]);
}

#[test]
fn verify_takes_smaller_integers() {
    let (_directory, path) = reference(|tensors| {
        for name in ["input_ids", "attention_mask", "decoder_input_ids", "labels"] {
            let tensor = &tensors[name];
            // Little-endian: the lower half comes first.
            let bytes = tensor.bytes().chunks(8).flat_map(|bytes| bytes[..4].to_vec()).collect();
            let narrow = Tensor::new(Dtype::I32, tensor.shape().to_vec(), bytes).unwrap();
            tensors.insert(name.to_owned(), narrow);
        }
    });
    assert_eq!(verdicts(&json(0, verify(&path))), [("logits", "ok"), ("loss", "ok"), ("greedy_ids", "ok")]);
}

#[test]
fn verify_refuses_references_that_it_cannot_compute() {
    let refused = |change: fn(&mut BTreeMap<String, Tensor>)| {
        let (_directory, path) = reference(change);
        error(verify(&path))
    };
    for missing in ["input_ids", "attention_mask", "decoder_input_ids", "logits"] {
        let (_directory, path) = reference(|tensors| drop(tensors.remove(missing)));
        assert_contains(&error(verify(&path)), &["reference.safetensors", &format!("no tensor \"{missing}\"")]);
    }
    // Row 1 has 9 tokens in 12 columns.
    let left = refused(|tensors| set(tensors, "attention_mask", 12, 0));
    assert_contains(&left, &["row 1 of `attention_mask` is not padded on the right"]);
    let weights = refused(|tensors| set(tensors, "attention_mask", 0, 2));
    assert_contains(&weights, &["`attention_mask` has other values than 0 and 1"]);
    let negative = refused(|tensors| set(tensors, "decoder_input_ids", 3, -100));
    assert_contains(&negative, &["`decoder_input_ids` has an id below 0"]);
    let outside = refused(|tensors| set(tensors, "input_ids", 0, 256));
    assert_contains(&outside, &["token id 256 is outside the vocabulary"]);
    let floats = refused(|tensors| drop(tensors.insert("input_ids".to_owned(), tensors["logits"].clone())));
    assert_contains(&floats, &["`input_ids` has dtype F32, expected I64 or I32"]);
    let rows = refused(|tensors| {
        tensors.insert("decoder_input_ids".to_owned(), whole_numbers([1, 2], &[0, 5]));
    });
    assert_contains(&rows, &["`decoder_input_ids` has 1 rows, `input_ids` has 4"]);
    let shape =
        refused(|tensors| drop(tensors.insert("logits".to_owned(), Tensor::from_f32(vec![1], &[0.0]).unwrap())));
    assert_contains(&shape, &["`logits` has the shape [1], those of this model have [4, 7, 256]"]);
}

#[test]
fn verify_needs_a_model_and_a_device() {
    let (_directory, path) = reference(|_| {});
    assert_contains(&error(args!["verify", "--model", "nowhere", "--reference", path]), &["nowhere"]);
    assert_contains(&error([verify(&path), args!["--device", "abacus"]].concat()), &["\"abacus\" is no device"]);
    assert_contains(&error(verify(Path::new("nowhere.safetensors"))), &["does not exist"]);
}
