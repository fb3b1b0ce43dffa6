//! T9: every stage of every model at hand prints as text that parses back to the same bytes, and that the next room can go
//! on from. T24: every accumulator is proved to fit, and stays within its proof. T17: the same artifact from two processes.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use vitc::artifact;
use vitc_ir::text::{self, Printed};
use vitc_ir::{Module, Op, Stage, eval};
use vitc_passes::integerize::report::Accumulator;
use vitc_tests::{Sample, bundled, plan_input, real};

/// Every stage of a model, from `import` on.
fn stages(sample: &Sample, images: usize) -> Vec<Module> {
    let compiler = sample.compiler(images);
    let mut module = compiler.import(&sample.model).unwrap();
    let mut stages = vec![module.clone()];
    for (stage, _) in Stage::WORDS.into_iter().skip(1) {
        module = compiler.advance(module, stage).unwrap_or_else(|e| panic!("{}: {e:#}", sample.name)).0;
        stages.push(module.clone());
    }
    stages
}

fn parse(sample: &Sample, stage: Stage, printed: &Printed) -> Module {
    text::parse(&printed.text, Bytes::from(printed.blob.clone()))
        .unwrap_or_else(|d| panic!("{} at {}: {d}", sample.name, stage.word()))
}

fn round_trip(sample: &Sample, images: usize) {
    let compiler = sample.compiler(images);
    let stages = stages(sample, images);
    let plan = text::print(&stages[stages.len() - 1]);
    for module in &stages {
        let printed = text::print(module);
        let parsed = parse(sample, module.stage, &printed);
        let again = text::print(&parsed);
        assert!(again == printed, "{} at {} prints differently the second time", sample.name, module.stage.word());
        let (end, _) = compiler.advance(parsed, Stage::Plan).unwrap();
        let end = text::print(&end);
        let same = end == plan;
        assert!(
            same,
            "{}: from the text of {} comes another plan: {}",
            sample.name,
            module.stage.word(),
            first_difference(&plan.text, &end.text)
        );
    }
}

fn first_difference(a: &str, b: &str) -> String {
    let line = a.lines().zip(b.lines()).find(|(a, b)| a != b);
    line.map_or("the texts are equal so far".into(), |(a, b)| format!("\n{a}\n{b}"))
}

#[test]
fn t9_text_of_the_bundled_model() {
    round_trip(&bundled(), 8);
}

#[test]
fn t9_text_of_real_models() {
    real("t9_text_of_real_models").iter().for_each(|sample| round_trip(sample, 2));
}

/// Ops with a sum that must fit 32 bits.
const ACCUMULATES: &[&str] = &[
    "int.matmul",
    "int.conv2d",
    "int.reduce_sum",
    "int.mul",
    "int.reciprocal",
    "int.layernorm",
    "int.requant15",
    "int.shift_gelu",
];

/// Ops whose result is an accumulator that the interval analysis speaks of as such.
fn is_sum(op: &Op) -> bool {
    matches!(op, Op::IntMatMul { .. } | Op::IntConv2d { .. } | Op::IntReduceSum { .. } | Op::IntMul { .. })
}

fn accumulators_hold(sample: &Sample, images: usize) {
    let compiler = sample.compiler(images);
    let imported = compiler.import(&sample.model).unwrap();
    let (module, journal) = compiler.advance(imported, Stage::Integerize).unwrap();
    let proofs = journal.integerized.unwrap().accumulators;
    for p in &proofs {
        let fits = i64::from(i32::MIN) <= p.lo && p.lo <= p.hi && p.hi <= i64::from(i32::MAX);
        assert!(fits, "{}: {} at {:?} may reach {}..={}", sample.name, p.op, p.loc, p.lo, p.hi);
    }
    for op in ACCUMULATES {
        let nodes = module.nodes.iter().filter(|n| n.op.name() == *op).count();
        assert_eq!(proofs.iter().filter(|p| p.op == *op).count(), nodes, "{}: an {op} without a proof", sample.name);
    }
    let sums: Vec<_> = module.nodes.iter().filter(|n| is_sum(&n.op)).collect();
    let of_sums: Vec<&Accumulator> =
        proofs.iter().filter(|p| ["int.matmul", "int.conv2d", "int.reduce_sum", "int.mul"].contains(&p.op)).collect();
    assert_eq!(sums.len(), of_sums.len(), "{}: an accumulator without a proof", sample.name);
    let input = plan_input(&module, &sample.pixels(1).unwrap(), 1).unwrap();
    let mut next = 0;
    eval::trace(&module, &[input], &mut |value, tensor| {
        if sums.get(next).is_some_and(|n| n.result == value) {
            let proof = of_sums[next];
            next += 1;
            let within = tensor.to_ints().iter().all(|v| (proof.lo..=proof.hi).contains(v));
            assert!(within, "{}: {} at {:?} leaves {}..={}", sample.name, proof.op, proof.loc, proof.lo, proof.hi);
        }
    })
    .unwrap();
    assert_eq!(next, sums.len());
}

#[test]
fn t24_accumulators_of_the_bundled_model() {
    accumulators_hold(&bundled(), 8);
}

#[test]
fn t24_accumulators_of_real_models() {
    real("t24_accumulators_of_real_models").iter().for_each(|sample| accumulators_hold(sample, 2));
}

/// Where the child process of T17 writes its artifact.
const TARGET: &str = "VITC_TEST_ARTIFACT";

#[test]
fn t17_artifacts_are_equal_across_processes_and_folders() {
    if let Some(path) = std::env::var_os(TARGET) {
        return write_artifact(Path::new(&path));
    }
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let files: Vec<PathBuf> = dirs.iter().map(|d| d.path().join("model.vitc")).collect();
    for (dir, file) in dirs.iter().zip(&files) {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "t17_artifacts_are_equal_across_processes_and_folders"]).current_dir(dir.path());
        child.env(TARGET, file).env("LANG", file).env("RUST_BACKTRACE", "0");
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let [a, b] = [&files[0], &files[1]].map(|f| std::fs::read(f).unwrap());
    assert!(!a.is_empty() && a == b, "two processes wrote different artifacts of {} and {} bytes", a.len(), b.len());
    assert_eq!(artifact::content_hash(&a), artifact::content_hash(&b));
}

fn write_artifact(path: &Path) {
    let sample = bundled();
    sample.compiler(8).compile_file(&sample.model).unwrap().save(path).unwrap();
}
