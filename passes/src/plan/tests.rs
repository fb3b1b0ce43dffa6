//! Regions of small plans, and that their memory is not shared.

use vitc_ir::layout::Layout;
use vitc_ir::{Module, Op, text, verify};

use super::{Target, run};

/// Two projections of `%x` with what belongs to another attention head written between them.
const BLOCK: &str = r#"
module "block" stage fuse {
  const @w : tensor<4x4xi8, q(0x1p-6, 0)> = [1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 11, -12, 13, -14, 15, -16]
  lane @store (i32 element) -> u8 {
    %0 = load 0
    %1 = clamp %0, 0, 255
  }
  lane @residual (i32 element, u8 element) -> u8 {
    %0 = load 0
    %1 = load 1
    %2 = add %0, %1
    %3 = clamp %2, 0, 255
  }
  graph (%x: tensor<Nx3x4xu8>) -> (%7 "y") {
    %0 = fused.matmul %x, @w {a_zero = 0, b_zero = 0, lane = @store, to = u8} : tensor<Nx3x4xu8>
    %1 = int.clamp %0 {lo = 1, hi = 99} : tensor<Nx3x4xu8>
    %2 = transpose %1 {perm = [0, 2, 1]} : tensor<Nx4x3xu8>
    %3 = fused.matmul %0, %2 {a_zero = 0, b_zero = 128, lane = @store, to = u8} : tensor<Nx3x3xu8>
    %4 = fused.matmul %0, @w, %1 {a_zero = 0, b_zero = 0, lane = @residual, to = u8} : tensor<Nx3x4xu8>
    %5 = int.clamp %3 {lo = 2, hi = 98} : tensor<Nx3x3xu8>
    %6 = fused.matmul %5, %4 {a_zero = 0, b_zero = 128, lane = @store, to = u8} : tensor<Nx3x4xu8>
    %7 = int.clamp %6 {lo = 3, hi = 97} : tensor<Nx3x4xu8>
  }
}
"#;

fn plan(source: &str) -> Module {
    let module = text::parse(source, Default::default()).unwrap();
    verify::verify(&module).unwrap();
    let layout = |_: usize, _: usize| Layout::Dot4 { columns: 8 };
    let is_operand_view = |m: &Module, n: usize, i: usize, _: &[bool]| {
        let node = &m.nodes[n];
        matches!(node.op, Op::FusedMatMul { .. }) && m.const_of(node.operands[1]).is_none() && i < 2
    };
    let target = Target { weight_layout: &layout, is_view: &|_, _, _| true, is_operand_view: &is_operand_view };
    let planned = run(&module, &target).unwrap();
    verify::verify(&planned).unwrap();
    planned
}

/// Op and region of each node.
fn regions(module: &Module) -> Vec<(&'static str, Option<usize>)> {
    module.nodes.iter().map(|n| (n.op.name(), n.region)).collect()
}

#[test]
fn steps_that_keep_to_their_rows_come_together() {
    let planned = plan(BLOCK);
    let (one, two) = (Some(1), Some(2));
    let expected = [
        ("fused.matmul", one),
        ("int.clamp", one),
        ("fused.matmul", one),
        ("transpose", None),
        ("fused.matmul", two),
        ("int.clamp", two),
        ("fused.matmul", two),
        ("int.clamp", two),
    ];
    assert_eq!(regions(&planned), expected);
}

/// Each value is read by the next step only: without regions, two places would do.
const CHAIN: &str = r#"
module "chain" stage fuse {
  graph (%x: tensor<Nx3x4xu8>) -> (%4 "y") {
    %0 = int.clamp %x {lo = 1, hi = 99} : tensor<Nx3x4xu8>
    %1 = int.clamp %0 {lo = 2, hi = 98} : tensor<Nx3x4xu8>
    %2 = int.clamp %1 {lo = 3, hi = 97} : tensor<Nx3x4xu8>
    %3 = int.clamp %2 {lo = 4, hi = 96} : tensor<Nx3x4xu8>
    %4 = int.clamp %3 {lo = 5, hi = 95} : tensor<Nx3x4xu8>
  }
}
"#;

#[test]
fn what_a_region_uses_shares_no_memory() {
    let planned = plan(CHAIN);
    assert!(planned.nodes.iter().all(|n| n.region == Some(1)));
    assert_eq!(planned.arena, 5 * super::ALIGN);
    let mut shared = planned.clone();
    shared.nodes[3].place = shared.nodes[0].place;
    let found = verify::verify(&shared).unwrap_err();
    assert_eq!(found.0.iter().map(|d| d.code).collect::<Vec<_>>(), ["place-overlap"]);
    shared.nodes.iter_mut().for_each(|n| n.region = None);
    assert!(verify::verify(&shared).is_ok(), "with a barrier after each step the place is free again");
}

#[test]
fn a_reader_of_other_rows_begins_a_region() {
    let rows_mixed = BLOCK.replace("%4 = fused.matmul %0, @w, %1", "%4 = fused.matmul %3, @w3, %1").replace(
        "  lane @store",
        "  const @w3 : tensor<3x4xi8> = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]\n  lane @store",
    );
    let planned = plan(&rows_mixed);
    // The scores, what is made of each of their rows, and only then what reads all of these rows.
    let last = planned.nodes.iter().position(|n| n.operands.len() == 2 && n.region == Some(3));
    let summary: Vec<_> = planned.nodes.iter().map(|n| n.region).collect();
    assert!(last.is_some(), "{summary:?}");
    assert_eq!(summary, [Some(1), Some(1), None, Some(2), Some(2), Some(2), Some(3), Some(3)]);
}

/// A transpose that a table reads is a copy; the same before a product is a view.
#[test]
fn copies_are_counted_with_their_reason() {
    let source = r#"
module "copies" stage fuse {
  const @w : tensor<4x4xi8, q(0x1p-6, 0)> = [1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 11, -12, 13, -14, 15, -16]
  lane @store (i32 element) -> u8 {
    %0 = load 0
    %1 = clamp %0, 0, 255
  }
  graph (%x: tensor<Nx4x3xu8>) -> (%4 "y") {
    %0 = transpose %x {perm = [0, 2, 1]} : tensor<Nx3x4xu8>
    %1 = int.clamp %0 {lo = 1, hi = 99} : tensor<Nx3x4xu8>
    %2 = fused.matmul %1, @w {a_zero = 0, b_zero = 0, lane = @store, to = u8} : tensor<Nx3x4xu8>
    %3 = concat %1, %2 {axis = 1} : tensor<Nx6x4xu8>
    %4 = int.clamp %3 {lo = 2, hi = 98} : tensor<Nx6x4xu8>
  }
}
"#;
    let planned = plan(source);
    let copies = super::copies::copies(&planned);
    let told: Vec<(usize, &str)> = copies.iter().map(|c| (c.bytes, c.reason.as_str())).collect();
    let expected =
        [(12, "int.clamp reads whole rows, one after another"), (24, "its operands come from different kernels")];
    assert_eq!(told, expected);
}
