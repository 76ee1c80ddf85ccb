//! What the hub says no to, and what it says.

use sideburn_hub::HubConfig;
use sideburn_testing::http::{HttpServer, Reply, Request};

use crate::played::{ID, Stage, model};

/// What is told where the hub answers so, with a token and without.
fn told(reply: Reply) -> [String; 2] {
    let stage = Stage::changed(model(), move |_, _| reply.clone(), |_, reply| reply);
    let told = |token: Option<&str>| {
        let config = HubConfig { token: token.map(str::to_owned), ..stage.config() };
        stage.hub_with(config).model(ID).unwrap_err().to_string().replace(&stage.server.url(), "HUB")
    };
    let told = [told(Some("hf_secret")), told(None)];
    assert!(told.iter().all(|told| !told.contains("hf_secret")));
    assert!(!stage.cache().exists(), "nothing is written");
    told
}

#[test]
fn who_may_not_see_a_model() {
    let code = |status, code: &str, message: &str| {
        Reply::new(status).header("x-error-code", code).header("x-error-message", message)
    };
    let nothing = "someone/tiny-t5 is no directory here, and HUB has no such repository, or it is private and";
    let [with, without] = told(code(401, "RepoNotFound", "Repository not found"));
    assert_eq!(with, format!("{nothing} the token does not open it; is the name right?"));
    assert_eq!(without, format!("{nothing} there is no token (set HF_TOKEN, or `hf auth login`); is the name right?"));
    // The hub hides in this way that there is something.
    assert_eq!(told(Reply::new(401)), [with, without]);

    let [with, without] = told(code(403, "GatedRepo", "Access to model someone/tiny-t5 is restricted"));
    let gated = "someone/tiny-t5 is gated: Access to model someone/tiny-t5 is restricted; ask for access at HUB/someone/tiny-t5";
    assert!(with.starts_with(gated) && with.ends_with("the one that is set opens nothing here"), "{with}");
    assert_eq!(without, format!("{gated} and set HF_TOKEN"));

    let [with, _] = told(code(401, "", "Invalid credentials in Authorization header"));
    let token = "someone/tiny-t5: HUB refuses the token";
    let mend = "make one at HUB/settings/tokens and set HF_TOKEN";
    assert_eq!(with, format!("{token} (Invalid credentials in Authorization header); {mend}"));
    let [with, _] = told(code(403, "", "not with this token"));
    assert_eq!(with, format!("{token} (not with this token); {mend}"));
}

#[test]
fn what_is_not_there() {
    let stage = Stage::new(model());
    let error = |name: &str| stage.hub().model(name).unwrap_err().to_string();
    let told = "someone/tiny-t5@nightly: the repository has no branch, tag or commit of that name; without @REVISION it is the \
                branch main";
    assert_eq!(error("someone/tiny-t5@nightly"), told);
    assert!(error("someone/other").contains("has no such repository"), "{}", error("someone/other"));

    let mut files = model();
    ["model.safetensors", "pytorch_model.bin"].iter().for_each(|name| drop(files.remove(name)));
    let stage = Stage::new(files);
    let error = stage.hub().model(ID).unwrap_err().to_string();
    assert!(error.starts_with("someone/tiny-t5 has no model.safetensors; nor has it pytorch_model.bin"), "{error}");
}

#[test]
fn a_branch_that_is_gone_is_not_taken_from_the_cache() {
    let mut asked = 0;
    let gone = move |_: &Request, reply| {
        asked += 1;
        if asked > 40 { Reply::new(404).header("x-error-code", "RevisionNotFound") } else { reply }
    };
    let stage = Stage::changed(model(), gone, |_, reply| reply);
    stage.hub().model(ID).unwrap();
    let error = loop {
        if let Err(error) = stage.hub().model(ID) {
            break error.to_string();
        }
    };
    assert!(error.contains("no branch, tag or commit"), "{error}");
}

#[test]
fn a_hub_that_is_busy_is_asked_again() {
    let mut asked = 0;
    let busy = move |_: &Request, reply| {
        asked += 1;
        match asked {
            1 => Reply::new(429).header("retry-after", "0").header("x-error-message", "too many requests"),
            2 => Reply::new(503),
            _ => reply,
        }
    };
    let stage = Stage::changed(model(), busy, |_, reply| reply);
    stage.hub().model(ID).unwrap();
    let events = stage.take_events();
    assert!(events[0].ends_with("status 429: too many requests") && events[1].ends_with("status 503"), "{events:?}");

    let [with, _] = told(Reply::new(429).header("retry-after", "0"));
    assert_eq!(with, "HEAD HUB/someone/tiny-t5/resolve/main/config.json: status 429");
}

#[test]
fn what_is_no_hub() {
    let [with, _] = told(Reply::new(200));
    let url = "HUB/someone/tiny-t5/resolve/main/config.json";
    let mend = "is HF_ENDPOINT right?";
    assert_eq!(with, format!("{url} does not answer as a hub does: there is no header x-repo-commit; {mend}"));
    let commit = "0123456789abcdef0123456789abcdef01234567";
    // What becomes a path is looked at.
    for (commit, etag, what) in [
        ("../../elsewhere", "abc", "the header x-repo-commit is no hash of a commit"),
        (commit, "../../../.ssh/authorized_keys", "the header etag is no name for a file"),
        (commit, ".hidden", "the header etag is no name for a file"),
        (commit, "", "the header etag is no name for a file"),
    ] {
        let [with, _] = told(Reply::new(200).header("x-repo-commit", commit).header("etag", format!("\"{etag}\"")));
        assert_eq!(with, format!("{url} does not answer as a hub does: {what}; {mend}"));
    }
    let [with, _] = told(Reply::new(404));
    assert_eq!(with, format!("HEAD {url}: status 404"));

    let circle = HttpServer::start(|request| Reply::redirect(302, request.target.clone()));
    let stage = Stage::new(model());
    let error =
        stage.hub_with(HubConfig { endpoint: circle.url(), ..stage.config() }).model(ID).unwrap_err().to_string();
    assert!(error.contains("ten redirects"), "{error}");
    let error = stage.hub_with(HubConfig { endpoint: "hub.local".to_owned(), ..stage.config() }).model(ID).unwrap_err();
    assert!(error.to_string().contains("is no URL of a server"), "{error}");
}
