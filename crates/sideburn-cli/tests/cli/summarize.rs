//! `sideburn summarize`.

use super::*;

use std::io::Write;
use std::process::Stdio;

const DIALOGUE: &str = "#Person1#: Did it rain?\n#Person2#: All day, and I had no umbrella.";

/// A file in a directory of its own.
fn file(name: &str, text: &str) -> (TempDir, PathBuf) {
    let directory = tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    (directory, path)
}

/// What is written to the standard output, where the input comes by the standard input.
fn summarize(flags: &[&str], input: &str) -> std::process::Output {
    let mut child = program()
        .arg("summarize")
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its flags reads nothing, and may have ended.
    let sent = child.stdin.take().unwrap().write_all(input.as_bytes());
    assert!(sent.map_or_else(|error| error.kind() == std::io::ErrorKind::BrokenPipe, |()| true));
    child.wait_with_output().unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

#[test]
fn the_model_of_the_repository_needs_no_flags() {
    let output = summarize(&[], DIALOGUE);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary = text(&output.stdout);
    assert_eq!((summary.lines().count(), text(&output.stderr).as_str()), (1, ""));
    // The same as a line of JSON, and with beams.
    let (_directory, path) = file("input.txt", DIALOGUE);
    let lines = run(args!["summarize", "--input", &path, "--output-format", "jsonl"]).stdout;
    let line: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(line, json!({"id": "0", "summary": summary.trim_end()}));
    let beams = run(args!["summarize", "--input", &path, "--num-beams", "3", "--max-new-tokens", "9"]).stdout;
    assert_eq!(beams.lines().count(), 1);
}

#[test]
fn many_texts_come_back_in_their_order() {
    let lines: Vec<Value> = ["It rained.", DIALOGUE, "Hi!"]
        .iter()
        .zip(["b", "a", "c"])
        .map(|(text, id)| json!({"id": id, "dialogue": text}))
        .collect();
    let jsonl = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    let (_directory, path) = file("input.jsonl", &jsonl);
    let found = run(args!["summarize", "--input", &path, "--json", "--max-new-tokens", "12"]).stdout;
    let found: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found.iter().map(|line| line["id"].as_str().unwrap()).collect::<Vec<_>>(), ["b", "a", "c"]);
    // Each by itself is answered alike.
    for (line, found) in lines.iter().zip(&found) {
        let alone = summarize(&["--max-new-tokens", "12"], line["dialogue"].as_str().unwrap());
        assert_eq!(text(&alone.stdout).trim_end(), found["summary"].as_str().unwrap().trim_end());
    }
    // The same as CSV, with another name for the texts.
    let csv = "id,article\n1,It rained.\n2,Hi!\n";
    let (_directory, path) = file("input.csv", csv);
    let table = run(args!["summarize", "--input", &path, "--column", "article", "--max-new-tokens", "12"]).stdout;
    let expected = [&found[0]["summary"], &found[2]["summary"]].map(|text| text.as_str().unwrap().trim());
    assert_eq!(table.lines().map(str::trim).collect::<Vec<_>>(), expected);
}

#[test]
fn what_has_no_effect_is_told_once_and_contradictions_are_refused() {
    let warned = summarize(&["--temperature", "0.7", "--max-new-tokens", "3"], DIALOGUE);
    let expected = "warning: `temperature` is 0.7, which only sampling uses; set `do_sample`\n";
    assert_eq!((text(&warned.stderr).as_str(), warned.status.code()), (expected, Some(0)));
    for (flags, expected) in [
        (["--num-beams", "0"], "error: `num_beams` is 0, expected a number of at least 1"),
        (["--min-new-tokens", "100"], "error: `min_new_tokens` is 100, above `max_new_tokens`, which is 64"),
        (["--task", "dreaming"], "tells of no task called \"dreaming\""),
        (["--template", "no place"], "it has no place for a field"),
        (["--template", "missing.txt"], "\"missing.txt\" does not exist"),
        (["--adapter", "missing"], "missing"),
    ] {
        let refused = summarize(&flags, DIALOGUE);
        assert_eq!(refused.status.code(), Some(2), "{flags:?}");
        assert!(text(&refused.stderr).contains(expected), "{flags:?}: {}", text(&refused.stderr));
    }
    let nothing = summarize(&[], " \n");
    assert_eq!(text(&nothing.stderr), "error: the standard input holds no text\n");
    assert_eq!(nothing.status.code(), Some(2));
}

