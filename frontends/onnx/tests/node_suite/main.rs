//! The ONNX backend node tests, an outside suite: every case goes through the importer and the float evaluator, and
//! `docs/onnx-support.md` says what came of it. `BLESS=1` writes that page again.
//!
//! The suite is the folder `node` that the Python package `onnx` carries (some versions do). `VITC_ONNX_NODE_TESTS` names
//! it; without that, the Python of `VITC_PYTHON` (else `python3`) is asked where the package is.

mod attempt;
#[path = "../common/mod.rs"]
mod common;
mod page;
mod suite;

use std::io::Write;
use std::path::{Path, PathBuf};

use attempt::{Outcome, attempt};
use page::Page;

/// Cases with a float input that must come out right; the page says how many do.
const FEWEST: usize = 350;

#[test]
fn the_node_tests_of_onnx_come_out_right() {
    let folder = match suite::folder() {
        Ok(folder) => folder,
        Err(why) => {
            // past the test runner's capture, so that nobody takes this for a pass
            let name = "the_node_tests_of_onnx_come_out_right";
            let _ = writeln!(std::io::stderr(), "{name}: skipped: {why}");
            return;
        }
    };
    let cases = suite::cases(&folder);
    let mut page = Page::new(cases.len());
    for case in cases.values() {
        page.add(case, attempt(case));
    }
    let text = page.text();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(file(), &text).unwrap();
    }
    let wrong: Vec<String> = page.of(|o| if let Outcome::Wrong(why) = o { Some(why.clone()) } else { None });
    assert!(wrong.is_empty(), "{} cases come out wrong:\n{}", wrong.len(), wrong.join("\n"));
    let passed = page.of(|o| (*o == Outcome::Computed).then(String::new)).len();
    assert!(passed >= FEWEST, "only {passed} cases pass");
    compare(&text);
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/onnx-support.md")
}

/// Compares the page with the one in the repository.
fn compare(text: &str) {
    let there = std::fs::read_to_string(file()).unwrap_or_default();
    let suite_of = |text: &str| text.lines().find(|l| l.starts_with(page::SUITE)).map(str::to_owned);
    if suite_of(&there) != suite_of(text) {
        let _ = writeln!(std::io::stderr(), "docs/onnx-support.md is about another version of the suite; not compared");
        return;
    }
    let line = there.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(there == text, "docs/onnx-support.md is not what comes out (line {line:?}); BLESS=1 writes it again");
}
