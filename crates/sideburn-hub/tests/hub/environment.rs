//! The variables of the environment.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use sideburn_hub::{HubConfig, HubError};

fn config(variables: &[(&str, &str)]) -> Result<HubConfig, HubError> {
    let variables: HashMap<&str, &str> = variables.iter().copied().collect();
    HubConfig::from_variables(|name| variables.get(name).map(OsString::from))
}

#[test]
fn what_python_reads() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    let plain = config(&[("HOME", home)]).unwrap();
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.cache, Path::new(home).join(".cache/huggingface/hub"));
    assert_eq!((plain.token, plain.offline, plain.timeout), (None, false, Duration::from_secs(10)));

    let cache = |variables: &[(&str, &str)]| config(&[&[("HOME", home)], variables].concat()).unwrap().cache;
    assert_eq!(cache(&[("XDG_CACHE_HOME", "/caches")]), Path::new("/caches/huggingface/hub"));
    assert_eq!(cache(&[("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/caches")]), Path::new("/hf/hub"));
    assert_eq!(cache(&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
    assert_eq!(cache(&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/new"));
    assert_eq!(cache(&[("HF_HOME", "~/hf")]), Path::new(home).join("hf/hub"));
    assert_eq!(cache(&[("HF_HUB_CACHE", "$DATA/a${DATA}b$NONE"), ("DATA", "/d")]), Path::new("/d/a/db$NONE"));
    // What is empty is not set.
    assert_eq!(cache(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/hf")]), Path::new("/hf/hub"));

    for (value, expected) in [("1", true), ("on", true), ("Yes", true), ("TRUE", true), ("0", false), ("", false)] {
        let offline = |name| config(&[("HOME", home), (name, value)]).unwrap().offline;
        assert_eq!((offline("HF_HUB_OFFLINE"), offline("TRANSFORMERS_OFFLINE")), (expected, expected), "{value}");
    }
    let mirror =
        config(&[("HOME", home), ("HF_ENDPOINT", "https://mirror.example/"), ("HF_HUB_DOWNLOAD_TIMEOUT", "60")]);
    let mirror = mirror.unwrap();
    assert_eq!((mirror.endpoint.as_str(), mirror.timeout), ("https://mirror.example", Duration::from_secs(60)));
}

#[test]
fn where_the_token_is() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(at("hf")).unwrap();
    fs::write(at("hf/token"), "hf_of_login\n").unwrap();
    fs::write(at("elsewhere"), " hf_elsewhere ").unwrap();
    let (hf_home, elsewhere) = (at("hf"), at("elsewhere"));
    let token = |variables: &[(&str, &str)]| config(&[&[("HF_HOME", &*hf_home)], variables].concat()).unwrap().token;
    let some = |token: &str| Some(token.to_owned());
    assert_eq!(token(&[]), some("hf_of_login"));
    assert_eq!(token(&[("HF_TOKEN_PATH", &elsewhere)]), some("hf_elsewhere"));
    assert_eq!(token(&[("HF_TOKEN", "hf_set\n"), ("HUGGING_FACE_HUB_TOKEN", "hf_old")]), some("hf_set"));
    assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")]), some("hf_old"));
    assert_eq!(token(&[("HF_TOKEN", "hf_set"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]), None);
    let shown = format!("{:?}", config(&[("HOME", &hf_home), ("HF_TOKEN", "hf_set")]).unwrap());
    assert!(shown.contains("(hidden)") && !shown.contains("hf_set"), "{shown}");
}

#[test]
fn what_is_wrong_is_named() {
    let error = |variables: &[(&str, &str)]| config(variables).unwrap_err().to_string();
    assert_eq!(error(&[]), "HF_HOME: neither it nor HOME is set, so there is no place for the cache");
    let timeout = error(&[("HOME", "/h"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]);
    assert_eq!(timeout, "HF_HUB_DOWNLOAD_TIMEOUT: it is \"soon\", expected a number of seconds, such as 10");
    let odd = error(&[("HOME", "/h"), ("HF_TOKEN", "hf_\u{1b}secret")]);
    assert_eq!(odd, "HF_TOKEN: a token has letters, digits and signs only, in one line");
}
