//! Kernels with a lane program attached. The meaning is [`Program::eval`] for each element; a block of elements goes
//! through each instruction at once, and a block in which anything does not fit is done again element by element, which
//! finds the error.

use super::int::accumulators;
use super::tensor::{Data, Slice, View, with_ints};
use super::{Call, Evaluated, Fault, misplaced, movement};
use crate::lane::{Access, Inst, Program, Width};
use crate::op::Op;
use crate::types::Elem;

/// Elements that go through an instruction at once.
const BLOCK: usize = 256;

pub(super) fn eval(call: &Call) -> Evaluated {
    let (name, to) = match call.op {
        Op::FusedMatMul { lane, to, .. } | Op::FusedConv2d { lane, to, .. } | Op::FusedMap { lane, to, .. } => {
            (&lane.0, *to)
        }
        _ => return misplaced(call),
    };
    let program = call.lanes.get(name).ok_or_else(|| Fault::eval(format!("there is no lane program `{name}`")))?;
    if program.output != to {
        return Err(Fault::eval(format!("lane program `{name}` yields {}, the op {to}", program.output)));
    }
    if matches!(call.op, Op::FusedMap { .. }) {
        return run(program, call.operands, call.shape, call.shape.len().saturating_sub(1));
    }
    let sums = accumulators(call, None)?;
    let accumulator = View { shape: call.shape, data: Slice::I32(&sums) };
    let inputs: Vec<View> = std::iter::once(accumulator).chain(call.operands[2..].iter().copied()).collect();
    let channel = call.op.lane_channel(call.shape.len());
    run(program, &inputs, call.shape, channel)
}

/// An input, ready to be loaded a stretch of a row at a time.
struct Source<'a> {
    stored: Slice<'a>,
    /// Broadcast to the result's shape, where that repeats anything.
    expanded: Option<Data>,
    step: Step,
}

/// The index of an element of an input for element `column` of row `row` of the result.
#[derive(Clone, Copy)]
enum Step {
    /// `row * columns + column`.
    Element { columns: usize },
    /// `column`.
    Column,
    /// `row / run % count`: a channel that is not the last dimension; a row, when nothing repeats.
    Row { run: usize, count: usize },
    /// 0.
    Fixed,
}

impl Step {
    fn index(self, row: usize, column: usize) -> usize {
        match self {
            Step::Element { columns } => row * columns + column,
            Step::Column => column,
            Step::Row { run, count } => row / run % count,
            Step::Fixed => 0,
        }
    }

    /// Whether the next column is the next element.
    fn moves(self) -> bool {
        matches!(self, Step::Element { .. } | Step::Column)
    }
}

impl<'a> Source<'a> {
    /// Input `n` of a program on a result of this shape whose channels are dimension `channel`.
    fn new(program: &Program, n: usize, x: &View<'a>, shape: &[usize], channel: usize) -> Result<Source<'a>, Fault> {
        let input = program.inputs[n];
        if input.elem != x.elem() {
            return Err(Fault::eval(format!("lane input {n} is {}, the program wants {}", x.elem(), input.elem)));
        }
        let count: usize = shape.iter().product();
        let columns = shape.last().copied().unwrap_or(1);
        let channels = shape.get(channel).copied().unwrap_or(1);
        let inner: usize = shape.iter().skip(channel + 1).product();
        let (wanted, step) = match input.access {
            Access::Element => (x.len(), Step::Element { columns }),
            Access::Channel if channel + 1 >= shape.len() => (channels, Step::Column),
            Access::Channel => (channels, Step::Row { run: inner / columns, count: channels }),
            Access::Row => (count / columns, Step::Row { run: 1, count: count / columns }),
            Access::Scalar => (1, Step::Fixed),
            Access::Table => (256, Step::Fixed),
        };
        if x.len() != wanted {
            return Err(Fault::eval(format!("lane input {n} has {} elements, wants {wanted}", x.len())));
        }
        let expand = input.access == Access::Element && x.len() != count;
        let expanded = if expand { Some(broadcast(x, shape, n)?) } else { None };
        Ok(Source { stored: x.data, expanded, step })
    }

    fn slice(&self) -> Slice<'_> {
        self.expanded.as_ref().map_or(self.stored, Data::slice)
    }

    /// Element `index` of the data.
    fn at(&self, index: usize) -> i64 {
        #[allow(clippy::useless_conversion)]
        let value: Result<i64, Fault> = with_ints!(self.slice(), xs => i64::from(xs[index]));
        value.unwrap_or(0)
    }

