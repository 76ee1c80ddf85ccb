//! The modules of the crate use each other one way: no circle can be drawn through what they import.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Every module by its path (`rule`, `methods::lora`), with what is outside of its unit tests.
fn sources(directory: &Path, within: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            sources(&path, &format!("{within}{stem}::"), found);
        } else if stem != "lib" {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned();
            let name = if stem == "mod" { within.trim_end_matches("::").to_owned() } else { format!("{within}{stem}") };
            found.insert(name, code);
        }
    }
}

/// What `use` and `pub use` statements of `code` bring in, as whole paths.
fn imports(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let Some((_, path)) = statement.rsplit_once("use ") else { continue };
        let path: String = path.split_whitespace().collect();
        if path.starts_with("crate::") || path.starts_with("super::") || !path.contains(' ') {
            expand(&path, "", &mut paths);
        }
    }
    paths
}

/// `a::{b, c::{d}}` as `a::b` and `a::c::d`.
fn expand(path: &str, before: &str, found: &mut Vec<String>) {
    let Some((head, rest)) = path.split_once('{') else {
        if !path.is_empty() {
            found.push(format!("{before}{path}"));
        }
        return;
    };
    let (mut depth, mut part) = (0, String::new());
    for c in rest.strip_suffix('}').unwrap_or(rest).chars() {
        match c {
            ',' if depth == 0 => expand(&std::mem::take(&mut part), &format!("{before}{head}"), found),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                part.push(c);
            }
        }
    }
    expand(&part, &format!("{before}{head}"), found);
}

/// For each name that a module re-exports, where it is defined.
fn exports(code: &str, within: &str) -> BTreeMap<String, String> {
    let uses =
        code.split(';').filter(|statement| statement.contains("pub use ") || statement.contains("pub(crate) use "));
    let paths = uses.flat_map(|statement| imports(&format!("{statement};")));
    let own = |path: String| Some((path.rsplit("::").next()?.to_owned(), format!("{within}{path}")));
    paths.filter_map(own).collect()
}

#[test]
fn no_circle_of_modules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeMap::new();
    sources(&root, "", &mut modules);
    let of_crate = exports(&fs::read_to_string(root.join("lib.rs")).unwrap(), "");
    let of_methods = exports(&modules.remove("methods").unwrap(), "methods::");
    let module_of = |path: &str| {
        let mut path = path.to_owned();
        for (exports, prefix) in [(&of_crate, ""), (&of_methods, "methods::")] {
            if let Some(defined) = path.strip_prefix(prefix).and_then(|name| exports.get(name)) {
                path = defined.clone();
            }
        }
        let is_within = |module: &&String| path == **module || path.starts_with(&format!("{module}::"));
        modules.keys().filter(is_within).max_by_key(|module| module.len()).cloned()
    };
    let mut arrows: BTreeMap<&String, BTreeSet<String>> = BTreeMap::new();
    for (module, code) in &modules {
        let parent = module.rsplit_once("::").map(|(parent, _)| format!("{parent}::")).unwrap_or_default();
        let used = imports(code).into_iter().filter_map(|path| {
            let path = path
                .strip_prefix("crate::")
                .map(str::to_owned)
                .or_else(|| Some(parent.clone() + path.strip_prefix("super::")?))?;
            module_of(&path)
        });
        arrows.insert(module, used.filter(|used| used != module).collect());
    }
    let drawn: usize = arrows.values().map(BTreeSet::len).sum();
    assert!(
        modules.len() > 30 && drawn > 100,
        "{drawn} arrows between {} modules: imports are not understood",
        modules.len()
    );
    // What uses nothing that is left is taken away; a circle stays.
    while let Some(leaf) = arrows.iter().find(|(_, used)| used.is_empty()).map(|(module, _)| (*module).clone()) {
        arrows.remove(&leaf);
        arrows.values_mut().for_each(|used| used.retain(|other| *other != leaf));
    }
    assert!(arrows.is_empty(), "in or above a circle: {arrows:#?}");
}
