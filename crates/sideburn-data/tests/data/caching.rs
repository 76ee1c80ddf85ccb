//! Token ids that are kept on disk.

use std::{fs, path::Path, thread};

use sideburn_data::{Dataset, Example, Limits, Split, Template, Tokenizer, tokenize, tokenize_cached};

fn sample() -> (Vec<Example>, Tokenizer, Template) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dialogsum = Dataset::dialogsum();
    let examples = dialogsum.read(root.join("../../assets/dialogsum-sample"), Split::Test).unwrap().examples;
    (examples, Tokenizer::from_dir(root.join("testdata")).unwrap(), dialogsum.template)
}

/// The files of a directory.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn what_is_kept_is_what_was_made() {
    let ((mut examples, tokenizer, template), directory) = (sample(), tempfile::tempdir().unwrap());
    let cache = directory.path().join("a/b");
    let limits = Limits { max_source_length: 100, max_target_length: 20 };
    let made = tokenize(&examples, &tokenizer, &template, limits).unwrap();
    assert!(made.cut_prompts > 0 && made.cut_targets > 0);
    let cached = |examples: &[Example], template, limits| {
        tokenize_cached(&cache, examples, &tokenizer, template, limits, |_| ()).unwrap()
    };
    assert_eq!(cached(&examples, &template, limits), made);
    let written = files(&cache);
    let time = fs::metadata(&written[0]).unwrap().modified().unwrap();
    assert_eq!(cached(&examples, &template, limits), made);
    assert_eq!((files(&cache), fs::metadata(&written[0]).unwrap().modified().unwrap()), (written, time), "it was read");

    // Whatever ids depend on is another question.
    let other = Template::new("{dialogue}").unwrap();
    assert_eq!(cached(&examples, &other, limits), tokenize(&examples, &tokenizer, &other, limits).unwrap());
    let longer = Limits { max_source_length: 101, ..limits };
    assert_eq!(cached(&examples, &template, longer), tokenize(&examples, &tokenizer, &template, longer).unwrap());
    examples[3].fields.insert("dialogue".into(), "other".into());
    assert_eq!(cached(&examples, &template, limits), tokenize(&examples, &tokenizer, &template, limits).unwrap());
    let target = std::mem::replace(&mut examples[4].targets[0], "other".into());
    assert_eq!(cached(&examples, &template, limits), tokenize(&examples, &tokenizer, &template, limits).unwrap());
    examples[4].targets[0] = target;
    assert_eq!(files(&cache).len(), 5);

    // And another tokenizer, though its vocabulary is the same.
    let changed = tempfile::tempdir().unwrap();
    let json = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tokenizer.json")).unwrap();
    fs::write(changed.path().join("tokenizer.json"), json + "\n").unwrap();
    let changed = Tokenizer::from_dir(&changed).unwrap();
    tokenize_cached(&cache, &examples, &changed, &template, limits, |_| ()).unwrap();
    assert_eq!(files(&cache).len(), 6);
}

#[test]
fn a_damaged_file_is_made_again() {
    let ((examples, tokenizer, template), directory) = (sample(), tempfile::tempdir().unwrap());
    let cached =
        || tokenize_cached(&directory, &examples[..3], &tokenizer, &template, Limits::default(), |_| ()).unwrap();
    let made = cached();
    let path = files(directory.path()).pop().unwrap();
    let good = fs::read(&path).unwrap();
    let damage = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        assert_eq!(cached(), made);
        assert!(fs::read(&path).unwrap() == good, "healed");
    };
    damage(b"");
    damage(&good[..good.len() / 2]);
    damage(&[good.as_slice(), b"x"].concat());
    for at in (0..good.len()).step_by(good.len() / 50 + 1) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        damage(&bytes);
    }
}

#[test]
fn many_may_share_a_directory() {
    let ((examples, tokenizer, template), directory) = (sample(), tempfile::tempdir().unwrap());
    let made = tokenize(&examples, &tokenizer, &template, Limits::default()).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let set = tokenize_cached(&directory, &examples, &tokenizer, &template, Limits::default(), |_| ());
                    assert_eq!(set.unwrap(), made);
                    // What others write aside is left alone.
                    let is_whole =
                        |path: &std::path::PathBuf| path.extension().is_some_and(|ending| ending == "tokens");
                    for path in files(directory.path()).into_iter().filter(is_whole) {
                        let _ = fs::remove_file(path);
                    }
                }
            });
        }
    });
}

#[test]
fn a_directory_that_cannot_be_is_named() {
    let ((examples, tokenizer, template), directory) = (sample(), tempfile::tempdir().unwrap());
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error =
        tokenize_cached(&file, &examples, &tokenizer, &template, Limits::default(), |_| ()).unwrap_err().to_string();
    assert!(error.contains("file"), "{error}");
}
