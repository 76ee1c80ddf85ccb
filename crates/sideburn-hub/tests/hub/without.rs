//! Without the feature `net` no hub is asked.

use std::fs;
use std::time::Duration;

use sideburn_hub::{Hub, HubConfig};

#[test]
fn the_cache_is_used_and_what_is_not_in_it_says_how_it_is_fetched() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(HubConfig {
        endpoint: "https://huggingface.co".to_owned(),
        cache: cache.path().to_owned(),
        token: None,
        offline: false,
        timeout: Duration::from_secs(1),
        first_pause: Duration::ZERO,
    });
    let error = hub.model("someone/tiny-t5").unwrap_err().to_string();
    let told =
        format!("someone/tiny-t5 is no directory here, and config.json of it is not in the cache {:?}; ", cache.path());
    let mend = "this program is built without the feature `hub`, which fetches it: build it with `--features hub`, or fetch it \
                with `hf download`";
    assert_eq!(error, told + mend);

    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = cache.path().join("models--someone--tiny-t5");
    let snapshot = repo.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), commit).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    fs::write(snapshot.join("model.safetensors"), "").unwrap();
    assert_eq!(hub.model("someone/tiny-t5").unwrap().canonicalize().unwrap(), snapshot.canonicalize().unwrap());
}
