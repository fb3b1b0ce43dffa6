//! The image door: pixels enter as they are, `u8`, and the normalisation of the training pipeline becomes part of the
//! graph, where `quantize` folds it into the first convolution.

use std::collections::BTreeMap;

use vitc_ir::{Class, Diagnostic, Elem, Module, Node, Op, Quant, Real, TensorType, ValueId};

use super::Pixels;
use super::draft::{Draft, Fired, join};
use super::entrance::Entrance;
use crate::quantize::is_constant;

/// Gives the module a `u8` image input followed by `normalize` where the normalisation can be folded: one image input
/// that feeds unpadded convolutions only, but for a normalisation of the graph's own, which joins. Otherwise the float input
/// stays. Notes in `meta` which it is. An input that the model declares as `u8` is pixels whatever reads it.
pub(crate) fn open_door(module: Module, pixels: Option<&Pixels>, fired: &mut Fired) -> Result<Module, Diagnostic> {
    let mut module = module;
    let is_declared = matches!(&module.inputs[..], [input] if module.ty(input.value).elem == Elem::U8);
    let closed = if is_declared { "pixels" } else { "quantized" };
    let Some(pixels) = pixels else {
        note(&mut module.meta, closed, None);
        return Ok(module);
    };
    check(pixels, is_declared)?;
    let Some(door) = foldable_input(&module, pixels) else {
        note(&mut module.meta, closed, Some(pixels));
        return Ok(module);
    };
    note(&mut module.meta, "pixels", Some(pixels));
    *fired.entry("pixel-input").or_default() += 1;
    insert_normalize(&module, &door)
}

fn check(pixels: &Pixels, is_declared: bool) -> Result<(), Diagnostic> {
    let sound = pixels.mean.len() == pixels.std.len()
        && pixels.mean.iter().all(|m| m.is_finite())
        && pixels.std.iter().all(|s| s.is_finite() && *s > 0.0);
    if !sound {
        return Err(Diagnostic::new(
            "preprocessing",
            "mean and std want one finite number a channel each, std above 0",
        ));
    }
    let plain = pixels.mean.iter().all(|m| *m == 0.0) && pixels.std.iter().all(|s| (255.0 * s - 1.0).abs() < 1e-5);
    if is_declared && !plain {
        let message = "the model's input is uint8, so pixels enter as they are and the graph normalises them; leave out --mean and --std";
        return Err(Diagnostic::new("preprocessing", message));
    }
    Ok(())
}

fn note(meta: &mut BTreeMap<String, String>, kind: &str, pixels: Option<&Pixels>) {
    meta.insert("input.kind".into(), kind.into());
    let list = |v: &[f32]| v.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
    if let Some(p) = pixels {
        meta.insert("input.mean".into(), list(&p.mean));
        meta.insert("input.std".into(), list(&p.std));
    }
}

/// The input, and what the convolutions read of it.
struct Door {
    input: ValueId,
    read: ValueId,
    /// The nodes between, of which movement stays, on pixels.
    between: Vec<usize>,
    /// What `read` is of a pixel, channel by channel: `(pixel/255 - mean)/std`.
    mean: Vec<f64>,
    std: Vec<f64>,
}

fn foldable_input(module: &Module, pixels: &Pixels) -> Option<Door> {
    let [input] = &module.inputs[..] else { return None };
    let ty = module.ty(input.value);
    let image = matches!(ty.elem, Elem::F32 | Elem::U8) && ty.shape.rank() == 4;
    let channels = ty.shape.0.get(pixels.axis).and_then(|c| c.as_fixed());
    if !image || channels != Some(pixels.mean.len()) {
        return None;
    }
    let door = widened(module, normalisation(module, input.value, pixels)?);
    let mut users = module.nodes.iter().filter(|n| n.operands.contains(&door.read)).peekable();
    let folds = |n: &Node| {
        matches!(n.op, Op::Conv2d { pads: [0, 0, 0, 0], groups: 1, .. })
            && n.operands[0] == door.read
            && n.operands[1..].iter().all(|&v| is_constant(module, v))
    };
    let is_output = module.outputs.iter().any(|o| [input.value, door.read].contains(&o.value));
    (!is_output && users.peek().is_some() && users.all(folds)).then_some(door)
}

