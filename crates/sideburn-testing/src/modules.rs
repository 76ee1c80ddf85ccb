//! How the code of all crates is laid out: their modules use each other one way, so that no circle can be drawn through what
//! they import; and no test stands where none is run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Every module by its path (`rule`, `methods::lora`; the root is empty), with the code outside of its unit tests.
fn sources(directory: &Path, within: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            sources(&path, &format!("{within}{stem}::"), found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
            let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            let root = within.trim_end_matches("::").to_owned();
            let name = if ["mod", "lib", "main"].contains(&stem.as_str()) { root } else { format!("{within}{stem}") };
            found.insert(name, code.join("\n"));
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

/// For each name that a module re-exports, where it is defined: `methods::Lora` is `methods::lora::Lora`.
fn exports(modules: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (module, code) in modules {
        let within = if module.is_empty() { String::new() } else { format!("{module}::") };
        let uses = code.split(';').filter(|statement| {
            statement.contains("pub use ")
                || statement.contains("pub(crate) use ")
                || statement.contains("pub(super) use ")
        });
        for path in uses.flat_map(|statement| imports(&format!("{statement};"))) {
            let defined = match path.strip_prefix("crate::") {
                Some(path) => path.to_owned(),
                None => format!("{within}{}", path.strip_prefix("self::").unwrap_or(&path)),
            };
            let Some(name) = defined.rsplit("::").next().map(str::to_owned) else { continue };
            found.insert(format!("{within}{name}"), defined);
        }
    }
    found
}

/// Paths that are written out where they are needed: `crate::rule::Rule::new`.
fn written_out(code: &str) -> Vec<String> {
    let paths = code.split("crate::").skip(1);
    let end = |path: &str| path.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(path.len());
    paths.map(|path| format!("crate::{}", &path[..end(path)]).trim_end_matches(':').to_owned()).collect()
}

/// Which modules each module of a crate uses.
fn arrows(root: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut modules = BTreeMap::new();
    sources(root, "", &mut modules);
    let exports = exports(&modules);
    let module_of = |path: &str| {
        let mut path = path.to_owned();
        for _ in 0..4 {
            // The longest beginning of the path that is exported from elsewhere.
            let ends = path.match_indices("::").map(|(at, _)| at).chain([path.len()]).collect::<Vec<_>>();
            let Some((end, defined)) = ends.iter().rev().find_map(|end| Some((*end, exports.get(&path[..*end])?)))
            else {
                break;
            };
            if *defined == path[..end] {
                break;
            }
            path = format!("{defined}{}", &path[end..]);
        }
        let is_within = |module: &&String| path == **module || path.starts_with(&format!("{module}::"));
        modules.keys().filter(is_within).max_by_key(|module| module.len()).cloned()
    };
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // What a module declares and re-exports is not used by it.
    let parents: BTreeSet<&str> =
        modules.keys().filter_map(|module| module.rsplit_once("::").map(|(parent, _)| parent)).collect();
    for (module, code) in modules.iter().filter(|(module, _)| !module.is_empty()) {
        let parent = module.rsplit_once("::").map(|(parent, _)| format!("{parent}::")).unwrap_or_default();
        let paths = imports(code).into_iter().chain(written_out(code));
        let used = paths.filter_map(|path| {
            let above = || Some(parent.clone() + path.strip_prefix("super::")?);
            let own = || Some(format!("{module}::{}", path.strip_prefix("self::")?));
            module_of(&path.strip_prefix("crate::").map(str::to_owned).or_else(above).or_else(own)?)
        });
        let is_own_part = |used: &String| parents.contains(module.as_str()) && used.starts_with(&format!("{module}::"));
        let used = used.filter(|used| used != module && !is_own_part(used) && !parents.contains(used.as_str()));
        arrows.insert(module.clone(), used.collect());
    }
    arrows
}

#[test]
fn no_circle_of_modules() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut drawn, mut modules, mut circles) = (0, 0, BTreeMap::new());
    for entry in fs::read_dir(crates).unwrap().map(Result::unwrap) {
        let mut arrows = arrows(&entry.path().join("src"));
        modules += arrows.len();
        drawn += arrows.values().map(BTreeSet::len).sum::<usize>();
        // What uses nothing that is left is taken away; a circle stays.
        while let Some(leaf) = arrows.iter().find(|(_, used)| used.is_empty()).map(|(module, _)| module.clone()) {
            arrows.remove(&leaf);
            arrows.values_mut().for_each(|used| used.retain(|other| *other != leaf));
        }
        if !arrows.is_empty() {
            circles.insert(entry.file_name(), arrows);
        }
    }
    assert!(circles.is_empty(), "in or above a circle: {circles:#?}");
    assert!(modules > 150 && drawn > 300, "{drawn} arrows between {modules} modules: imports are not understood");
}

#[test]
fn no_test_where_none_is_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut packages: Vec<_> = fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    packages.extend(["examples", "benches"].map(|name| root.join(name)));
    let without = packages.iter().filter(|package| {
        let manifest = fs::read_to_string(package.join("Cargo.toml")).unwrap();
        let library = manifest.split("\n[").find(|section| section.starts_with("lib]"));
        library.is_some_and(|section| section.lines().any(|line| line == "test = false"))
    });
    let without: Vec<_> = without.collect();
    assert!(without.len() > 3, "{without:?}: manifests are not understood");
    for package in without {
        let source = if package.join("src").exists() { package.join("src") } else { package.join("lib.rs") };
        let mut files = vec![source];
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                let tests = fs::read_to_string(&path).unwrap().contains("#[test]");
                assert!(!tests, "{} has tests, and its library has `test = false`", path.display());
            }
        }
    }
}
