//! Row ops and elementwise ops.

use super::*;

const SIZES: [usize; 16] = [1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 17, 33, 63, 70, 197, 577];

fn exp_table_of(f: u32, bits: u32) -> Vec<i64> {
    (0..1 << f)
        .map(|i| (255.0 * 2f64.powi(bits as i32) * 2f64.powf(-(i as f64) / f64::from(1 << f))).round() as i64)
        .collect()
}

#[test]
fn exponentials() {
    for c in SIZES {
        for elem in [Elem::I32, Elem::I16, Elem::I8] {
            // differences and multipliers of more than 16 bits, of 16 at most with a shift of more than a word, and of one
            for (limit, multiplier, shift) in [(30_000, 70_000, 12), (65_000, 33_000, 22), (2000, 9000, 16)] {
                let mut m = module();
                let x = input(&mut m, elem, batched(&[3, c]));
                let t = constant(&mut m, Elem::I32, &[32], &exp_table_of(5, 20));
                let y = node(&mut m, Op::IntExp { limit, multiplier, shift, table_bits: 20 }, &[x, t]);
                check(&mut m, y, 1, &[]);
            }
        }
    }
}

#[test]
fn sums_over_every_axis() {
    for elem in [Elem::U8, Elem::I8, Elem::I16] {
        for axis in [1, 2, 3] {
            let mut m = module();
            let x = input(&mut m, elem, batched(&[5, 4, 19]));
            let y = node(&mut m, Op::IntReduceSum { axis, keep: axis == 3 }, &[x]);
            check(&mut m, y, 1, &[]);
        }
    }
}

#[test]
fn sums_of_rows_of_every_width() {
    let mut r = Random(3);
    for c in (1..=70).chain([197, 577]) {
        let elem = [Elem::U8, Elem::I8, Elem::I16][c % 3];
        let mut m = module();
        let x = input(&mut m, elem, batched(&[2, c]));
        let y = node(&mut m, Op::IntReduceSum { axis: 2, keep: true }, &[x]);
        m.output("y", y);
        check_at(&m, [Tier::Portable, Tier::Baseline][c / 3 % 2], 2, 1, r.next(), &[]);
    }
}

#[test]
fn reciprocals() {
    let mut m = module();
    let x = input(&mut m, Elem::I32, batched(&[5, 1]));
    let y = node(&mut m, Op::IntReciprocal { numerator: 1 << 30 }, &[x]);
    check(&mut m, y, 1, &[(1, i32::MAX.into())]);
}

#[test]
fn reciprocals_around_zero() {
    for (elem, range) in
        [(Elem::I32, (-5, 5)), (Elem::I32, full(Elem::I32)), (Elem::I16, (-3, 3)), (Elem::I16, full(Elem::I16))]
    {
        let mut m = module();
        let x = input(&mut m, elem, batched(&[3, 13]));
        let y = node(&mut m, Op::IntReciprocal { numerator: i32::MAX.into() }, &[x]);
        check(&mut m, y, 1, &[range]);
    }
}

#[test]
fn layernorms() {
    for c in [1usize, 3, 8, 17, 33, 70, 192] {
        for (elem, range) in [(Elem::I16, (-32768, 32767)), (Elem::I16, (-3, 3)), (Elem::U8, (0, 255))] {
            let mut m = module();
            let mut r = Random(c as u64);
            let x = input(&mut m, elem, batched(&[6, c]));
            let gamma = random_constant(&mut m, &mut r, Elem::I32, &[c], -2000, 2000);
            let beta = random_constant(&mut m, &mut r, Elem::I32, &[c], -500_000, 500_000);
            let guard = (c as f64).sqrt().log2().ceil() as u32 + 1;
            let op = Op::IntLayerNorm {
                epsilon: 17,
                centred: c != 17,
                guard,
                norm_bits: 9,
                recip_bits: 12,
                shift: 12,
                zero_point: 121,
                to: Elem::U8,
            };
            let y = node(&mut m, op, &[x, gamma, beta]);
            check(&mut m, y, 1, &[range]);
        }
    }
}

