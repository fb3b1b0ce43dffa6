//! The house is what ARCHITECTURE.md says: arrows between crates, a contract on every file, no unsafe code where there is none.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use vitc_tests::root;

type Arrows = BTreeSet<(String, String)>;

/// Longest file, in lines.
const LONGEST: usize = 800;
/// Crates without a line of unsafe code.
const SAFE: &[&str] =
    &["ir/src/lib.rs", "passes/src/lib.rs", "driver/src/lib.rs", "driver/src/main.rs", "tests/src/lib.rs"];
/// Files of the importer that may be unsafe: the memory map of a file.
const UNSAFE_IN_ONNX: &[&str] = &["frontends/onnx/src/source.rs"];

#[test]
fn the_arrows_are_those_of_the_picture() {
    let (drawn, real) = (drawn(), real());
    assert!(drawn.len() >= 8, "the picture was not understood: {drawn:?}");
    let missing: Vec<_> = drawn.difference(&real).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md draws arrows that are not there: {missing:?}");
    let allowed = closure(drawn);
    let added: Vec<_> = real.difference(&allowed).collect();
    assert!(added.is_empty(), "Cargo.toml has arrows that ARCHITECTURE.md does not draw: {added:?}");
}

/// The lines under "Crates and arrows": `a --> b -> c, d`; a line that begins with a branch continues from the first crate.
fn drawn() -> Arrows {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = text.split("## Crates and arrows").nth(1).unwrap();
    let picture = section.split("```").nth(1).unwrap();
    let mut arrows = Arrows::new();
    let mut first = None;
    for line in picture.lines().filter(|l| l.contains('>')) {
        let line = line.split("(uses").next().unwrap();
        let chain: Vec<Vec<String>> = line.split('>').map(crates_in).collect();
        let from_first = chain[0].is_empty();
        first = if from_first { first } else { chain[0].first().cloned() };
        let start = if from_first { vec![first.clone().unwrap()] } else { chain[0].clone() };
        let mut from = start;
        for to in &chain[1..] {
            arrows.extend(from.iter().flat_map(|f| to.iter().map(move |t| (f.clone(), t.clone()))));
            from = to.clone();
        }
    }
    arrows
}

/// Names of crates in a piece of the picture.
fn crates_in(piece: &str) -> Vec<String> {
    let words = piece.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).map(|w| w.trim_end_matches('-'));
    words.filter(|w| *w == "vitc" || w.starts_with("vitc-")).map(str::to_owned).collect()
}

/// Arrows and what follows from them: who may use a crate may see what that crate uses.
fn closure(mut arrows: Arrows) -> Arrows {
    loop {
        let further: Arrows = arrows
            .iter()
            .flat_map(|(a, b)| arrows.iter().filter(move |(c, _)| c == b).map(move |(_, d)| (a.clone(), d.clone())))
            .collect();
        let before = arrows.len();
        arrows.extend(further);
        if arrows.len() == before {
            return arrows;
        }
    }
}

/// Dependencies that are built into products, of all crates but these tests.
fn real() -> Arrows {
    let mut arrows = Arrows::new();
    for package in metadata()["packages"].as_array().unwrap().iter().filter(|p| p["name"] != "vitc-tests") {
        let ours = package["dependencies"].as_array().unwrap().iter().filter(|d| d["path"].is_string());
        for dependency in ours.filter(|d| d["kind"] != "dev") {
            let name = |v: &Value| v["name"].as_str().unwrap().to_owned();
            arrows.insert((name(package), name(dependency)));
        }
    }
    arrows
}

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let output = Command::new(cargo).args(args).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every Rust file of the repository.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 100);
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn every_file_states_its_contract_and_is_short() {
    let mut faults = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        if !text.starts_with("//! ") {
            faults.push(format!("{} does not begin with a `//!` line", shown(&path)));
        }
        let lines = text.lines().count();
        if lines > LONGEST {
            faults.push(format!("{} has {lines} lines, more than {LONGEST}", shown(&path)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
    for file in SAFE {
        assert!(read(file).contains("#![forbid(unsafe_code)]"), "{file} does not forbid unsafe code");
    }
    assert!(read("frontends/onnx/src/lib.rs").contains("#![deny(unsafe_code)]"));
    let excepted: Vec<String> = sources()
        .iter()
        .map(|p| shown(p))
        .filter(|p| p.starts_with("frontends/onnx/src") && read(p).contains("allow(unsafe_code)"))
        .collect();
    assert_eq!(excepted, UNSAFE_IN_ONNX);
}
