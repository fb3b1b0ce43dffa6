//! The image door: pixels enter as they are, `u8`, and the normalisation of the training pipeline becomes part of the
//! graph, where `quantize` folds it into the first convolution.

use std::collections::BTreeMap;

use vitc_ir::{Diagnostic, Elem, Module, Op, Quant, Real, TensorType, ValueId};

use super::Pixels;
use super::draft::Fired;

/// Gives the module a `u8` image input followed by `normalize` where the normalisation can be folded: one image input
/// that feeds unpadded convolutions only. Otherwise the float input stays. Notes in `meta` which it is.
pub(crate) fn open_door(module: Module, pixels: Option<&Pixels>, fired: &mut Fired) -> Result<Module, Diagnostic> {
    let mut module = module;
    let Some(pixels) = pixels else {
        note(&mut module.meta, "quantized", None);
        return Ok(module);
    };
    check(pixels)?;
    let Some(input) = foldable_input(&module, pixels.mean.len()) else {
        note(&mut module.meta, "quantized", Some(pixels));
        return Ok(module);
    };
    note(&mut module.meta, "pixels", Some(pixels));
    *fired.entry("pixel-input").or_default() += 1;
    insert_normalize(&module, input, pixels)
}

fn check(pixels: &Pixels) -> Result<(), Diagnostic> {
    let sound = pixels.mean.len() == pixels.std.len()
        && pixels.mean.iter().all(|m| m.is_finite())
        && pixels.std.iter().all(|s| s.is_finite() && *s > 0.0);
    if sound {
        return Ok(());
    }
    Err(Diagnostic::new("preprocessing", "mean and std want one finite number a channel each, std above 0"))
}

fn note(meta: &mut BTreeMap<String, String>, kind: &str, pixels: Option<&Pixels>) {
    meta.insert("input.kind".into(), kind.into());
    let list = |v: &[f32]| v.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
    if let Some(p) = pixels {
        meta.insert("input.mean".into(), list(&p.mean));
        meta.insert("input.std".into(), list(&p.std));
    }
}

fn foldable_input(module: &Module, channels: usize) -> Option<ValueId> {
    let [input] = &module.inputs[..] else { return None };
    let ty = module.ty(input.value);
    let image = ty.elem == Elem::F32 && ty.shape.rank() == 4 && ty.shape.0[1].as_fixed() == Some(channels);
    let mut users = module.nodes.iter().filter(|n| n.operands.contains(&input.value)).peekable();
    let folds = |n: &vitc_ir::Node| {
        matches!(n.op, Op::Conv2d { pads: [0, 0, 0, 0], groups: 1, .. })
            && n.operands[0] == input.value
            && n.operands[1..].iter().all(|&v| module.const_of(v).is_some())
    };
    let is_output = module.outputs.iter().any(|o| o.value == input.value);
    (image && !is_output && users.peek().is_some() && users.all(folds)).then_some(input.value)
}

fn insert_normalize(module: &Module, input: ValueId, pixels: &Pixels) -> Result<Module, Diagnostic> {
    let mut out = module.successor(module.stage);
    out.lanes = module.lanes.clone();
    let reals = |v: &[f32]| v.iter().map(|&x| Real(f64::from(x))).collect();
    let op = Op::Normalize { mean: reals(&pixels.mean), std: reals(&pixels.std) };
    let misfit = |m: String| Diagnostic::new("preprocessing", m);
    let mut map: Vec<Option<ValueId>> = vec![None; module.values.len()];
    let ty = TensorType::new(Elem::U8, module.ty(input).shape.clone()).with_quant(Quant::per_tensor(1.0, 0));
    let image = out.input(module.inputs[0].name.clone(), ty);
    map[input.0 as usize] = Some(out.push(op, &[image], None).map_err(misfit)?);
    for (i, value) in module.values.iter().enumerate() {
        if let vitc_ir::Def::Const(c) = value.def {
            map[i] = Some(out.constant(module.consts[c].clone()));
        }
    }
    let moved = |map: &[Option<ValueId>], v: ValueId| map[v.0 as usize].expect("operands come first");
    for node in &module.nodes {
        let operands: Vec<_> = node.operands.iter().map(|&v| moved(&map, v)).collect();
        let v = out.push_typed(node.op.clone(), &operands, module.ty(node.result).clone(), node.loc.clone());
        map[node.result.0 as usize] = Some(v);
    }
    for output in &module.outputs {
        out.output(output.name.clone(), moved(&map, output.value));
    }
    Ok(out)
}
