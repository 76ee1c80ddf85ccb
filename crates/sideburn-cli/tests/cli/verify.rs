//! `sideburn verify`.

use super::*;

/// A reference of [`BASE`] with the tokens that transformers writes, changed.
fn reference(change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> (TempDir, PathBuf) {
    let mut tensors = read(&golden(BASE).join("io.safetensors"));
    let known = ["input_ids", "attention_mask", "decoder_input_ids", "labels", "logits", "loss"];
    tensors.retain(|name, _| known.contains(&name.as_str()));
    let generation: Value = serde_json::from_slice(&fs::read(golden(BASE).join("generation.json")).unwrap()).unwrap();
    let rows: Vec<Vec<i64>> = serde_json::from_value(generation["greedy"]["sequences"].clone()).unwrap();
    tensors.insert("greedy_ids".to_owned(), whole_numbers([rows.len(), rows[0].len()], &rows.concat()));
    tensors.insert("beam4_ids".to_owned(), beam4_ids());
    change(&mut tensors);
    let directory = tempdir().unwrap();
    let path = directory.path().join("reference.safetensors");
    write_safetensors(&path, tensors, None).unwrap();
    (directory, path)
}

/// What transformers writes with four beams.
fn beam4_ids() -> Tensor {
    let generation = fs::read(golden("generation").join(format!("{BASE}.json"))).unwrap();
    let generation: Value = serde_json::from_slice(&generation).unwrap();
    let prompts = generation["beam4"]["prompts"].as_array().unwrap();
    let rows = prompts.iter().map(|prompt| serde_json::from_value(prompt["sequences"][0].clone()).unwrap());
    let rows: Vec<Vec<i64>> = rows.collect();
    whole_numbers([rows.len(), 25], &rows.concat())
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
    assert_eq!(verdicts(&found), [("logits", "ok"), ("loss", "ok"), ("greedy_ids", "ok"), ("beam4_ids", "ok")]);
    let logits = found["tensors"][0]["largest_difference"].as_f64().unwrap();
    assert!((0.0..1e-4).contains(&logits), "{logits}");
    assert_eq!(found["tensors"][2]["rows"], json!(4));
    let text = run(verify(&path)).stdout;
    assert_contains(&text, &["ok  logits      differs by at most ", "ok  greedy_ids  4 rows equal\n", " agrees with "]);
    assert_contains(&text, &[" of the spread\n", ", which is 1e-4 of the spread; the spread is 3.9"]);
}

/// The tolerance grows with the logits, since rounding does.
#[test]
fn verify_is_relative_to_the_spread_of_the_logits() {
    let logits = read(&golden(BASE).join("io.safetensors"))["logits"].to_f32().unwrap();
    let mean = logits.iter().copied().map(f64::from).sum::<f64>() / logits.len() as f64;
    let variance = logits.iter().map(|logit| (f64::from(*logit) - mean).powi(2)).sum::<f64>() / logits.len() as f64;
    let spread = variance.sqrt();
    let off_by = |difference: f64| {
        reference(|tensors| {
            let mut changed = logits.clone();
            changed[100] += difference as f32;
            tensors.insert("logits".to_owned(), Tensor::from_f32(vec![4, 7, 256], &changed).unwrap());
        })
    };
    // Both are more than 1e-4, which once was the tolerance of all models.
    let (_directory, path) = off_by(0.8e-4 * spread);
    let found = json(0, verify(&path));
    let near = |found: &Value, expected: f64| (found.as_f64().unwrap() / expected - 1.0).abs() < 0.2;
    assert!(near(&found["spread"], spread) && near(&found["tolerance"], 1e-4 * spread), "{found}");
    assert_eq!(found["relative_tolerance"], json!(1e-4));
    let check = &found["tensors"][0];
    assert!(near(&check["largest_difference"], 0.8e-4 * spread), "{check}");
    assert!(near(&check["relative_difference"], 0.8e-4), "{check}");

    let (_directory, path) = off_by(1.5e-4 * spread);
    assert_eq!(json(1, verify(&path))["passed"], json!(false));
    let with = |options: &[&str]| {
        let options = options.iter().map(std::ffi::OsString::from);
        run(verify(&path).into_iter().chain(options).collect())
    };
    assert_eq!(with(&["--relative-tolerance", "2e-4"]).code, 0);
    assert_eq!(with(&["--tolerance", "1e-3"]).code, 0);
    assert_contains(&with(&["--tolerance", "1e-3"]).stdout, &["tolerance 0.0010; the spread"]);
    let both = with(&["--tolerance", "1e-3", "--relative-tolerance", "1e-3"]);
    assert_eq!(both.code, 2);
    assert_contains(&both.stderr, &["cannot be used with"]);
}

#[test]
fn verify_lets_no_tolerance_pass_what_is_not_a_number() {
    let (_directory, path) = reference(|tensors| {
        let mut logits = tensors["logits"].to_f32().unwrap();
        logits[7] = f32::INFINITY;
        tensors.insert("logits".to_owned(), Tensor::from_f32(vec![4, 7, 256], &logits).unwrap());
    });
    let found = json(1, verify(&path));
    assert_eq!((&found["spread"], &found["tensors"][0]["verdict"]), (&Value::Null, &json!("failed")));
    for tolerance in ["inf", "NaN", "-1"] {
        let args = [verify(&path), vec![format!("--tolerance={tolerance}").into()]].concat();
        assert_contains(&error(args), &["expected a number of at least 0"]);
    }
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
    assert_eq!(verdicts(&found), [("logits", "failed"), ("loss", "ok"), ("greedy_ids", "ok"), ("beam4_ids", "ok")]);
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
    assert_eq!(
        found["tensors"][1],
        json!({ "tensor": "loss", "verdict": "failed", "largest_difference": null, "relative_difference": null })
    );
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
        tensors.insert("attentions".to_owned(), tensors["greedy_ids"].clone());
        tensors.remove("labels");
    });
    let found = json(0, verify(&path));
    let checked = [("logits", "ok"), ("greedy_ids", "ok"), ("beam4_ids", "ok")];
    let others = ["attentions", "loss"].map(|name| (name, "not_checked"));
    assert_eq!(verdicts(&found), [checked.as_slice(), &others].concat());
    assert_eq!(found["tensors"][3]["reason"], "the name is unknown");
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
    assert_eq!(
        verdicts(&json(0, verify(&path))),
        [("logits", "ok"), ("loss", "ok"), ("greedy_ids", "ok"), ("beam4_ids", "ok")]
    );
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
