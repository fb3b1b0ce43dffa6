//! Products against a scalar reference, between guard pages.

use vitc_ir::lane::{Access, Input, Inst, Program};

use super::*;
use crate::isa::Tier;
use crate::kernel::Spec;
use crate::operand::Columns;
use crate::testing::{Guarded, Random, Single, compile};
use crate::view::Lin;

fn operand(elem: Elem, row: usize, columns: Columns) -> Operand {
    Operand { elem, offset: Lin::ZERO, rows: vec![Lin::fixed(row as i64)], columns }
}

/// A product with constant weights and rows one after another.
fn plain(a: Elem, k: usize, n: usize, lane: LaneSpec, extras: Vec<Operand>) -> Gemm {
    Gemm {
        sizes: vec![Dim { size: 1, batch: true }],
        k,
        n,
        a: operand(a, k, Columns::Stride(1)),
        order: None,
        reading: Reading::Direct { segments: 1, run: k, step: 0 },
        weights: Weights::Packed,
        a_zero: 0,
        b_zero: 0,
        out: operand(lane.program.output, n, Columns::Stride(1)),
        extras,
        lane,
    }
}

/// `saturate(((acc + bias) * multiplier >> 33, rounded) + 7)` as `u8`.
fn requantize() -> (LaneSpec, Vec<Operand>) {
    let input = |access| Input { elem: Elem::I32, access };
    let program = Program {
        inputs: vec![input(Access::Element), input(Access::Channel), input(Access::Channel)],
        insts: vec![
            Inst::Load(0),
            Inst::Load(1),
            Inst::Add(0, 1),
            Inst::Load(2),
            Inst::MulWide(2, 3),
            Inst::RoundShr(4, 38),
            Inst::Truncate(5),
            Inst::Const(7, vitc_ir::lane::Width::W32),
            Inst::Add(6, 7),
        ],
        output: Elem::U8,
    };
    let extras = vec![operand(Elem::I32, 0, Columns::Stride(1)), operand(Elem::I32, 0, Columns::Stride(1))];
    (LaneSpec { program, bits: vec![None, None, Some(32)] }, extras)
}

fn pack(k: usize, n: usize, b: &[u8]) -> Vec<u8> {
    Layout::Dot4 { columns: PANEL }.pack(k, n, b)
}

struct Case {
    m: usize,
    k: usize,
    n: usize,
    a: Vec<u8>,
    b: Vec<u8>,
}

impl Case {
    fn new(seed: u64, a: Elem, m: usize, k: usize, n: usize) -> Case {
        let mut r = Random(seed);
        let mut case = Case { m, k, n, a: r.bytes(m * k * a.bytes()), b: r.bytes(k * n) };
        // Full-range corners.
        if let [first, ..] = &mut case.a[..] {
            *first = 255;
        }
        case.b[0] = 0x80;
        case
    }

    fn product(&self, a: Elem, a_zero: i64, b: Elem, b_zero: i64) -> Vec<i32> {
        let at = |i: usize| -> i64 {
            match a {
                Elem::U8 => self.a[i].into(),
                Elem::I8 => (self.a[i] as i8).into(),
                _ => i16::from_le_bytes([self.a[2 * i], self.a[2 * i + 1]]).into(),
            }
        };
        let bt = |i: usize| -> i64 { if b == Elem::U8 { self.b[i].into() } else { (self.b[i] as i8).into() } };
        let mut out = Vec::new();
        for m in 0..self.m {
            for n in 0..self.n {
                let terms = (0..self.k).map(|k| (at(m * self.k + k) - a_zero) * (bt(k * self.n + n) - b_zero));
                out.push(terms.sum::<i64>() as i32);
            }
        }
        out
    }
}

fn run_plain(kernel: &Single, case: &Case, corrections: &[i32]) -> Vec<i32> {
    let mut a = Guarded::new(&case.a);
    let mut b = Guarded::new(&pack(case.k, case.n, &case.b));
    let mut out = Guarded::of(&vec![-1i32; case.m * case.n]);
    let mut c = Guarded::of(corrections);
    kernel.call(&mut [&mut a, &mut b, &mut out, &mut c], 0, case.m, case.m);
    out.values()
}

