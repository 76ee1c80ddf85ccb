//! Adapters that are pushed.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use sideburn_hub::{HubConfig, PushConfig, Pushed};
use sideburn_testing::http::{HttpServer, Reply, Request};
use tempfile::TempDir;

use crate::played::{Stage, WEIGHTS_HASH, model, weights};

/// A hub that takes adapters, its storage, and an adapter. The tensors are the weights of the model that is played elsewhere.
struct Post {
    stage: Stage,
    hub: HttpServer,
    storage: HttpServer,
    folder: TempDir,
}

impl Post {
    /// Answers are changed on their way: of the hub, and of its storage.
    fn new(
        mut of_hub: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
        of_storage: impl FnMut(&Request) -> Reply + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| fs::write(folder.path().join(name), content).unwrap();
        write("adapter_config.json", b"{\"peft_type\": \"LORA\"}\n");
        write("adapter_model.safetensors", &weights());
        write("README.md", b"# A card\n");
        write("optimizer.pt", b"not to be sent");
        let storage = HttpServer::start(of_storage);
        let at_storage = storage.url();
        let hub = HttpServer::start(move |request| {
            let reply = taken(request, &at_storage);
            of_hub(request, reply)
        });
        Self { stage: Stage::new(model()), hub, storage, folder }
    }

