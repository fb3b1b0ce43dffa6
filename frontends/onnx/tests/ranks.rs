//! Outputs that rank numbers: the numbers are the outputs, under their own names, and a note says so.

mod common;

use common::{Build, D, int};
use vitc_ir::{Module, verify};
use vitc_onnx::{ImportError, Options, import_bytes};

fn import(build: Build) -> Result<Module, ImportError> {
    let module = import_bytes(build.bytes(), None, &Options::default())?;
    verify::verify(&module).unwrap();
    Ok(module)
}

fn names(module: &Module) -> Vec<&str> {
    module.outputs.iter().map(|o| o.name.as_str()).collect()
}

/// Logits of an image, which are no output yet.
fn logits() -> Build {
    Build::new(17).input("x", &[D::Named("batch"), D::Is(4)]).ints("k", &[1], &[1]).ints("axes", &[1], &[1]).node(
        "Tanh",
        &["x"],
        &["logits"],
        vec![],
    )
}

fn class(build: Build, of: &str) -> Build {
    build.node("ArgMax", &[of], &["class"], vec![int("axis", 1), int("keepdims", 0)])
}

#[test]
fn ranks_beside_their_numbers_are_left_out() {
    let module = import(class(logits(), "logits").output("logits").output("class")).unwrap();
    assert_eq!((names(&module), module.meta["onnx.ranks"].as_str()), (vec!["logits"], "class (ArgMax of logits)"));
    // the order of outputs and what is in between do not matter
    let build =
        logits().node("Identity", &["logits"], &["scores"], vec![]).node("Softmax", &["logits"], &["p"], vec![]);
    let module = import(class(build, "p").output("class").output("scores")).unwrap();
    assert_eq!((names(&module), module.meta["onnx.ranks"].as_str()), (vec!["scores"], "class (ArgMax of scores)"));
    assert_eq!(module.meta.get("onnx.ranks").map(String::len), Some(24));
}

#[test]
fn ranks_alone_give_way_to_their_numbers() {
    let build = logits().node("TopK", &["logits", "k"], &["value", "index"], vec![]);
    let build = build.node("Squeeze", &["index", "axes"], &["flat"], vec![]).node(
        "Cast",
        &["flat"],
        &["y"],
        vec![int("to", 1)],
    );
    let module = import(build.output("value").output("y")).unwrap();
    assert_eq!(names(&module), ["logits"]);
    let note = "value (TopK of logits, which is given instead), y (TopK of logits)";
    assert_eq!(module.meta["onnx.ranks"], note);
    // beside other outputs too, and in their place
    let build = class(logits(), "logits").node("Relu", &["x"], &["features"], vec![]);
    assert_eq!(names(&import(build.output("class").output("features")).unwrap()), ["logits", "features"]);
}

/// What the graph computes from ranks would be lost.
#[test]
fn ranks_inside_a_graph_are_refused() {
    let build = class(logits(), "logits").node("Gather", &["x", "class"], &["y"], vec![int("axis", 1)]);
    let error = import(build.output("y").output("class")).unwrap_err().to_string();
    for expected in ["/Gather_2", "`class`", "`logits`", "ArgMax", "help: "] {
        assert!(error.contains(expected), "{expected} is missing in\n{error}");
    }
    let of_constant = logits().node("ArgMax", &["k"], &["y"], vec![]).output("y").output("logits");
    assert!(import(of_constant).unwrap_err().to_string().contains("ArgMax"));
}