    /// Fills `lanes` with the elements from (`row`, `column`) on.
    fn load(&self, row: usize, column: usize, lanes: &mut [i64]) {
        let start = self.step.index(row, column);
        if !self.step.moves() {
            lanes.fill(self.at(start));
            return;
        }
        #[allow(clippy::useless_conversion)]
        let loaded: Result<(), Fault> = with_ints!(self.slice(), xs => {
            lanes.iter_mut().zip(&xs[start..]).for_each(|(lane, &x)| *lane = i64::from(x));
        });
        debug_assert!(loaded.is_ok(), "a program loads integers only");
    }
}

/// An element input broadcast to the result's shape.
fn broadcast(x: &View, shape: &[usize], n: usize) -> Evaluated {
    let fits = x.shape.len() <= shape.len()
        && x.shape.iter().rev().zip(shape.iter().rev()).all(|(&from, &to)| from == to || from == 1);
    if !fits {
        return Err(Fault::eval(format!("lane input {n} of shape {:?} does not broadcast to {shape:?}", x.shape)));
    }
    Ok(movement::expand(*x, shape))
}

/// A program with its inputs, and a register of [`BLOCK`] lanes for each instruction.
struct Machine<'a> {
    program: &'a Program,
    widths: Vec<Width>,
    sources: Vec<Source<'a>>,
    registers: Vec<Vec<i64>>,
}

fn run(program: &Program, inputs: &[View], shape: &[usize], channel: usize) -> Evaluated {
    let widths = program.widths()?;
    if inputs.len() != program.inputs.len() {
        let message = format!("{} lane inputs given, the program wants {}", inputs.len(), program.inputs.len());
        return Err(Fault::eval(message));
    }
    let sources = inputs.iter().enumerate().map(|(n, x)| Source::new(program, n, x, shape, channel));
    let registers = vec![vec![0; BLOCK]; widths.len()];
    let mut machine = Machine { program, widths, sources: sources.collect::<Result<_, _>>()?, registers };
    let count = shape.iter().product();
    let (lo, hi) = program.output.range().ok_or_else(|| Fault::eval("a lane program cannot yield a float"))?;
    if program.output == Elem::I64 {
        let mut out = Vec::with_capacity(count);
        machine.run(shape, |lanes| out.extend_from_slice(lanes))?;
        return Ok(Data::I64(out));
    }
    let mut out = Vec::with_capacity(count);
    machine.run(shape, |lanes| out.extend(lanes.iter().map(|&v| v.clamp(lo, hi) as i32)))?;
    Ok(Data::narrow(program.output, out))
}

impl Machine<'_> {
    /// Calls `store` with the values of the last instruction, block by block in storage order.
    fn run(&mut self, shape: &[usize], mut store: impl FnMut(&[i64])) -> Result<(), Fault> {
        let columns = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().product::<usize>() / columns;
        for row in 0..rows {
            for column in (0..columns).step_by(BLOCK) {
                let lanes = BLOCK.min(columns - column);
                if !self.block(row, column, lanes) {
                    self.one_by_one(row, column, lanes)?;
                }
                store(&self.registers[self.registers.len() - 1][..lanes]);
            }
        }
        Ok(())
    }

    /// Runs the program on a block; false when a value of it does not fit.
    fn block(&mut self, row: usize, column: usize, lanes: usize) -> bool {
        for (i, inst) in self.program.insts.iter().enumerate() {
            let (done, rest) = self.registers.split_at_mut(i);
            let out = &mut rest[0][..lanes];
            let fits = match *inst {
                Inst::Load(n) => {
                    self.sources[n as usize].load(row, column, out);
                    true
                }
                Inst::Table { input, index, bias } => {
                    look_up(&self.sources[input as usize], &done[index as usize], bias, out)
                }
                _ => step(inst, self.widths[i], done, out),
            };
            if !fits || (self.widths[i] == Width::W32 && !fit32(out)) {
                return false;
            }
        }
        true
    }

    /// The definition, which knows what does not fit.
    fn one_by_one(&mut self, row: usize, column: usize, lanes: usize) -> Result<(), Fault> {
        let last = self.registers.len() - 1;
        for lane in 0..lanes {
            let load = |n: u32| {
                let source = &self.sources[n as usize];
                source.at(source.step.index(row, column + lane))
            };
            let value = self.program.eval(load, |n, i| self.sources[n as usize].at(i)).map_err(Fault::overflow)?;
            self.registers[last][lane] = value;
        }
        Ok(())
    }
}

