//! Plots as SVG. What they show stands beside them as numbers, so that they are hidden from screen readers where they
//! would only repeat it.

use std::fmt::{self, Write};

use sideburn_files::grouped;

use crate::{evaluation::shown, slices::Slice};

use super::{escape::Escaped, look};

/// A range of values along a plot, its ends round numbers.
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    /// From one number to the next.
    pub(super) step: f64,
}

impl Axis {
    /// From the lowest to the highest of `values`.
    pub(super) fn over(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        if low > high {
            return Self { low: 0.0, high: 1.0, step: 1.0 };
        }
        let step = round_step((high - low) / 4.0);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        Self { low, high: if high > low { high } else { low + step }, step }
    }

    /// Where `value` is, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Round numbers within, two to eight of them.
    fn ticks(&self) -> Vec<f64> {
        let step = self.step;
        let first = (self.low / step).ceil() as i64;
        (first..first + 20)
            .map(|number| number as f64 * step)
            .take_while(|tick| *tick <= self.high + step * 1e-6)
            .collect()
    }
}

/// 1, 2 or 5 times a power of ten, at least `size`; 1 if that is nothing.
fn round_step(size: f64) -> f64 {
    if size <= 0.0 || !size.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(size.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= size * 0.999).unwrap_or(size)
}