    fn config(&self) -> HubConfig {
        HubConfig { endpoint: self.hub.url(), ..self.stage.config() }
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    fn push(&self, id: &str) -> Result<Pushed, String> {
        let config = PushConfig { private: true, commit_message: "The first".to_owned() };
        let pushed = self.stage.hub_with(self.config()).push_adapter(self.directory(), id, &config);
        pushed
            .map_err(|error| error.to_string().replace(&self.hub.url(), "HUB").replace(&self.storage.url(), "STORAGE"))
    }
}

/// What a hub answers that takes everything. Files of more than 1,000 bytes are for the storage.
fn taken(request: &Request, storage: &str) -> Reply {
    match request.path() {
        "/api/whoami-v2" => Reply::json(&json!({"name": "someone"})),
        "/api/repos/create" => Reply::json(&json!({"url": "https://huggingface.co/someone/lora"})),
        path if path.starts_with("/api/models/someone/lora/preupload/") => {
            let mode = |file: &Value| {
                let mode = if file["size"].as_u64().unwrap() > 1000 { "lfs" } else { "regular" };
                json!({"path": file["path"], "uploadMode": mode, "shouldIgnore": false})
            };
            let files: Vec<Value> = request.json()["files"].as_array().unwrap().iter().map(mode).collect();
            Reply::json(&json!({"files": files}))
        }
        "/someone/lora.git/info/lfs/objects/batch" => {
            let object = |object: &Value| {
                let upload = json!({"href": format!("{storage}/put?signature=secret")});
                let verify = json!({"href": "https://huggingface.co/verify"});
                json!({"oid": object["oid"], "size": object["size"], "actions": {"upload": upload, "verify": verify}})
            };
            let objects: Vec<Value> = request.json()["objects"].as_array().unwrap().iter().map(object).collect();
            Reply::json(&json!({"transfer": "basic", "objects": objects}))
        }
        "/verify" => Reply::new(200),
        path if path.starts_with("/api/models/someone/lora/commit/") => Reply::json(
            &json!({"commitOid": "abc123", "commitUrl": "https://huggingface.co/someone/lora/commit/abc123"}),
        ),
        _ => Reply::new(404),
    }
}

#[test]
fn an_adapter_goes_with_its_card() {
    let post = Post::new(|_, reply| reply, |_| Reply::new(200));
    let pushed = post.push("someone/lora").unwrap();
    assert_eq!((pushed.id.as_str(), pushed.commit.as_deref()), ("someone/lora", Some("abc123")));
    assert_eq!(pushed.url, format!("{}/someone/lora", post.hub.url()));
    assert_eq!(pushed.files, ["adapter_config.json", "adapter_model.safetensors", "README.md"]);

    let asked = post.hub.requests();
    assert!(asked.iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    let lines: Vec<String> = asked.iter().map(Request::line).collect();
    let expected = [
        "POST /api/repos/create",
        "POST /api/models/someone/lora/preupload/main",
        "POST /someone/lora.git/info/lfs/objects/batch",
        "POST /verify",
        "POST /api/models/someone/lora/commit/main",
    ];
    assert_eq!(lines, expected);
    let create = json!({"name": "lora", "organization": "someone", "type": "model", "private": true});
    assert_eq!(asked[0].json(), create);
    // The sample is what a file begins with, 512 bytes at most.
    let files = &asked[1].json()["files"];
    assert_eq!(
        files[0],
        json!({"path": "adapter_config.json", "sample": "eyJwZWZ0X3R5cGUiOiAiTE9SQSJ9Cg==", "size": 22})
    );
    assert_eq!(files[1]["sample"].as_str().unwrap().len(), 684);
    assert_eq!(asked[2].json()["objects"], json!([{"oid": WEIGHTS_HASH, "size": 300_000}]));
    assert_eq!(asked[3].json(), json!({"oid": WEIGHTS_HASH, "size": 300_000}));

    let [stored] = &post.storage.requests()[..] else { panic!("one request to the storage") };
    assert_eq!((stored.line().as_str(), stored.header("authorization")), ("PUT /put?signature=secret", None));
    assert_eq!(stored.header("content-length"), Some("300000"));
    assert!(stored.body == weights());

    assert_eq!(asked[4].header("content-type"), Some("application/x-ndjson"));
    let text = String::from_utf8(asked[4].body.clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], json!({"key": "header", "value": {"summary": "The first", "description": ""}}));
    let config =
        json!({"path": "adapter_config.json", "content": "eyJwZWZ0X3R5cGUiOiAiTE9SQSJ9Cg==", "encoding": "base64"});
    assert_eq!(lines[1], json!({"key": "file", "value": config}));
    let tensors = json!({"path": "adapter_model.safetensors", "algo": "sha256", "oid": WEIGHTS_HASH, "size": 300_000});
    assert_eq!(lines[2], json!({"key": "lfsFile", "value": tensors}));
    assert_eq!(lines.len(), 4);
    let events = post.stage.take_events();
    assert_eq!(events.last().unwrap(), "adapter_model.safetensors is gone");
}

#[test]
fn a_name_alone_is_one_of_the_tokens_owner_and_a_branch_is_kept() {
    let post = Post::new(|_, reply| reply, |_| Reply::new(200));
    assert_eq!(post.push("lora@refs/pr/1").unwrap().id, "someone/lora");
    let lines = post.hub.take_lines();
    assert_eq!(lines[0], "GET /api/whoami-v2");
    assert_eq!(lines.last().unwrap(), "POST /api/models/someone/lora/commit/refs%2Fpr%2F1");
}

#[test]
fn a_large_file_goes_in_pieces() {
    let pieces = |request: &Request, reply: Reply| match request.path() {
        "/someone/lora.git/info/lfs/objects/batch" => {
            // Out of order, and one of them at an address of its own.
            let put = |part| format!("{}/piece/{part}", request.header("x-storage").unwrap_or("STORAGE"));
            let header = json!({"chunk_size": "120000", "2": put(2), "1": put(1), "3": put(3)});
            let upload = json!({"href": "https://huggingface.co/verify", "header": header});
            Reply::json(&json!({"objects": [{"oid": WEIGHTS_HASH, "size": 300_000, "actions": {"upload": upload}}]}))
        }
        _ => reply,
    };
    let mut first = true;
    let storage = HttpServer::start(move |request| {
        // One is lost on the way, and sent again.
        let is_lost = std::mem::take(&mut first);
        if is_lost { Reply::new(500) } else { Reply::new(200).header("etag", format!("\"{}\"", request.path())) }
    });
    let at = storage.url();
    let named = move |request: &Request, reply: Reply| {
        let mut request = request.clone();
        request.headers.push(("x-storage".to_owned(), at.clone()));
        pieces(&request, reply)
    };
    let post = Post::new(named, |_| Reply::new(404));
    post.push("someone/lora").unwrap();
    let sent = storage.requests();
    let lines: Vec<String> = sent.iter().map(Request::line).collect();
    assert_eq!(lines, ["PUT /piece/1", "PUT /piece/1", "PUT /piece/2", "PUT /piece/3"]);
    assert!([&sent[1].body[..], &sent[2].body, &sent[3].body].concat() == weights());
    let asked = post.hub.requests();
    let done = asked.iter().find(|request| request.path() == "/verify").unwrap().json();
    let part = |number| json!({"partNumber": number, "etag": format!("\"/piece/{number}\"")});
    assert_eq!(done, json!({"oid": WEIGHTS_HASH, "parts": [part(1), part(2), part(3)]}));
}

#[test]
fn what_the_hub_has_is_not_sent() {
    let has = |request: &Request, reply: Reply| match request.path() {
        path if path.ends_with("/preupload/main") => {
            let oid = |name: &str| match name {
                "adapter_config.json" => "92045f7b110b793b5f1577d461596a2a8f28bcb5",
                "README.md" => "f51eed857edcbc233cd309c3bfaf471f0e763142",
                _ => WEIGHTS_HASH,
            };
            let mode = |name: &str| json!({"path": name, "uploadMode": if name.ends_with('s') { "lfs" } else { "regular" }, "oid": oid(name)});
            let files = ["adapter_config.json", "adapter_model.safetensors", "README.md"].map(mode);
            Reply::json(&json!({"files": files}))
        }
        "/api/repos/create" => Reply::new(409).body(r#"{"error": "You already created this model repo"}"#),
        _ => reply,
    };
    let post = Post::new(has, |_| Reply::new(200));
    let pushed = post.push("someone/lora").unwrap();
    assert_eq!((pushed.commit, pushed.files.len()), (None, 0));
    assert!(post.storage.requests().is_empty());
    assert_eq!(post.hub.requests().len(), 2);

    // The storage may have what the repository has not.
    let stored = |request: &Request, reply: Reply| match request.path() {
        "/someone/lora.git/info/lfs/objects/batch" => {
            Reply::json(&json!({"objects": [{"oid": WEIGHTS_HASH, "size": 300_000}]}))
        }
        _ => reply,
    };
    let post = Post::new(stored, |_| Reply::new(200));
    assert!(post.push("someone/lora").unwrap().commit.is_some());
    assert!(post.storage.requests().is_empty());
}

#[test]
fn who_may_not_push() {
    let refuse = |path: &'static str, status, body: &'static str| {
        move |request: &Request, reply| {
            if request.path().starts_with(path) { Reply::new(status).body(body) } else { reply }
        }
    };
    let error = |path, status, body| {
        Post::new(refuse(path, status, body), |_| Reply::new(200)).push("someone/lora").unwrap_err()
    };
    let told = "someone/lora: HUB refuses the token";
    let mend = "make one at HUB/settings/tokens and set HF_TOKEN";
    let create = error("/api/repos/create", 403, r#"{"error": "You don't have the rights"}"#);
    assert_eq!(create, format!("{told} (You don't have the rights); {mend}"));
    let commit = error("/api/models/someone/lora/commit", 401, r#"{"error": "read only"}"#);
    assert_eq!(commit, format!("{told} (read only); {mend}"));

    // A token that makes no repositories may write to one that is there.
    let there = |request: &Request, reply| match request.path() {
        "/api/repos/create" => Reply::new(403),
        "/api/models/someone/lora" => Reply::json(&json!({"id": "someone/lora"})),
        _ => reply,
    };
    assert!(Post::new(there, |_| Reply::new(200)).push("someone/lora").is_ok());

    let post = Post::new(|_, reply| reply, |_| Reply::new(200));
    let without = HubConfig { token: None, ..post.config() };
    let error = post.stage.hub_with(without).push_adapter(post.directory(), "someone/lora", &PushConfig::default());
    assert!(error.unwrap_err().to_string().starts_with("to push wants a token that may write: make one at"));
    let offline = HubConfig { offline: true, ..post.config() };
    let error = post.stage.hub_with(offline).push_adapter(post.directory(), "someone/lora", &PushConfig::default());
    assert_eq!(
        error.unwrap_err().to_string(),
        "nothing is pushed: HF_HUB_OFFLINE is set, so the hub is not asked: unset it"
    );
    assert!(post.hub.requests().is_empty());
}

#[test]
fn what_the_storage_refuses_makes_no_commit() {
    let post = Post::new(|_, reply| reply, |_| Reply::new(403).body("<Error>SignatureDoesNotMatch</Error>"));
    let error = post.push("someone/lora").unwrap_err();
    assert_eq!(error, "the hub does not take adapter_model.safetensors: PUT STORAGE/put: status 403");
    let too_large = |request: &Request, reply: Reply| match request.path() {
        "/someone/lora.git/info/lfs/objects/batch" => {
            let error = json!({"code": 413, "message": "You have no room left"});
            Reply::json(&json!({"objects": [{"oid": WEIGHTS_HASH, "size": 300_000, "error": error}]}))
        }
        _ => reply,
    };
    let full = Post::new(too_large, |_| Reply::new(200));
    let error = full.push("someone/lora").unwrap_err();
    assert_eq!(error, "the hub does not take adapter_model.safetensors: You have no room left");
    for post in [post, full] {
        assert!(post.hub.take_lines().iter().all(|line| !line.contains("/commit/")));
    }
}

#[test]
fn a_commit_that_is_refused_for_now_is_sent_again() {
    let mut tries = 0;
    let busy = move |request: &Request, reply| {
        tries += u32::from(request.path().contains("/commit/"));
        if request.path().contains("/commit/") && tries == 1 {
            Reply::new(429).header("retry-after", "0")
        } else {
            reply
        }
    };
    let post = Post::new(busy, |_| Reply::new(200));
    assert_eq!(post.push("someone/lora").unwrap().commit.as_deref(), Some("abc123"));
    // Where the answer is lost, there may be a commit already.
    let lost = |request: &Request, reply: Reply| if request.path().contains("/commit/") { reply.cut(3) } else { reply };
    let post = Post::new(lost, |_| Reply::new(200));
    let error = post.push("someone/lora").unwrap_err();
    assert!(error.ends_with("the connection ended in the middle of the answer"), "{error}");
    assert_eq!(post.hub.take_lines().iter().filter(|line| line.contains("/commit/")).count(), 1);
}

#[test]
fn what_is_no_adapter_is_not_pushed() {
    let post = Post::new(|_, reply| reply, |_| Reply::new(200));
    let tensors = post.folder.path().join("adapter_model.safetensors");
    fs::write(&tensors, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n").unwrap();
    assert!(post.push("someone/lora").unwrap_err().contains("Git LFS"));
    fs::remove_file(&tensors).unwrap();
    let error = post.push("someone/lora").unwrap_err();
    assert!(error.contains("adapter_model.safetensors\" does not exist"), "{error}");
    // The older form is one.
    fs::write(post.folder.path().join("adapter_model.bin"), weights()).unwrap();
    assert_eq!(post.push("someone/lora").unwrap().files[1], "adapter_model.bin");
    fs::remove_file(post.folder.path().join("adapter_config.json")).unwrap();
    let error = post.push("someone/lora").unwrap_err();
    assert!(error.contains("adapter_config.json\" does not exist"), "{error}");
    let error = post.push("https://huggingface.co/someone/lora").unwrap_err();
    assert!(error.ends_with("it is a URL; give the id, someone/lora"), "{error}");
}
