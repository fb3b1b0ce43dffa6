//! Golden `.vir` tests: each file in `tests/vir` is a module, the pass to run on it, and what must come out.
//!
//! ```text
//! // test pass=integerize nonlinear=shift
//! module "name" stage quantize { ... }
//! // check: int.matmul            appears, in this order
//! // not:   dequantize            appears nowhere
//! // fired: requantize x1         the rule fired so often
//! //= ...                         the graph that comes out, line by line
//! ```
//!
//! `BLESS=1` rewrites the `fired:` and `//=` lines; `check:` and `not:` lines are the author's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use vitc_ir::{Module, text, verify};
use vitc_passes::integerize::{self, Nonlinear};
use vitc_passes::plan::{self, Target};
use vitc_passes::{clean, fuse, shape};

#[test]
fn golden_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vir");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "vir"));
    files.sort();
    assert!(files.len() >= 12);
    let failures: Vec<String> =
        files.iter().filter_map(|f| run(f).err().map(|e| format!("{}: {e}", f.display()))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// What a pass made of a module.
struct Outcome {
    text: String,
    fired: BTreeMap<String, usize>,
}

fn run(path: &Path) -> Result<(), String> {
    let source = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let module = text::parse(&source, Bytes::new()).map_err(|d| d.to_string())?;
    verify::verify(&module).map_err(|d| format!("the module is not well-formed: {d}"))?;
    let options = options(&source)?;
    let outcome = pass(&module, &options)?;
    checks(&source, &outcome)?;
    if std::env::var_os("BLESS").is_some() {
        return fs::write(path, blessed(&source, &outcome)).map_err(|e| e.to_string());
    }
    fired(&source, &outcome)?;
    let want: Vec<&str> = tagged(&source, "//= ").collect();
    let have: Vec<&str> = outcome.text.lines().collect();
    if want != have {
        return Err(format!("another graph comes out (BLESS=1 accepts it):\n{}", outcome.text));
    }
    Ok(())
}

/// `pass=integerize nonlinear=shift` of the first line.
fn options(source: &str) -> Result<BTreeMap<&str, &str>, String> {
    let line =
        source.lines().next().and_then(|l| l.strip_prefix("// test ")).ok_or("the first line is not `// test ...`")?;
    line.split_whitespace().map(|w| w.split_once('=').ok_or_else(|| format!("`{w}` is not KEY=VALUE"))).collect()
}

fn pass(module: &Module, options: &BTreeMap<&str, &str>) -> Result<Outcome, String> {
    let listed = |d: vitc_ir::Diagnostics| d.to_string();
    let (module, fired) = match options.get("pass").copied() {
        Some("clean") => {
            let cleaned = clean::run(module, &clean::CleanOptions::default()).map_err(listed)?;
            (cleaned.module, cleaned.fired.iter().map(|(rule, n)| (rule.to_string(), *n)).collect())
        }
        Some("shape") => (shape::run(module).map_err(listed)?, BTreeMap::new()),
        Some("integerize") => {
            let nonlinear = match options.get("nonlinear").copied() {
                None => Nonlinear::Auto,
                Some("shift") => Nonlinear::Shift,
                Some("ibert") => Nonlinear::Ibert,
                Some(other) => return Err(format!("there are no nonlinear={other} forms")),
            };
            let (module, report) =
                integerize::run(module, &integerize::Options { nonlinear, ..Default::default() }).map_err(listed)?;
            (module, report.fired)
        }
        Some("fuse") => fuse::run(module).map_err(listed)?,
        Some("plan") => {
            let target = Target {
                weight_layout: &vitc_codegen::weight_layout,
                is_view: &vitc_codegen::is_view_supported,
                is_operand_view: &vitc_codegen::is_operand_view_supported,
            };
            (plan::run(module, &target).map_err(listed)?, BTreeMap::new())
        }
        other => return Err(format!("there is no pass {other:?}")),
    };
    verify::verify(&module).map_err(|d| format!("what comes out is not well-formed: {d}"))?;
    let fired = fired.into_iter().filter(|(_, n)| *n > 0).collect();
    Ok(Outcome { text: text::print(&module).text, fired })
}

/// What stands behind a tag at the start of a line.
fn tagged<'a>(source: &'a str, tag: &'a str) -> impl Iterator<Item = &'a str> {
    source.lines().filter_map(move |l| l.strip_prefix(tag))
}

fn checks(source: &str, outcome: &Outcome) -> Result<(), String> {
    let mut rest = outcome.text.lines();
    for wanted in tagged(source, "// check:").map(str::trim) {
        if !rest.any(|line| line.contains(wanted)) {
            return Err(format!("`{wanted}` does not appear (in this order) in\n{}", outcome.text));
        }
    }
    for unwanted in tagged(source, "// not:").map(str::trim) {
        if outcome.text.contains(unwanted) {
            return Err(format!("`{unwanted}` appears in\n{}", outcome.text));
        }
    }
    Ok(())
}

fn fired(source: &str, outcome: &Outcome) -> Result<(), String> {
    let want: Vec<String> = tagged(source, "// fired:").map(|l| l.trim().to_owned()).collect();
    let have = fired_lines(outcome);
    if want == have { Ok(()) } else { Err(format!("the rules that fired are\n{}", have.join("\n"))) }
}

fn fired_lines(outcome: &Outcome) -> Vec<String> {
    outcome.fired.iter().map(|(rule, n)| format!("{rule} x{n}")).collect()
}

/// The source with new `fired:` and `//=` lines at its end.
fn blessed(source: &str, outcome: &Outcome) -> String {
    let kept = source.lines().filter(|l| !l.starts_with("// fired:") && !l.starts_with("//="));
    let mut lines: Vec<String> = kept.map(str::to_owned).collect();
    lines.extend(fired_lines(outcome).iter().map(|l| format!("// fired: {l}")));
    lines.extend(outcome.text.lines().map(|l| format!("//= {l}")));
    lines.join("\n") + "\n"
}