#[test]
fn bytes_equal_the_reference_at_all_edges() {
    for tier in [Tier::Portable, Tier::Baseline] {
        for (k, n) in [(1, 1), (3, 9), (4, 8), (5, 16), (17, 23), (64, 24), (65, 7), (130, 40), (192, 33)] {
            let kernel = compile(Spec::Gemm(plain(Elem::U8, k, n, LaneSpec::identity(), vec![])), tier);
            for m in [1, 2, 3, 5, 6, 7, 11, 12, 33] {
                let case = Case::new((m * k * n) as u64, Elem::U8, m, k, n);
                assert_eq!(run_plain(&kernel, &case, &[]), case.product(Elem::U8, 0, Elem::I8, 0), "{m}x{k}x{n}");
            }
        }
    }
}

#[test]
fn the_byte_kernel_is_made_of_dot_products() {
    let (lane, extras) = requantize();
    let kernel = compile(Spec::Gemm(plain(Elem::U8, 192, 768, lane, extras)), Tier::Portable);
    let text = crate::disassemble(&kernel.code);
    let has_dot = std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni");
    assert_eq!(text.contains("vpdpbusd"), has_dot, "{text}");
    assert_eq!(crate::count_float_instructions(&kernel.code), 0);
}

#[test]
#[ignore = "a measurement"]
fn measure() {
    for (m, k, n) in [(197, 192, 768), (197, 768, 192), (197, 192, 576), (197, 384, 1536)] {
        let (lane, extras) = requantize();
        let kernel = compile(Spec::Gemm(plain(Elem::U8, k, n, lane, extras)), Tier::Portable);
        let case = Case::new(1, Elem::U8, m, k, n);
        let mut a = Guarded::new(&case.a);
        let mut b = Guarded::new(&pack(k, n, &case.b));
        let mut out = Guarded::of(&vec![0u8; m * n]);
        let mut bias = Guarded::of(&vec![5i32; n]);
        let mut multiplier = Guarded::of(&vec![1 << 30; n]);
        let mut none = Guarded::of(&[0i32]);
        let mut times: Vec<f64> = (0..300)
            .map(|_| {
                let start = std::time::Instant::now();
                kernel.call(&mut [&mut a, &mut b, &mut out, &mut none, &mut bias, &mut multiplier], 0, m, m);
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let macs = (m * k * n) as f64;
        println!(
            "{m}x{k}x{n}: median {:.1} best {:.1} GMAC/s, code {} bytes",
            macs / times[150] / 1e9,
            macs / times[5] / 1e9,
            kernel.code.len()
        );
        if std::env::var_os("DUMP").is_some() {
            println!("{}", crate::disassemble(&kernel.code));
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    #[test]
    fn random_sizes_equal_the_reference(m in 1usize..34, k in 1usize..131, n in 1usize..50, seed: u64) {
        let kernel = compile(Spec::Gemm(plain(Elem::U8, k, n, LaneSpec::identity(), vec![])), Tier::Portable);
        let case = Case::new(seed, Elem::U8, m, k, n);
        proptest::prop_assert_eq!(run_plain(&kernel, &case, &[]), case.product(Elem::U8, 0, Elem::I8, 0));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_control_word_survives() {
    fn control_word() -> u32 {
        let mut word = 0u32;
        // SAFETY: stores four bytes to a local variable.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word) };
        word
    }
    let kernel = compile(Spec::Gemm(plain(Elem::U8, 9, 9, LaneSpec::identity(), vec![])), Tier::Portable);
    let before = control_word();
    run_plain(&kernel, &Case::new(1, Elem::U8, 7, 9, 9), &[]);
    assert_eq!(control_word(), before);
    assert!(!crate::disassemble(&kernel.code).contains("ldmxcsr"));
}
