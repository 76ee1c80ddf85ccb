//! Models and adapters by their ids, from a server that plays the hub.

use super::*;

use sideburn_testing::http::{HttpServer, Reply};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub where `some/model` has the files of one folder, and `some/lora` those of another. It takes what is pushed.
fn hub(model: PathBuf, adapter: PathBuf) -> HttpServer {
    HttpServer::start(move |request| {
        let path = request.path();
        let found = [("/some/model/", &model), ("/some/lora/", &adapter)];
        let found = found.iter().find_map(|(begin, folder)| Some((path.strip_prefix(begin)?, folder)));
        match (path, found.and_then(|(path, folder)| Some((path.split('/').next_back()?, folder)))) {
            ("/api/repos/create", _) => Reply::json(&json!({})),
            ("/api/models/some/new/preupload/main", _) => {
                let mode = |file: &Value| json!({"path": file["path"], "uploadMode": "regular", "shouldIgnore": false});
                let files: Vec<Value> = request.json()["files"].as_array().unwrap().iter().map(mode).collect();
                Reply::json(&json!({"files": files}))
            }
            ("/api/models/some/new/commit/main", _) => Reply::json(&json!({"commitOid": COMMIT})),
            (_, Some((name, folder))) => match fs::read(folder.join(name)) {
                Ok(content) => {
                    let reply = Reply::new(200).header("x-repo-commit", COMMIT);
                    reply.header("etag", format!("\"{name}\"")).file(request, &content)
                }
                Err(_) => Reply::new(404).header("x-error-code", "EntryNotFound").header("x-repo-commit", COMMIT),
            },
            _ => Reply::new(404).header("x-error-code", "RepoNotFound"),
        }
    })
}

/// Runs the program, which asks this hub and has a cache.
fn with_hub(server: &HttpServer, cache: &Path, args: Vec<std::ffi::OsString>) -> Run {
    let mut program = program();
    program.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", server.url()).env("HF_HUB_CACHE", cache);
    told(program.env("HF_TOKEN", "hf_secret").args(args).output().unwrap())
}

#[test]
fn an_id_stands_where_a_directory_does() {
    let server = hub(golden(BASE), golden(ADAPTER));
    let cache = tempdir().unwrap();
    let ask = |args| {
        let found = with_hub(&server, cache.path(), args);
        assert_eq!(found.code, 0, "{}{}", found.stdout, found.stderr);
        found.stdout.replace("some/model", "MODEL").replace("some/lora", "LORA")
    };
    let here = |args| {
        let text = run(args).stdout;
        text.replace(golden(BASE).to_str().unwrap(), "MODEL").replace(golden(ADAPTER).to_str().unwrap(), "LORA")
    };
    let check = |adapter: PathBuf, base: PathBuf| args!["adapter", "check", adapter, "--base", base];
    assert_eq!(ask(check("some/lora".into(), "some/model".into())), here(check(golden(ADAPTER), golden(BASE))));
    assert_eq!(ask(args!["adapter", "inspect", "some/lora"]), here(args!["adapter", "inspect", golden(ADAPTER)]));
    let output = cache.path().join("merged");
    ask(args!["adapter", "merge", "some/lora", "--base", "some/model", "--output", &output]);
    ask(args!["quantize", "--model", "some/model", "--to", "nf4", "--output", cache.path().join("packed")]);
    assert!(output.join("model.safetensors").is_file());
    // What is in the cache wants no hub.
    let mut offline = program();
    offline.env("HF_HUB_CACHE", cache.path()).args(args!["adapter", "check", "some/lora", "--base", "some/model"]);
    assert_eq!(told(offline.output().unwrap()).code, 0);
}

#[test]
fn a_plan_fetches_the_configuration_alone() {
    let server = hub(golden(BASE), golden(ADAPTER));
    let cache = tempdir().unwrap();
    let flags = |model: &Path, adapter: &Path| args!["plan", "--model", model, "--adapter", adapter, "--json"];
    let planned = |run: Run| -> Value {
        // Whether it fits depends on the machine.
        assert!(run.code <= 1, "{}", run.stderr);
        serde_json::from_str(&run.stdout).unwrap()
    };
    let found = planned(with_hub(&server, cache.path(), flags(Path::new("some/model"), Path::new("some/lora"))));
    let expected = planned(run(flags(&golden(BASE), &golden(ADAPTER))));
    for field in ["parameters", "trainable", "base_float_bytes", "adapter_bytes", "loading_bytes"] {
        assert_eq!(found[field], expected[field], "{field}");
    }
    let of_model = server.take_lines().into_iter().filter(|line| line.contains("/some/model/"));
    assert!(of_model.clone().count() > 0 && of_model.into_iter().all(|line| line.ends_with("/config.json")));
}

#[test]
fn a_summary_with_a_model_of_the_hub() {
    let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/t5-mini");
    let server = hub(mini.clone(), golden(ADAPTER));
    let directory = tempdir().unwrap();
    let input = directory.path().join("input.txt");
    fs::write(&input, "#Person1#: Did it rain?\n#Person2#: All day.").unwrap();
    let cache = directory.path().join("cache");
    let flags = |model: &Path| args!["summarize", "--model", model, "--input", &input, "--max-new-tokens", "8"];
    let found = with_hub(&server, &cache, flags(Path::new("some/model@main")));
    assert_eq!((found.code, found.stdout), (0, run(flags(&mini)).stdout), "{}", found.stderr);
}

#[test]
fn what_is_no_id_or_not_on_the_hub_is_told() {
    let server = hub(golden(BASE), golden(ADAPTER));
    let directory = tempdir().unwrap();
    let refused = |name: &str| {
        let found = with_hub(&server, directory.path(), args!["adapter", "inspect", name]);
        assert_eq!((found.code, found.stdout.as_str()), (2, ""));
        assert!(!found.stderr.contains("hf_secret"));
        found.stderr
    };
    assert_contains(&refused("https://huggingface.co/some/lora"), &["it is a URL; give the id, some/lora"]);
    assert_contains(&refused("some/../lora"), &["does not exist; it is taken for a path"]);
    assert_contains(&refused("some/..lora"), &["`..` and `--` stand in no id"]);
    assert_contains(&refused("some/other"), &["some/other is no directory here, and http://", "no such repository"]);
    assert_contains(&refused("some/model"), &["some/model has no adapter_config.json; it is no adapter of peft"]);
    // A cache that cannot be written: a file is in the way.
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let found = with_hub(&server, &file, args!["adapter", "inspect", "some/lora"]);
    assert_eq!(found.code, 2);
    assert_contains(&found.stderr, &["the cache cannot be written at", "HF_HUB_CACHE names another folder"]);
}

#[test]
fn an_adapter_is_pushed() {
    let server = hub(golden(BASE), golden(ADAPTER));
    let cache = tempdir().unwrap();
    let push = args!["push", "--adapter", golden(ADAPTER), "--to", "some/new", "--private"];
    let found = with_hub(&server, cache.path(), push.clone());
    assert_eq!(found.code, 0, "{}", found.stderr);
    assert_contains(&found.stdout, &["adapter_config.json, adapter_model.safetensors", "/some/new", COMMIT]);
    assert_eq!(server.requests()[0].json()["private"], json!(true));
    let found = run(push);
    assert_contains(&found.stderr, &["nothing is pushed: HF_HUB_OFFLINE is set"]);
    let found = with_hub(&server, cache.path(), args!["push", "--adapter", golden(BASE), "--to", "some/new"]);
    assert_contains(&found.stderr, &["adapter_config.json\" does not exist"]);
}
