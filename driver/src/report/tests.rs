//! What a report says and how it is drawn, on small data with hostile names.

use std::path::Path;

use super::data::*;
use super::{Format, html, text};

const HOSTILE: &str = "</title><script>alert('1')</script> & \"x\" \u{7} + /last<b>";

fn noise(db: f64) -> Option<Noise> {
    Some(Noise::of(1.0, 10f64.powf(-db / 10.0)))
}

fn site(index: usize, node: &str, ratios: [Option<Noise>; 2]) -> Site {
    Site {
        node: node.into(),
        op: "matmul".into(),
        index,
        role: "unsigned".into(),
        read_by: vec!["matmul".into()],
        elem: "u8".into(),
        bits: 8,
        range: [-1.0, 2.0],
        seen: [-0.9, 2.5],
        scale: vec![3.0 / 256.0],
        zero_point: 85,
        noise: ratios.to_vec(),
        own: noise(40.0),
        clipped: 0.001,
        histogram: Histogram { low: -1.0, high: 2.5, counts: vec![1, 5, 90, 3] },
    }
}

fn stage(name: &str) -> Stage {
    Stage { name: name.into(), what: format!("what {name} is"), outputs: noise(33.0), rewrites: 1 }
}

fn example() -> Report {
    let cost = |op: &str| OpCost { op: op.into(), nodes: 2, cycles: 1e5 };
    let form = |form: &str, chosen| Form {
        node: HOSTILE.into(),
        op: "gelu".into(),
        form: form.into(),
        error: 0.5,
        unit: "steps".into(),
        cost: 7,
        allowed: true,
        chosen,
    };
    Report {
        format: FORMAT,
        vitc: "0".into(),
        model: Model { file: HOSTILE.into(), name: HOSTILE.into(), preprocessing: None },
        settings: vec![Setting { flag: "observer".into(), value: "auto".into() }],
        measured_on: MeasuredOn { inputs: 8, noise: false, calibration: 48 },
        stages: vec![stage("min-max"), stage("integers")],
        sites: vec![
            site(2, HOSTILE, [noise(12.0), None]),
            site(0, "/a/MatMul", [noise(30.0), noise(31.0)]),
            site(1, "/b/Softmax", [Some(Noise::of(1.0, 0.0)), Some(Noise::of(1.0, 0.0))]),
        ],
        transforms: vec![Transformed { transform: "smooth".into(), node: HOSTILE.into(), gain_db: 3.0 }],
        forms: vec![form("table", true), form("shift", false)],
        layers: vec![Layer { node: HOSTILE.into(), shape: vec![64, 10], bits: 4.25, bytes: 320 }],
        size: Size { artifact: 1000, constants: 400, float_constants: 1600, arena: 64 },
        predicted: Predicted {
            tier: "portable".into(),
            ms: 1.0,
            cycles: 2e5,
            clock_ghz: 3.6,
            ops: vec![cost("fused.matmul"), cost("int.layernorm")],
        },
        accuracy: Some(Accuracy {
            images: 100,
            top1: 90.0,
            top1_interval: [82.0, 95.0],
            top5: 99.0,
            float_top1: Some(91.0),
            agreement: Some(98.0),
            logit_sqnr_db: Some(30.0),
        }),
    }
}

/// The text of a page without its tags; fails where tags do not match or an entity is not one of XML.
fn content(page: &str) -> String {
    let page = page.strip_prefix("<!DOCTYPE html>\n").expect("a document type");
    let (mut open, mut text, mut rest) = (Vec::new(), String::new(), page);
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        let (tag, after) = tag.split_once('>').expect("a tag ends");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        match (tag.strip_prefix('/'), tag.ends_with('/')) {
            (Some(name), _) => assert_eq!(open.pop(), Some(name), "{tag}"),
            (None, true) => {}
            (None, false) => open.push(tag.split_whitespace().next().expect("a name")),
        }
        rest = after;
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
    let known = ["amp;", "lt;", "gt;", "quot;", "#39;"];
    assert!(page.split('&').skip(1).all(|entity| known.iter().any(|k| entity.starts_with(k))));
    text
}

#[test]
fn json_parses_back() {
    let report = example();
    let json = text(&report, Format::Json).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}

#[test]
fn an_exact_value_is_better_than_any_and_noise_without_signal_worse() {
    let ranks = [Noise::of(0.0, 1.0), Noise::of(1.0, 2.0), Noise::of(1.0, 0.0)].map(|n| n.rank());
    assert!(ranks.is_sorted() && ranks[0] == f64::NEG_INFINITY && ranks[2] == f64::INFINITY, "{ranks:?}");
    assert_eq!(Noise::of(0.0, 0.0).rank(), f64::INFINITY);
    assert_eq!(site(0, "a", [noise(12.0), None]).last(), noise(12.0));
}

#[test]
fn the_page_is_well_formed_and_stands_alone() {
    let page = text(&example(), Format::Html).unwrap();
    let content = content(&page);
    for foreign in ["http", "<script", "<link", "<img", "@import", "url(", "src=", "\u{7}", "NaN"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for told in ["90.00 %", "float 91.00 %", "exact", "12.0 dB", "u8 unsigned", "zero 85", "smooth: 1 places", "0.10 %"]
    {
        assert!(content.contains(told), "{told}: {content}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
}

#[test]
fn every_site_is_named_and_every_link_leads_somewhere() {
    let report = example();
    let page = text(&report, Format::Html).unwrap();
    for site in &report.sites {
        let name = html::escaped(&site.node);
        assert!(page.matches(&name).count() >= 2, "{name}");
        assert!(page.contains(&format!("<tr id=\"site-{}\">", site.index)));
    }
    for link in page.split("href=\"#").skip(1) {
        let id = link.split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
}

#[test]
fn a_report_of_nothing_is_a_page_too() {
    let mut report = example();
    (report.sites, report.transforms, report.forms, report.layers) = Default::default();
    (report.stages, report.accuracy, report.predicted.ops) = Default::default();
    report.measured_on.noise = true;
    let page = content(&text(&report, Format::Html).unwrap());
    assert!(page.contains("measured on noise"), "{page}");
}

#[test]
fn the_extension_decides() {
    let format = |name: &str| Format::of(Path::new(name));
    assert_eq!(format("a.HTML").unwrap(), Format::Html);
    assert_eq!([format("b/a.htm").unwrap(), format("a.json").unwrap()], [Format::Html, Format::Json]);
    for name in ["a.pdf", "a", ".html", "html"] {
        let error = format(name).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("give .html or .json"), "{error}");
    }
}