/// A number of an axis whose numbers are so far from each other: `2e-4` where two digits behind the point are too few.
fn tick_by(value: f64, step: f64) -> String {
    if value == 0.0 || (0.01..1e6).contains(&step) {
        return tick(value);
    }
    let text = format!("{value:.2e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// A number of an axis.
fn tick(value: f64) -> String {
    let text = format!("{value:.2}");
    match text.trim_end_matches('0').trim_end_matches('.') {
        "" | "-0" => "0".to_owned(),
        text => text.to_owned(),
    }
}

/// The numbers of an axis, above a column of plots of which each is as wide.
pub(super) fn scale(axis: &Axis) -> String {
    let mut text = String::from("<svg class=\"scale\" aria-hidden=\"true\">");
    let ticks = axis.ticks();
    for value in &ticks {
        let at = axis.at(*value);
        let anchor = if at < 0.02 {
            "start"
        } else if at > 0.98 {
            "end"
        } else {
            "middle"
        };
        write!(text, "<text x=\"{:.1}%\" y=\"12\" text-anchor=\"{anchor}\">{}</text>", 100.0 * at, tick(*value))
            .expect("text takes all that is written");
    }
    text + "</svg>"
}

/// How many bars a distribution has.
const BARS: usize = 40;

/// A plot that is as wide as its column; units are 100 across and 28 down.
fn open(page: &mut String, axis: &Axis, look: usize) -> fmt::Result {
    write!(
        page,
        "<svg class=\"row f{look}\" viewBox=\"0 0 100 28\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><path class=\"grid\" d=\""
    )?;
    for value in axis.ticks() {
        write!(page, "M{:.2} 0v28", 100.0 * axis.at(value))?;
    }
    write!(page, "\"/>")
}

/// The low end, the mean and the high end of an interval.
fn write_whisker(page: &mut String, axis: &Axis, ends: [f64; 3], height: f64) -> fmt::Result {
    let [low, mean, high] = ends.map(|value| 100.0 * axis.at(value));
    write!(
        page,
        "<path class=\"halo\" d=\"M{low:.2} {height}H{high:.2}\"/><path class=\"line\" d=\"M{low:.2} {height}H{high:.2}\"/>\
         <path class=\"dot\" d=\"M{mean:.2} {height}h0\"/></svg>"
    )
}

/// An interval around its mean, with a line at zero.
pub(super) fn write_interval(page: &mut String, axis: &Axis, ends: [f64; 3], look: usize) -> fmt::Result {
    open(page, axis, look)?;
    write!(page, "<path class=\"zero\" d=\"M{:.2} 0v28\"/>", 100.0 * axis.at(0.0))?;
    write_whisker(page, axis, ends, 14.0)
}

/// How many values are where, and the mean with its interval below.
pub(super) fn write_distribution(
    page: &mut String,
    axis: &Axis,
    values: &[f64],
    ends: [f64; 3],
    look: usize,
) -> fmt::Result {
    let mut counts = [0usize; BARS];
    for value in values {
        counts[((axis.at(*value) * BARS as f64) as usize).min(BARS - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or_default().max(1);
    open(page, axis, look)?;
    write!(page, "<path class=\"bars\" d=\"")?;
    let width = 100.0 / BARS as f64;
    for (bar, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = 20.0 * *count as f64 / most as f64;
        write!(page, "M{:.2} 21v-{height:.2}h{:.2}v{height:.2}z", bar as f64 * width, width * 0.9)?;
    }
    write!(page, "\"/>")?;
    write_whisker(page, axis, ends, 24.0)
}

/// Which mark is whose.
pub(super) fn write_legend<'a>(page: &mut String, systems: impl Iterator<Item = &'a str>) -> fmt::Result {
    write!(page, "<ul class=\"legend\">")?;
    for (place, name) in systems.enumerate() {
        write!(
            page,
            "<li><svg class=\"f{look}\" width=\"28\" height=\"12\" viewBox=\"0 0 28 12\" aria-hidden=\"true\"><path class=\"line\" d=\"M1 6h26\"/>",
            look = look(place)
        )?;
        write_mark(page, look(place), 14.0, 6.0)?;
        write!(page, "</svg> {}</li>", Escaped(name))?;
    }
    writeln!(page, "</ul>")
}

/// Systems differ in the shape of their marks as well as in colour.
fn write_mark(page: &mut String, look: usize, x: f64, y: f64) -> fmt::Result {
    write!(page, "<path class=\"mark\" d=\"M{x:.1} {y:.1}")?;
    page.push_str(match look {
        0 => "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
        1 => "m-4-4h8v8h-8z",
        2 => "m0-5l5 5l-5 5l-5-5z",
        3 => "m0-5l5 9h-10z",
        4 => "m0 5l5-9h-10z",
        _ => "m-5-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
    });
    write!(page, "\"/>")
}

/// A score over the slices, a line for each system, each mean with its interval.
pub(super) fn write_chart(page: &mut String, score: &str, by: &str, slices: &[Slice]) -> fmt::Result {
    const SIZE: [f64; 2] = [320.0, 200.0];
    const PLOT: [f64; 4] = [34.0, 26.0, 312.0, 158.0];
    let [left, top, right, bottom] = PLOT;
    // The means of each system, and where they stand.
    let mut lines: Vec<Vec<(usize, [f64; 3])>> =
        vec![Vec::new(); slices.first().map_or(0, |slice| slice.systems.len())];
    for (column, slice) in slices.iter().enumerate() {
        for (line, system) in lines.iter_mut().zip(&slice.systems) {
            if let Some(mean) = system.scores.iter().find(|mean| mean.name == score) {
                let interval = mean.interval;
                let ends = [interval.low, interval.mean, interval.high].map(|value| shown(value, mean.is_share));
                line.push((column, ends));
            }
        }
    }
    let axis = Axis::over(lines.iter().flatten().flat_map(|(_, ends)| *ends));
    let width = (right - left) / slices.len() as f64;
    let y = |value: f64| bottom - (bottom - top) * axis.at(value);
    write!(
        page,
        "<figure><svg width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"{} by {by}; the numbers are in the \
         table below\"><text class=\"title\" x=\"{left}\" y=\"14\">{}</text><path class=\"grid\" d=\"",
        Escaped(score),
        Escaped(score),
        w = SIZE[0],
        h = SIZE[1],
    )?;
    for value in axis.ticks() {
        write!(page, "M{left} {:.1}H{right}", y(value))?;
    }
    write!(page, "\"/>")?;
    for value in axis.ticks() {
        write!(
            page,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 5.0,
            y(value) + 4.0,
            tick(value)
        )?;
    }
    for (column, slice) in slices.iter().enumerate() {
        let x = left + width * (column as f64 + 0.5);
        write!(
            page,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text><text class=\"m\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">n {}</text>",
            bottom + 17.0,
            slice.name,
            bottom + 33.0,
            grouped(slice.n)
        )?;
    }
    let shift = (width * 0.5 / lines.len().max(1) as f64).min(14.0);
    for (place, line) in lines.iter().enumerate() {
        let aside = shift * (place as f64 - (lines.len() - 1) as f64 / 2.0);
        let x = |column: usize| left + width * (column as f64 + 0.5) + aside;
        write!(page, "<g class=\"f{}\"><path class=\"line\" d=\"", look(place))?;
        for (number, (column, [_, mean, _])) in line.iter().enumerate() {
            write!(page, "{}{:.1} {:.1}", if number == 0 { "M" } else { "L" }, x(*column), y(*mean))?;
        }
        for (column, [low, _, high]) in line {
            write!(page, "M{:.1} {:.1}V{:.1}", x(*column), y(*low), y(*high))?;
        }
        write!(page, "\"/>")?;
        for (column, [_, mean, _]) in line {
            write_mark(page, look(place), x(*column), y(*mean))?;
        }
        write!(page, "</g>")?;
    }
    write!(page, "</svg></figure>")
}

/// A curve over steps.
pub(super) fn write_curve(page: &mut String, name: &str, points: &[(f64, f64)]) -> fmt::Result {
    const SIZE: [f64; 2] = [420.0, 220.0];
    const PLOT: [f64; 4] = [54.0, 26.0, 408.0, 192.0];
    let [left, top, right, bottom] = PLOT;
    let [across, up] = [Axis::over(points.iter().map(|point| point.0)), Axis::over(points.iter().map(|point| point.1))];
    let x = |step: f64| left + (right - left) * across.at(step);
    let y = |value: f64| bottom - (bottom - top) * up.at(value);
    write!(
        page,
        "<figure><svg width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"{name} over steps; its ends \
         are in the table below\"><text class=\"title\" x=\"{left}\" y=\"14\">{name}</text><path class=\"grid\" d=\"",
        w = SIZE[0],
        h = SIZE[1],
        name = Escaped(name),
    )?;
    for value in up.ticks() {
        write!(page, "M{left} {:.1}H{right}", y(value))?;
    }
    write!(page, "\"/>")?;
    for value in up.ticks() {
        let (at, text) = (y(value) + 4.0, tick_by(value, up.step));
        write!(page, "<text x=\"{}\" y=\"{at:.1}\" text-anchor=\"end\">{text}</text>", left - 5.0)?;
    }
    for step in across.ticks() {
        let (at, text) = (x(step), tick_by(step, across.step));
        write!(page, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>", bottom + 17.0)?;
    }
    write!(page, "<g class=\"f0\"><path class=\"line\" d=\"")?;
    for (number, (step, value)) in points.iter().enumerate() {
        write!(page, "{}{:.1} {:.1}", if number == 0 { "M" } else { "L" }, x(*step), y(*value))?;
    }
    write!(page, "\"/>")?;
    // A point alone has no line.
    if let [(step, value)] = points {
        write_mark(page, 0, x(*step), y(*value))?;
    }
    write!(page, "</g></svg></figure>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let axis = |values: &[f64]| {
            let axis = Axis::over(values.iter().copied());
            (axis.low, axis.high, axis.ticks())
        };
        assert_eq!(axis(&[3.0, 41.0]), (0.0, 50.0, vec![0.0, 10.0, 20.0, 30.0, 40.0, 50.0]));
        assert_eq!(axis(&[1.0, 5.0]), (1.0, 5.0, vec![1.0, 2.0, 3.0, 4.0, 5.0]));
        assert_eq!(axis(&[-1.5, 7.0]), (-5.0, 10.0, vec![-5.0, 0.0, 5.0, 10.0]));
        assert_eq!(axis(&[4.0]), (4.0, 5.0, vec![4.0, 5.0]));
        assert_eq!(axis(&[]).2, [0.0, 1.0]);
        assert_eq!(
            [tick_by(2e-4, 1e-4), tick_by(3e7, 1e7), tick_by(0.0, 1e-4), tick_by(2.5, 0.5)],
            ["2e-4", "3e7", "0", "2.5"]
        );
        assert_eq!([tick(0.0), tick(-0.001), tick(2.5), tick(100.0)], ["0", "0", "2.5", "100"]);
    }
}
