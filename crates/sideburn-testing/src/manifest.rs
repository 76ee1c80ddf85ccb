//! What `testdata/manifest.json` says of each golden.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A golden: a folder or a file of `testdata`.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    /// Where it is, below `testdata`.
    #[serde(skip)]
    pub path: String,
    /// The script that made it.
    pub maker: String,
    /// How near numbers must come: logits absolutely, losses of a run relatively.
    pub tolerance: f64,
    /// The tiny model that it is for, below `testdata`.
    #[serde(default)]
    pub base: String,
    /// Where `peft` is not followed; `testdata/README.md` says why.
    pub exception: Option<Exception>,
    /// A part of the reason why it cannot be merged, of an adapter that cannot.
    pub not_merged: Option<String>,
}

/// Where `peft` is not followed.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Exception {
    /// LoRA on the embedding has no effect there until it is merged; here it always has that effect.
    OnEmbedding,
    /// The embeddings of some tokens are also written over rows of an untied output head: the logits of these tokens.
    InUntiedHead {
        /// The tokens.
        tokens: Vec<usize>,
    },
    /// What is trained is not in the file.
    Network,
}

impl Entry {
    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

#[derive(Deserialize)]
struct Manifest {
    goldens: BTreeMap<String, Entry>,
}

fn manifest() -> Manifest {
    serde_json::from_str(&std::fs::read_to_string(crate::path("manifest.json")).unwrap()).unwrap()
}

/// All goldens of a folder, such as `adapters`, in order.
pub fn goldens(folder: &str) -> Vec<Entry> {
    let found = manifest()
        .goldens
        .into_iter()
        .filter(|(path, _)| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')));
    let found: Vec<Entry> = found.map(|(path, entry)| Entry { path, ..entry }).collect();
    assert!(!found.is_empty(), "the manifest has no golden in {folder}");
    found
}

/// One golden.
pub fn golden(path: &str) -> Entry {
    let entry = manifest().goldens.remove(path).unwrap_or_else(|| panic!("the manifest has no {path}"));
    Entry { path: path.to_owned(), ..entry }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The files below a folder, by their paths from `testdata`.
    fn files(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                files(&path, found);
            } else {
                found.push(path.strip_prefix(crate::path("")).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn every_file_is_in_the_manifest_and_nothing_else() {
        #[derive(Deserialize)]
        struct Makers {
            makers: BTreeMap<String, BTreeMap<String, String>>,
        }
        let text = std::fs::read_to_string(crate::path("manifest.json")).unwrap();
        let (Makers { makers }, goldens) = (serde_json::from_str(&text).unwrap(), manifest().goldens);
        for (path, entry) in &goldens {
            assert!(crate::path(path).exists(), "{path} is not there");
            assert!(makers.contains_key(&entry.maker), "{path}: no versions of {}", entry.maker);
            assert!(entry.base.is_empty() || crate::path(&entry.base).exists(), "{path}: no base {}", entry.base);
        }
        for maker in makers.keys().filter(|maker| maker.ends_with(".py")) {
            assert!(crate::path(maker).exists(), "no script {maker}");
        }
        let mut found = Vec::new();
        files(&crate::path(""), &mut found);
        for file in found.iter().filter(|file| file.contains('/') && !file.contains("__pycache__")) {
            let known =
                goldens.keys().any(|path| file.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('/')));
            assert!(known, "testdata/{file} is not in the manifest: run testdata/make_manifest.py testdata");
        }
    }
}