#[test]
fn shift_forms() {
    for c in [3usize, 8, 21] {
        let mut m = module();
        let mut r = Random(c as u64);
        let x = input(&mut m, Elem::I16, batched(&[6, c]));
        let gamma = random_constant(&mut m, &mut r, Elem::I32, &[c], -2000, 2000);
        let beta = random_constant(&mut m, &mut r, Elem::I64, &[c], -(1 << 40), 1 << 40);
        let op = Op::IntShiftLayerNorm { shift: 33, zero_point: -3, to: Elem::I8 };
        let y = node(&mut m, op, &[x, gamma, beta]);
        check(&mut m, y, 1, &[]);

        for elem in [Elem::I8, Elem::I16, Elem::I32] {
            let mut m = module();
            let x = input(&mut m, elem, batched(&[6, c]));
            let y = node(&mut m, Op::IntShiftmax { one: 9, n: 15, bits: 16 }, &[x]);
            check(&mut m, y, 1, &[]);
        }

        let mut m = module();
        let x = input(&mut m, Elem::U8, batched(&[6, c]));
        let y = node(&mut m, Op::IntShiftGelu { x_zero: 90, one: 11, n: 20, bits: 8 }, &[x]);
        check(&mut m, y, 1, &[]);
    }
}

#[test]
fn standalone_integer_ops() {
    for (x_elem, to) in [(Elem::I32, Elem::U8), (Elem::I16, Elem::I16), (Elem::U8, Elem::I8), (Elem::I32, Elem::I32)] {
        for axis in [1, 2] {
            let mut m = module();
            let mut r = Random(1);
            let x = input(&mut m, x_elem, batched(&[5, 11]));
            let s = random_constant(&mut m, &mut r, Elem::I32, &[[5, 11][axis - 1]], -(1 << 31), (1 << 31) - 1);
            let op = Op::IntRequant { axis, x_zero: if axis == 1 { 0 } else { 5 }, shift: 36, zero_point: 3, to };
            let y = node(&mut m, op, &[x, s]);
            check(&mut m, y, 2, &[]);
        }
    }
    let mut m = module();
    let mut r = Random(1);
    let x = input(&mut m, Elem::I32, batched(&[5, 11]));
    let s = random_constant(&mut m, &mut r, Elem::I16, &[11], -32768, 32767);
    let cheap = Op::IntRequant15 { axis: 2, pre_shift: 5, post_shift: 2, zero_point: -3, to: Elem::I16 };
    let y = node(&mut m, cheap, &[x, s]);
    let y = node(&mut m, Op::IntHardSwish { shift: 3 }, &[y]);
    let y = node(&mut m, Op::IntHardSwish { shift: -2 }, &[y]);
    let z = input(&mut m, Elem::I16, shape(&[5, 1]));
    let y = node(&mut m, Op::IntAdd { to: Elem::I16 }, &[y, z]);
    let y = node(&mut m, Op::IntMul { a_zero: 4, b_zero: -9 }, &[y, z]);
    check(&mut m, y, 2, &[(-(1 << 31), (1 << 31) - 17), (-30000, 30000)]);
}

#[test]
fn clamps_tables_and_rows() {
    let mut m = module();
    let mut r = Random(1);
    let x = input(&mut m, Elem::I8, batched(&[5, 11]));
    let t = random_constant(&mut m, &mut r, Elem::I16, &[256], -32768, 32767);
    let y = node(&mut m, Op::IntClamp { lo: -100, hi: 90 }, &[x]);
    let y = node(&mut m, Op::IntTable {}, &[y, t]);
    m.output("table", y);
    let a = input(&mut m, Elem::I32, batched(&[5, 11]));
    let s = input(&mut m, Elem::I32, batched(&[5, 1]));
    let y = node(&mut m, Op::IntRequantRows { shift: 40, zero_point: 9, to: Elem::U8 }, &[a, s]);
    check(&mut m, y, 2, &[]);
}

