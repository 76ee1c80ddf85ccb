//! `--shard` and `sideburn join`.

use super::*;

/// Seven texts with ids.
fn input(directory: &Path) -> PathBuf {
    let line = |number: usize| json!({"id": format!("t{number}"), "dialogue": format!("#Person1#: Tea at {number}?")});
    let lines: String = (0..7).map(|number| format!("{}\n", line(number))).collect();
    let path = directory.join("input.jsonl");
    fs::write(&path, lines).unwrap();
    path
}

/// What a part has printed, in a file.
fn part(directory: &Path, input: &Path, shard: &str, more: &[&str]) -> PathBuf {
    let mut args = args!["summarize", "--input", input, "--json", "--max-new-tokens", "8", "--shard", shard];
    args.extend(more.iter().map(std::ffi::OsString::from));
    let run = run(args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let path = directory.join(format!("part-{}.jsonl", shard.replace('/', "-")));
    fs::write(&path, run.stdout).unwrap();
    path
}

#[test]
fn parts_are_joined_to_what_one_process_writes() {
    let directory = tempdir().unwrap();
    let directory = directory.path();
    let input = input(directory);
    let [whole, joined] = ["whole.jsonl", "joined.jsonl"].map(|name| directory.join(name));
    let one = run(args!["summarize", "--input", &input, "--json", "--max-new-tokens", "8"]);
    fs::write(&whole, &one.stdout).unwrap();
    let parts = ["3/3", "1/3", "2/3"].map(|shard| part(directory, &input, shard, &[]));
    let told = run(args!["join", &parts[0], &parts[1], &parts[2], "--output", &joined]);
    assert_eq!((told.code, told.stdout.lines().next().unwrap()), (0, "7 records of 3 parts"), "{}", told.stderr);
    assert_eq!(fs::read_to_string(&joined).unwrap(), one.stdout);

    let missing = error(args!["join", &parts[0], &parts[1], "--output", &joined]);
    assert_contains(&missing, &["there is no file of 2/3; run them, or give their files"]);
    let twice = error(args!["join", &parts[0], &parts[1], &parts[2], &parts[2], "--output", &joined]);
    assert_contains(&twice, &["part-2-3.jsonl are both part 2/3; leave one of them out"]);
    // A process that was killed in the middle of its part.
    let text = fs::read_to_string(&parts[1]).unwrap();
    let cut: Vec<&str> = text.lines().take(3).collect();
    fs::write(&parts[1], cut.join("\n")).unwrap();
    let gap = error(args!["join", &parts[0], &parts[1], &parts[2], "--output", &joined]);
    assert_contains(&gap, &["part-1-3.jsonl, part 1/3: no record, or not all, of 1 of its 3 texts, at 6;"]);
    // Another job: other flags.
    let other = part(directory, &input, "1/3", &["--num-beams", "2"]);
    let differs = error(args!["join", &parts[0], &other, &parts[2], "--output", &joined]);
    assert_contains(&differs, &["part-1-3.jsonl is of another job than ", ": job "]);
    assert_eq!(fs::read_to_string(&joined).unwrap(), one.stdout, "it was touched");

    let text = error(args!["summarize", "--input", &input, "--shard", "1/3"]);
    assert_contains(&text, &["--shard writes JSON Lines; give --output-format jsonl, or --json"]);
    let none = run(args!["summarize", "--input", &input, "--json", "--shard", "4/3"]);
    assert_eq!(none.code, 2);
    assert_contains(&none.stderr, &["is no part; write I/N, such as 2/4"]);
}

#[test]
fn an_evaluation_is_written_in_parts_and_scored_at_once() {
    let directory = tempdir().unwrap();
    let [output, whole, scored] = ["parts", "whole", "scored"].map(|name| directory.path().join(name));
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/t5-mini");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/dialogsum-sample");
    let evaluate = |more: Vec<std::ffi::OsString>| {
        let mut all = args![
            "evaluate",
            "--data",
            &data,
            "--subsample",
            "count:5",
            "--max-source-length",
            "48",
            "--max-new-tokens",
            "6",
            "--samples",
            "20"
        ];
        all.extend(more);
        let run = run(all);
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stdout
    };
    for shard in ["1/2", "2/2"] {
        let told = evaluate(args!["--model", &model, "--output", &output, "--shard", shard]);
        assert_contains(&told, &["of 5 dialogues", &format!("shard-{}.jsonl", shard.replace('/', "-of-"))]);
    }
    let joined = directory.path().join("joined.jsonl");
    let parts = ["shard-1-of-2.jsonl", "shard-2-of-2.jsonl"].map(|name| output.join(name));
    assert_eq!(run(args!["join", &parts[0], &parts[1], "--output", &joined]).code, 0);
    evaluate(args!["--model", &model, "--output", &whole]);
    let predictions = fs::read_to_string(whole.join("predictions.jsonl")).unwrap();
    assert_eq!(fs::read_to_string(&joined).unwrap(), predictions);
    let table = evaluate(args!["--predictions", &joined, "--output", &scored]);
    assert_contains(&table, &["rouge1"]);
    assert_eq!(fs::read_dir(&output).unwrap().count(), 2, "nothing but the parts is left");
}