fn fit32(lanes: &[i64]) -> bool {
    lanes.iter().fold(true, |fits, &v| fits & (i64::from(v as i32) == v))
}

fn look_up(table: &Source, index: &[i64], bias: i64, out: &mut [i64]) -> bool {
    for (o, &x) in out.iter_mut().zip(index) {
        match x.checked_sub(bias).map(usize::try_from) {
            Some(Ok(i)) if i < 256 => *o = table.at(i),
            _ => return false,
        }
    }
    true
}

/// One instruction over a block, without the check for 32 bits; false when a value leaves 64 bits or its operands' range.
fn step(inst: &Inst, width: Width, done: &[Vec<i64>], out: &mut [i64]) -> bool {
    let reg = |r: u32| done[r as usize].as_slice();
    let wide = width == Width::W64;
    match *inst {
        Inst::Const(v, _) => {
            out.fill(v);
            true
        }
        Inst::Widen(a) | Inst::Truncate(a) => each(reg(a), out, |x| x),
        Inst::Add(a, b) if wide => checked(reg(a), reg(b), out, i64::overflowing_add),
        Inst::Sub(a, b) if wide => checked(reg(a), reg(b), out, i64::overflowing_sub),
        Inst::Mul(a, b) if wide => checked(reg(a), reg(b), out, i64::overflowing_mul),
        Inst::Add(a, b) => both(reg(a), reg(b), out, |x, y| x + y),
        Inst::Sub(a, b) => both(reg(a), reg(b), out, |x, y| x - y),
        Inst::Mul(a, b) | Inst::MulWide(a, b) => both(reg(a), reg(b), out, |x, y| x * y),
        Inst::Min(a, b) => both(reg(a), reg(b), out, i64::min),
        Inst::Max(a, b) => both(reg(a), reg(b), out, i64::max),
        Inst::Shr(a, s) => each(reg(a), out, |x| x >> s),
        Inst::RoundShr(a, s) if !wide => {
            let half = 1i64 << (s - 1);
            each(reg(a), out, |x| (x + half) >> s) && reg(a).iter().all(|&x| x + half <= i32::MAX.into())
        }
        Inst::Clamp(a, lo, hi) => each(reg(a), out, |x| x.clamp(lo, hi)),
        Inst::SelectLess(a, b, c, d) => {
            both(reg(a), reg(b), out, |x, y| i64::from(x < y));
            let choices = reg(c).iter().zip(reg(d));
            out.iter_mut().zip(choices).for_each(|(o, (&c, &d))| *o = if *o != 0 { c } else { d });
            true
        }
        _ => rare(inst, done, out),
    }
}

/// The instructions whose checks are their own.
fn rare(inst: &Inst, done: &[Vec<i64>], out: &mut [i64]) -> bool {
    let mut fits = true;
    for (lane, o) in out.iter_mut().enumerate() {
        let reg = |r: u32| done[r as usize][lane];
        let value = match *inst {
            Inst::Shl(a, s) => i64::try_from(i128::from(reg(a)) << s).ok(),
            Inst::RoundShr(a, s) => reg(a).checked_add(1 << (s - 1)).map(|x| x >> s),
            Inst::MulHigh15(a, b) => mul_high15(reg(a), reg(b)),
            _ => None,
        };
        fits &= value.is_some();
        *o = value.unwrap_or(0);
    }
    fits
}

fn mul_high15(a: i64, b: i64) -> Option<i64> {
    i16::try_from(a).and(i16::try_from(b)).ok()?;
    Some(((a * b + (1 << 14)) >> 15).min(i16::MAX.into()))
}

fn each(a: &[i64], out: &mut [i64], f: impl Fn(i64) -> i64) -> bool {
    out.iter_mut().zip(a).for_each(|(o, &x)| *o = f(x));
    true
}

fn both(a: &[i64], b: &[i64], out: &mut [i64], f: impl Fn(i64, i64) -> i64) -> bool {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (&x, &y))| *o = f(x, y));
    true
}

fn checked(a: &[i64], b: &[i64], out: &mut [i64], f: impl Fn(i64, i64) -> (i64, bool)) -> bool {
    let mut overflow = false;
    for (o, (&x, &y)) in out.iter_mut().zip(a.iter().zip(b)) {
        let (value, over) = f(x, y);
        *o = value;
        overflow |= over;
    }
    !overflow
}