/// One adapter is used, and of several each makes a column that is called as its directory.
#[test]
fn adapters_make_columns() {
    let directory = tempdir().unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/t5-mini");
    for (name, seed) in [("news", 1), ("talk", 2)] {
        let mut model = AutoModel::from_dir(&base, &Device::flex()).unwrap();
        model
            .attach(name, LoraConfig { r: 4, lora_alpha: 64.0, ..LoraConfig::new(["q", "v"]) }, Key::from_seed(seed))
            .unwrap();
        // An adapter begins as one that does nothing.
        let tensors = model.adapter_tensors(name).unwrap().into_iter();
        let sizes: BTreeMap<String, usize> =
            tensors.map(|(tensor, param)| (tensor, param.val().dims().into_iter().product())).collect();
        let value = |key: Key, index| 0.2 * key.normal(index) as f32;
        let values = |tensor: &str| {
            let key = Key::from_seed(seed).fold_in_name(tensor);
            Some((0..sizes[tensor] as u64).map(|index| value(key, index)).collect())
        };
        model.set_adapter_tensors(name, values).unwrap();
        model.save_adapter(name, directory.path().join(name)).unwrap();
    }
    let (_directory, path) = file("input.jsonl", &json!({"id": "a", "dialogue": DIALOGUE}).to_string());
    let common = args!["summarize", "--input", &path, "--max-new-tokens", "8"];
    let with = |adapters: &[&str]| {
        let flags = adapters.iter().flat_map(|name| args!["--adapter", directory.path().join(name)]);
        run(common.iter().cloned().chain(flags).collect())
    };
    let one = |name: &str| with(&[name]).stdout.trim_end().to_owned();
    let [news, talk, base] = [one("news"), one("talk"), run(common.clone()).stdout.trim_end().to_owned()];
    assert!(news != talk && talk != base && news != base, "{news:?}, {talk:?}, {base:?}");
    let both = with(&["news", "talk"]).stdout;
    let cells: Vec<Vec<String>> =
        both.lines().map(|line| line.split('\t').map(|cell| cell.trim().to_owned()).collect()).collect();
    let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(cells, [["news".to_owned(), "talk".to_owned()], [joined(&news), joined(&talk)]]);
}

/// Integers of 8 bits write another text or the same, alone, in a batch, and below adapters.
#[test]
fn computes_in_integers() {
    let alone = summarize(&["--compute", "int8", "--max-new-tokens", "12"], DIALOGUE);
    assert!(alone.status.success(), "{}", text(&alone.stderr));
    let line = json!({"id": "a", "dialogue": DIALOGUE}).to_string();
    let (_directory, path) = file("input.jsonl", &line);
    let flags = ["--compute", "int8", "--max-new-tokens", "12", "--num-beams", "2"];
    let beams = run(args!["summarize", "--input", &path].into_iter().chain(flags.map(Into::into)).collect());
    assert_eq!(beams.stdout.lines().count(), 1);
    let refused = summarize(&["--compute", "int4"], DIALOGUE);
    assert!(text(&refused.stderr).contains("[possible values: f32, int8]"), "{}", text(&refused.stderr));
    assert_eq!(refused.status.code(), Some(2));
}

/// Whoever closes the pipe has read enough.
#[test]
fn a_closed_pipe_ends_quietly() {
    let (_directory, path) = file("input.jsonl", &json!({"dialogue": DIALOGUE}).to_string());
    for format in ["text", "jsonl"] {
        let mut child = program()
            .args(args!["summarize", "--input", &path, "--output-format", format, "--max-new-tokens", "5"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{format}");
    }
}

#[test]
fn columns_have_names_of_their_own() {
    let directory = tempdir().unwrap();
    let [first, id] = ["first", "id"].map(|name| directory.path().join(name));
    let twice = args!["summarize", "--adapter", first, "--adapter", first, "--input", first];
    assert_contains(&error(twice), &["the adapter ", "first is given twice"]);
    let hides_ids = args!["summarize", "--adapter", "id", "--adapter", first, "--input", id];
    assert_contains(&error(hides_ids), &["id is the column of the ids of texts; give the adapter as ./id"]);
}

#[test]
fn a_text_has_a_limit_and_what_holds_many_has_none() {
    let (_directory, path) = file("input.txt", "");
    fs::File::options().write(true).open(&path).unwrap().set_len((16 << 20) + 1).unwrap();
    let large = error(args!["summarize", "--input", &path]);
    assert_contains(&large, &["input.txt is a text of more than 16 MiB; JSON Lines and CSV hold many"]);
    // A record has the same limit, and the file is not read behind it.
    let large = error(args!["summarize", "--input", &path, "--input-format", "jsonl"]);
    assert_contains(&large, &["input.txt", "16777216"]);
    assert_contains(&error(args!["summarize", "--input", path.with_file_name("missing.txt")]), &["missing.txt"]);
}

/// Ctrl-C in the middle of many texts.
#[cfg(unix)]
#[test]
fn what_was_written_before_a_signal_is_printed() {
    let lines: Vec<String> = (0..4000).map(|id| json!({"id": id, "dialogue": DIALOGUE}).to_string()).collect();
    let (_directory, path) = file("input.jsonl", &lines.join("\n"));
    let mut child = program()
        .args(args!["summarize", "--input", &path, "--json", "--max-source-length", "8", "--min-new-tokens", "48"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // That texts were cut is said before the first of them is summarised.
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut warning = String::new();
    std::io::BufRead::read_line(&mut stderr, &mut warning).unwrap();
    assert_eq!(warning, "warning: 4000 of 4000 texts are longer than 8 tokens and were cut\n");
    assert!(Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let mut told = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut told).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let missing = lines.iter().filter(|line| line["summary"].is_null()).count();
    // Those that are written are, and each has its line.
    assert!(lines.len() == 4000 && missing > 0, "{missing} of {}", lines.len());
    assert_eq!(told, format!("error: stopped; {missing} of 4000 texts were not written\n"));
}
