//! Compiled modules against the reference evaluator, bit for bit, at several batches, thread counts and tiers.

use std::sync::Arc;

use vitc_ir::attr::LaneName;
use vitc_ir::eval;
use vitc_ir::lane::{Access, Input, Inst, Program as Lane, Width};
use vitc_ir::{Const, Dim, Elem, ImageLayout, Module, Op, Shape, Stage, TensorType, ValueId};
use vitc_runtime::{OutputForm, Session, SessionOptions, TensorView};

use crate::testing::{Edge, Random};
use crate::{Options, Tier, compile, count_float_instructions};

mod attention;
mod choices;
mod convolutions;
mod guarded;
mod linear;
mod movement;
mod nibbles;
mod predict;
mod products;
mod regions;
mod rows;
mod wide;

fn module() -> Module {
    Module::new("test", Stage::Plan)
}

fn shape(dims: &[usize]) -> Shape {
    Shape::fixed(dims)
}

/// `[N, dims]`.
fn batched(dims: &[usize]) -> Shape {
    Shape(std::iter::once(Dim::N).chain(dims.iter().map(|&d| d.into())).collect())
}

fn input(m: &mut Module, elem: Elem, shape: Shape) -> ValueId {
    let name = format!("x{}", m.inputs.len());
    m.input(name, TensorType::new(elem, shape))
}

fn constant(m: &mut Module, elem: Elem, dims: &[usize], values: &[i64]) -> ValueId {
    let ty = TensorType::new(elem, shape(dims));
    let c = match elem {
        Elem::U8 | Elem::I8 => Const::new("c", ty, &values.iter().map(|&v| v as u8).collect::<Vec<_>>()),
        Elem::I16 => Const::new("c", ty, &values.iter().map(|&v| v as i16).collect::<Vec<_>>()),
        Elem::I32 => Const::new("c", ty, &values.iter().map(|&v| v as i32).collect::<Vec<_>>()),
        _ => Const::new("c", ty, values),
    };
    m.constant(c)
}

fn random_constant(m: &mut Module, r: &mut Random, elem: Elem, dims: &[usize], lo: i64, hi: i64) -> ValueId {
    let values: Vec<i64> = (0..dims.iter().product()).map(|_| r.within(lo, hi)).collect();
    constant(m, elem, dims, &values)
}

fn full(elem: Elem) -> (i64, i64) {
    elem.range().unwrap()
}

/// A copy or a computation: gives the node a place of its own after all others.
fn node(m: &mut Module, op: Op, operands: &[ValueId]) -> ValueId {
    let v = view(m, op, operands);
    let bytes = m.ty(v).bytes().unwrap().size.next_multiple_of(64);
    m.nodes.last_mut().unwrap().place = Some(m.arena);
    m.arena += bytes;
    v
}

/// A movement node that stays a view.
fn view(m: &mut Module, op: Op, operands: &[ValueId]) -> ValueId {
    m.push(op, operands, Some(Arc::from("here"))).unwrap()
}

fn lane(m: &mut Module, inputs: &[(Elem, Access)], insts: Vec<Inst>, output: Elem) -> LaneName {
    let inputs = inputs.iter().map(|&(elem, access)| Input { elem, access }).collect();
    LaneName(m.lane("lane", Lane { inputs, insts, output }))
}

/// Random elements within the element type, or closer.
fn data(r: &mut Random, elem: Elem, count: usize, range: (i64, i64)) -> (eval::Data, Vec<u8>) {
    let mut values: Vec<i64> = (0..count).map(|_| r.within(range.0, range.1)).collect();
    if let [first, .., last] = &mut values[..] {
        (*first, *last) = range;
    }
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()[..elem.bytes()].to_vec()).collect();
    let data = match elem {
        Elem::U8 => eval::Data::U8(values.iter().map(|&v| v as u8).collect()),
        Elem::I8 => eval::Data::I8(values.iter().map(|&v| v as i8).collect()),
        Elem::I16 => eval::Data::I16(values.iter().map(|&v| v as i16).collect()),
        Elem::I32 => eval::Data::I32(values.iter().map(|&v| v as i32).collect()),
        _ => eval::Data::I64(values),
    };
    (data, bytes)
}