/// The normalisation before the graph and the graph's own as one.
fn normalisation(module: &Module, input: ValueId, pixels: &Pixels) -> Option<Door> {
    let mut draft = Draft::new(module.clone());
    let Entrance { nodes, read, axis, order, factor, summand } = Entrance::of(&mut draft, input, pixels.axis)?;
    let before = |list: &[f32], c: usize| f64::from(list[order[c]]);
    // an input of pixels was checked to have nothing before it, to the last bit or so
    let is_declared = module.ty(input).elem == Elem::U8;
    let std_of = |c: usize| if is_declared { 1.0 / 255.0 } else { before(&pixels.std, c) };
    let mean = (0..factor.len()).map(|c| before(&pixels.mean, c) - summand[c] * std_of(c) / factor[c]).collect();
    let std = (0..factor.len()).map(|c| std_of(c) / factor[c]).collect();
    (axis == 1).then_some(Door { input, read, between: nodes, mean, std })
}

/// What the one pair of 16 bits behind a door yields, where pixels are so coarse beside its steps, and its range is theirs,
/// that it changes nothing.
fn widened(module: &Module, door: Door) -> Door {
    const STEPS_OF_A_PIXEL: f64 = 32.0;
    let only_user = |v: ValueId| {
        let mut users = module.nodes.iter().enumerate().filter(|(_, n)| n.operands.contains(&v));
        users.next().filter(|_| users.next().is_none())
    };
    let pair = || {
        let (first, quantize) = only_user(door.read).filter(|(_, n)| n.op == Op::Quantize { to: Elem::I16 })?;
        let (second, dequantize) = only_user(quantize.result).filter(|(_, n)| n.op == Op::Dequantize {})?;
        let quant = module.ty(quantize.result).quant.as_ref()?;
        let (scale, zero, (least, most)) = (quant.single()?, f64::from(quant.zero_point), Elem::I16.range()?);
        let changes_nothing = |(mean, std): (&f64, &f64)| {
            let integer = |pixel: f64| (pixel - mean) / std / scale + zero;
            // an integer beyond the range by half a pixel is that pixel still
            let room = 0.5 / (255.0 * std * scale);
            integer(0.0) >= least as f64 - room
                && integer(1.0) <= most as f64 + room
                && 1.0 / (255.0 * std) >= STEPS_OF_A_PIXEL * scale
        };
        let fine = door.mean.iter().zip(&door.std).all(changes_nothing);
        fine.then_some((dequantize.result, [first, second]))
    };
    match pair() {
        Some((read, nodes)) => Door { read, between: [&door.between[..], &nodes[..]].concat(), ..door },
        None => door,
    }
}

fn insert_normalize(module: &Module, door: &Door) -> Result<Module, Diagnostic> {
    let mut out = module.successor(module.stage);
    out.lanes = module.lanes.clone();
    let reals = |v: &[f64]| v.iter().map(|&x| Real(x)).collect();
    let op = Op::Normalize { mean: reals(&door.mean), std: reals(&door.std) };
    let misfit = |m: String| Diagnostic::new("preprocessing", m);
    let mut map: Vec<Option<ValueId>> = vec![None; module.values.len()];
    let shape = module.ty(door.input).shape.clone();
    let ty = TensorType::new(Elem::U8, shape).with_quant(Quant::per_tensor(1.0, 0));
    let mut image = out.input(module.inputs[0].name.clone(), ty);
    let movement = door.between.iter().map(|&n| &module.nodes[n]).filter(|n| n.op.class() == Class::Move);
    for node in movement {
        image = out.push(node.op.clone(), &[image], node.loc.clone()).map_err(misfit)?;
    }
    let of_graph = door.between.iter().map(|&n| &module.nodes[n]).filter(|n| n.op.class() == Class::Float);
    let loc = of_graph.fold(None, |all, n| join(all, n.loc.clone()));
    let normalized = out.push(op, &[image], loc).map_err(misfit)?;
    map[door.read.0 as usize] = Some(normalized);
    for (i, value) in module.values.iter().enumerate() {
        if let vitc_ir::Def::Const(c) = value.def {
            map[i] = Some(out.constant(module.consts[c].clone()));
        }
    }
    let moved = |map: &[Option<ValueId>], v: ValueId| map[v.0 as usize].expect("operands come first");
    let others = module.nodes.iter().enumerate().filter(|(n, _)| !door.between.contains(n));
    for (_, node) in others {
        let operands: Vec<_> = node.operands.iter().map(|&v| moved(&map, v)).collect();
        let v = out.push_typed(node.op.clone(), &operands, module.ty(node.result).clone(), node.loc.clone());
        map[node.result.0 as usize] = Some(v);
    }
    for output in &module.outputs {
        out.output(output.name.clone(), moved(&map, output.value));
    }
    Ok(out)
}
