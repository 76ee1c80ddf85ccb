//! `sideburn rouge`.

use super::*;

fn write(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn texts_are_scored_as_rouge_score_scores_them() {
    let directory = tempdir().unwrap();
    let predictions = write(&directory, "predictions.txt", "the cat sat on the mat\n\nAnn orders tea\n");
    let first = write(&directory, "first.txt", "the cat lay on a mat\r\nBob left\r\nAnn ordered some tea\r\n");
    let second = write(&directory, "second.jsonl", "\"a cat\"\n[\"Bob has left\"]\n{\"summary\": \"Ann wants tea\"}\n");
    let found = json(0, args!["rouge", "--predictions", predictions, "--references", first, "--references", second]);
    // The best reference of each by rouge_score 0.1.2: 4 of 6 words both ways; an empty text; 2 of 3 both ways.
    let mean = (4.0 / 6.0 + 0.0 + 2.0 / 3.0) / 3.0;
    for number in ["precision", "recall", "fmeasure"] {
        assert!((found["rouge1"][number].as_f64().unwrap() - mean).abs() < 1e-12, "{number}: {found}");
    }
    assert_eq!(found["rougeLsum"]["n"], 3);
    let [low, high] = ["low", "high"].map(|end| found["rouge1"][end].as_f64().unwrap());
    assert!(low < mean && mean < high, "{found}");
    assert!(found.get("difference").is_none());

    let stemmed = args!["rouge", "--predictions", predictions, "--references", first, "--stemmer"];
    let stemmed = json(0, stemmed)["rouge1"]["fmeasure"].as_f64().unwrap();
    let expected = (4.0 / 6.0 + 0.0 + 2.0 * 3.0 / 7.0) / 3.0;
    assert!((stemmed - expected).abs() < 1e-12, "orders and ordered have one stem: {stemmed}");
}

#[test]
fn objects_with_ids_stand_in_any_order() {
    let directory = tempdir().unwrap();
    let line = |id: &str, text: &str| format!("{{\"id\": {id}, \"summary\": \"{text}\"}}\n");
    let references = write(&directory, "references.jsonl", &[line("1", "a b"), line("\"x\"", "c d")].concat());
    let predictions =
        write(&directory, "predictions.jsonl", &[line("\"x\"", "c d"), "\n".into(), line("1", "a b")].concat());
    let found = json(0, args!["rouge", "--predictions", predictions, "--references", references]);
    assert_eq!(found["rouge1"]["fmeasure"], 1.0);
    // Where one side has none, the order counts.
    let plain = write(&directory, "plain.txt", "c d\na b\n");
    let found = json(0, args!["rouge", "--predictions", plain, "--references", predictions]);
    assert_eq!(found["rouge1"]["fmeasure"], 1.0);
    for (text, said) in [
        ([line("1", "a"), line("1", "b")].concat(), "line 2: a second text for \"1\""),
        ([line("1", "a"), line("2", "b")].concat(), "has a text for \"2\", "),
        ([line("1", "a"), line("3", "\\u0000")].concat(), "line 2: a NUL character"),
    ] {
        let file = write(&directory, "file.jsonl", &text);
        assert_contains(
            &error(args!["rouge", "--predictions", file, "--references", references]),
            &["file.jsonl", said],
        );
    }
}

#[test]
fn two_systems_are_compared() {
    let directory = tempdir().unwrap();
    let lines = |text: &dyn Fn(usize) -> String| (0..40).map(|line| text(line) + "\n").collect::<String>();
    let references = write(&directory, "references.txt", &lines(&|line| format!("a b c d {line}")));
    let good = write(&directory, "good.txt", &lines(&|line| format!("a b c x {line}")));
    let bad = write(&directory, "bad.txt", &lines(&|line| format!("a b y x {line}")));
    let args = args!["rouge", "--predictions", good, "--against", bad, "--references", references];
    let found = json(0, args.clone());
    assert!((found["rouge1"]["fmeasure"].as_f64().unwrap() - 0.8).abs() < 1e-12, "{found}");
    assert!((found["against"]["rouge1"]["fmeasure"].as_f64().unwrap() - 0.6).abs() < 1e-12, "{found}");
    let difference = &found["difference"]["rouge1"];
    assert_eq!(difference["difference"]["n"], 40);
    assert!((difference["difference"]["mean"].as_f64().unwrap() - 0.2).abs() < 1e-12, "{found}");
    assert!(difference["p_value"].as_f64().unwrap() < 0.01, "{found}");
    let text = run(args).stdout;
    assert_contains(&text, &["40 texts", "rougeLsum", "+20.00 [20.00, 20.00]"]);
}

#[test]
fn what_is_wrong_with_the_files_is_said() {
    let directory = tempdir().unwrap();
    let one = write(&directory, "one.txt", "a\n");
    let two = write(&directory, "two.txt", "a\nb\n");
    let wrong = |predictions: &Path, references: &Path| {
        error(args!["rouge", "--predictions", predictions, "--references", references])
    };
    assert_contains(&wrong(&one, &two), &["one.txt has 1 lines", "two.txt has 2"]);
    assert_contains(&wrong(&write(&directory, "empty.txt", ""), &two), &["empty.txt has no line"]);
    assert_contains(&wrong(&directory.path().join("missing.txt"), &two), &["missing.txt"]);
    for (text, said) in [
        ("{'a': 1}\n", "line 1: a Python dictionary, not JSON"),
        ("\n{\"summary\": None}\n", "line 2: a Python dictionary, not JSON"),
        ("{\"a\": 1\n", "line 1: not JSON"),
        ("\"x\"\n3\n", "line 2: 3, where a text or a list of texts is expected"),
        ("{\"text\": \"x\"}\n", "no field \"summary\", only text; name one with --field"),
        ("[\"x\", 1]\n", "a list with 1 in it"),
        ("[]\n", "[], where"),
    ] {
        let file = write(&directory, "file.jsonl", text);
        assert_contains(&wrong(&file, &file), &["file.jsonl", said]);
    }
    let several = write(&directory, "several.jsonl", "[\"x\", \"y\"]\n");
    assert_contains(&wrong(&several, &one), &["several.jsonl, line 1: 2 texts, where a system writes one"]);
    let samples = args!["rouge", "--predictions", one, "--references", one, "--samples", "0"];
    assert_contains(&error(samples), &["0 bootstrap samples"]);
}

#[test]
fn sentences_can_be_those_of_punkt() {
    let directory = tempdir().unwrap();
    let predictions = write(&directory, "predictions.txt", "Dr. Smith left. Ann stayed at home.\n");
    let references = write(&directory, "references.txt", "Ann stayed at home. Dr. Smith left.\n");
    for (name, text) in
        [("abbrev_types.txt", "dr\n"), ("collocations.tab", ""), ("sent_starters.txt", ""), ("ortho_context.tab", "")]
    {
        write(&directory, name, text);
    }
    let args = args!["rouge", "--predictions", predictions, "--references", references];
    let sum = |args: Vec<std::ffi::OsString>| json(0, args)["rougeLsum"]["fmeasure"].as_f64().unwrap();
    assert!(sum(args.clone()) < 0.6, "one sentence each, in another order");
    let split = |directory: &Path| [args.clone(), args!["--split-summaries", "--punkt", directory]].concat();
    assert_eq!(sum(split(directory.path())), 1.0);
    assert_contains(&error(split(&directory.path().join("none"))), &["abbrev_types.txt"]);
    write(&directory, "ortho_context.tab", "smith\n");
    assert_contains(&error(split(directory.path())), &["line 1 of ortho_context.tab is no entry of NLTK's punkt_tab"]);
    let nowhere = Command::new(env!("CARGO_BIN_EXE_sideburn"))
        .args([args, args!["--split-summaries"]].concat())
        .env("NLTK_DATA", directory.path())
        .env("HOME", directory.path())
        .output()
        .unwrap();
    assert_contains(&String::from_utf8(nowhere.stderr).unwrap(), &["nltk.download('punkt_tab')", "--punkt"]);
}
