//! A thin layer over Cranelift's function builder: counted loops, address arithmetic, typed loads and stores.
//!
//! Values that change in a loop are passed as block parameters, so a loop body is a function from values to values.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8X16, I64};
use cranelift_codegen::ir::{
    AbiParam, Block, BlockArg, Endianness, FuncRef, Function, InstBuilder, MemFlagsData, Signature, StackSlotData,
    StackSlotKind, Type, Value,
};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use vitc_ir::{Dim, Elem};

use crate::view::Lin;

/// What the vector code may count on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// The byte dot product tree folds into one instruction.
    pub dot: bool,
    /// A high product that wraps where both factors are the least number is an instruction less than one that saturates.
    pub wrapping_high: bool,
}

impl Features {
    pub(crate) fn of(isa: &dyn TargetIsa) -> Features {
        let on = |name: &str| isa.isa_flags().iter().any(|f| f.name == name && f.as_bool() == Some(true));
        let x64 = (on("has_avx_vnni") && on("has_avx")) || (on("has_avx512vnni") && on("has_avx512vl"));
        let is_x64 = isa.name() == "x64";
        Features { dot: x64 || !is_x64, wrapping_high: is_x64 && on("has_ssse3") }
    }
}

/// The signature of every kernel.
pub(crate) fn signature(isa: &dyn TargetIsa) -> Signature {
    let mut sig = Signature::new(isa.default_call_conv());
    sig.params = vec![AbiParam::new(I64); 5];
    sig
}

/// An address: a pointer and a displacement in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addr {
    pub base: Value,
    pub disp: i32,
}

impl Addr {
    pub(crate) fn plus(self, bytes: i64) -> Addr {
        let disp = i64::from(self.disp) + bytes;
        Addr { base: self.base, disp: i32::try_from(disp).expect("displacements stay below 2 GiB") }
    }
}

/// Where pointer arguments come from.
pub(crate) enum Args {
    /// The table that the kernel was called with.
    Table(Value),
    /// A kernel that runs others as its parts hands them their pointers.
    Given(Vec<Value>),
}

/// Builds one kernel.
pub(crate) struct Emit<'a> {
    pub b: FunctionBuilder<'a>,
    pub features: Features,
    pub args: Args,
    pub begin: Value,
    pub end: Value,
    pub batch: Value,
    pub scratch: Value,
    /// The leaves that the kernel may call.
    pub leaves: Vec<FuncRef>,
}

