//! Without the hub: what is in the cache is used.

use std::fs;
use std::net::TcpListener;

use sideburn_hub::{Hub, HubConfig};
use sideburn_testing::http::{Reply, Request};

use crate::played::{COMMIT, ID, Stage, WEIGHTS_HASH, model};

/// The same, but that the hub is not asked.
fn offline(stage: &Stage) -> Hub {
    stage.hub_with(HubConfig { offline: true, ..stage.config() })
}

#[test]
fn what_is_cached_is_found_without_asking() {
    let stage = Stage::new(model());
    let directory = stage.hub().model(ID).unwrap();
    stage.server.take_lines();
    for name in [ID.to_owned(), format!("{ID}@main"), format!("{ID}@{COMMIT}")] {
        assert_eq!(offline(&stage).model(name).unwrap(), directory);
    }
    assert_eq!(stage.server.take_lines(), [""; 0]);
}

#[test]
fn what_is_not_cached_says_what_is_missing() {
    let stage = Stage::new(model());
    let lacks = |name: &str| offline(&stage).model(name).unwrap_err().to_string();
    let cache = stage.cache();
    let told = |name: &str, file: &str| {
        format!(
            "{name} is no directory here, and {file} of it is not in the cache {cache:?}; HF_HUB_OFFLINE is set, so the hub is \
             not asked: unset it"
        )
    };
    assert_eq!(lacks(ID), told(ID, "config.json"));
    stage.hub().model(ID).unwrap();
    assert_eq!(lacks("someone/tiny-t5@v1.0"), told("someone/tiny-t5@v1.0", "config.json"));
    // Python may have fetched the configuration alone.
    fs::remove_file(stage.repo().join("blobs").join(WEIGHTS_HASH)).unwrap();
    assert_eq!(lacks(ID), told(ID, "model.safetensors"));
    // What stands in a file of the cache is no path.
    fs::write(stage.repo().join("refs/main"), "../../../elsewhere").unwrap();
    assert_eq!(lacks(ID), told(ID, "config.json"));
}

#[test]
fn a_hub_that_is_gone_is_no_harm_to_what_is_cached() {
    let stage = Stage::new(model());
    let directory = stage.hub().model(ID).unwrap();
    stage.take_events();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = || stage.hub_with(HubConfig { endpoint: format!("http://{closed}"), ..stage.config() });
    assert_eq!(gone().model(ID).unwrap(), directory);
    let [event] = &stage.take_events()[..] else { panic!("one event") };
    assert!(event.starts_with("someone/tiny-t5 is as it was: HEAD http://") && event.contains("refused"), "{event}");
    // Without it there is nothing.
    fs::remove_dir_all(stage.cache()).unwrap();
    let error = gone().model(ID).unwrap_err().to_string();
    assert!(error.ends_with("the connection is refused; does a server run there?"), "{error}");
}

#[test]
fn a_hub_in_trouble_is_asked_once_if_there_is_a_cache() {
    let mut is_down = false;
    let down = move |request: &Request, reply| {
        is_down |= request.path().ends_with("/vocab.json");
        if is_down && !request.path().ends_with("/vocab.json") { Reply::new(503) } else { reply }
    };
    let stage = Stage::changed(model(), down, |_, reply| reply);
    let directory = stage.hub().model(ID).unwrap();
    stage.server.take_lines();
    assert_eq!(stage.hub().model(ID).unwrap(), directory);
    assert_eq!(stage.server.take_lines().len(), 1);
}

#[cfg(unix)]
#[test]
fn a_cache_that_cannot_be_written_can_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::new(model());
    let set = |mode| fs::set_permissions(stage.folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    set(0o555);
    let probe = fs::write(stage.folder.path().join("probe"), "");
    // Whoever may do everything is stopped by a file in the way.
    let error = match probe {
        Err(_) => stage.hub().model(ID).unwrap_err().to_string(),
        Ok(()) => {
            fs::remove_file(stage.folder.path().join("probe")).unwrap();
            fs::write(stage.cache(), "").unwrap();
            let error = stage.hub().model(ID).unwrap_err().to_string();
            fs::remove_file(stage.cache()).unwrap();
            error
        }
    };
    set(0o755);
    assert!(error.starts_with("the cache cannot be written at \""), "{error}");
    assert!(error.ends_with("HF_HUB_CACHE names another folder for it"), "{error}");

    let directory = stage.hub().model(ID).unwrap();
    // A ref that cannot be written, since a folder is in its place, is no reason not to use what is there.
    let reference = stage.repo().join("refs/main");
    fs::remove_file(&reference).unwrap();
    fs::create_dir(&reference).unwrap();
    assert_eq!(stage.hub().model(ID).unwrap(), directory);
}
