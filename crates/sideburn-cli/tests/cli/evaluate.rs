//! `sideburn evaluate`.

use super::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/dialogsum-sample");

fn write(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// A file of three dialogues, one with two references.
fn dialogues(directory: &TempDir) -> PathBuf {
    let line = |id: &str, dialogue: &str, summary: Value| {
        json!({"id": id, "dialogue": dialogue, "summary": summary}).to_string()
    };
    let lines = [
        line("a", "Ann: Tea?\nBob: <script>alert(1)</script>", json!(["Bob wants tea.", "Ann offers tea."])),
        line("b", "Ann: Bye.\nCleo: See you.", json!("Ann leaves Cleo.")),
        line("c", "Bob: Late again!", json!("Bob is late.")),
    ];
    write(directory, "dialogues.jsonl", &lines.join("\n"))
}

#[test]
fn summaries_in_files_are_evaluated() {
    let directory = tempdir().unwrap();
    let data = dialogues(&directory);
    let first = write(&directory, "copy.txt", "Ann: Tea?\nAnn: Bye.\n\n");
    // By their ids, in any order.
    let by_id =
        ["c", "a", "b"].map(|id| json!({"id": id, "summary": format!("{id} <b>Bob wants tea.</b>")}).to_string());
    let second = write(&directory, "second.jsonl", &by_id.join("\n"));
    let scores = write(
        &directory,
        "scores.jsonl",
        "{\"id\":\"a\",\"system\":\"copy\",\"scores\":{\"fluency\":2},\"failed\":{}}\n\
         {\"id\":\"a\",\"system\":\"the model\",\"scores\":{\"fluency\":5}}\n\
         {\"id\":\"c\",\"system\":\"the model\",\"scores\":{\"fluency\":4}}\n\
         {\"system\":\"the model\",\"model\":\"judge\",\"means\":{}}\n",
    );
    let output = directory.path().join("results");
    let mut named = std::ffi::OsString::from("the model=");
    named.push(&second);
    let args = args![
        "evaluate",
        "--data",
        data,
        "--predictions",
        first,
        "--predictions",
        named,
        "--scores",
        scores,
        "--output",
        output
    ];
    let found = json(0, args.clone());
    assert_eq!((&found["n"], &found["title"]), (&json!(3), &json!("dialogues.jsonl")));
    let of = |system: usize, score: usize| found["systems"][system]["scores"][score].clone();
    assert_eq!(
        (found["systems"][1]["system"].as_str(), of(1, 0)["name"].as_str()),
        (Some("the model"), Some("rouge1"))
    );
    // "ann tea": of 3 words of a reference 2; "ann bye": 1 of 3; an empty text.
    assert!((of(0, 0)["mean"].as_f64().unwrap() - (0.8 + 0.4 + 0.0) / 3.0).abs() < 1e-12, "{found}");
    assert_eq!((&of(1, 4)["name"], &of(1, 4)["mean"], &of(1, 4)["n"]), (&json!("fluency"), &json!(4.5), &json!(2)));
    let fluency = found["differences"].as_array().unwrap().iter().find(|of| of["score"] == "fluency").unwrap().clone();
    assert_eq!((&fluency["difference"]["n"], &fluency["difference"]["mean"]), (&json!(1), &json!(3.0)));
    assert_eq!(found["statistics"][1]["empty"], 1);

    let read = |name: &str| fs::read_to_string(output.join(name)).unwrap();
    let page = read("report.html");
    assert_contains(
        &page,
        &["&lt;script&gt;alert(1)&lt;/script&gt;", "&lt;b&gt;<mark>Bob wants tea</mark>.&lt;/b&gt;", "the model"],
    );
    let report: Value = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!(report["evaluation"]["systems"][0]["outputs"], json!(["Ann: Tea?", "Ann: Bye.", ""]));
    let predictions = read("predictions.jsonl");
    let line: Value = serde_json::from_str(predictions.lines().next().unwrap()).unwrap();
    assert_eq!(line, json!({"id": "a", "copy": "Ann: Tea?", "the model": "a <b>Bob wants tea.</b>"}));

    // What was written is read again, each field as a system, and what was there is replaced.
    let again =
        args!["evaluate", "--data", data, "--predictions", output.join("predictions.jsonl"), "--output", output];
    let again = json(0, again);
    assert_eq!(
        again["systems"][0]["scores"].as_array().unwrap()[..4],
        found["systems"][0]["scores"].as_array().unwrap()[..4]
    );
    assert!(!read("report.html").contains("fluency"));
    let text = run(args);
    assert_eq!((text.code, text.stderr.as_str()), (0, ""));
    assert_contains(&text.stdout, &["mean [95 %], n 3", "(n 2)", "rouge1, the model less copy: ", "report.html"]);
}

#[test]
fn a_model_writes_without_adapters_and_with_each() {
    let directory = tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/t5-mini");
    let output = directory.path().join("results");
    let args = args![
        "evaluate",
        "--data",
        DATA,
        "--subsample",
        "count:4",
        "--model",
        model,
        "--max-new-tokens",
        "8",
        "--output",
        output
    ];
    let found = json(0, args.clone());
    assert_eq!((&found["n"], &found["title"]), (&json!(4), &json!("DialogSum, test")));
    assert_eq!(found["systems"][0]["system"], "base");
    assert!(!output.join("unfinished.jsonl").exists());
    let written = fs::read_to_string(output.join("predictions.jsonl")).unwrap();

    // The same again gives the same.
    let report: Value = serde_json::from_str(&fs::read_to_string(output.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["evaluation"]["config"]["written_by"]["generation"]["max_new_tokens"], 8);
    fs::remove_dir_all(&output).unwrap();
    assert_eq!(json(0, args)["systems"], found["systems"]);
    assert_eq!(fs::read_to_string(output.join("predictions.jsonl")).unwrap(), written);
}

#[cfg(unix)]
#[test]
fn a_run_that_is_stopped_goes_on_where_it_was() {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    let directory = tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/t5-mini");
    let output = directory.path().join("results");
    let arguments = |to: &Path, model: &str| {
        args![
            "evaluate",
            "--data",
            DATA,
            "--model",
            model,
            "--max-new-tokens",
            "4",
            "--do-sample",
            "--seed",
            "3",
            "--output",
            to
        ]
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_sideburn"))
        .args(arguments(&output, model))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let kept = output.join("unfinished.jsonl");
    while !kept.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    if ended.status.code() == Some(0) {
        // It was faster than the signal.
        return;
    }
    assert_eq!((ended.status.code(), ended.status.signal()), (Some(2), None), "{said}");
    assert_contains(&said, &["stopped after 96 of 120 summaries", "unfinished.jsonl"]);
    assert!(!output.join("report.html").exists());
    let lines = fs::read_to_string(&kept).unwrap();
    assert_eq!(lines.lines().count(), 97);
    // What is kept is used: here a text that no model wrote. A line that is damaged is none.
    let marked = lines.lines().enumerate().map(|(at, line)| match at {
        2 => {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line[2] = "kept".into();
            line.to_string()
        }
        _ => line.to_owned(),
    });
    fs::write(&kept, marked.chain(["[\"base\", 0".to_owned()]).collect::<Vec<_>>().join("\n")).unwrap();
    json(0, arguments(&output, model));
    assert!(!kept.exists());
    let texts = |directory: &Path| -> Vec<Value> {
        let lines = fs::read_to_string(directory.join("predictions.jsonl")).unwrap();
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["base"].clone()).collect()
    };
    let whole = directory.path().join("whole");
    json(0, arguments(&whole, model));
    let differing: Vec<Value> = texts(&output)
        .into_iter()
        .zip(texts(&whole))
        .filter(|(resumed, whole)| resumed != whole)
        .map(|(text, _)| text)
        .collect();
    assert_eq!(differing, ["kept"], "what is drawn does not depend on where a run was stopped");
}

#[test]
fn what_is_wrong_with_files_is_said() {
    let directory = tempdir().unwrap();
    let data = dialogues(&directory);
    let output = directory.path().join("results");
    let wrong = |name: &str, text: &str, said: &[&str]| {
        let file = write(&directory, name, text);
        assert_contains(&error(args!["evaluate", "--data", data, "--predictions", file, "--output", output]), said);
    };
    wrong("short.txt", "x\ny\n", &["short.txt has 2 texts for 3 dialogues; none for c; give one for each"]);
    wrong("long.txt", "x\ny\nz\nw\n", &["long.txt has 4 texts for 3 dialogues; give one for each"]);
    wrong("empty.txt", "", &["empty.txt has no line"]);
    wrong(
        "p.jsonl",
        "{\"id\":\"a\",\"summary\":\"x\"}\n{\"id\":\"d\",\"summary\":\"x\"}\n",
        &["line 2", "no dialogue has the id \"d\"", "a, b, c"],
    );
    wrong(
        "p.jsonl",
        "{\"id\":\"a\",\"summary\":\"x\"}\n{\"id\":\"a\",\"summary\":\"y\"}\n",
        &["line 2: a second text for \"a\""],
    );
    wrong("p.jsonl", "{'id': 'a'}\n", &["line 1: a Python dictionary, not JSON"]);
    wrong("p.jsonl", "\"\\ud800\"\n", &["line 1: not JSON", "hex escape"]);
    wrong("p.jsonl", "{\"id\":\"a\"}\n", &["line 1: no field but id"]);
    wrong("p.jsonl", "{\"id\":\"a\",\"summary\":[\"x\",\"y\"]}\n", &["line 1: 2 texts, where a system writes one"]);
    wrong("p.csv", "id,summary\na,x\n", &[".csv files are not read here"]);

    let texts = write(&directory, "texts.txt", "x\ny\nz\n");
    let scored = |line: &str, said: &[&str]| {
        let scores = write(&directory, "scores.jsonl", line);
        let args = args!["evaluate", "--data", data, "--predictions", texts, "--scores", scores, "--output", output];
        assert_contains(&error(args), said);
    };
    scored(
        "{\"id\":\"a\",\"system\":\"none\",\"scores\":{\"x\":1}}",
        &["line 1: no system is called \"none\"; they are texts"],
    );
    scored("{\"id\":\"z\",\"scores\":{\"x\":1}}", &["line 1: no dialogue has the id \"z\""]);
    scored(
        "{\"id\":\"a\",\"scores\":{\"x\":1}}\n{\"id\":\"a\",\"scores\":{\"x\":1}}",
        &["line 2: a second \"x\" of \"a\""],
    );
    scored("{\"id\":\"a\",\"scores\":{\"x\":\"good\"}}", &["line 1: no line of scores"]);
    scored("{\"id\":\"a\"}", &["scores.jsonl has no scores"]);
    let twice = args!["evaluate", "--data", data, "--predictions", texts, "--predictions", texts, "--output", output];
    assert_contains(&error(twice), &["two systems called \"texts\"", "NAME=FILE"]);
    assert!(!output.exists(), "nothing is half-written");
    let none = args!["evaluate", "--data", data, "--output", output];
    assert_contains(&error(none), &["required arguments", "--predictions"]);
    // A file stands where the directory is to be.
    let file = args!["evaluate", "--data", data, "--predictions", texts, "--output", texts];
    assert_contains(&error(file), &["texts.txt"]);
    // Three records of DialogSum are one dialogue.
    let many = write(&directory, "many.txt", &"x\n".repeat(360));
    let rows = args!["evaluate", "--data", DATA, "--predictions", many, "--output", output];
    assert_contains(
        &error(rows),
        &["has 360 texts for 120 dialogues (of 360 records: those that differ in the reference alone are one)"],
    );
}