#[test]
fn smaller_and_larger_of_two() {
    for elem in [Elem::U8, Elem::I8, Elem::I16, Elem::I32] {
        let mut m = module();
        let (a, b) = (input(&mut m, elem, batched(&[5, 37])), input(&mut m, elem, batched(&[5, 37])));
        let row = input(&mut m, elem, shape(&[37]));
        let y = node(&mut m, Op::IntMax {}, &[a, b]);
        let y = node(&mut m, Op::IntMin {}, &[y, row]);
        check(&mut m, y, 1, &[]);
    }
}

#[test]
fn multipliers_of_elements() {
    for dims in [&[5, 11][..], &[1, 11], &[5, 1], &[5, 40]] {
        let mut m = module();
        let a = input(&mut m, Elem::I16, batched(&[5, if dims[1] == 1 { 11 } else { dims[1] }]));
        let s = input(&mut m, Elem::I32, batched(dims));
        let y = node(&mut m, Op::IntRequantRows { shift: 40, zero_point: 9, to: Elem::U8 }, &[a, s]);
        check(&mut m, y, 1, &[]);
    }
}

#[test]
fn grids_of_rows() {
    for c in SIZES {
        let shift = c as u32 % 16;
        for range in [(-32768, 32767), (-3, 3), (0, 0), (0, 32767)] {
            let mut m = module();
            let x = input(&mut m, Elem::I16, batched(&[3, c]));
            let y = node(&mut m, Op::IntRowPeak { shift }, &[x]);
            check(&mut m, y, 1, &[range]);
        }
        for (levels, zero_point) in [(255, 0), (127, 128), (7, 8), (1, 3)] {
            for range in [(-32768, 32767), (-3, 3), (0, 0), (0, 32767)] {
                let mut m = module();
                let x = input(&mut m, Elem::I16, batched(&[3, c]));
                let y = node(&mut m, Op::IntRowCodes { levels, zero_point, shift }, &[x]);
                check(&mut m, y, 1, &[range]);
            }
        }
    }
}

/// Tables whose magnitudes fall and rise, at either end only, and in no order.
fn tables_of_rows() -> [Vec<i64>; 4] {
    let valley = (0..256).map(|i: i64| (i - 37) * (i - 37) * if i < 37 { -1 } else { 1 } / 2).map(|v| v.min(32767));
    let falling = (0..256).map(|i: i64| -32768 + 128 * i);
    [valley.collect(), falling.collect(), vec![0; 256], (0..256).map(|i: i64| (i * 7919) % 65536 - 32768).collect()]
}

#[test]
fn grids_of_rows_of_entries() {
    for c in SIZES.into_iter().chain([64, 128, 256, 300, 448]) {
        let ranges = [(0, 255), (30, 44), (0, 0), (255, 255), (200, 255)];
        for (n, table) in tables_of_rows().into_iter().enumerate() {
            let shift = c as u32 % 6;
            for range in [ranges[0], ranges[1 + (c + n) % 4]] {
                let ops = [(255, 0), (127, 128), (7, 8)]
                    .map(|(levels, zero_point)| Op::IntRowCodes { levels, zero_point, shift })
                    .into_iter()
                    .chain([Op::IntRowPeak { shift }]);
                for op in ops {
                    let mut m = module();
                    let x = input(&mut m, Elem::U8, batched(&[3, c]));
                    let t = constant(&mut m, Elem::I16, &[256], &table);
                    let y = node(&mut m, op, &[x, t]);
                    check(&mut m, y, 1, &[range]);
                }
            }
        }
    }
}

#[test]
fn rounded_shifts() {
    for shift in [1, 7, 31] {
        let mut m = module();
        let x = input(&mut m, Elem::I32, batched(&[3, 70]));
        let y = node(&mut m, Op::IntRoundShift { shift }, &[x]);
        check(&mut m, y, 1, &[(-(1 << 30), (1 << 30) - 1)]);
    }
}
