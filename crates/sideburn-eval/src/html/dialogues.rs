//! The table of all dialogues with what people and systems wrote.

use std::fmt::{self, Write};

use sideburn_files::{count, grouped};

use crate::{
    evaluation::{Evaluation, System, shown},
    words::{Words, speakers},
};

use super::{Marked, escape::Escaped, look};

pub(super) fn write_dialogues(page: &mut String, evaluation: &Evaluation) -> fmt::Result {
    write!(
        page,
        "<section id=\"dialogues\" aria-labelledby=\"dialogues-title\">\n<h2 id=\"dialogues-title\">Dialogues</h2>\n\
         <p>In each summary, <mark>what two or more words in a row</mark> have in common with one of the references is \
         marked.</p>\n<div id=\"tools\" hidden>\n\
         <label>Search <input id=\"search\" type=\"search\" autocomplete=\"off\" spellcheck=\"false\"></label>\n\
         <label>Sort by <select id=\"sort\"><option value=\"o\">their order</option>\
         <option value=\"w\">words of the dialogue</option><option value=\"s\">speakers</option>",
    )?;
    write_orders(page, evaluation)?;
    write!(
        page,
        "</select></label>\n<label><input id=\"down\" type=\"checkbox\"> largest first</label>\n\
         <button id=\"open\" type=\"button\">Open all dialogues</button>\n\
         <output id=\"found\" for=\"search\">{}</output>\n</div>\n\
         <div class=\"wide\" role=\"region\" aria-label=\"All dialogues\" tabindex=\"0\">\n\
         <table id=\"rows\"><thead><tr><th scope=\"col\" data-sort=\"o\">Dialogue</th><th scope=\"col\">References</th>",
        count(evaluation.examples.len(), "dialogue"),
    )?;
    for (place, System { name, scores, .. }) in evaluation.systems.iter().enumerate() {
        let sort = if scores.is_empty() { String::new() } else { format!(" data-sort=\"{place}.0\"") };
        write!(page, "<th scope=\"col\"{sort}><span class=\"c{}\">{}</span></th>", look(place), Escaped(name))?;
    }
    writeln!(page, "</tr></thead>\n<tbody>")?;
    for (at, example) in evaluation.examples.iter().enumerate() {
        let dialogue = example.source();
        let (length, speakers) = (Words::new(&dialogue).len(), speakers(&dialogue));
        let is_whole = example.field("dialogue").is_none();
        write!(
            page,
            "<tr data-w=\"{length}\" data-s=\"{speakers}\"><th scope=\"row\"><b>{}</b>",
            Escaped(&example.id)
        )?;
        for (name, text) in example.fields.iter().filter(|(name, _)| !is_whole && *name != "dialogue") {
            write!(page, "<p class=\"m\">{}: {}</p>", Escaped(name), Escaped(text))?;
        }
        let speakers = if speakers == 0 { String::new() } else { format!(", {}", count(speakers, "speaker")) };
        write!(
            page,
            "<details><summary>{} words{speakers}</summary><p class=\"d\" dir=\"auto\">{}</p></details></th><td data-l=\"References\">",
            grouped(length),
            Escaped(&dialogue)
        )?;
        for target in &example.targets {
            write!(page, "<p dir=\"auto\">{}</p>", Escaped(target))?;
        }
        write!(page, "</td>")?;
        let references: Vec<Words> = example.targets.iter().map(|target| Words::new(target)).collect();
        for system in &evaluation.systems {
            write_output(page, system, at, &references)?;
        }
        writeln!(page, "</tr>")?;
    }
    writeln!(page, "</tbody></table>\n</div>\n</section>")
}

/// What one can sort by: the scores of each system, and how they differ. `1.0` is the first score of the second system,
/// `1.0-0` that less the first system's.
fn write_orders(page: &mut String, evaluation: &Evaluation) -> fmt::Result {
    let systems = &evaluation.systems;
    for (place, system) in systems.iter().enumerate().filter(|(_, system)| !system.scores.is_empty()) {
        write!(page, "<optgroup label=\"{}\">", Escaped(&system.name))?;
        for (number, scored) in system.scores.iter().enumerate() {
            let name = Escaped(&scored.mean.name);
            write!(page, "<option value=\"{place}.{number}\">{name} of {}</option>", Escaped(&system.name))?;
            for (other, earlier) in systems[..place].iter().enumerate() {
                let at = earlier.scores.iter().position(|earlier| earlier.mean.name == scored.mean.name);
                if let Some(at) = at {
                    let earlier = Escaped(&earlier.name);
                    write!(page, "<option value=\"{place}.{number}-{other}.{at}\">{name} above {earlier}</option>")?;
                }
            }
        }
        write!(page, "</optgroup>")?;
    }
    Ok(())
}

fn write_output(page: &mut String, system: &System, at: usize, references: &[Words]) -> fmt::Result {
    let value = |scored: &crate::Scored| scored.values[at].map(|value| shown(value, scored.mean.is_share));
    let values: Vec<String> = system
        .scores
        .iter()
        .map(|scored| value(scored).map_or_else(String::new, |value| format!("{value:.1}")))
        .collect();
    write!(page, "<td data-l=\"{}\" data-v=\"{}\">", Escaped(&system.name), values.join(" "))?;
    match system.outputs[at].as_str() {
        text if text.trim().is_empty() => write!(page, "<p class=\"m\">(empty)</p>")?,
        text => write!(page, "<p dir=\"auto\">{}</p>", Marked { text, references })?,
    }
    if !values.is_empty() {
        write!(page, "<p class=\"m\">")?;
        for (number, (scored, value)) in system.scores.iter().zip(&values).enumerate() {
            let between = if number == 0 { "" } else { ", " };
            let value = if value.is_empty() { "–" } else { value.as_str() };
            write!(page, "{between}{} <b>{value}</b>", Escaped(&scored.mean.name))?;
        }
        write!(page, "</p>")?;
    }
    write!(page, "</td>")
}
