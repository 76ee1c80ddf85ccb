//! `sideburn adapter combine`.

use super::check::{assert_verdicts, check};
use super::*;

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
        (&["a", "b"], "--weights 1,1e400", "its weight is inf"),
        (&["a", "b"], "--combination-type ties --density NaN", "`density` is NaN"),
        (&["a", "b"], "--combination-type svd --svd-rank 0", "`svd_rank` is 0"),
        (&["a", "b"], "--combination-type svd --svd-rank 1099511627776", "`svd_rank` is 1099511627776"),
        (&["a", "b"], "--combination-type svd --svd-rank 18446744073709551615", "`svd_rank` is 18446744073709551615"),
        (&["a", "b"], "--combination-type svd --svd-rank 18446744073709551616", "invalid value"),
        (&["a", "b"], "--density 0.5", "--density means nothing for this"),
        (&["a", "b"], "--svd-rank 5", "--svd-rank means nothing for this"),
        (&["a", "b"], "--combination-type ties --density 0.5 --seed 1", "--seed means nothing for this"),
        (&["a", "b"], "--combination-type dare", "dare_linear"),
        (&["a", "../ia3_default"], "", "made of \"2\": it is IA3; take adapters of LORA"),
        (&["a", "c"], "--combination-type linear", "its rank at "),
        (&["a", "nothing"], "", "combined/nothing\" does not exist"),
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
