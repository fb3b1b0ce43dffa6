//! What the whole room leaves at the doors.

use vitc_ir::{Module, Op, text, verify};

fn module(graph: &str) -> Module {
    let source = format!("module \"m\" stage integerize {{\n{graph}}}\n");
    let module = text::parse(&source, Default::default()).unwrap_or_else(|e| panic!("{e}"));
    verify::verify(&module).unwrap_or_else(|e| panic!("{e}"));
    module
}

/// What is moved on its way out is moved as integers, also where another output is not moved.
#[test]
fn numbers_are_made_of_integers_last() {
    let m = module(
        r#"
  graph (%x: tensor<Nx1x4xi16, q(0.5, 0)>) -> (%2 "flat", %0 "whole") {
    %0 = dequantize %x : tensor<Nx1x4xf32>
    %1 = slice %0 {axis = 2, start = 1, len = 2, step = 1} : tensor<Nx1x2xf32>
    %2 = reshape %1 {shape = [N, 2]} : tensor<Nx2xf32>
  }
"#,
    );
    let (fused, fired) = super::run(&m).unwrap();
    verify::verify(&fused).unwrap();
    assert_eq!(fired["door-behind-movement"], 2);
    for output in &fused.outputs {
        assert_eq!(fused.node_of(output.value).unwrap().op, Op::Dequantize {}, "{}", output.name);
    }
}
