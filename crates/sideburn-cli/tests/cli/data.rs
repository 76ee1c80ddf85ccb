//! `sideburn data`.

use std::process::Stdio;

use super::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/dialogsum-sample");

#[test]
fn a_data_set_is_counted() {
    let found = json(0, args!["data", "stats", "--data", DATA, "--split", "test"]);
    assert_eq!(
        (&found["records"], &found["examples"], &found["references"]),
        (&json!(360), &json!(120), &json!([3, 3]))
    );
    assert_eq!((&found["unit"], &found["source"]["percentiles"][1][0]), (&json!("words"), &json!(50.0)));
    assert!(found.get("suggest").is_none());
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/t5-mini");
    let found = json(0, args!["data", "stats", "--data", DATA, "--model", model]);
    let percentile = |of: &str, at: usize| found[of]["percentiles"][at][1].as_f64().unwrap();
    assert_eq!(found["suggest"]["max_source_length"], percentile("source", 2) as u64);
    assert_eq!(found["suggest"]["max_target_length"], percentile("target", 3) as u64);
    let padding = |of: &str| found["padding"][of].as_f64().unwrap();
    assert!(padding("by_budget") < 0.08 && padding("by_budget") < padding("to_longest"), "{found}");
    assert!(padding("to_longest") < padding("to_defaults"), "{found}");
    assert_eq!((&found["subsample"], &found["seed"]), (&Value::Null, &json!(0)));
    // A prefix is shorter than an instruction, however it is given.
    let directory = tempdir().unwrap();
    let file = directory.path().join("prompt.toml");
    fs::write(&file, "template = \"summarize: {dialogue}\"\n").unwrap();
    let with = |template: &str| {
        let found = json(0, args!["data", "stats", "--data", DATA, "--model", model, "--template", template]);
        found["source"]["percentiles"][1][1].as_f64().unwrap()
    };
    let prefix = with("summarize: {dialogue}");
    assert_eq!([with("t5"), with(file.to_str().unwrap())], [prefix; 2]);
    assert_eq!(with("dialogsum"), percentile("source", 1));
    assert!(prefix < with("dialogsum"));
    let text = run(args!["data", "stats", "--data", DATA, "--model", model, "--bins", "5"]);
    assert_eq!((text.code, text.stderr.as_str()), (0, ""));
    assert_contains(
        &text.stdout,
        &["DialogSum, train: ", "85 %", "prompts, tokens\n", "#####", "suggested: max_source_length"],
    );
}

/// Two at once, and one that finds what they have left.
#[test]
fn tokens_are_kept_for_the_next_run() {
    let directory = tempdir().unwrap();
    let cache = directory.path().join("tokens");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/t5-mini");
    let args = args!["data", "stats", "--json", "--data", DATA, "--model", model];
    let cached = || {
        let mut command = program();
        command.args(args.clone()).arg("--token-cache").arg(&cache).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let both = [cached(), cached()].map(|process| process.wait_with_output().unwrap());
    let expected = run(args.clone()).stdout;
    let found = both.into_iter().chain([cached().wait_with_output().unwrap()]);
    for output in found {
        assert!(output.status.success() && output.stderr.is_empty());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
    let kept: Vec<_> = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(kept.len() == 1 && kept[0].to_str().unwrap().ends_with(".tokens"), "{kept:?}");
}

#[test]
fn a_data_set_takes_every_form_and_comes_back() {
    let directory = tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let stats = |data: &Path| {
        let mut found = json(0, args!["data", "stats", "--data", data, "--split", "test"]);
        for name in ["title", "records", "data"] {
            found.as_object_mut().unwrap().remove(name);
        }
        found
    };
    let expected = stats(Path::new(DATA));
    let mut from = PathBuf::from(DATA);
    for name in ["a.tsv", "b.json", "c.csv", "d.jsonl"] {
        let found = json(0, args!["data", "convert", "--data", from, "--split", "test", "--output", at(name)]);
        assert_eq!((&found["examples"], &found["skipped"]), (&json!(120), &json!(0)));
        from = at(name);
        assert_eq!(stats(&from), expected, "{name}");
    }
    // Columns of one's own, and a record that is none.
    fs::write(at("own.csv"), "text,gist\nA: Hi,Hello\n,nothing\nB: Bye,Farewell\n").unwrap();
    let own = |flag: &str| {
        args![
            "data",
            "convert",
            "--data",
            at("own.csv"),
            "--columns",
            "dialogue=text,summary=gist",
            flag,
            "--output",
            at("own.jsonl")
        ]
    };
    let found = json(0, own("--lenient"));
    assert_eq!((&found["records"], &found["examples"], &found["skipped"]), (&json!(3), &json!(2), &json!(1)));
    let first = fs::read_to_string(at("own.jsonl")).unwrap();
    let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(first, json!({"id": "0", "dialogue": "A: Hi", "summary": "Hello"}));
    assert_contains(&error(own("--seed=1")), &["own.csv, line 3", "\"text\" is blank"]);
    assert_contains(
        &error(args!["data", "convert", "--data", at("own.csv"), "--output", at("x.xlsx")]),
        &["own.csv", "no column named"],
    );
    let unknown = error(args!["data", "convert", "--data", at("d.jsonl"), "--output", at("x.xlsx")]);
    assert_contains(&unknown, &["x.xlsx"]);
}

#[test]
fn parts_share_no_dialogue() {
    let directory = tempdir().unwrap();
    let output = directory.path().join("parts");
    // Each dialogue twice, under two ids.
    let line =
        |at: usize| json!({"id": at, "dialogue": format!("A: {}", at / 2), "summary": format!("s{at}")}).to_string();
    let data = directory.path().join("all.jsonl");
    fs::write(&data, (0..100).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let split = |seed: &str| args!["data", "split", "--data", data, "--output", output, "--seed", seed];
    let found = json(0, split("7"));
    let sizes: Vec<u64> =
        found["parts"].as_array().unwrap().iter().map(|part| part["examples"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [80, 10, 10]);
    let dialogues = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(output.join(name)).unwrap();
        let of = |line: &str| serde_json::from_str::<Value>(line).unwrap()["dialogue"].as_str().unwrap().to_owned();
        text.lines().map(of).collect()
    };
    let [train, validation, test] = ["train.jsonl", "validation.jsonl", "test.jsonl"].map(dialogues);
    assert!(validation.iter().chain(&test).all(|dialogue| !train.contains(dialogue)));
    assert!(test.iter().all(|dialogue| !validation.contains(dialogue)));
    let before = fs::read(output.join("test.jsonl")).unwrap();
    json(0, split("7"));
    assert_eq!(fs::read(output.join("test.jsonl")).unwrap(), before);
    json(0, split("8"));
    assert_ne!(fs::read(output.join("test.jsonl")).unwrap(), before);
    // The directory is a data set.
    let found = json(0, args!["data", "stats", "--data", output, "--split", "validation"]);
    assert_eq!(found["examples"], 10);
    for (parts, said) in [
        ("train", "write train=0.8,test=0.2"),
        ("a=0.5,a=0.5", "a is there twice"),
        ("../a=0.5", "write train=0.8"),
        ("a=0.9,b=0.2", "at most 1 together"),
    ] {
        let args = args!["data", "split", "--data", data, "--output", directory.path().join("x"), "--parts", parts];
        assert_contains(&error(args), &[said]);
    }
    assert!(!directory.path().join("x").exists());
}
