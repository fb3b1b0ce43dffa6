//! The plots, as SVG to be put into a page: plain paths whose colours are classes of the page's style sheet.

use std::fmt::Write;

use super::data::Histogram;
use super::html::escaped;

/// Counts over a range of values, heights logarithmic; the quantized range is shaded and its ends are drawn through.
///
/// ```text
///        ___|~~~~~~~|___      | = end of the range, ~ = shaded
/// ```
pub(super) fn histogram(h: &Histogram, range: [f64; 2], (width, height): (f64, f64), title: &str) -> String {
    let span = if h.high > h.low { h.high - h.low } else { 1.0 };
    let x = |v: f64| (v - h.low) / span * width;
    let [low, high] = range.map(|v| x(v).clamp(0.0, width));
    let tallest = h.counts.iter().map(|&c| (c as f64).ln_1p()).fold(1.0, f64::max);
    let step = width / h.counts.len().max(1) as f64;
    let mut bars = format!("M0 {height:.0}");
    for (i, &count) in h.counts.iter().enumerate() {
        let top = height * (1.0 - (count as f64).ln_1p() / tallest);
        let _ = write!(bars, "V{top:.1}H{:.1}", step * (i + 1) as f64);
    }
    let _ = write!(bars, "V{height:.0}Z");
    let shade = format!(r#"<rect class="range" x="{low:.1}" y="0" width="{:.1}" height="{height:.0}"/>"#, high - low);
    let ends = format!(r#"<path class="end" d="M{low:.1} 0V{height:.0}M{high:.1} 0V{height:.0}"/>"#);
    let body = format!(r#"{shade}<path class="bars" d="{bars}"/>{ends}"#);
    figure((width, height), "histogram", title, &body)
}

/// A curve over the sites: its name, and a value in decibels for each site, where there is one.
pub(super) struct Curve<'a> {
    pub(super) name: &'a str,
    pub(super) values: Vec<Option<f64>>,
}

/// Curves over sites in graph order, on one axis of decibels; what lies above the axis is drawn at its top.
pub(super) fn curves(curves: &[Curve<'_>], names: &[&str], title: &str) -> String {
    const SIZE: (f64, f64) = (960.0, 300.0);
    const LEFT: f64 = 48.0;
    const BOTTOM: f64 = 24.0;
    let shown = curves.iter().flat_map(|c| c.values.iter().flatten()).copied().filter(|v| v.is_finite());
    let (least, most) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    if most < least {
        return "<p>No site has a figure.</p>".into();
    }
    let (low, high) = ((least / 10.0).floor() * 10.0, ((most / 10.0).floor() + 1.0) * 10.0);
    let plot = (SIZE.0 - LEFT - 8.0, SIZE.1 - BOTTOM - 8.0);
    let x = |i: usize| LEFT + plot.0 * (i as f64 + 0.5) / names.len().max(1) as f64;
    let y = |v: f64| 8.0 + plot.1 * (1.0 - (v.clamp(low, high) - low) / (high - low));
    let mut body = grid((low, high), (LEFT, SIZE.0 - 8.0), &y);
    for (n, curve) in curves.iter().enumerate() {
        let points = curve.values.iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?)));
        let points: Vec<(usize, f64)> = points.filter(|(_, v)| !v.is_nan()).collect();
        let line: Vec<String> = points.iter().map(|&(i, v)| format!("{:.1} {:.1}", x(i), y(v))).collect();
        if !line.is_empty() {
            let _ = write!(body, r#"<path class="line c{n}" d="M{}"/>"#, line.join("L"));
        }
        for (i, v) in points {
            let tip = escaped(&format!("{}: {v:.1} dB, {}", names[i], curve.name));
            let (cx, cy) = (x(i), y(v));
            let _ = write!(
                body,
                r#"<circle class="dot c{n}" cx="{cx:.1}" cy="{cy:.1}" r="2.5"><title>{tip}</title></circle>"#
            );
        }
    }
    let last = names.len().saturating_sub(1);
    let _ = write!(body, r#"<text class="axis" x="{LEFT}" y="{:.0}">site 0</text>"#, SIZE.1 - 4.0);
    let _ = write!(
        body,
        r#"<text class="axis to-left" x="{:.0}" y="{:.0}">site {last}</text>"#,
        SIZE.0 - 8.0,
        SIZE.1 - 4.0
    );
    figure(SIZE, "plot", title, &body)
}

/// Lines at every ten decibels, of a larger range at fewer.
fn grid((low, high): (f64, f64), (left, right): (f64, f64), y: &dyn Fn(f64) -> f64) -> String {
    let step = 10.0 * ((high - low) / 80.0).ceil().max(1.0);
    let mut lines = String::new();
    let mut at = low;
    while at <= high {
        let height = y(at);
        let _ = write!(lines, r#"<path class="grid" d="M{left} {height:.1}H{right}"/>"#);
        let (x, below) = (left - 6.0, height + 4.0);
        let _ = write!(lines, r#"<text class="axis to-left" x="{x}" y="{below:.1}">{at:.0} dB</text>"#);
        at += step;
    }
    lines
}

/// A bar from zero to a share of the width.
pub(super) fn bar(share: f64, title: &str) -> String {
    const SIZE: (f64, f64) = (160.0, 10.0);
    let width = SIZE.0 * if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let back = format!(r#"<rect class="back" x="0" y="0" width="{}" height="{}"/>"#, SIZE.0, SIZE.1);
    let front = format!(r#"<rect class="front" x="0" y="0" width="{width:.1}" height="{}"/>"#, SIZE.1);
    figure(SIZE, "bar", title, &(back + &front))
}

fn figure((width, height): (f64, f64), class: &str, title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        r#"<svg class="{class}" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" role="img" aria-label="{title}"><title>{title}</title>{body}</svg>"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_drawn_where_it_lies() {
        let h = Histogram { low: -1.0, high: 3.0, counts: vec![0, 1, 1000, 1] };
        let svg = histogram(&h, [0.0, 2.0], (100.0, 40.0), "x");
        assert!(svg.contains(r#"<rect class="range" x="25.0" y="0" width="50.0""#), "{svg}");
        assert!(svg.contains(r#"d="M25.0 0V40M75.0 0V40""#), "{svg}");
        assert!(svg.contains("M0 40V40.0H25.0"), "an empty bin has no height: {svg}");
        assert!(svg.contains("V0.0H75.0"), "the fullest bin has all of it: {svg}");
        let wide = histogram(&h, [-9.0, 9.0], (100.0, 40.0), "x");
        assert!(wide.contains(r#"x="0.0" y="0" width="100.0""#), "{wide}");
    }

    #[test]
    fn nothing_odd_is_drawn_of_odd_numbers() {
        let flat = Histogram { low: 0.0, high: 0.0, counts: vec![7] };
        let values = vec![Some(f64::INFINITY), None, Some(3.0), Some(f64::NAN), Some(f64::NEG_INFINITY)];
        let curve = || Curve { name: "c", values: values.clone() };
        let drawn = [
            histogram(&flat, [0.0, 1.0], (10.0, 10.0), "flat"),
            histogram(&Histogram::default(), [0.0, 0.0], (10.0, 10.0), "none"),
            curves(&[curve()], &["a", "b", "c", "d", "e"], "t"),
            curves(&[Curve { name: "c", values: vec![None] }], &["a"], "t"),
            bar(f64::NAN, "nan"),
        ];
        for svg in drawn {
            let shown = svg.split("<title>").map(|s| s.split("</title>").last().unwrap_or_default());
            let numbers: String = shown.collect();
            assert!(!numbers.contains("NaN") && !numbers.contains("inf"), "{numbers}");
        }
    }

    #[test]
    fn curves_name_their_points() {
        let curve = Curve { name: "first", values: vec![Some(10.0), Some(40.0)] };
        let svg = curves(&[curve], &["<a>", "b"], "t");
        assert!(svg.contains("&lt;a&gt;: 10.0 dB, first") && svg.contains("b: 40.0 dB, first"), "{svg}");
        assert!(svg.contains(">50 dB<") && svg.contains(">10 dB<"), "{svg}");
    }
}
