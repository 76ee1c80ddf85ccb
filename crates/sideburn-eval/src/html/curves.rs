//! Numbers over the steps of a run, as a page.

use std::fmt::{self, Write};

use super::{escape::Escaped, plot::write_curve, write_head};

/// A number over the steps of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What it is, such as `loss`.
    pub name: String,
    /// The steps, ascending, each with its value.
    pub points: Vec<(u64, f64)>,
}

/// Curves as a page of HTML that needs nothing beside it: a plot of each, and a table of where each begins and ends. A curve of
/// more than a thousand points is drawn by means of neighbours; values that are no finite numbers are left out.
///
/// ```
/// use sideburn_eval::{Curve, curves_to_html};
///
/// let loss = Curve { name: "loss".into(), points: vec![(0, 3.2), (1, 2.9), (2, 2.4)] };
/// assert!(curves_to_html("runs/first", &[loss]).contains("<td class=\"n\">2.4</td>"));
/// ```
pub fn curves_to_html(title: &str, curves: &[Curve]) -> String {
    let mut page = String::new();
    write_curves(&mut page, title, curves).expect("text takes all that is written");
    page
}

fn write_curves(page: &mut String, title: &str, curves: &[Curve]) -> fmt::Result {
    write_head(page, title, "'none'")?;
    writeln!(page, "<header>\n<h1>{}</h1>\n</header>\n<main>\n<div class=\"charts\">", Escaped(title))?;
    let finite = |curve: &Curve| -> Vec<(u64, f64)> {
        curve.points.iter().copied().filter(|(_, value)| value.is_finite()).collect()
    };
    let curves: Vec<(&str, Vec<(u64, f64)>)> = curves
        .iter()
        .map(|curve| (curve.name.as_str(), finite(curve)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    for (name, points) in &curves {
        write_curve(page, name, &thinned(points))?;
    }
    writeln!(
        page,
        "</div>\n<div class=\"wide\"><table class=\"plain\"><thead><tr><th></th><th class=\"n\">first</th><th class=\"n\">last</th>\
         <th class=\"n\">lowest</th><th class=\"n\">highest</th><th class=\"n\">of step</th></tr></thead><tbody>"
    )?;
    for (name, points) in &curves {
        let values = || points.iter().map(|(_, value)| *value);
        let [first, last] = [points[0], points[points.len() - 1]];
        let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        write!(page, "<tr><th>{}</th>", Escaped(name))?;
        for value in [first.1, last.1, low, high] {
            write!(page, "<td class=\"n\">{}</td>", shown(value))?;
        }
        writeln!(page, "<td class=\"n\">{}</td></tr>", last.0)?;
    }
    writeln!(page, "</tbody></table></div>\n</main>\n</body>\n</html>")
}

/// Five digits of a number.
fn shown(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (1e-3..1e7).contains(&size) => {
            let digits = (4 - size.log10().floor() as i32).clamp(0, 7) as usize;
            let text = format!("{value:.digits$}");
            if digits == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
        }
        _ => format!("{value:.3e}"),
    }
}

/// At most a thousand points, each the mean of neighbours.
fn thinned(points: &[(u64, f64)]) -> Vec<(f64, f64)> {
    let mean = |some: &[(u64, f64)]| {
        let count = some.len() as f64;
        let sums = some.iter().fold((0.0, 0.0), |(steps, sum), (step, value)| (steps + *step as f64, sum + value));
        (sums.0 / count, sums.1 / count)
    };
    points.chunks(points.len().div_ceil(1000).max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_five_digits() {
        let all = [0.0, 2.4, -0.012345678, 1234.5, 123_456.0, 4e-5, 3e9].map(shown);
        assert_eq!(all, ["0", "2.4", "-0.012346", "1234.5", "123456", "4.000e-5", "3.000e9"]);
    }

    #[test]
    fn long_curves_are_thinned() {
        let points: Vec<(u64, f64)> = (0..2500).map(|step| (step, step as f64)).collect();
        let thin = thinned(&points);
        assert_eq!((thin.len(), thin[0]), (834, (1.0, 1.0)));
        assert_eq!(thinned(&points[..1000]).len(), 1000);
        assert!(thinned(&[]).is_empty());
    }

    #[test]
    fn names_are_shown_and_what_is_no_number_is_not() {
        let curve = |name: &str, points: Vec<(u64, f64)>| Curve { name: name.to_owned(), points };
        let curves = [
            curve("<b>", vec![(0, f64::NAN), (3, 0.001), (4, 0.002)]),
            curve("nothing", vec![(0, f64::INFINITY)]),
            curve("one", vec![(7, 5.0)]),
        ];
        let page = curves_to_html("a & b", &curves);
        assert!(page.contains("<title>a &amp; b</title>") && page.contains("<th>&lt;b&gt;</th>"), "{page}");
        assert!(!page.contains("nothing") && !page.contains("NaN") && !page.contains("<b>"), "{page}");
        assert_eq!(page.matches("<figure>").count(), 2);
        assert!(page.contains(">1e-3</text>"), "{page}");
        assert!(curves_to_html("none", &[]).contains("</html>"));
    }
}
