//! What is fetched, and how it lies in the cache.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sideburn_hub::{Hub, HubConfig};
use sideburn_testing::http::Reply;

use crate::played::{COMMIT, ID, Played, Stage, WEIGHTS_HASH, model, tree, weights};

#[test]
fn a_model_lies_as_python_lays_it() {
    let stage = Stage::new(model());
    let directory = stage.hub().model(ID).unwrap();
    assert_eq!(directory, stage.repo().canonicalize().unwrap().join("snapshots").join(COMMIT));
    assert_eq!(fs::read(directory.join("model.safetensors")).unwrap(), weights());
    let expected = include_str!("../../testdata/python_tree.txt");
    assert_eq!(tree(&stage.cache()).join("\n") + "\n", expected);
    let mark = fs::read_to_string(stage.cache().join("CACHEDIR.TAG")).unwrap();
    assert!(mark.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"), "{mark}");
    assert_eq!(fs::read_to_string(stage.repo().join("refs/main")).unwrap(), COMMIT);
}

#[test]
fn the_token_does_not_go_to_the_storage() {
    let stage = Stage::new(model());
    stage.hub().model(ID).unwrap();
    let asked = stage.server.requests();
    assert!(asked.iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    let [stored] = &stage.storage.requests()[..] else { panic!("one request to the storage") };
    assert_eq!(stored.line(), format!("GET /stored/{WEIGHTS_HASH}?signature=secret"));
    assert_eq!(stored.header("authorization"), None);
    // What is not needed is not asked for.
    assert!(asked.iter().all(|request| !request.target.contains("README") && !request.target.contains(".bin")));
}

#[test]
fn what_is_there_is_not_asked_for_again() {
    let stage = Stage::new(model());
    let first = stage.hub().model(ID).unwrap();
    stage.server.take_lines();
    assert_eq!(stage.hub().model(ID).unwrap(), first);
    // One question, whether the branch has moved on.
    assert_eq!(stage.server.take_lines(), [format!("HEAD /{ID}/resolve/main/config.json")]);
    // A commit does not move.
    assert_eq!(stage.hub().model(format!("{ID}@{COMMIT}")).unwrap(), first);
    assert_eq!(stage.server.take_lines(), [""; 0]);
    // Another name for the commit costs a question.
    assert_eq!(stage.hub().model(format!("{ID}@refs/pr/3")).unwrap(), first);
    assert_eq!(stage.server.take_lines(), [format!("HEAD /{ID}/resolve/refs%2Fpr%2F3/config.json")]);
    assert_eq!(fs::read_to_string(stage.repo().join("refs/refs/pr/3")).unwrap(), COMMIT);
    assert_eq!(stage.storage.requests().len(), 1);
}

#[test]
fn what_is_missing_in_the_cache_is_added() {
    let stage = Stage::new(model());
    let directory = stage.hub().model(ID).unwrap();
    fs::remove_file(directory.join("tokenizer.json")).unwrap();
    // A link whose blob somebody has removed is none.
    fs::remove_file(stage.repo().join("blobs").join(WEIGHTS_HASH)).unwrap();
    stage.hub().model(format!("{ID}@{COMMIT}")).unwrap();
    assert_eq!(tree(&stage.cache()).join("\n") + "\n", include_str!("../../testdata/python_tree.txt"));
    assert_eq!(stage.storage.requests().len(), 2);
}

#[test]
fn shards_are_those_of_the_index() {
    let mut files = model();
    files.remove("model.safetensors");
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let index = format!(r#"{{"weight_map": {{"a": "{}", "b": "{}", "c": "{}"}}}}"#, names[0], names[1], names[0]);
    let played = |content: &[u8], etag| Played { content: content.to_vec(), etag, is_large: false };
    // Mirrors may have names of their own: these are no hashes, and not checked.
    files.insert("model.safetensors.index.json", played(index.as_bytes(), "index-1"));
    files.insert(names[0], played(b"first", "shard-1"));
    files.insert(names[1], played(b"second", "shard-2"));
    let stage = Stage::new(files);
    let directory = stage.hub().model(ID).unwrap();
    assert_eq!(fs::read(directory.join(names[0])).unwrap(), b"first");
    assert_eq!(fs::read(directory.join(names[1])).unwrap(), b"second");
    assert!(stage.repo().join(".no_exist").join(COMMIT).join("model.safetensors").is_file());
}

#[test]
fn a_pickle_is_fetched_where_there_is_no_safetensors() {
    let mut files = model();
    files.remove("model.safetensors");
    let stage = Stage::new(files);
    let directory = stage.hub().model(ID).unwrap();
    assert_eq!(fs::read(directory.join("pytorch_model.bin")).unwrap(), b"never wanted");
    for absent in ["model.safetensors", "model.safetensors.index.json"] {
        assert!(stage.repo().join(".no_exist").join(COMMIT).join(absent).is_file(), "{absent}");
    }
    // Without a network it is found in the cache.
    let offline = stage.hub_with(HubConfig { offline: true, ..stage.config() });
    assert_eq!(offline.model(ID).unwrap(), directory);
}

#[test]
fn shards_of_a_pickle_are_those_of_its_index() {
    let mut files = model();
    ["model.safetensors", "pytorch_model.bin"].iter().for_each(|name| drop(files.remove(name)));
    let names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    let index = format!(r#"{{"weight_map": {{"a": "{}", "b": "{}"}}}}"#, names[0], names[1]);
    let played = |content: &[u8], etag| Played { content: content.to_vec(), etag, is_large: false };
    files.insert("pytorch_model.bin.index.json", played(index.as_bytes(), "index-1"));
    files.insert(names[0], played(b"first", "shard-1"));
    files.insert(names[1], played(b"second", "shard-2"));
    let stage = Stage::new(files);
    let directory = stage.hub().model(ID).unwrap();
    assert_eq!(names.map(|name| fs::read(directory.join(name)).unwrap()), [b"first".to_vec(), b"second".to_vec()]);
}

#[test]
fn an_index_does_not_lead_out_of_the_repository() {
    let mut files = model();
    files.remove("model.safetensors");
    let index = br#"{"weight_map": {"a": "../../../evil.safetensors"}}"#.to_vec();
    files.insert("model.safetensors.index.json", Played { content: index, etag: "index-1", is_large: false });
    let stage = Stage::new(files);
    let error = stage.hub().model(ID).unwrap_err().to_string();
    assert!(error.contains("evil.safetensors") && error.contains("leaves the directory"), "{error}");
}

#[test]
fn a_configuration_is_fetched_alone() {
    let stage = Stage::new(model());
    let directory = stage.hub().config_of(ID).unwrap();
    let names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["config.json"]);
    assert!(stage.storage.requests().is_empty());
    // No half of a model is found without a network.
    let offline = stage.hub_with(HubConfig { offline: true, ..stage.config() });
    assert!(offline.model(ID).is_err());
    // The whole goes on from there.
    assert_eq!(stage.hub().model(ID).unwrap(), directory);
    assert_eq!(offline.config_of(ID).unwrap(), directory);
}

#[test]
fn an_adapter_is_two_files() {
    let played = |content: &str, etag| Played { content: content.as_bytes().to_vec(), etag, is_large: false };
    let files = BTreeMap::from([
        ("adapter_config.json", played("{}", "9e26dfeeb6e641a33dae4961196235bdb965b21b")),
        ("adapter_model.bin", played("tensors", "tensors-1")),
        ("training_args.bin", played("never wanted", "never")),
    ]);
    let stage = Stage::new(files);
    let directory = stage.hub().adapter(ID).unwrap();
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["adapter_config.json", "adapter_model.bin"]);
    let error = stage.hub().model(ID).unwrap_err().to_string();
    assert_eq!(error, format!("{ID} has no config.json; it is no model of transformers, or an adapter alone"));
}

#[test]
fn progress_is_told() {
    let stage = Stage::new(model());
    stage.hub().model(ID).unwrap();
    let events = stage.take_events();
    assert_eq!(events.first().unwrap(), "config.json is there");
    let of_weights: Vec<_> = events.iter().filter(|event| event.starts_with("model.safetensors")).collect();
    assert_eq!(*of_weights.last().unwrap(), "model.safetensors is there");
}

#[test]
fn a_slow_hub_is_waited_for_while_it_sends() {
    let slowly = |_: &_, reply: Reply| reply.slowly(60_000, Duration::from_millis(200));
    let stage = Stage::changed(model(), |_, reply| reply, slowly);
    // A second in all, in half of which it must say something.
    stage.hub().model(ID).unwrap();
    assert_eq!(stage.take_events().iter().filter(|event| event.starts_with("again")).count(), 0);
}

#[test]
fn a_mirror_may_send_its_clients_to_the_hub() {
    let stage = Stage::new(model());
    let hub = stage.server.url();
    let mirror = sideburn_testing::http::HttpServer::start(move |request| {
        Reply::redirect(307, format!("{hub}{}", request.target))
    });
    let directory = stage.hub_with(HubConfig { endpoint: mirror.url(), ..stage.config() }).model(ID).unwrap();
    assert!(directory.join("model.safetensors").is_file());
    // The token is for the mirror.
    assert!(stage.server.requests().iter().all(|request| request.header("authorization").is_none()));
}

/// Where this program is such a process, it fetches the model into the cache that the variables name.
#[test]
fn another_process() {
    if std::env::var_os("HUB_TEST_CHILD").is_some() {
        Hub::from_env().unwrap().model(ID).unwrap();
    }
}

/// Starts one.
pub(crate) fn start_another(stage: &Stage) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["fetched::another_process", "--exact"]).env("HUB_TEST_CHILD", "1");
    command.env("HF_ENDPOINT", stage.server.url()).env("HF_HUB_CACHE", stage.cache()).env_remove("HF_HUB_OFFLINE");
    command.stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn two_processes_fetch_a_file_once() {
    let slowly = |_: &_, reply: Reply| reply.slowly(30_000, Duration::from_millis(30));
    let stage = Stage::changed(model(), |_, reply| reply, slowly);
    let children = [(); 3].map(|()| start_another(&stage));
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(stage.storage.requests().len(), 1);
    assert_eq!(fs::read(stage.repo().join("blobs").join(WEIGHTS_HASH)).unwrap(), weights());
}

#[test]
fn directories_go_before_ids_and_paths_are_no_ids() {
    let stage = Stage::new(model());
    let here = stage.folder.path().join("someone");
    fs::create_dir(&here).unwrap();
    assert_eq!(stage.hub().model(&here).unwrap(), here);
    for path in ["./models/t5", "../t5", "/models/t5", "~/t5", "models/", "runs/a/b", "runs/a/b@x", "runs\\t5", ""] {
        let error = stage.hub().model(path).unwrap_err().to_string();
        let told =
            "does not exist; it is taken for a path, since an id on the hub is OWNER/NAME or OWNER/NAME@REVISION";
        assert_eq!(error, format!("{path:?} {told}"));
    }
    let error = stage.hub().adapter("https://huggingface.co/a/b").unwrap_err().to_string();
    assert!(error.ends_with("it is a URL; give the id, a/b"), "{error}");
    assert_eq!(stage.server.take_lines(), [""; 0]);
    assert!(stage.hub().model(ID).is_ok());
}
