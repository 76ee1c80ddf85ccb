//! The sections of means, differences, statistics and slices.

use std::fmt::{self, Write};

use sideburn_files::{count, grouped};

use crate::{
    Interval,
    evaluation::{Difference, Mean, names_of, shown},
    report::Report,
    slices::Slicing,
    statistics::Statistics,
};

use super::{escape::Escaped, look, plot};

/// The p-value below which a difference is taken for one.
const SIGNIFICANT: f64 = 0.05;

fn open(page: &mut String, id: &str, title: &str) -> fmt::Result {
    writeln!(page, "<section id=\"{id}\" aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>")
}

/// A wide table in a frame that scrolls, which the keyboard reaches.
fn open_table(page: &mut String, label: &str, class: &str) -> fmt::Result {
    write!(
        page,
        "<div class=\"wide\" role=\"region\" aria-label=\"{label}\" tabindex=\"0\"><table class=\"{class}\">",
        label = Escaped(label)
    )
}

/// `[39.66, 43.90]`, shares of 1 in percent.
fn range(interval: &Interval, is_share: bool) -> String {
    let [low, high] = [interval.low, interval.high].map(|value| shown(value, is_share));
    format!("[{low:.2}, {high:.2}]")
}

/// `41.83 <small>[39.66, 43.90]</small>`.
fn interval(mean: &Mean) -> String {
    format!("<b>{mean}</b> <small>{}</small>", range(&mean.interval, mean.is_share))
}

/// The cell of a mean, with the number of what it is of unless that is `all`.
fn write_mean(page: &mut String, mean: Option<&Mean>, all: Option<usize>) -> fmt::Result {
    let Some(mean) = mean else { return write!(page, "<td class=\"n\">–</td>") };
    write!(page, "<td class=\"n\">{}", interval(mean))?;
    if Some(mean.interval.n) != all {
        write!(page, " <small>n {}</small>", grouped(mean.interval.n))?;
    }
    write!(page, "</td>")
}

/// What the first score says, in sentences.
pub(super) fn write_findings(page: &mut String, report: &Report) -> fmt::Result {
    let evaluation = &report.evaluation;
    let Some(name) = evaluation.score_names().first().copied() else { return Ok(()) };
    let scored = evaluation.systems.iter().filter_map(|system| Some((system, &system.score(name)?.mean)));
    let Some((best, mean)) = scored.max_by(|(_, a), (_, b)| a.interval.mean.total_cmp(&b.interval.mean)) else {
        return Ok(());
    };
    writeln!(page, "<ul class=\"findings\" aria-label=\"Findings\">")?;
    writeln!(
        page,
        "<li><b class=\"large\">{mean}</b> {} of <b>{}</b>{} <small>{}, n {}</small></li>",
        Escaped(name),
        Escaped(&best.name),
        if evaluation.systems.len() > 1 { ", the highest" } else { "" },
        range(&mean.interval, mean.is_share),
        grouped(mean.interval.n),
    )?;
    for difference in report.differences.iter().filter(|difference| difference.score == name) {
        let Difference { first, second, comparison, is_share, .. } = difference;
        let points = shown(comparison.difference.mean, *is_share);
        let (first, second) = (Escaped(first), Escaped(second));
        let interval = &comparison.difference;
        let detail = format!(
            "<small>{}, p {:.3}, n {}</small>",
            range(interval, *is_share),
            comparison.p_value,
            grouped(interval.n)
        );
        let points = format!("<b class=\"large\">{points:+.2}</b>");
        match comparison.p_value < SIGNIFICANT {
            true => writeln!(page, "<li>{points} <b>{first}</b> against <b>{second}</b> {detail}</li>")?,
            false => writeln!(
                page,
                "<li>{points} <b>{first}</b> against <b>{second}</b>: not told apart by this test {detail}</li>"
            )?,
        }
    }
    writeln!(page, "</ul>")
}

