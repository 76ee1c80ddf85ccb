//! `sideburn judge`, against servers on this machine.

use std::process::Output;

use sideburn_testing::http::{HttpServer, Reply, Request};

use super::*;

const KEY: &str = "sk-test-0123456789";

/// Runs the program with a server in the environment.
fn judge(url: &str, arguments: Vec<std::ffi::OsString>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sideburn"));
    command.env("OPENAI_BASE_URL", url).env("OPENAI_MODEL", "judge-1").env("OPENAI_API_KEY", KEY);
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(variable);
    }
    command.arg("judge").args(arguments).output().unwrap()
}

/// A server whose scores follow from what it is shown.
fn server() -> HttpServer {
    HttpServer::start(|request: &Request| {
        let body = request.json();
        let texts: Value = serde_json::from_str(body["messages"][1]["content"].as_str().unwrap()).unwrap();
        let summary = texts["summary"].as_str().unwrap();
        let score =
            if summary.contains("prose") { "very good".to_owned() } else { (summary.len() % 5 + 1).to_string() };
        let text = format!("{{\"reason\": \"<script>\", \"score\": {score}}}");
        let message = json!({ "role": "assistant", "content": text });
        Reply::json(&json!({
            "choices": [{ "message": message }],
            "usage": { "prompt_tokens": 500, "completion_tokens": 50 },
        }))
    })
}

fn files(directory: &Path, texts: [&str; 3]) -> Vec<std::ffi::OsString> {
    let rows: String = (0..3).map(|at| format!("test_{at},A: Give 5! ({at}),s\n")).collect();
    fs::write(directory.join("data.csv"), format!("id,dialogue,summary\n{rows}")).unwrap();
    fs::write(directory.join("lora.txt"), texts.join("\n") + "\n").unwrap();
    let [data, lora, output] = ["data.csv", "lora.txt", "judged.jsonl"].map(|name| directory.join(name));
    args!["--data", data, "--predictions", lora, "--output", output]
}

#[test]
fn summaries_are_judged_once() {
    let (server, directory) = (server(), tempdir().unwrap());
    let mut arguments = files(directory.path(), ["a", "ab", "abc"]);
    let people = directory.path().join("people.jsonl");
    let lines = (0..3).map(|at| format!("{{\"id\": \"test_{at}\", \"scores\": {{\"fluency\": {}}}}}\n", at + 1));
    fs::write(&people, lines.collect::<String>()).unwrap();
    arguments.extend(args!["--against", people, "--prompt-price", "1", "--completion-price", "10", "--json"]);
    for (run, calls) in [12, 0].into_iter().enumerate() {
        let output = judge(&format!("{}/v1", server.url()), arguments.clone());
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{output:?}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&found["calls"], &found["cached"]), (&json!(calls), &json!(12 - calls)), "run {run}");
        assert_eq!(found["cost"], json!(f64::from(calls) * (500.0 + 500.0) / 1e6));
        assert_eq!(found["systems"][0][1]["fluency"]["mean"], 3.0);
        assert_eq!(found["systems"][0][1]["fluency"]["n"], 3);
        let agreement = &found["agreement"][people.to_str().unwrap()]["fluency"];
        assert_eq!(
            (&agreement["n"], &agreement["spearman"], &agreement["equal"]),
            (&json!(3), &json!(1.0), &json!(0.0))
        );
        assert_eq!(server.requests().len(), 12);
    }
    let written = fs::read_to_string(directory.path().join("judged.jsonl")).unwrap();
    let lines: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    let scores = json!({ "relevance": 3.0, "coherence": 3.0, "consistency": 3.0, "fluency": 3.0 });
    assert_eq!(
        (&lines[1]["id"], &lines[1]["system"], &lines[1]["scores"]),
        (&json!("test_1"), &json!("lora"), &scores)
    );
    assert_eq!(lines[1]["reasons"]["fluency"], "<script>");
    assert_eq!((&lines[3]["model"], &lines[3]["means"]["coherence"]["mean"]), (&json!("judge-1"), &json!(3.0)));

    // For people, and the key in no file.
    arguments.pop();
    let output = judge(&format!("{}/v1", server.url()), arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_contains(&text, &["fluency", "3.00 [", "agreement with", "0 answers of judge-1, 12 scores known before"]);
    for entry in fs::read_dir(directory.path().join("judged.jsonl.cache")).unwrap() {
        assert!(!fs::read_to_string(entry.unwrap().path()).unwrap().contains(KEY));
    }
}

