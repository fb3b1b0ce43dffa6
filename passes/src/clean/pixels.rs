//! The image door: pixels enter as they are, `u8`, and the normalisation of the training pipeline becomes part of the
//! graph, where `quantize` folds it into the first convolution.

use std::collections::BTreeMap;

use vitc_ir::{Diagnostic, Elem, Module, Node, Op, Quant, Real, TensorType, ValueId};

use super::Pixels;
use super::draft::Fired;
use crate::quantize::is_constant;

/// Gives the module a `u8` image input followed by `normalize` where the normalisation can be folded: one image input
/// that feeds unpadded convolutions only. Otherwise the float input stays. Notes in `meta` which it is.
pub(crate) fn open_door(module: Module, pixels: Option<&Pixels>, fired: &mut Fired) -> Result<Module, Diagnostic> {
    let mut module = module;
    let Some(pixels) = pixels else {
        note(&mut module.meta, "quantized", None);
        return Ok(module);
    };
    check(pixels)?;
    let Some(door) = foldable_input(&module, pixels) else {
        note(&mut module.meta, "quantized", Some(pixels));
        return Ok(module);
    };
    note(&mut module.meta, "pixels", Some(pixels));
    *fired.entry("pixel-input").or_default() += 1;
    insert_normalize(&module, door, pixels)
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

/// The input, and what the convolutions read of it: itself, or what a pair of 16 bits makes of it.
#[derive(Clone, Copy)]
struct Door {
    input: ValueId,
    read: ValueId,
}

fn foldable_input(module: &Module, pixels: &Pixels) -> Option<Door> {
    let [input] = &module.inputs[..] else { return None };
    let read = behind_fine_pair(module, input.value, pixels).unwrap_or(input.value);
    let ty = module.ty(input.value);
    let image = ty.elem == Elem::F32 && ty.shape.rank() == 4 && ty.shape.0[1].as_fixed() == Some(pixels.mean.len());
    let mut users = module.nodes.iter().filter(|n| n.operands.contains(&read)).peekable();
    let folds = |n: &Node| {
        matches!(n.op, Op::Conv2d { pads: [0, 0, 0, 0], groups: 1, .. })
            && n.operands[0] == read
            && n.operands[1..].iter().all(|&v| is_constant(module, v))
    };
    let is_output = module.outputs.iter().any(|o| [input.value, read].contains(&o.value));
    (image && !is_output && users.peek().is_some() && users.all(folds)).then_some(Door { input: input.value, read })
}

/// What the one pair of 16 bits behind an input yields, where pixels are so coarse beside its steps, and its range is theirs,
/// that it changes nothing.
fn behind_fine_pair(module: &Module, input: ValueId, Pixels { mean, std }: &Pixels) -> Option<ValueId> {
    const STEPS_OF_A_PIXEL: f64 = 32.0;
    let only_user = |v: ValueId| {
        let mut users = module.nodes.iter().filter(|n| n.operands.contains(&v));
        users.next().filter(|_| users.next().is_none())
    };
    let quantize = only_user(input).filter(|n| n.op == Op::Quantize { to: Elem::I16 })?;
    let dequantize = only_user(quantize.result).filter(|n| n.op == Op::Dequantize {})?;
    let quant = module.ty(quantize.result).quant.as_ref()?;
    let (scale, zero, (least, most)) = (quant.single()?, f64::from(quant.zero_point), Elem::I16.range()?);
    let changes_nothing = |(mean, std): (&f32, &f32)| {
        let (mean, std) = (f64::from(*mean), f64::from(*std));
        let integer = |pixel: f64| (pixel - mean) / std / scale + zero;
        // an integer beyond the range by half a pixel is that pixel still
        let room = 0.5 / (255.0 * std * scale);
        integer(0.0) >= least as f64 - room
            && integer(1.0) <= most as f64 + room
            && 1.0 / (255.0 * std) >= STEPS_OF_A_PIXEL * scale
    };
    mean.iter().zip(std).all(changes_nothing).then_some(dequantize.result)
}

fn insert_normalize(module: &Module, Door { input, read }: Door, pixels: &Pixels) -> Result<Module, Diagnostic> {
    let mut out = module.successor(module.stage);
    out.lanes = module.lanes.clone();
    let reals = |v: &[f32]| v.iter().map(|&x| Real(f64::from(x))).collect();
    let op = Op::Normalize { mean: reals(&pixels.mean), std: reals(&pixels.std) };
    let misfit = |m: String| Diagnostic::new("preprocessing", m);
    let mut map: Vec<Option<ValueId>> = vec![None; module.values.len()];
    let ty = TensorType::new(Elem::U8, module.ty(input).shape.clone()).with_quant(Quant::per_tensor(1.0, 0));
    let image = out.input(module.inputs[0].name.clone(), ty);
    let normalized = out.push(op, &[image], None).map_err(misfit)?;
    map[input.0 as usize] = Some(normalized);
    map[read.0 as usize] = Some(normalized);
    for (i, value) in module.values.iter().enumerate() {
        if let vitc_ir::Def::Const(c) = value.def {
            map[i] = Some(out.constant(module.consts[c].clone()));
        }
    }
    let moved = |map: &[Option<ValueId>], v: ValueId| map[v.0 as usize].expect("operands come first");
    let is_pair = |n: &&Node| input != read && (n.operands.contains(&input) || n.result == read);
    for node in module.nodes.iter().filter(|n| !is_pair(n)) {
        let operands: Vec<_> = node.operands.iter().map(|&v| moved(&map, v)).collect();
        let v = out.push_typed(node.op.clone(), &operands, module.ty(node.result).clone(), node.loc.clone());
        map[node.result.0 as usize] = Some(v);
    }
    for output in &module.outputs {
        out.output(output.name.clone(), moved(&map, output.value));
    }
    Ok(out)
}
