//! Without the feature `fs` the crate runs where there is no file system, no clock and no thread. A compiler does not
//! see that: `std` has all of them for every target, and they fail, or panic, when they are called.

use std::fs;
use std::path::Path;

#[test]
fn modules_outside_the_feature_name_nothing_that_a_browser_lacks() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let library = fs::read_to_string(src.join("lib.rs")).unwrap();
    let mut gated = false;
    let (mut outside, mut inside) = (Vec::new(), 0);
    for line in library.lines() {
        match line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            Some(_) if gated => inside += 1,
            Some(name) => outside.push(name.to_owned()),
            None => {}
        }
        gated = line == r#"#[cfg(feature = "fs")]"#;
    }
    assert!(inside >= 2 && outside.len() >= 8, "{inside} modules with the feature, without: {outside:?}");
    for name in outside {
        let mut files = vec![src.join(format!("{name}.rs"))];
        let folder = fs::read_dir(src.join(&name)).into_iter().flatten().flatten();
        files.extend(folder.map(|entry| entry.path()));
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            for lacking in
                ["std::fs", "fs::", "Instant", "SystemTime", "thread", "Mutex", "tempfile", "std::env", "std::net"]
            {
                let used = text.lines().find(|line| !line.trim_start().starts_with("//") && line.contains(lacking));
                assert_eq!(used, None, "{} has {lacking}", path.display());
            }
        }
    }
}
