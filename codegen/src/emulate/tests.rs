//! Small tile programs against a scalar model; on a CPU with AMX they run natively.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vitc_runtime::CodeMemory;

use super::{CLEAR, Refusal, Unit};
use crate::isa::Tier;
use crate::testing::{Edge, Guarded, Random, call};

/// A configuration of palette 1: tiles with their rows and bytes per row.
fn config(tiles: &[(usize, usize, usize)]) -> [u8; 64] {
    let mut config = [0; 64];
    config[0] = 1;
    for &(tile, rows, width) in tiles {
        config[48 + tile] = rows as u8;
        config[16 + 2 * tile] = width as u8;
    }
    config
}

fn run(args: &mut [&mut Guarded], program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut a = CodeAssembler::new(64).unwrap();
    program(&mut a).unwrap();
    let code = CodeMemory::new(&a.assemble(0).unwrap()).unwrap();
    let table: Vec<*mut u8> = args.iter_mut().map(|g| g.ptr()).collect();
    // SAFETY: the programs below keep the calling convention and touch their buffers alone.
    call(unsafe { code.kernel(0) }.unwrap(), &table, 0..1, 1, 0, Edge::After);
}

type Product = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The four products with the signs of their factors.
const PRODUCTS: [(Product, [bool; 2]); 4] = [
    (|a| a.tdpbssd(tmm0, tmm4, tmm7), [true, true]),
    (|a| a.tdpbsud(tmm0, tmm4, tmm7), [true, false]),
    (|a| a.tdpbusd(tmm0, tmm4, tmm7), [false, true]),
    (|a| a.tdpbuud(tmm0, tmm4, tmm7), [false, false]),
];

/// `c[m][n] += sum of a[m][4k + i] * b[k][4n + i]` on packed rows.
fn model(c: &[i32], a: &[u8], b: &[u8], [rows, columns, depth]: [usize; 3], signs: [bool; 2]) -> Vec<i32> {
    let value = |byte: u8, signed: bool| if signed { i64::from(byte as i8) } else { i64::from(byte) };
    let at = |m: usize, n: usize| {
        let products = (0..4 * depth).map(|k| {
            let right = b[k / 4 * 4 * columns + 4 * n + k % 4];
            value(a[m * 4 * depth + k], signs[0]) * value(right, signs[1])
        });
        (i64::from(c[m * columns + n]) + products.sum::<i64>()) as i32
    };
    (0..rows * columns).map(|i| at(i / columns, i % columns)).collect()
}

fn check_product(r: &mut Random, sizes: [usize; 3], (multiply, signs): (Product, [bool; 2])) {
    let [rows, columns, depth] = sizes;
    let (a, b) = (r.bytes(rows * 4 * depth), r.bytes(depth * 4 * columns));
    let c: Vec<i32> = (0..rows * columns).map(|_| r.within(-(1 << 31), (1 << 31) - 1) as i32).collect();
    let tiles = config(&[(0, rows, 4 * columns), (4, rows, 4 * depth), (7, depth, 4 * columns)]);
    let mut args = [Guarded::new(&tiles), Guarded::new(&a), Guarded::new(&b), Guarded::of(&c)];
    let [tiles, left, right, sums] = &mut args;
    run(&mut [tiles, left, right, sums], |asm| {
        asm.mov(rax, ptr(rdi))?;
        asm.ldtilecfg(ptr(rax))?;
        for (tile, arg, stride) in [(tmm4, 8, 4 * depth), (tmm7, 16, 4 * columns), (tmm0, 24, 4 * columns)] {
            asm.mov(r9, ptr(rdi + arg))?;
            asm.mov(rcx, stride as u64 / 4)?;
            asm.tileloadd(tile, ptr(r9 + rcx * 4 + 0))?;
        }
        multiply(asm)?;
        asm.add(r9, 128i32)?;
        asm.tilestored(ptr(r9 + rcx * 4 - 128), tmm0)?;
        asm.tilerelease()?;
        asm.ret()
    });
    assert_eq!(sums.values::<i32>(), model(&c, &a, &b, sizes, signs), "{sizes:?}, {signs:?}");
}

#[test]
fn products_of_whole_and_partial_tiles() {
    if Tier::AmxInt8.missing().is_some() {
        return;
    }
    let mut r = Random(3);
    for sizes in [[16, 16, 16], [1, 1, 1], [16, 3, 5], [7, 16, 16], [2, 9, 16], [13, 16, 1]] {
        for product in PRODUCTS {
            check_product(&mut r, sizes, product);
        }
    }
}

#[test]
fn a_load_clears_what_it_does_not_fill_and_a_configuration_reads_back() {
    if Tier::AmxInt8.missing().is_some() {
        return;
    }
    let narrow = config(&[(2, 3, 20)]);
    let mut args = [Guarded::new(&narrow), Guarded::new(&[7; 60]), Guarded::new(&[9; 60]), Guarded::new(&[1; 128])];
    let [tiles, from, to, configs] = &mut args;
    run(&mut [tiles, from, to, configs], |a| {
        a.mov(rax, ptr(rdi))?;
        a.ldtilecfg(ptr(rax))?;
        a.mov(rcx, 20u64)?;
        a.mov(rax, ptr(rdi + 8))?;
        a.tileloaddt1(tmm2, ptr(rax + rcx))?;
        a.tilezero(tmm2)?;
        a.mov(rax, ptr(rdi + 16))?;
        a.tilestored(ptr(rax + rcx), tmm2)?;
        a.mov(rax, ptr(rdi + 24))?;
        a.sttilecfg(ptr(rax))?;
        a.tilerelease()?;
        a.sttilecfg(ptr(rax + 64))?;
        a.ret()
    });
    assert_eq!(to.values::<u8>(), [0; 60]);
    let configs = configs.values::<u8>();
    assert_eq!((&configs[..64], &configs[64..]), (&narrow[..], &[0; 64][..]));
}

/// What a real unit refuses, the software one refuses.
#[test]
fn violations_are_refused() {
    let unit = |tiles: &[(usize, usize, usize)]| {
        let mut unit = Unit { config: [0; 64], tiles: CLEAR };
        unit.configure(config(tiles)).map(|()| unit)
    };
    let refused = |done: Result<(), Refusal>, why: &str| assert!(done.unwrap_err().contains(why), "{done:?}");
    refused(unit(&[(0, 17, 64)]).map(drop), "more than 16 rows");
    refused(unit(&[(0, 16, 65)]).map(drop), "more than 16 rows");
    refused(unit(&[(0, 16, 0)]).map(drop), "no columns");
    let mut reserved = config(&[]);
    reserved[63] = 1;
    refused(Unit { config: [0; 64], tiles: CLEAR }.configure(reserved), "reserved");
    refused(Unit { config: [0; 64], tiles: CLEAR }.zero(0), "not configured");
    let mut unit = unit(&[(0, 4, 64), (1, 4, 32), (2, 8, 64), (3, 8, 60), (4, 4, 30), (5, 5, 32)]).unwrap();
    assert_eq!(unit.multiply([0, 1, 2], [true; 2]), Ok(()));
    refused(unit.multiply([0, 1, 3], [true; 2]), "do not fit");
    refused(unit.multiply([0, 5, 2], [true; 2]), "do not fit");
    refused(unit.multiply([0, 2, 1], [true; 2]), "do not fit");
    refused(unit.multiply([0, 4, 2], [true; 2]), "groups of four");
    refused(unit.multiply([0, 0, 2], [true; 2]), "with itself");
    refused(unit.zero(6), "without rows");
}
