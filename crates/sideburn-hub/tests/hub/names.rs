//! What is a directory, what is an id, and what is neither.

use sideburn_hub::RepoId;

#[test]
fn ids() {
    for (text, name, revision) in [
        ("google/flan-t5-small", "google/flan-t5-small", "main"),
        ("t5-small", "t5-small", "main"),
        ("a/b.c_d@v1.0", "a/b.c_d", "v1.0"),
        ("a/b@refs/pr/3", "a/b", "refs/pr/3"),
        ("_a/b_@0123456789abcdef0123456789abcdef01234567", "_a/b_", "0123456789abcdef0123456789abcdef01234567"),
    ] {
        let id: RepoId = text.parse().unwrap();
        assert_eq!((id.name(), id.revision()), (name, revision));
        assert_eq!(id.to_string(), text);
    }
    assert_eq!("a/b@main".parse::<RepoId>().unwrap().to_string(), "a/b");
}

#[test]
fn what_is_no_id_says_why() {
    let long = format!("a/{}", "b".repeat(97));
    for (text, reason) in [
        ("a/..", "`..` and `--` stand in no id"),
        ("a/b..c", "`..` and `--` stand in no id"),
        ("a/b--c", "`..` and `--` stand in no id"),
        ("https://huggingface.co/google/flan-t5-small", "it is a URL; give the id, google/flan-t5-small"),
        ("http://example.com", "it is a URL; give the id, OWNER/NAME"),
        ("file:///etc/passwd", "it is a URL; give the id, etc/passwd"),
        ("a/b/c", "it has more than one `/`"),
        ("a/b.git", "an id does not end in .git"),
        ("a b", "letters, digits"),
        ("a/-b", "letters, digits"),
        ("a/b.", "letters, digits"),
        ("a/", "letters, digits"),
        ("ä/b", "letters, digits"),
        (&long, "letters, digits"),
        ("a/b@", "no branch, tag or commit of git"),
        ("a/b@../../x", "no branch, tag or commit of git"),
        ("a/b@/etc", "no branch, tag or commit of git"),
        ("a/b@x\\y", "no branch, tag or commit of git"),
        ("a/b@x\u{1b}[2J", "no branch, tag or commit of git"),
        ("a/b@main@main", "no branch, tag or commit of git"),
        ("a/b@.hidden", "no branch, tag or commit of git"),
    ] {
        let error = text.parse::<RepoId>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{text:?} is neither a directory nor an id on the hub: ")), "{error}");
        assert!(error.contains(reason) && !error.contains('\u{1b}'), "{text}: {error}");
    }
}