#[test]
fn scores_that_cannot_be_had_fail_the_run() {
    let (server, directory) = (server(), tempdir().unwrap());
    let output = judge(&server.url(), files(directory.path(), ["a", "prose", "abc"]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_contains(&text, &["4 scores could not be had; the first: the answer is no verdict"]);
    let written = fs::read_to_string(directory.path().join("judged.jsonl")).unwrap();
    let line: Value = serde_json::from_str(written.lines().nth(1).unwrap()).unwrap();
    assert_eq!(line["scores"], json!({}));
    assert_contains(line["failed"]["fluency"].as_str().unwrap(), &["no JSON object with a \"score\""]);
}

#[test]
fn what_is_wrong_with_the_server_is_said() {
    let directory = tempdir().unwrap();
    let arguments = files(directory.path(), ["a", "b", "c"]);
    let refuses = HttpServer::start(|_| Reply::new(401).body(format!("{{\"error\": {{\"message\": \"bad {KEY}\"}}}}")));
    let said = |url: &str| {
        let output = judge(url, arguments.clone());
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
        String::from_utf8(output.stderr).unwrap()
    };
    let message = said(&refuses.url());
    assert_contains(&message, &["status 401: bad (the key); look at OPENAI_API_KEY"]);
    assert!(!message.contains(KEY));
    assert_contains(&said("localhost"), &["OPENAI_BASE_URL is no address such as"]);
    // Warned of before anything is sent; nobody is there.
    let message = said("http://0.0.0.0:1/v1");
    assert_contains(&message, &["warning: http://0.0.0.0:1/v1 is not encrypted", "dialogues and the key can be read"]);
    assert!(!directory.path().join("judged.jsonl").exists());

    let mut command = Command::new(env!("CARGO_BIN_EXE_sideburn"));
    let output = command.env_remove("OPENAI_BASE_URL").arg("judge").args(&arguments).output().unwrap();
    assert_contains(&String::from_utf8(output.stderr).unwrap(), &["OPENAI_BASE_URL is not set; set it to"]);
}

/// Parts that are judged apart make the same scores.
#[test]
fn parts_are_judged_and_joined() {
    let (server, directory) = (server(), tempdir().unwrap());
    let url = format!("{}/v1", server.url());
    let mut arguments = files(directory.path(), ["a", "ab", "abc"]);
    let other = directory.path().join("other.txt");
    fs::write(&other, "abcd\nabcde\nabcdef\n").unwrap();
    arguments.extend(args!["--predictions", other]);
    assert!(judge(&url, arguments.clone()).status.success());
    let whole = fs::read_to_string(directory.path().join("judged.jsonl")).unwrap();
    let parts = ["1/2", "2/2"].map(|shard| {
        let part = directory.path().join(format!("part-{}.jsonl", shard.replace('/', "-")));
        let mut arguments = arguments.clone();
        let output = arguments.iter().position(|argument| argument == "--output").unwrap() + 1;
        arguments[output] = part.clone().into();
        arguments.extend(args!["--shard", shard]);
        assert!(judge(&url, arguments).status.success());
        part
    });
    let joined = directory.path().join("joined.jsonl");
    assert_eq!(run(args!["join", &parts[1], &parts[0], "--output", &joined]).code, 0);
    let sorted = |text: &str| {
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.retain(|line| line.get("id").is_some());
        lines.sort_by_key(|line| (line["system"].to_string(), line["id"].to_string()));
        lines
    };
    let joined = fs::read_to_string(&joined).unwrap();
    assert_eq!((joined.lines().count(), sorted(&joined)), (6, sorted(&whole)));
    assert_contains(&error(args!["join", &parts[0], "--output", other]), &["there is no file of 2/2"]);
}