pub(super) fn write_scores(page: &mut String, report: &Report) -> fmt::Result {
    let evaluation = &report.evaluation;
    open(page, "scores", "Scores")?;
    let confidence = 100.0 * evaluation.bootstrap.confidence;
    if evaluation.score_names().is_empty() {
        writeln!(page, "<p>Nothing was scored.</p>")?;
    }
    for name in evaluation.score_names() {
        let scored: Vec<_> = evaluation
            .systems
            .iter()
            .enumerate()
            .filter_map(|(place, system)| Some((place, system, system.score(name)?)))
            .collect();
        let is_share = scored[0].2.mean.is_share;
        let shown_values = |scored: &crate::Scored| -> Vec<f64> {
            scored.values.iter().flatten().map(|value| shown(*value, scored.mean.is_share)).collect()
        };
        let columns: Vec<Vec<f64>> = scored.iter().map(|(_, _, scored)| shown_values(scored)).collect();
        let axis = match is_share {
            true => plot::Axis { low: 0.0, high: 100.0, step: 20.0 },
            false => plot::Axis::over(columns.iter().flatten().copied()),
        };
        let unit = if is_share { ", in percent" } else { "" };
        open_table(page, &format!("{name} of each system"), "means")?;
        write!(
            page,
            "<caption>{}<small>{unit}</small></caption><thead><tr><th scope=\"col\">System</th>\
             <th scope=\"col\" class=\"n\">Mean <small>[{confidence} %]</small></th><th scope=\"col\" class=\"n\">n</th>\
             <th scope=\"col\" class=\"p\">All dialogues, with the mean{}</th></tr></thead><tbody>",
            Escaped(name),
            plot::scale(&axis),
        )?;
        for ((place, system, scored), values) in scored.iter().zip(&columns) {
            let mean = &scored.mean;
            write!(
                page,
                "<tr><th scope=\"row\"><span class=\"c{}\">{}</span></th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"p\">",
                look(*place),
                Escaped(&system.name),
                interval(mean),
                grouped(mean.interval.n)
            )?;
            let ends = [mean.interval.low, mean.interval.mean, mean.interval.high].map(|value| shown(value, is_share));
            plot::write_distribution(page, &axis, values, ends, look(*place))?;
            write!(page, "</td></tr>")?;
        }
        writeln!(page, "</tbody></table></div>")?;
    }
    writeln!(page, "</section>")
}

pub(super) fn write_differences(page: &mut String, report: &Report) -> fmt::Result {
    if report.differences.is_empty() {
        return Ok(());
    }
    open(page, "differences", "Differences")?;
    for is_share in [true, false] {
        let of_kind: Vec<&Difference> =
            report.differences.iter().filter(|difference| difference.is_share == is_share).collect();
        if of_kind.is_empty() {
            continue;
        }
        let ends = |difference: &Difference| {
            let interval = difference.comparison.difference;
            [interval.low, interval.mean, interval.high].map(|value| shown(value, is_share))
        };
        let axis = plot::Axis::over(of_kind.iter().flat_map(|difference| ends(difference)).chain([0.0]));
        let unit = if is_share { "percentage points" } else { "points" };
        open_table(page, &format!("Differences in {unit}"), "means")?;
        write!(
            page,
            "<caption>In {unit}</caption><thead><tr><th scope=\"col\">Score</th><th scope=\"col\">Systems</th>\
             <th scope=\"col\" class=\"n\">Difference <small>[{} %]</small></th><th scope=\"col\" class=\"n\">p</th>\
             <th scope=\"col\" class=\"n\">n</th><th scope=\"col\" class=\"p\">First less second{}</th></tr></thead><tbody>",
            100.0 * report.evaluation.bootstrap.confidence,
            plot::scale(&axis),
        )?;
        for difference in of_kind {
            let Difference { first, second, score, comparison, .. } = difference;
            let [low, mean, high] = ends(difference);
            let is_clear = comparison.p_value < SIGNIFICANT;
            write!(
                page,
                "<tr><th scope=\"row\">{}</th><td>{} less {}</td><td class=\"n\"><b>{mean:+.2}</b> <small>[{low:.2}, {high:.2}]</small></td>\
                 <td class=\"n\">{}{:.4}{}</td><td class=\"n\">{}</td><td class=\"p\">",
                Escaped(score),
                Escaped(first),
                Escaped(second),
                if is_clear { "<b>" } else { "" },
                comparison.p_value,
                if is_clear { "</b>" } else { "" },
                grouped(comparison.difference.n),
            )?;
            let place = report.evaluation.systems.iter().position(|system| system.name == *first).unwrap_or_default();
            plot::write_interval(page, &axis, [low, mean, high], look(place))?;
            write!(page, "</td></tr>")?;
        }
        writeln!(page, "</tbody></table></div>")?;
    }
    writeln!(
        page,
        "<p class=\"m\">p below {SIGNIFICANT} is in bold. With {} on this page, one in twenty falls below it by chance alone.</p>\n</section>",
        count(report.differences.len(), "test")
    )
}

