//! Modules of one kernel each, for timing.

use vitc_ir::attr::LaneName;
use vitc_ir::lane::{Access, Input, Inst, Program};
use vitc_ir::{Const, Dim, Elem, Module, Op, Shape, Stage, TensorType};
use vitc_passes::plan::{self, Target};

/// A planned module with one kernel, and noise to run it on.
pub struct Kernel {
    /// What it is called in the report.
    pub name: &'static str,
    /// The module, of stage `plan`.
    pub module: Module,
    /// Element type and shape of the input.
    pub input: (vitc_runtime::Elem, [usize; 3]),
    /// The input's bytes.
    pub noise: Vec<u8>,
    /// Multiply-accumulates, or elements where nothing is multiplied.
    pub work: u64,
}

/// Seeded noise over all values of a byte.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn batched(dims: [usize; 2]) -> Shape {
    Shape(vec![Dim::N, dims[0].into(), dims[1].into()])
}

fn planned(module: &Module) -> Module {
    let target = Target {
        weight_layout: &vitc_codegen::weight_layout,
        is_view: &vitc_codegen::is_view_supported,
        is_operand_view: &vitc_codegen::is_operand_view_supported,
    };
    plan::run(module, &target).expect("one node can be planned")
}

/// What becomes of the sums of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// They saturate to bytes: the least that can be done, and so the bound of any faster requantize.
    Saturate,
    /// Bias, 31-bit multiplier, rounding shift.
    Requantize,
    /// The same, and a look-up in a table of 256 bytes.
    Table,
}

impl Epilogue {
    fn insts(self) -> Vec<Inst> {
        let mut insts = vec![Inst::Load(0), Inst::Load(1), Inst::Add(0, 1)];
        if self == Epilogue::Saturate {
            return insts;
        }
        insts.extend([Inst::Load(2), Inst::MulWide(2, 3), Inst::RoundShr(4, 42)]);
        match self {
            Epilogue::Table => {
                insts.extend([Inst::Clamp(5, 0, 255), Inst::Truncate(6), Inst::Table { input: 3, index: 7, bias: 0 }])
            }
            _ => insts.push(Inst::Truncate(5)),
        }
        insts
    }
}

/// A matrix product to bytes: `[rows, k] x [k, n]`.
pub fn product(name: &'static str, [rows, k, n]: [usize; 3], epilogue: Epilogue) -> Kernel {
    let mut m = Module::new(name, Stage::Fuse);
    let x = m.input("x", TensorType::new(Elem::U8, batched([rows, k])));
    let weights: Vec<i8> = noise(k * n).into_iter().map(|b| b as i8).collect();
    let w = m.constant(Const::new("w", TensorType::new(Elem::I8, Shape::fixed(&[k, n])), &weights));
    let vector =
        |values: Vec<i32>, name: &str| Const::new(name, TensorType::new(Elem::I32, Shape::fixed(&[n])), &values);
    let bias = m.constant(vector((0..n as i32).map(|i| i * 71 - 9000).collect(), "bias"));
    let scale = m.constant(vector((0..n as i32).map(|i| (1 << 30) + i % 1000 * 1_000_003).collect(), "scale"));
    let input = |access| Input { elem: Elem::I32, access };
    let mut inputs = vec![input(Access::Element), input(Access::Channel), input(Access::Channel)];
    let mut operands = vec![x, w, bias, scale];
    match epilogue {
        Epilogue::Saturate => {
            inputs.pop();
            operands.pop();
        }
        Epilogue::Requantize => {}
        Epilogue::Table => {
            inputs.push(Input { elem: Elem::I8, access: Access::Table });
            let entries: Vec<i8> = noise(256).into_iter().map(|b| b as i8).collect();
            let ty = TensorType::new(Elem::I8, Shape::fixed(&[256]));
            operands.push(m.constant(Const::new("table", ty, &entries)));
        }
    }
    let lane = Program { inputs, insts: epilogue.insts(), output: Elem::I8 };
    let lane = LaneName(m.lane("epilogue", lane));
    let op = Op::FusedMatMul { a_zero: 128, b_zero: 0, lane, to: Elem::I8 };
    let y = m.push(op, &operands, None).expect("the operands fit");
    m.output("y", y);
    Kernel {
        name,
        module: planned(&m),
        input: (vitc_runtime::Elem::U8, [1, rows, k]),
        noise: noise(rows * k),
        work: (rows * k * n) as u64,
    }
}

/// Integer LayerNorm of `i16` rows to bytes.
pub fn layernorm(name: &'static str, rows: usize, c: usize) -> Kernel {
    let mut m = Module::new(name, Stage::Fuse);
    let x = m.input("x", TensorType::new(Elem::I16, batched([rows, c])));
    let vector =
        |value: i32, name: &str| Const::new(name, TensorType::new(Elem::I32, Shape::fixed(&[c])), &vec![value; c]);
    let gamma = m.constant(vector(3000, "gamma"));
    let beta = m.constant(vector(1 << 15, "beta"));
    let op = Op::IntLayerNorm {
        epsilon: 1, centred: true,
        guard: 1,
        norm_bits: 9,
        recip_bits: 15,
        shift: 16,
        zero_point: 128,
        to: Elem::U8,
    };
    let y = m.push(op, &[x, gamma, beta], None).expect("the operands fit");
    m.output("y", y);
    let noise = noise(rows * c).into_iter().flat_map(|b| (i16::from(b as i8) * 200).to_le_bytes()).collect();
    Kernel { name, module: planned(&m), input: (vitc_runtime::Elem::I16, [1, rows, c]), noise, work: (rows * c) as u64 }
}
