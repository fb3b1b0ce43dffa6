//! Attention: for every head the product of queries and keys, the softmax of its rows and their product with the values,
//! without the scores ever leaving this thread's scratch.
//!
//! ```text
//! for head                      an image's head; items are rows, so that threads share few heads evenly
//!   pack keys, pack values
//!   for chunk of rows           scores and weights of a chunk stay in L2
//!     scores  = q k             i32, and what is added to them
//!     weights = exp(scores)     u8, each row's maximum 255
//!     sums    = sum of weights, reciprocals = numerator / sums
//!     out     = (weights v) * reciprocal >> shift
//! ```
//!
//! The parts are the kernels of the single ops, given pointers into scratch.

use cranelift_codegen::ir::{InstBuilder, Value};
use vitc_ir::Dim;

use crate::emit::Emit;
use crate::gemm::{Gemm, Right};
use crate::operand::{Operand, split_index};
use crate::rows::Rows;

/// Attention. Arguments: q, k, v, out, the table of the exponential.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Attention {
    /// Loops over heads, outermost first, and the rows of a head.
    pub sizes: Vec<Dim>,
    /// Where q, k, v and the result of each head lie; q and the result have a stride for rows too.
    pub heads: [Operand; 4],
    /// Where each head's rows of what is added to the scores lie; inputs of the scores' lane program.
    pub biases: Vec<Operand>,
    /// q times k, of one head.
    pub scores: Gemm,
    pub exp: Rows,
    pub sum: Rows,
    pub reciprocal: Rows,
    /// Weights times v, of one head, divided by the sums.
    pub values: Gemm,
}

/// Row `from` of a head in what is added to its scores: the arguments behind the table.
pub(crate) fn biases_at(e: &mut Emit<'_>, biases: &[Operand], lead: &[Value], from: Value) -> Vec<Value> {
    let one = |e: &mut Emit<'_>, n: usize, o: &Operand| {
        let pointer = e.arg(5 + n);
        let base = o.base(e, pointer, lead);
        e.at(base, from, o.row_stride())
    };
    biases.iter().enumerate().map(|(n, o)| one(e, n, o)).collect()
}

/// Pointers into scratch.
struct Scratch {
    keys: Value,
    values: Value,
    scores: Value,
    weights: Value,
    sums: Value,
    reciprocals: Value,
}

/// One head: where its operands lie, what was packed of it.
#[derive(Clone)]
struct Head<'s> {
    q: Value,
    k: Value,
    v: Value,
    out: Value,
    table: Value,
    biases: Vec<Value>,
    keys: Right,
    values: Right,
    scratch: &'s Scratch,
}

impl Attention {
    /// Rows whose scores are in scratch at a time.
    fn chunk(&self) -> usize {
        self.scores.chunk_rows()
    }

    /// Bytes of scratch: the two products', then scores, weights, sums and reciprocals of a chunk.
    fn scratch_parts(&self) -> [usize; 6] {
        let (rows, keys) = (self.chunk(), self.scores.n);
        let parts = [
            self.scores.scratch_bytes(),
            self.values.scratch_bytes(),
            rows * keys * 4,
            rows * keys,
            rows * 4,
            rows * 4,
        ];
        parts.map(|bytes| bytes.next_multiple_of(64))
    }

    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch_parts().iter().sum()
    }

    /// `attention_u8s8_u8__d64t197`.
    pub(crate) fn name(&self) -> String {
        let [q, k, _, out] = self.heads.each_ref().map(|o| o.elem.name().replace('i', "s"));
        format!("attention_{q}{k}_{out}__d{}t{}", self.scores.k, self.scores.n)
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let scratch = self.scratch(e);
        let (&rows, heads) = self.sizes.split_last().expect("at least the rows of a head");
        e.each_turn(rows, |e, head, from, count| {
            let lead = &split_index(e, head, heads);
            let [q, k, v, out] = std::array::from_fn(|n| {
                let pointer = e.arg(n);
                self.heads[n].base(e, pointer, lead)
            });
            let q = e.at(q, from, self.heads[0].row_stride());
            let out = e.at(out, from, self.heads[3].row_stride());
            let keys = e.part(&[q, k], count, scratch.keys, |e| self.scores.right(e, &[]));
            let values = e.part(&[q, v], count, scratch.values, |e| self.values.right(e, &[]));
            let table = e.arg(4);
            let biases = biases_at(e, &self.biases, lead, from);
            self.chunks(e, &Head { q, k, v, out, table, biases, keys, values, scratch: &scratch }, count);
        });
    }

    fn scratch(&self, e: &mut Emit<'_>) -> Scratch {
        let mut next = e.scratch;
        let [keys, values, scores, weights, sums, reciprocals] = self.scratch_parts().map(|bytes| {
            let part = next;
            next = e.add_imm(next, bytes as i64);
            part
        });
        Scratch { keys, values, scores, weights, sums, reciprocals }
    }

    fn chunks(&self, e: &mut Emit<'_>, head: &Head<'_>, count: Value) {
        let (zero, chunk) = (e.iconst(0), self.chunk() as i64);
        e.for_range(zero, count, chunk, &[], |e, i, _| {
            let (left, most) = (e.b.ins().isub(count, i), e.iconst(chunk));
            let rows = e.b.ins().smin(left, most);
            let q = e.at(head.q, i, self.heads[0].row_stride());
            let out = e.at(head.out, i, self.heads[3].row_stride());
            let biases = self.biases.iter().zip(&head.biases).map(|(o, &b)| e.at(b, i, o.row_stride())).collect();
            self.chunk_of(e, &Head { q, out, biases, ..head.clone() }, rows);
            Vec::new()
        });
    }

    /// The first `rows` rows of a head.
    fn chunk_of(&self, e: &mut Emit<'_>, head: &Head<'_>, rows: Value) {
        let s = head.scratch;
        let zero = e.iconst(0);
        let mut args = vec![head.q, head.k, s.scores, s.scores];
        args.extend(&head.biases);
        e.part(&args, rows, s.keys, |e| self.scores.multiply(e, &[], &head.keys, (zero, zero), rows));
        e.part(&[s.scores, head.table, s.weights], rows, s.keys, |e| self.exp.emit(e));
        e.part(&[s.weights, s.sums], rows, s.keys, |e| self.sum.emit(e));
        e.part(&[s.sums, s.reciprocals], rows, s.keys, |e| self.reciprocal.emit(e));
        let args = [s.weights, head.v, head.out, head.out, s.reciprocals];
        e.part(&args, rows, s.values, |e| self.values.multiply(e, &[], &head.values, (zero, zero), rows));
    }
}