impl<'a> Emit<'a> {
    pub(crate) fn new(func: &'a mut Function, context: &'a mut FunctionBuilderContext, features: Features) -> Emit<'a> {
        let mut b = FunctionBuilder::new(func, context);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let p = b.block_params(entry).to_vec();
        Emit {
            b,
            features,
            args: Args::Table(p[0]),
            begin: p[1],
            end: p[2],
            batch: p[3],
            scratch: p[4],
            leaves: Vec::new(),
        }
    }

    pub(crate) fn finish(mut self, isa: &dyn TargetIsa) {
        self.b.ins().return_(&[]);
        self.b.seal_all_blocks();
        self.b.finalize(isa.frontend_config());
    }

    /// Pointer argument `n` of the kernel.
    pub(crate) fn arg(&mut self, n: usize) -> Value {
        match self.args {
            Args::Table(base) => self.load(I64, Addr { base, disp: 8 * n as i32 }),
            Args::Given(ref pointers) => pointers[n],
        }
    }

    /// Emits a part as if it were a kernel called with these arguments, for items `0..count`.
    pub(crate) fn part<T>(
        &mut self,
        args: &[Value],
        count: Value,
        scratch: Value,
        emit: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let begin = self.iconst(0);
        let args = std::mem::replace(&mut self.args, Args::Given(args.to_vec()));
        let outer = (self.begin, self.end, self.scratch);
        (self.begin, self.end, self.scratch) = (begin, count, scratch);
        let result = emit(self);
        self.args = args;
        (self.begin, self.end, self.scratch) = outer;
        result
    }

    /// Calls leaf `n` with a block of these 64-bit values.
    pub(crate) fn call_leaf(&mut self, n: usize, block: &[Value]) {
        let bytes = 8 * block.len() as u32;
        let slot = self.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 3));
        for (i, &v) in block.iter().enumerate() {
            self.b.ins().stack_store(I64, v, slot, 8 * i as i32);
        }
        let address = self.b.ins().stack_addr(I64, slot, 0);
        self.b.ins().call(self.leaves[n], &[address]);
    }

    /// `then` when `a` is less than `b`, else `otherwise`.
    pub(crate) fn if_less(
        &mut self,
        a: Value,
        b: i64,
        then: impl FnOnce(&mut Self),
        otherwise: impl FnOnce(&mut Self),
    ) {
        let (less, more, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let is_less = self.b.ins().icmp_imm_s(IntCC::SignedLessThan, a, b);
        self.b.ins().brif(is_less, less, &[], more, &[]);
        self.b.switch_to_block(less);
        then(self);
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(more);
        otherwise(self);
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(after);
    }

    pub(crate) fn iconst(&mut self, v: i64) -> Value {
        self.b.ins().iconst(I64, v)
    }

    /// Every lane of a vector, or a scalar, set to a constant.
    pub(crate) fn constant(&mut self, ty: Type, v: i64) -> Value {
        let lane = ty.lane_type();
        let masked = if lane == I64 { v } else { v & ((1i64 << lane.bits()) - 1) };
        let scalar = self.b.ins().iconst(lane, masked);
        if ty.is_vector() { self.b.ins().splat(ty, scalar) } else { scalar }
    }

    /// A 16-byte constant.
    pub(crate) fn bytes16(&mut self, bytes: [u8; 16]) -> Value {
        let data = self.b.func.dfg.constants.insert(bytes.to_vec().into());
        self.b.ins().vconst(I8X16, data)
    }

    pub(crate) fn add(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().iadd(a, b)
    }

    pub(crate) fn add_imm(&mut self, a: Value, imm: i64) -> Value {
        if imm == 0 {
            a
        } else {
            let c = self.iconst(imm);
            self.b.ins().iadd(a, c)
        }
    }

    pub(crate) fn mul_imm(&mut self, a: Value, imm: i64) -> Value {
        if imm == 1 {
            a
        } else {
            let c = self.iconst(imm);
            self.b.ins().imul(a, c)
        }
    }

    /// `a + i * stride`.
    pub(crate) fn at(&mut self, a: Value, i: Value, stride: i64) -> Value {
        let offset = self.mul_imm(i, stride);
        self.add(a, offset)
    }

    /// The value of `fixed + per_batch * N`.
    pub(crate) fn lin(&mut self, l: Lin) -> Value {
        if l.per_batch == 0 {
            return self.iconst(l.fixed);
        }
        let batch = self.batch;
        let scaled = self.mul_imm(batch, l.per_batch);
        self.add_imm(scaled, l.fixed)
    }

    pub(crate) fn load(&mut self, ty: Type, a: Addr) -> Value {
        self.b.ins().load(ty, flags(), a.base, a.disp)
    }

    /// A load that may happen anywhere between the definition of its address and its use, so that it becomes a memory
    /// operand there. The address must depend on a loop entered after the last write to that memory.
    pub(crate) fn load_late(&mut self, ty: Type, a: Addr) -> Value {
        self.b.ins().load(ty, flags().with_readonly().with_can_move(), a.base, a.disp)
    }

    pub(crate) fn store(&mut self, v: Value, a: Addr) {
        self.b.ins().store(flags(), v, a.base, a.disp);
    }

    /// A stored element, extended to 64 bits by its type.
    pub(crate) fn load_elem(&mut self, elem: Elem, a: Addr) -> Value {
        match elem {
            Elem::U8 | Elem::Bool => self.b.ins().uload8(I64, flags(), a.base, a.disp),
            Elem::I8 => self.b.ins().sload8(I64, flags(), a.base, a.disp),
            Elem::I16 => self.b.ins().sload16(I64, flags(), a.base, a.disp),
            Elem::I32 | Elem::F32 => self.b.ins().sload32(flags(), a.base, a.disp),
            Elem::I64 => self.load(I64, a),
        }
    }

    /// The low bytes of a 64-bit value as an element.
    pub(crate) fn store_elem(&mut self, elem: Elem, v: Value, a: Addr) {
        match elem.bytes() {
            1 => {
                self.b.ins().istore8(flags(), v, a.base, a.disp);
            }
            2 => {
                self.b.ins().istore16(flags(), v, a.base, a.disp);
            }
            4 => {
                self.b.ins().istore32(flags(), v, a.base, a.disp);
            }
            _ => self.store(v, a),
        }
    }

    /// A 64-bit value saturated to the range of `elem`.
    pub(crate) fn saturate(&mut self, v: Value, elem: Elem) -> Value {
        if elem == Elem::I64 {
            return v;
        }
        let (lo, hi) = elem.range().expect("results are integers");
        self.clamp(v, lo, hi)
    }

    pub(crate) fn clamp(&mut self, v: Value, lo: i64, hi: i64) -> Value {
        let (lo, hi) = (self.iconst(lo), self.iconst(hi));
        let v = self.b.ins().smax(v, lo);
        self.b.ins().smin(v, hi)
    }

    fn args(values: &[Value]) -> Vec<BlockArg> {
        values.iter().map(|&v| BlockArg::Value(v)).collect()
    }

    /// Parameters of a block with the types of these values.
    fn params_like(&mut self, block: Block, values: &[Value]) -> Vec<Value> {
        let types: Vec<Type> = values.iter().map(|&v| self.b.func.dfg.value_type(v)).collect();
        types.into_iter().map(|ty| self.b.append_block_param(block, ty)).collect()
    }

    /// `for i in (from..to).step_by(step)`, tested before each turn; returns what the body carries on.
    pub(crate) fn for_range(
        &mut self,
        from: Value,
        to: Value,
        step: i64,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        self.while_room(from, to, step, 1, carried, body).1
    }

    /// `while i + room <= to { body; i += step }`; returns the last `i` and what the body carries on.
    pub(crate) fn while_room(
        &mut self,
        from: Value,
        to: Value,
        step: i64,
        room: i64,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> (Value, Vec<Value>) {
        let (head, inside, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let initial: Vec<Value> = std::iter::once(from).chain(carried.iter().copied()).collect();
        let params = self.params_like(head, &initial);
        self.b.ins().jump(head, &Self::args(&initial));
        self.b.switch_to_block(head);
        let limit = self.add_imm(to, 1 - room);
        let more = self.b.ins().icmp(IntCC::SignedLessThan, params[0], limit);
        self.b.ins().brif(more, inside, &[], after, &[]);
        self.b.switch_to_block(inside);
        let mut next = body(self, params[0], &params[1..]);
        let i = self.add_imm(params[0], step);
        next.insert(0, i);
        self.b.ins().jump(head, &Self::args(&next));
        self.b.switch_to_block(after);
        (params[0], params[1..].to_vec())
    }

    /// The items `begin..end` as turns of outer loops, each with the rows `from .. from + count` of `inner` rows: the body
    /// gets the turn, `from` and `count`.
    pub(crate) fn each_turn(&mut self, inner: Dim, mut body: impl FnMut(&mut Self, Value, Value, Value)) {
        let inner = self.lin(Lin::fixed(1).times(inner).expect("one times a dimension"));
        let (begin, end) = (self.begin, self.end);
        let last = self.add_imm(end, -1);
        let (first_turn, last_turn) = (self.b.ins().sdiv(begin, inner), self.b.ins().sdiv(last, inner));
        let after = self.add_imm(last_turn, 1);
        self.for_range(first_turn, after, 1, &[], |e, turn, _| {
            let zero = e.iconst(0);
            let start = e.b.ins().imul(turn, inner);
            let from = e.b.ins().isub(begin, start);
            let to = e.b.ins().isub(end, start);
            let (from, to) = (e.b.ins().smax(from, zero), e.b.ins().smin(to, inner));
            let count = e.b.ins().isub(to, from);
            body(e, turn, from, count);
            Vec::new()
        });
    }

    /// The body `count` times (known when compiling), tested after each turn; the body gets no index, only what it carries.
    pub(crate) fn repeat(
        &mut self,
        count: usize,
        carried: &[Value],
        mut body: impl FnMut(&mut Self, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        match count {
            0 => return carried.to_vec(),
            1 => return body(self, carried),
            _ => {}
        }
        let (inside, after) = (self.b.create_block(), self.b.create_block());
        let left = self.iconst(count as i64);
        let initial: Vec<Value> = std::iter::once(left).chain(carried.iter().copied()).collect();
        let params = self.params_like(inside, &initial);
        self.b.ins().jump(inside, &Self::args(&initial));
        self.b.switch_to_block(inside);
        let mut next = body(self, &params[1..]);
        let results = self.params_like(after, &next);
        let left = self.add_imm(params[0], -1);
        let out = Self::args(&next);
        next.insert(0, left);
        self.b.ins().brif(left, inside, &Self::args(&next), after, &out);
        self.b.switch_to_block(after);
        results
    }

    /// `acc + sum of four u*s` in each 32-bit lane: bytes of `u` count as unsigned, those of `s` as signed.
    ///
    /// With [`Features::dot`] this is the tree that Cranelift folds into one dot product instruction; otherwise it goes
    /// through 16-bit multiply-add pairs, exactly.
    pub(crate) fn dot(&mut self, acc: Value, u: Value, s: Value) -> Value {
        let ins = |e: &mut Self| -> [Value; 4] {
            [e.b.ins().swiden_low(s), e.b.ins().uwiden_low(u), e.b.ins().swiden_high(s), e.b.ins().uwiden_high(u)]
        };
        let [s_lo, u_lo, s_hi, u_hi] = ins(self);
        let sums = if self.features.dot {
            let lo = self.b.ins().imul(s_lo, u_lo);
            let hi = self.b.ins().imul(s_hi, u_hi);
            [self.pairwise_wide(lo), self.pairwise_wide(hi)]
        } else {
            [self.madd(s_lo, u_lo), self.madd(s_hi, u_hi)]
        };
        let sum = self.b.ins().iadd_pairwise(sums[0], sums[1]);
        self.b.ins().iadd(sum, acc)
    }

    /// Sums of neighbouring 16-bit lanes in 32 bits.
    pub(crate) fn pairwise_wide(&mut self, v: Value) -> Value {
        let lo = self.b.ins().swiden_low(v);
        let hi = self.b.ins().swiden_high(v);
        self.b.ins().iadd_pairwise(lo, hi)
    }

    /// Sums of two neighbouring products of signed 16-bit lanes (`pmaddwd`).
    pub(crate) fn madd(&mut self, x: Value, y: Value) -> Value {
        let (x_lo, y_lo) = (self.b.ins().swiden_low(x), self.b.ins().swiden_low(y));
        let (x_hi, y_hi) = (self.b.ins().swiden_high(x), self.b.ins().swiden_high(y));
        let lo = self.b.ins().imul(x_lo, y_lo);
        let hi = self.b.ins().imul(x_hi, y_hi);
        self.b.ins().iadd_pairwise(lo, hi)
    }

    /// `(a*b + 2^14) >> 15` in lanes of 16 bits. `apart` promises that nowhere both are -2^15.
    pub(crate) fn multiply_high(&mut self, a: Value, b: Value, apart: bool) -> Value {
        if apart && self.features.wrapping_high {
            self.b.ins().x86_pmulhrsw(a, b)
        } else {
            self.b.ins().sqmul_round_sat(a, b)
        }
    }

    pub(crate) fn cast(&mut self, ty: Type, v: Value) -> Value {
        if self.b.func.dfg.value_type(v) == ty {
            return v;
        }
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), v)
    }
}

pub(crate) fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap().with_endianness(Endianness::Little)
}