fn bytes_of(t: &eval::Tensor) -> Vec<u8> {
    match &t.data {
        eval::Data::U8(v) | eval::Data::Bool(v) => v.clone(),
        eval::Data::I8(v) => v.iter().map(|&v| v as u8).collect(),
        eval::Data::I16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        eval::Data::I32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        eval::Data::I64(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        eval::Data::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn runtime_elem(elem: Elem) -> vitc_runtime::Elem {
    match elem {
        Elem::U8 => vitc_runtime::Elem::U8,
        Elem::I8 => vitc_runtime::Elem::I8,
        Elem::I16 => vitc_runtime::Elem::I16,
        Elem::I32 => vitc_runtime::Elem::I32,
        _ => vitc_runtime::Elem::I64,
    }
}

/// Evaluates and runs the module; inputs are drawn from these ranges (the whole type where none is given).
fn check(m: &mut Module, result: ValueId, seed: u64, ranges: &[(i64, i64)]) {
    m.output("y", result);
    for tier in Tier::available() {
        for (batch, threads) in [(1, 1), (3, 2)] {
            check_at(m, tier, batch, threads, seed, ranges);
        }
    }
}

fn check_at(m: &Module, tier: Tier, batch: usize, threads: usize, seed: u64, ranges: &[(i64, i64)]) {
    check_with(m, &Options { tier, ..Options::default() }, batch, threads, seed, ranges);
}

fn check_with(m: &Module, options: &Options, batch: usize, threads: usize, seed: u64, ranges: &[(i64, i64)]) {
    let mut r = Random(seed);
    let mut given = Vec::new();
    for (n, i) in m.inputs.iter().enumerate() {
        let ty = m.ty(i.value);
        let dims = ty.shape.at(batch);
        let range = ranges.get(n).copied().unwrap_or_else(|| full(ty.elem));
        let (data, bytes) = data(&mut r, ty.elem, dims.iter().product(), range);
        given.push((runtime_elem(ty.elem), dims.clone(), bytes, eval::Tensor { shape: dims, data }));
    }
    let tensors: Vec<eval::Tensor> = given.iter().map(|g| g.3.clone()).collect();
    let expected = eval::run(m, &tensors).unwrap();
    let compiled = compile(m, options).unwrap();
    let inputs: Vec<&[u8]> = given.iter().map(|g| &g.2[..]).collect();
    let want: Vec<Vec<u8>> = expected.iter().map(bytes_of).collect();
    for edge in [Edge::After, Edge::Before] {
        guarded::check(&compiled, &inputs, &want, batch, edge);
    }
    for k in &compiled.kernels {
        assert_eq!(count_float_instructions(&k.code[..k.instructions]), 0, "{}", k.name);
    }
    let program = Arc::new(compiled.into_program().unwrap());
    let mut session = Session::new(program, SessionOptions { threads, ..SessionOptions::default() }).unwrap();
    let views: Vec<TensorView<'_>> = given.iter().map(|g| TensorView::new(g.0, &g.1, &g.2).unwrap()).collect();
    let out = session.run(&views, OutputForm::Raw).unwrap();
    for (o, e) in out.iter().zip(&expected) {
        let (got, want) = (o.view().bytes().to_vec(), bytes_of(e));
        let first = got.iter().zip(&want).position(|(a, b)| a != b);
        let near = |b: &[u8]| first.map(|i| b[i..b.len().min(i + 8)].to_vec());
        assert!(
            got == want,
            "{options:?}, batch {batch}: byte {first:?} of {}: {:?}, wants {:?}",
            want.len(),
            near(&got),
            near(&want)
        );
    }
}

fn requantize(m: &mut Module, extra: &[(Elem, Access)], output: Elem, shift: u32) -> LaneName {
    let inputs: Vec<_> = [(Elem::I32, Access::Element)].into_iter().chain(extra.iter().copied()).collect();
    let insts = vec![Inst::Load(0), Inst::Load(1), Inst::MulWide(0, 1), Inst::RoundShr(2, shift)];
    lane(m, &inputs, insts, output)
}
