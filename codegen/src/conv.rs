//! Convolutions that are not matrix products over views: padded, grouped, depthwise. Correct, one element at a time.
//!
//! ```text
//! for item = image, output channel
//!   for output row, output column
//!     for channel of the group, kernel row, kernel column      positions outside are read inside and masked
//!     lane program on one element
//! ```

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use vitc_ir::Elem;

use crate::emit::{Addr, Emit};
use crate::lane::{LaneSpec, Lanes};
use crate::operand::{Operand, RowGroup, run_group};
use crate::view::Lin;

/// A convolution. Arguments: x, w (row-major), out, unused, then the lane program's inputs from the second on.
///
/// Operands have the rows `[N, O, OH]` and columns `OW`; x has its own four strides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Conv {
    pub x: Elem,
    pub w: Elem,
    pub x_offset: Lin,
    pub x_strides: [Lin; 4],
    /// Height and width of x.
    pub input: [usize; 2],
    /// Output channels, height, width.
    pub output: [usize; 3],
    /// Channels of a group, kernel height, kernel width.
    pub kernel: [usize; 3],
    pub strides: [usize; 2],
    /// Above and to the left.
    pub pads: [usize; 2],
    pub dilations: [usize; 2],
    pub groups: usize,
    pub x_zero: i64,
    pub out: Operand,
    pub extras: Vec<Operand>,
    pub lane: LaneSpec,
}

impl Conv {
    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let (begin, end) = (e.begin, e.end);
        let pointers: Vec<Value> = (0..4 + self.extras.len()).map(|n| e.arg(n)).collect();
        e.for_range(begin, end, 1, &[], |e, item, _| {
            let channels = e.iconst(self.output[0] as i64);
            let image = e.b.ins().udiv(item, channels);
            let whole = e.b.ins().imul(image, channels);
            let channel = e.b.ins().isub(item, whole);
            let zero = e.iconst(0);
            let (rows, columns) = (e.iconst(self.output[1] as i64), e.iconst(self.output[2] as i64));
            e.for_range(zero, rows, 1, &[], |e, row, _| {
                e.for_range(zero, columns, 1, &[], |e, column, _| {
                    let acc = self.accumulate(e, &pointers, [image, channel, row, column]);
                    self.finish(e, &pointers, [image, channel, row], column, acc);
                    Vec::new()
                });
                Vec::new()
            });
            Vec::new()
        });
    }

    fn accumulate(&self, e: &mut Emit<'_>, pointers: &[Value], [image, channel, row, column]: [Value; 4]) -> Value {
        let [depth, high, wide] = self.kernel;
        let size = self.x.bytes() as i64;
        let strides = self.x_strides.map(|s| e.lin(s.scaled(size)));
        let per_group = e.iconst((self.output[0] / self.groups) as i64);
        let group = e.b.ins().udiv(channel, per_group);
        let offset = e.lin(self.x_offset.scaled(size));
        let mut x = e.add(pointers[0], offset);
        let step = e.b.ins().imul(image, strides[0]);
        x = e.add(x, step);
        let first = e.mul_imm(group, depth as i64);
        let w_size = self.w.bytes() as i64;
        let w = e.at(pointers[1], channel, (depth * high * wide) as i64 * w_size);
        let (zero, d, h, k) = (e.iconst(0), e.iconst(depth as i64), e.iconst(high as i64), e.iconst(wide as i64));
        let sum = e.for_range(zero, d, 1, &[zero, w], |e, c, acc| {
            let c = e.add(first, c);
            let step = e.b.ins().imul(c, strides[1]);
            let x = e.add(x, step);
            e.for_range(zero, h, 1, acc, |e, ky, acc| {
                let (step, y_inside) = self.position(e, 0, row, ky, strides[2]);
                let x = e.add(x, step);
                e.for_range(zero, k, 1, acc, |e, kx, acc| {
                    let (step, x_inside) = self.position(e, 1, column, kx, strides[3]);
                    let at = e.add(x, step);
                    let v = e.load_elem(self.x, Addr { base: at, disp: 0 });
                    let v = e.add_imm(v, -self.x_zero);
                    let w = e.load_elem(self.w, Addr { base: acc[1], disp: 0 });
                    let inside = e.b.ins().band(y_inside, x_inside);
                    let w = e.b.ins().imul(w, inside);
                    let product = e.b.ins().imul(v, w);
                    vec![e.add(acc[0], product), e.add_imm(acc[1], w_size)]
                })
            })
        });
        sum[0]
    }

    /// Byte offset of a position along an axis, moved inside, and 1 if it was inside.
    fn position(&self, e: &mut Emit<'_>, axis: usize, out: Value, k: Value, stride: Value) -> (Value, Value) {
        let at = e.mul_imm(out, self.strides[axis] as i64);
        let at = e.at(at, k, self.dilations[axis] as i64);
        let at = e.add_imm(at, -(self.pads[axis] as i64));
        let size = e.iconst(self.input[axis] as i64);
        let inside = e.b.ins().icmp(IntCC::UnsignedLessThan, at, size);
        let inside = e.b.ins().uextend(I64, inside);
        let at = e.clamp(at, 0, self.input[axis] as i64 - 1);
        (e.b.ins().imul(at, stride), inside)
    }

    fn finish(&self, e: &mut Emit<'_>, pointers: &[Value], outer: [Value; 3], column: Value, acc: Value) {
        let acc = e.b.ins().ireduce(I32, acc);
        let acc = e.b.ins().splat(I32X4, acc);
        let mut place = |o: &Operand, p: Value| {
            let base = o.base(e, p, &outer);
            Addr { base: e.at(base, column, o.column_stride()), disp: 0 }
        };
        let to = place(&self.out, pointers[2]);
        let at: Vec<Addr> =
            std::iter::once(to).chain(self.extras.iter().zip(&pointers[4..]).map(|(o, &p)| place(o, p))).collect();
        let inputs: Vec<Operand> = std::iter::once(&self.out).chain(&self.extras).cloned().collect();
        let mut group = RowGroup { inputs: &inputs, at: &at, first: Some(Lanes::I32([acc; 2])), count: 1 };
        run_group(e, &self.lane, &mut group, &self.out, to);
    }
}
