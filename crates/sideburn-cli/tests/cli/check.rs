//! `sideburn adapter check`.

use super::*;

/// Checks an adapter on [`BASE`], and returns the checks by name.
#[track_caller]
pub(crate) fn check(code: i32, adapter: &Path, more: &[&str]) -> BTreeMap<String, (String, String)> {
    let mut args = args!["adapter", "check", adapter, "--base", golden(BASE)];
    args.extend(more.iter().map(std::ffi::OsString::from));
    let found = json(code, args);
    assert_eq!(found["passed"], json!(code == 0));
    let text = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
    let checks = found["checks"].as_array().unwrap().iter();
    checks.map(|check| (text(check, "check"), (text(check, "verdict"), text(check, "detail")))).collect()
}

#[track_caller]
pub(crate) fn assert_verdicts(checks: &BTreeMap<String, (String, String)>, other_than_ok: &[(&str, &str)]) {
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

/// An adapter of `peft` is as good as one of ours: of its base nothing is known, and that is said.
#[test]
fn check_passes_what_peft_has_saved() {
    for options in [&[] as &[&str], &["--strict"]] {
        let checks = check(0, &golden(ADAPTER), options);
        assert_verdicts(&checks, &[("fingerprint", "not_checked")]);
        assert_contains(&checks["fingerprint"].1, &["peft writes none"]);
        assert_contains(&checks["training"].1, &["at any of 12 sites"]);
    }
    let text = run(args!["adapter", "check", golden(ADAPTER), "--base", golden(BASE)]).stdout;
    assert_contains(&text, &["not checked  fingerprint ", "; not checked: fingerprint\n"]);
}

#[test]
fn check_says_what_it_does_not_look_at() {
    // A prompt is of the whole model, and only LoRA shows whether it was trained.
    let prompt = check(0, &golden("adapters/prompt_tuning"), &["--strict"]);
    let unseen = [("fingerprint", "not_checked"), ("places", "not_checked"), ("training", "not_checked")];
    assert_verdicts(&prompt, &unseen);
    assert_eq!(prompt["places"].1, "PROMPT_TUNING has no target_modules");
    // PiSSA begins with the largest part of the weight.
    let pissa = check(0, &golden("adapters/init/pissa/initial_adapter"), &[]);
    assert_eq!(pissa["training"].0, "not_checked");
    let directory = changed(ADAPTER, |_| {});
    let config = directory.path().join("adapter_config.json");
    let mut fields: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    for (init, verdict) in [("orthogonal", "not_checked"), ("gaussian", "ok")] {
        fields["init_lora_weights"] = json!(init);
        fs::write(&config, fields.to_string()).unwrap();
        assert_eq!(check(0, directory.path(), &[])["training"].0, verdict, "{init}");
    }

    // No tensor has a place, so that no shape was compared.
    let directory = changed(ADAPTER, |tensors| {
        *tensors =
            std::mem::take(tensors).into_iter().map(|(name, tensor)| (format!("other.{name}"), tensor)).collect();
    });
    let checks = check(1, directory.path(), &[]);
    assert_eq!((checks["names"].0.as_str(), checks["shapes"].0.as_str()), ("failed", "not_checked"));

    // Whole numbers are never broken.
    let directory = changed(ADAPTER, |tensors| {
        tensors.insert("indices".to_owned(), Tensor::new(Dtype::I32, vec![2], vec![0; 8]).unwrap());
    });
    let checks = check(1, directory.path(), &[]);
    assert_eq!(checks["values"], ("ok".to_owned(), "24 tensors finite; not checked: 1 tensor of I32".to_owned()));
    assert_contains(&checks["names"].1, &["unexpected: indices"]);
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
    assert_verdicts(&checks, &[("fingerprint", "not_checked"), ("training", "warning")]);
    assert_contains(&checks["training"].1, &["zero at 12 of 12 sites"]);
    let checks = check(0, &golden("adapters/ia3_default"), &[]);
    assert_verdicts(&checks, &[("fingerprint", "not_checked"), ("training", "not_checked")]);
}

#[test]
fn check_warns_of_targets_that_nothing_has() {
    let directory = changed(ADAPTER, |_| {});
    let config = directory.path().join("adapter_config.json");
    let mut fields: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    fields["target_modules"] = json!(["q", "v", "query_key_value", "c_attn"]);
    fs::write(&config, fields.to_string()).unwrap();
    let checks = check(0, directory.path(), &[]);
    assert_verdicts(&checks, &[("fingerprint", "not_checked"), ("places", "warning")]);
    assert_eq!(check(1, directory.path(), &["--strict"])["places"].0, "warning");
    assert_eq!(checks["places"].1, "target_modules that nothing in the base has: query_key_value, c_attn");
    let found = json(0, args!["adapter", "check", directory.path(), "--base", golden(BASE)]);
    assert_eq!(found["unmatched_targets"], json!(["query_key_value", "c_attn"]));
    let text = run(args!["adapter", "check", directory.path(), "--base", golden(BASE)]).stdout;
    assert_contains(
        &text,
        &["warning      places         target_modules that nothing in the base has: query_key_value"],
    );

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
    assert_verdicts(&checks, &[("fingerprint", "not_checked"), ("names", "failed")]);
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
    let checks = check(1, directory.path(), &[]);
    assert_contains(&checks["configuration"].1, &["NEXT_YEARS_METHOD"]);
    assert_eq!([&checks["file"].0, &checks["values"].0], ["ok", "ok"], "the tensors are whole all the same");
    fs::remove_file(config).unwrap();
    assert_contains(&check(1, directory.path(), &[])["configuration"].1, &["adapter_config.json"]);
}

#[test]
fn check_needs_an_adapter_and_a_base() {
    let message = error(args!["adapter", "check", "nowhere", "--base", golden(BASE)]);
    assert_contains(&message, &["nowhere is no directory here"]);
    let message = error(args!["adapter", "check", golden(ADAPTER), "--base", golden(ADAPTER)]);
    assert_contains(&message, &["config.json"]);
}