pub(super) fn write_statistics(page: &mut String, report: &Report) -> fmt::Result {
    open(page, "texts", "Texts")?;
    let names = names_of(report.statistics.iter().flat_map(|statistics| &statistics.measures));
    open_table(page, "Statistics of the texts", "plain")?;
    write!(page, "<thead><tr><th scope=\"col\">Texts of</th>")?;
    for name in &names {
        let is_share =
            report.statistics.iter().flat_map(|of| &of.measures).any(|mean| mean.name == *name && mean.is_share);
        write!(page, "<th scope=\"col\" class=\"n\">{name}{}</th>", if is_share { ", %" } else { "" })?;
    }
    write!(page, "<th scope=\"col\" class=\"n\">empty</th></tr></thead><tbody>")?;
    for (row, Statistics { name, empty, measures }) in report.statistics.iter().enumerate() {
        let class = row.checked_sub(1).map_or_else(|| "people".to_owned(), |place| format!("c{}", look(place)));
        write!(page, "<tr><th scope=\"row\"><span class=\"{class}\">{}</span></th>", Escaped(name))?;
        for name in &names {
            write_mean(page, measures.iter().find(|mean| mean.name == *name), Some(report.evaluation.examples.len()))?;
        }
        write!(page, "<td class=\"n\">{}</td></tr>", grouped(*empty))?;
    }
    writeln!(page, "</tbody></table></div>\n</section>")
}

pub(super) fn write_slices(page: &mut String, report: &Report) -> fmt::Result {
    open(page, "slices", "Slices")?;
    for Slicing { by, slices } in &report.slicings {
        writeln!(page, "<h3>By {by}</h3>")?;
        let names = report.evaluation.score_names();
        if names.is_empty() {
            continue;
        }
        if slices.len() > 1 {
            plot::write_legend(page, report.evaluation.systems.iter().map(|system| system.name.as_str()))?;
            write!(page, "<div class=\"charts\">")?;
            for name in &names {
                plot::write_chart(page, name, by, slices)?;
            }
            writeln!(page, "</div>")?;
        }
        write!(page, "<details><summary>The numbers</summary>")?;
        open_table(page, &format!("Scores by {by}"), "plain")?;
        write!(
            page,
            "<thead><tr><th scope=\"col\">{by}</th><th scope=\"col\" class=\"n\">n</th><th scope=\"col\">System</th>"
        )?;
        for name in &names {
            write!(page, "<th scope=\"col\" class=\"n\">{}</th>", Escaped(name))?;
        }
        write!(page, "</tr></thead>")?;
        for slice in slices {
            write!(page, "<tbody>")?;
            for (row, of_system) in slice.systems.iter().enumerate() {
                write!(page, "<tr>")?;
                if row == 0 {
                    let rows = slice.systems.len();
                    write!(
                        page,
                        "<th scope=\"rowgroup\" rowspan=\"{rows}\">{}</th><td class=\"n\" rowspan=\"{rows}\">{}</td>",
                        slice.name,
                        grouped(slice.n)
                    )?;
                }
                write!(page, "<td><span class=\"c{}\">{}</span></td>", look(row), Escaped(&of_system.system))?;
                for name in &names {
                    let mean = of_system.scores.iter().find(|mean| mean.name == *name);
                    write_mean(page, mean, Some(slice.n))?;
                }
                write!(page, "</tr>")?;
            }
            write!(page, "</tbody>")?;
        }
        writeln!(page, "</table></div></details>")?;
    }
    writeln!(page, "</section>")
}
