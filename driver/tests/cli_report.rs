//! `vitc compile --report` on the bundled model.

mod common;

use common::*;
use vitc::report::Report;
use vitc::report::data::Noise;

fn db(noise: Option<Noise>) -> Option<f64> {
    noise.map(|n| n.rank())
}

fn compile_with(more: &[&str], output: &str) -> Vec<String> {
    with(&[&["compile", &model(), "-o", output], more].concat(), &compile_flags())
}

#[test]
fn a_report_tells_what_every_activation_became() {
    let dir = temp();
    let path = |name: &str| arg(dir.path().join(name));
    let (page, data, output) = (path("r.html"), path("r.json"), path("a.vitc"));
    let (images, labels) = (arg(demo().join("eval")), arg(demo().join("eval/labels.txt")));
    let accuracy = ["--report-images", &images, "--report-labels", &labels];
    succeeds(&compile_with(&[&["--report", &page, "--report", &data][..], &accuracy].concat(), &output));
    assert!(std::fs::read(&output).unwrap() == artifact_bytes(), "a report changes no bit");
    assert_eq!(names(dir.path()), ["a.vitc", "r.html", "r.json"]);

    let report: Report = serde_json::from_str(&std::fs::read_to_string(&data).unwrap()).unwrap();
    let stages: Vec<&str> = report.stages.iter().map(|s| s.name.as_str()).collect();
    let transforms = vitc_passes::transform::Transform::WORDS.map(|(_, word)| format!("+ {word}"));
    let expected = [&["min-max"][..], &transforms.each_ref().map(String::as_str), &["quantized", "integers"]].concat();
    assert_eq!(stages, expected);
    assert!(report.stages.iter().all(|s| db(s.outputs).unwrap() > 20.0), "{:?}", report.stages);
    assert!(!report.transforms.is_empty() && report.stages.last().unwrap().rewrites == report.transforms.len());
    check_sites(&report);
    assert!(report.forms.iter().any(|f| f.op == "gelu" && f.chosen) && report.layers.iter().all(|l| l.bits == 8.0));
    assert!(report.predicted.ms > 0.0 && report.size.constants < report.size.float_constants);
    let accuracy = report.accuracy.as_ref().unwrap();
    assert!(accuracy.images == 256 && accuracy.top1 > 90.0 && accuracy.agreement.unwrap() > 95.0, "{accuracy:?}");

    let page = std::fs::read_to_string(&page).unwrap();
    assert!(!page.contains("http") && !page.contains("<script"));
    for site in &report.sites {
        assert!(page.contains(&site.node) && page.contains(&format!("id=\"site-{}\"", site.index)), "{}", site.node);
    }
}

/// A site that is compared with another value than its own has a ratio of about 0 dB; rounding alone costs less than rounding
/// after all that was rounded before.
fn check_sites(report: &Report) {
    let quantized = report.stages.len() - 2;
    assert!(report.sites.len() > 40);
    let ends: Vec<f64> = report.sites.iter().map(|s| db(s.last()).unwrap()).collect();
    assert!(ends.is_sorted(), "the worst comes first: {ends:?}");
    for site in &report.sites {
        let (own, simulated) = (db(site.own).unwrap(), db(site.noise[quantized]).unwrap());
        assert!(own > simulated - 1.0, "{}: {own} dB alone, {simulated} dB in all", site.node);
        // what GELU makes zero may be clipped: only the error behind it counts
        let clips = site.read_by == ["gelu"];
        assert!(clips || site.noise.iter().flatten().all(|n| n.rank() > 20.0), "{site:?}");
        assert!(site.noise[..=quantized].iter().all(Option::is_some), "{site:?}");
        assert!(site.histogram.counts.iter().sum::<u64>() > 0 && site.range[0] < site.range[1]);
        assert!(!site.read_by.is_empty() && site.clipped < if clips { 0.1 } else { 0.01 }, "{site:?}");
    }
    let missing = report.sites.iter().filter(|s| s.noise.last().unwrap().is_none());
    let known = |op: &str| op == "softmax" || op == "layernorm" || op == "gelu";
    assert!(missing.into_iter().all(|s| known(&s.op)), "only maps that are divided later, and rows, have no integers");
}

#[test]
fn threads_do_not_change_a_report() {
    let dir = temp();
    let written = |threads: &str| {
        let (data, output) = (arg(dir.path().join("r.json")), arg(dir.path().join("a.vitc")));
        succeeds(&compile_with(&["--report", &data, "--threads", threads, "--calibrate-images", "9"], &output));
        std::fs::read_to_string(&data).unwrap()
    };
    assert!(written("1") == written("3"));
}

#[test]
fn a_report_that_cannot_be_is_refused_before_the_work() {
    let dir = temp();
    let output = arg(dir.path().join("a.vitc"));
    let fails = |more: &[&str]| fails(&compile_with(more, &output));
    let message = fails(&["--report", "r.pdf"]);
    assert!(message.contains("r.pdf") && message.contains(".html or .json"), "{message}");
    let message = fails(&["--report", &arg(dir.path().join("none/r.html"))]);
    assert!(message.contains("create it first"), "{message}");
    let images = arg(demo().join("eval"));
    let page = arg(dir.path().join("r.html"));
    for more in [&["--report", &page, "--report-images", &images][..], &["--report-images", &images]] {
        fails(more);
    }
    let compiled = artifact(dir.path());
    let message = common::fails(&["compile", &compiled, "-o", &output, "--report", &page]);
    assert!(message.contains("give the ONNX model"), "{message}");
    assert_eq!(names(dir.path()), ["demo.vitc"]);
}
