//! A report as one page, which needs nothing beside it: no network, and no script but for sorting and searching.

mod curves;
mod dialogues;
mod escape;
mod plot;
mod results;

use std::fmt::{self, Write};

use sideburn_files::{count, grouped};

use crate::{report::Report, words};

pub use curves::{Curve, curves_to_html};
use escape::Escaped;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The SHA-256 of [`SCRIPT`], in base64: a browser runs no other script in the page, whatever an output has smuggled
/// in.
const SCRIPT_HASH: &str = include_str!("page.js.sha256");

impl Report {
    /// The report as a page of HTML. Everything is in it, and whatever texts have in them is shown, not obeyed.
    ///
    /// It is as large as the texts and a third: 1,500 dialogues with three systems are about 5 MB.
    pub fn to_html(&self) -> String {
        let mut page = String::new();
        write_page(&mut page, self).expect("text takes all that is written");
        page
    }
}

/// The beginning of a page, to the beginning of its body. `scripts` says which a browser may run in it.
fn write_head(page: &mut String, title: &str, scripts: &str) -> fmt::Result {
    writeln!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src {scripts}; img-src data:; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>",
        Escaped(title),
    )
}

fn write_page(page: &mut String, report: &Report) -> fmt::Result {
    let evaluation = &report.evaluation;
    let (systems, examples) = (evaluation.systems.len(), evaluation.examples.len());
    let title = Escaped(&report.title);
    write_head(page, &report.title, &format!("'sha256-{}'", SCRIPT_HASH.trim_end()))?;
    writeln!(
        page,
        "<a class=\"skip\" href=\"#dialogues\">Skip to the dialogues</a>\n<header>\n<h1>{title}</h1>\n<p>{}, {}</p>",
        count(systems, "system"),
        count(examples, "dialogue"),
    )?;
    write!(page, "<nav aria-label=\"Sections\"><ul>")?;
    let mut sections = vec![("scores", "Scores")];
    if !report.differences.is_empty() {
        sections.push(("differences", "Differences"));
    }
    sections.extend([("texts", "Texts"), ("slices", "Slices"), ("dialogues", "Dialogues"), ("method", "Method")]);
    for (id, name) in sections {
        write!(page, "<li><a href=\"#{id}\">{name}</a></li>")?;
    }
    writeln!(page, "</ul></nav>\n</header>\n<main>")?;
    results::write_findings(page, report)?;
    results::write_scores(page, report)?;
    results::write_differences(page, report)?;
    results::write_statistics(page, report)?;
    results::write_slices(page, report)?;
    dialogues::write_dialogues(page, evaluation)?;
    write_method(page, report)?;
    writeln!(page, "</main>\n<script>{SCRIPT}</script>\n</body>\n</html>")
}

/// What the numbers are, and what was run.
fn write_method(page: &mut String, report: &Report) -> fmt::Result {
    let evaluation = &report.evaluation;
    let bootstrap = &evaluation.bootstrap;
    writeln!(
        page,
        "<section id=\"method\" aria-labelledby=\"method-title\">\n<h2 id=\"method-title\">Method</h2>\n<dl class=\"method\">\n\
         <dt>Intervals</dt><dd>{} % of the means of {} samples of the dialogues, drawn with replacement (bootstrap; Efron, \
         1979), seed {}.</dd>\n\
         <dt>Differences</dt><dd>The same of the differences, dialogue by dialogue (paired bootstrap; Koehn, 2004). p is that \
         of an approximate randomisation test (Noreen, 1989) of {1} samples: how often a difference at least as large comes \
         about if it is chance which output is whose. Each p stands for one test alone.</dd>\n\
         <dt>ROUGE</dt><dd>F-measures as Python’s <code>rouge_score</code> computes them (Lin, 2004), in percent. Of several \
         references the best counts.</dd>\n\
         <dt>Novel n-grams</dt><dd>The share of the runs of n words that are not in the dialogue (See, Liu and Manning, \
         2017).</dd>\n\
         <dt>Compression</dt><dd>Words of a summary for a hundred words of its dialogue.</dd>\n</dl>",
        100.0 * bootstrap.confidence,
        grouped(bootstrap.samples),
        bootstrap.seed,
    )?;
    if !evaluation.config.is_null() {
        let config = serde_json::to_string_pretty(&evaluation.config).map_err(|_| fmt::Error)?;
        writeln!(
            page,
            "<details><summary>What was run</summary><pre tabindex=\"0\">{}</pre></details>",
            Escaped(&config)
        )?;
    }
    writeln!(page, "</section>")
}

/// The number of a system's colour and mark: there are six of each.
fn look(system: usize) -> usize {
    system % 6
}

/// A text, each of its stretches that is in one of the references marked.
struct Marked<'a> {
    text: &'a str,
    references: &'a [words::Words],
}

impl fmt::Display for Marked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut written = 0;
        for stretch in words::Words::new(self.text).shared(self.references) {
            let (before, shared) = (&self.text[written..stretch.start], &self.text[stretch.clone()]);
            write!(f, "{}<mark>{}</mark>", Escaped(before), Escaped(shared))?;
            written = stretch.end;
        }
        Escaped(&self.text[written..]).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_marked_and_escaped() {
        let references = [words::Words::new("tea & milk for Bob")];
        let marked = Marked { text: "<b>Tea & milk</b> or \"Bob\"", references: &references };
        assert_eq!(marked.to_string(), "&lt;b&gt;<mark>Tea &amp; milk</mark>&lt;/b&gt; or &quot;Bob&quot;");
        assert_eq!(Marked { text: "", references: &[] }.to_string(), "");
    }

    #[test]
    fn the_hash_is_that_of_the_script() {
        use sha2::{Digest, Sha256};
        let digest: String = Sha256::digest(SCRIPT).iter().map(|byte| format!("{byte:08b}")).collect();
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bits = format!("{digest}00");
        let groups =
            bits.as_bytes().chunks(6).map(|six| usize::from_str_radix(str::from_utf8(six).unwrap(), 2).unwrap());
        let base64: String = groups.map(|place| char::from(LETTERS[place])).chain(['=']).collect();
        assert_eq!(SCRIPT_HASH.trim_end(), base64, "write it to html/page.js.sha256");
    }
}
