//! The leaves of the wide tiers: whole panels, narrow last ones, tiles that overlap, and that they are used at all.

use super::*;

pub(super) fn product(rows: usize, k: usize, n: usize, to: Elem, table: bool, residual: bool) -> (Module, ValueId) {
    let mut m = module();
    let mut r = Random((rows * 31 + k * 7 + n) as u64);
    let a = input(&mut m, Elem::U8, batched(&[rows, k]));
    let w = random_constant(&mut m, &mut r, Elem::I8, &[k, n], -128, 127);
    let bias = random_constant(&mut m, &mut r, Elem::I32, &[n], -(1 << 20), 1 << 20);
    let scale = random_constant(&mut m, &mut r, Elem::I32, &[n], 1 << 29, 1 << 30);
    let mut inputs = vec![(Elem::I32, Access::Element), (Elem::I32, Access::Channel), (Elem::I32, Access::Channel)];
    let mut insts =
        vec![Inst::Load(0), Inst::Load(1), Inst::Add(0, 1), Inst::Load(2), Inst::MulWide(2, 3), Inst::RoundShr(4, 41)];
    let mut operands = vec![a, w, bias, scale];
    if table {
        let entries = random_constant(&mut m, &mut r, Elem::I8, &[256], -128, 127);
        operands.push(entries);
        inputs.push((Elem::I8, Access::Table));
        insts.extend([Inst::Clamp(5, 0, 255), Inst::Truncate(6), Inst::Table { input: 3, index: 7, bias: 0 }]);
    }
    if residual {
        let x = input(&mut m, Elem::I16, batched(&[rows, n]));
        operands.push(x);
        inputs.push((Elem::I16, Access::Element));
        let (value, input) = (insts.len() as u32 - 1, inputs.len() as u32 - 1);
        insts.push(Inst::Clamp(value, -32768, 32767));
        if !table {
            insts.push(Inst::Truncate(value + 1));
        }
        let value = insts.len() as u32 - 1;
        insts.extend([Inst::Load(input), Inst::Add(value, value + 1)]);
    }
    let l = lane(&mut m, &inputs, insts, to);
    let y = node(&mut m, Op::FusedMatMul { a_zero: 9, b_zero: 0, lane: l, to }, &operands);
    (m, y)
}

#[test]
fn panels_of_every_width_and_tiles_of_every_height() {
    for (i, n) in [1, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128, 190].into_iter().enumerate() {
        for (j, rows) in [1, 5, 6, 7, 13].into_iter().enumerate() {
            let to = [Elem::U8, Elem::I8, Elem::I16, Elem::I32][(i + j) % 4];
            let k = [4, 20, 37, 64, 130][(i * 3 + j) % 5];
            let (mut m, y) = product(rows, k, n, to, (i + j) % 3 == 0, (i + j) % 2 == 0);
            check(&mut m, y, 3, &[]);
        }
    }
}

#[test]
fn products_with_constant_weights_run_in_leaves() {
    for tier in Tier::available().into_iter().filter(|t| t.is_wide()) {
        let (mut m, y) = product(13, 64, 128, Elem::U8, true, false);
        m.output("y", y);
        let compiled = compile(&m, &Options { tier, ..Options::default() }).unwrap();
        let leaf = compiled.kernels.iter().find(|k| k.name.contains(".leaf")).expect("a leaf");
        let text = crate::disassemble(&leaf.code[..leaf.instructions]);
        assert!(text.contains("vpdpbusd zmm"), "{text}");
        assert!(text.contains("vpermt2b zmm"), "{text}");
    }
}

/// The tile unit: chunks of k of every kind, blocks that overlap, narrow panels, rows that are copied.
#[test]
fn tiles_of_every_depth_and_width() {
    if Tier::AmxInt8.missing().is_some() {
        return;
    }
    let rows = [16, 17, 33, 15, 40, 48];
    let columns = [64, 1, 65, 128, 40, 200, 190];
    for (i, k) in [64, 40, 128, 192, 320, 384, 450, 512, 576, 640, 704, 768, 1536].into_iter().enumerate() {
        for j in 0..2 {
            let (rows, n) = (rows[(i + 3 * j) % 6], columns[(i + 2 * j) % 7]);
            let to = [Elem::U8, Elem::I8, Elem::I16, Elem::I32][(i + j) % 4];
            let (mut m, y) = product(rows, k, n, to, i % 3 == 0, (i + j) % 2 == 0);
            m.output("y", y);
            check_at(&m, Tier::AmxInt8, 1 + j, 1 + j, 5, &[]);
        }
    }
}

/// More rows than the sums of a cut K may have in scratch at a time, and sums that start at zero.
#[test]
fn tiles_of_many_rows() {
    if Tier::AmxInt8.missing().is_some() {
        return;
    }
    for k in [64, 768] {
        let mut m = module();
        let mut r = Random(2);
        let x = input(&mut m, Elem::U8, batched(&[530, k]));
        let w = random_constant(&mut m, &mut r, Elem::I8, &[k, 70], -128, 127);
        let l = lane(&mut m, &[(Elem::I32, Access::Element)], vec![Inst::Load(0)], Elem::I32);
        let y = node(&mut m, Op::FusedMatMul { a_zero: 0, b_zero: 0, lane: l, to: Elem::I32 }, &[x, w]);
        m.output("y", y);
        check_at(&m, Tier::AmxInt8, 1, 1, 1, &[]);
    }
}

#[test]
fn products_with_constant_weights_run_on_tiles() {
    if Tier::AmxInt8.missing().is_some() {
        return;
    }
    let (mut m, y) = product(48, 384, 192, Elem::U8, true, false);
    m.output("y", y);
    let compiled = compile(&m, &Options { tier: Tier::AmxInt8, ..Options::default() }).unwrap();
    let listings = compiled.kernels.iter().map(|k| crate::disassemble(&k.code[..k.instructions]));
    let leaf = listings.into_iter().find(|text| text.contains("tdpbusd")).expect("a leaf with tiles");
    assert_eq!(leaf.matches("tdpbusd").count(), 2 * 4 * 6, "a block without outputs and one with");
    assert!(!leaf.contains("tilezero"), "the sums start with corrections");
}

/// Rows that end at every place of a vector, more than a group of them, and every way to saturate.
#[test]
fn norms_of_every_width_and_result() {
    let ranges = [full(Elem::I16), (-3, 3), (9, 9), (-32768, -32768), (32700, 32767)];
    for (i, c) in (1..=70).chain([96, 127, 128, 129, 192, 197, 384, 768]).enumerate() {
        let mut m = module();
        let mut r = Random(c as u64);
        let x = input(&mut m, Elem::I16, batched(&[11, c]));
        let gamma = random_constant(&mut m, &mut r, Elem::I32, &[c], -2000, 2000);
        let beta = random_constant(&mut m, &mut r, Elem::I32, &[c], -500_000, 500_000);
        let op = Op::IntLayerNorm {
            epsilon: [17, 1 << 40][i % 2],
            centred: i % 3 != 0,
            guard: (c as f64).sqrt().log2().ceil() as u32 + 1,
            norm_bits: 9,
            recip_bits: 12,
            shift: [12, 4, 1][i / 2 % 3],
            zero_point: [0, 121, 5][i / 3 % 3],
            to: [Elem::U8, Elem::I8, Elem::I16][i % 3],
        };
        let y = node(&mut m, op, &[x, gamma, beta]);
        check(&mut m, y, 1, &[ranges[i % 5]]);
    }
}

/// Maps over straight runs and over rows, with every way to read an input.
#[test]
fn maps_of_every_width_and_access() {
    for (i, c) in [1usize, 2, 15, 16, 17, 31, 33, 63, 64, 65, 100, 128, 200].into_iter().enumerate() {
        let to = [Elem::U8, Elem::I8, Elem::I16, Elem::I32][i % 4];
        let from = [Elem::I16, Elem::I8, Elem::U8, Elem::I32][i / 2 % 4];
        let mut r = Random(c as u64);
        // All elements in one run.
        let mut m = module();
        let (x, y) = (input(&mut m, from, batched(&[3, c])), input(&mut m, Elem::I16, batched(&[3, c])));
        let insts = vec![Inst::Load(0), Inst::RoundShr(0, 2), Inst::Load(1), Inst::Add(1, 2)];
        let l = lane(&mut m, &[(from, Access::Element), (Elem::I16, Access::Element)], insts, to);
        let v = node(&mut m, Op::FusedMap { shape: batched(&[3, c]), lane: l, to }, &[x, y]);
        let half = |elem| if elem == Elem::I32 { (-(1 << 30), (1 << 30) - 1) } else { full(elem) };
        check(&mut m, v, 1, &[half(from)]);
        // Channels, rows, one value and a table.
        let mut m = module();
        let x = input(&mut m, from, batched(&[3, c]));
        let rows = input(&mut m, Elem::I32, batched(&[3, 1]));
        let scale = random_constant(&mut m, &mut r, Elem::I32, &[c], 1 << 20, 1 << 28);
        let one = constant(&mut m, Elem::I32, &[1], &[-77]);
        let table = random_constant(&mut m, &mut r, Elem::I8, &[256], -128, 127);
        let inputs = [
            (from, Access::Element),
            (Elem::I32, Access::Channel),
            (Elem::I32, Access::Row),
            (Elem::I32, Access::Scalar),
            (Elem::I8, Access::Table),
        ];
        let insts = vec![
            Inst::Load(0),
            Inst::Load(1),
            Inst::MulWide(0, 1),
            Inst::RoundShr(2, 34),
            Inst::Clamp(3, 0, 255),
            Inst::Truncate(4),
            Inst::Table { input: 4, index: 5, bias: 0 },
            Inst::Load(2),
            Inst::Load(3),
            Inst::Add(7, 8),
            Inst::Shr(9, 22),
            Inst::Add(6, 10),
        ];
        let l = lane(&mut m, &inputs, insts, to);
        let operands = [x, scale, rows, one, table];
        let v = node(&mut m, Op::FusedMap { shape: batched(&[3, c]), lane: l, to }, &operands);
        check(&mut m, v, 1, &[half(from), (-(1 << 30), 1 << 30)]);
    }
}

#[test]
fn rows_run_in_leaves() {
    for tier in Tier::available().into_iter().filter(|t| t.is_wide()) {
        let mut m = module();
        let x = input(&mut m, Elem::I16, batched(&[5, 192]));
        let gamma = constant(&mut m, Elem::I32, &[192], &[7; 192]);
        let op = Op::IntLayerNorm {
            epsilon: 9,
            centred: true,
            guard: 5,
            norm_bits: 9,
            recip_bits: 12,
            shift: 8,
            zero_point: 3,
            to: Elem::U8,
        };
        let y = node(&mut m, op, &[x, gamma, gamma]);
        let l = lane(&mut m, &[(Elem::U8, Access::Element)], vec![Inst::Load(0), Inst::Shr(0, 1)], Elem::U8);
        let y = node(&mut m, Op::FusedMap { shape: batched(&[5, 192]), lane: l, to: Elem::U8 }, &[y]);
        m.output("y", y);
        let compiled = compile(&m, &Options { tier, ..Options::default() }).unwrap();
        let leaf = |kernel: &str| {
            let leaf = compiled.kernels.iter().find(|k| k.name.starts_with(kernel) && k.name.contains(".leaf"));
            let leaf = leaf.unwrap_or_else(|| panic!("{kernel} has no leaf"));
            crate::disassemble(&leaf.code[..leaf.instructions])
        };
        assert!(leaf("layernorm").contains("vpdpwssd zmm"));
        assert!(leaf("map").contains("vpsrad zmm"));
    }
}

/// Look-ups of 16-bit entries: stored as they are, and used further.
#[test]
fn tables_of_halves() {
    for n in [20, 64, 104] {
        let mut m = module();
        let mut r = Random(9);
        let x = input(&mut m, Elem::U8, batched(&[5, n]));
        let w = random_constant(&mut m, &mut r, Elem::I8, &[n, n], -128, 127);
        let scale = random_constant(&mut m, &mut r, Elem::I32, &[n], 1 << 29, 1 << 30);
        let table = random_constant(&mut m, &mut r, Elem::I16, &[256], -0x8000, 0x7fff);
        let inputs = [(Elem::I32, Access::Element), (Elem::I32, Access::Channel), (Elem::I16, Access::Table)];
        let insts = vec![
            Inst::Load(0),
            Inst::Load(1),
            Inst::MulWide(0, 1),
            Inst::RoundShr(2, 40),
            Inst::Truncate(3),
            Inst::Clamp(4, 0, 255),
            Inst::Table { input: 2, index: 5, bias: 0 },
        ];
        let stored = lane(&mut m, &inputs, insts.clone(), Elem::I16);
        let store = Op::FusedMatMul { a_zero: 128, b_zero: 0, lane: stored, to: Elem::I16 };
        let y = node(&mut m, store, &[x, w, scale, table]);
        m.output("stored", y);
        let further = |other: &[Inst]| [&insts[..], &[Inst::Load(3)], other].concat();
        let product = further(&[Inst::Mul(6, 7), Inst::RoundShr(8, 15), Inst::Clamp(9, -0x8000, 0x7fff)]);
        let further = further(&[Inst::Add(6, 7)]);
        let inputs = [&inputs[..], &[(Elem::I16, Access::Element)]].concat();
        let added = lane(&mut m, &inputs, further, Elem::I16);
        let added_to = Op::FusedMatMul { a_zero: 128, b_zero: 0, lane: added, to: Elem::I16 };
        let z = node(&mut m, added_to, &[x, w, scale, table, y]);
        m.output("added", z);
        // the gate of a function in 16 bits: what is looked up times what it was looked up for
        let multiplied = lane(&mut m, &inputs, product, Elem::I16);
        let gated = Op::FusedMatMul { a_zero: 128, b_zero: 0, lane: multiplied, to: Elem::I16 };
        let z = node(&mut m, gated, &[x, w, scale, table, y]);
        m.output("gated", z);
        let inputs = [(Elem::U8, Access::Element), (Elem::I16, Access::Table)];
        let map = lane(&mut m, &inputs, vec![Inst::Load(0), Inst::Table { input: 1, index: 0, bias: 0 }], Elem::I16);
        let shape = batched(&[5, n]);
        let y = node(&mut m, Op::FusedMap { shape, lane: map, to: Elem::I16 }, &[x, table]);
        check(&mut m, y, 3, &[]);
    }
}

/// How the gate of HardSwish follows from its argument: shifted left, right, or neither way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gate {
    Left,
    Plain,
    Right,
}

/// A requantize to 16 bits, HardSwish and a requantize in 16 bits, of sums, a multiplier and a factor of `i16`.
pub(super) fn gate(form: Gate, shift: u32) -> Vec<Inst> {
    let (reach, add) = match form {
        Gate::Left => (8192, 8192),
        Gate::Plain => (16384, 16384),
        Gate::Right => (0, 16384),
    };
    let mut insts = vec![
        Inst::Load(0),
        Inst::Load(1),
        Inst::MulWide(0, 1),
        Inst::RoundShr(2, shift),
        // the gate is a clamp of what is not saturated yet, and before it, as lane rules leave it
        Inst::Clamp(3, -reach, reach - 1),
        Inst::Truncate(4),
        Inst::Clamp(3, -32768, 32767),
        Inst::Truncate(6),
        Inst::Const(add, Width::W32),
        Inst::Add(8, 5),
        Inst::Shl(9, 1),
        Inst::MulHigh15(7, 10),
        Inst::Load(2),
        Inst::MulHigh15(11, 12),
        Inst::RoundShr(13, 6),
        Inst::Const(9, Width::W32),
        Inst::Add(14, 15),
    ];
    match form {
        Gate::Left => {}
        Gate::Plain => insts[11] = Inst::MulHigh15(7, 9),
        Gate::Right => {
            insts[4..8].copy_from_slice(&[
                Inst::Clamp(3, -32768, 32767),
                Inst::Truncate(4),
                Inst::Shr(5, 3),
                Inst::Const(add, Width::W32),
            ]);
            insts[8..12].copy_from_slice(&[
                Inst::Add(6, 7),
                Inst::Add(5, 6), // read by nothing
                Inst::Const(0, Width::W32),
                Inst::MulHigh15(5, 8),
            ]);
        }
    }
    insts
}

/// A product whose results are saturated to 16 bits, go through a gate, and are requantized in 16 bits: HardSwish.
fn gated(n: usize, to: Elem, form: Gate, shift: u32, scalar: bool) -> (Module, ValueId) {
    let mut m = module();
    let mut r = Random(n as u64);
    let x = input(&mut m, Elem::U8, batched(&[5, 24]));
    let w = random_constant(&mut m, &mut r, Elem::I8, &[24, n], -128, 127);
    let scale = random_constant(&mut m, &mut r, Elem::I32, &[n], 1 << 29, 1 << 30);
    let factors = if scalar { 1 } else { n };
    let factor = random_constant(&mut m, &mut r, Elem::I16, &[factors], 1 << 8, i16::MAX.into());
    let access = if scalar { Access::Scalar } else { Access::Channel };
    let inputs = [(Elem::I32, Access::Element), (Elem::I32, Access::Channel), (Elem::I16, access)];
    let insts = gate(form, shift);
    let l = lane(&mut m, &inputs, insts, to);
    let y = node(&mut m, Op::FusedMatMul { a_zero: 0, b_zero: 0, lane: l, to }, &[x, w, scale, factor]);
    (m, y)
}

#[test]
fn gates_in_16_bits() {
    for (i, n) in [1, 16, 17, 31, 32, 33, 50, 64, 100, 128].into_iter().enumerate() {
        for (to, form) in
            [(Elem::U8, Gate::Left), (Elem::I8, Gate::Plain), (Elem::I16, Gate::Right), (Elem::U8, Gate::Right)]
        {
            let (mut m, y) = gated(n, to, form, if i % 2 == 0 { 31 } else { 33 }, i % 3 == 0);
            check(&mut m, y, 3, &[]);
        }
    }
    for tier in Tier::available().into_iter().filter(|t| t.is_wide()) {
        let (mut m, y) = gated(64, Elem::U8, Gate::Left, 31, false);
        m.output("y", y);
        let compiled = compile(&m, &Options { tier, ..Options::default() }).unwrap();
        let leaf = compiled.kernels.iter().find(|k| k.name.contains(".leaf")).expect("a leaf");
        let text = crate::disassemble(&leaf.code[..leaf.instructions]);
        assert!(text.contains("vpmulhrsw zmm") && !text.contains("vpmulld"), "{text}");
    }
}

/// A gate, a centre and a factor of 15 bits for each channel, whose product has 32 bits: results of 16 bits that saturate and others.
#[test]
fn factors_behind_gates() {
    for (i, n) in [64, 128, 96, 50, 32].into_iter().enumerate() {
        let (mut m, mut r) = (module(), Random(n as u64));
        let x = input(&mut m, Elem::U8, batched(&[7, 24]));
        let w = random_constant(&mut m, &mut r, Elem::I8, &[24, n], -128, 127);
        let scale = random_constant(&mut m, &mut r, Elem::I32, &[n], 1 << 29, 1 << 30);
        let centre = random_constant(&mut m, &mut r, Elem::I16, &[n], -9000, 9000);
        let factor = random_constant(&mut m, &mut r, Elem::I32, &[n], -(1 << 14), (1 << 15) - 1);
        let inputs = [
            (Elem::I32, Access::Element),
            (Elem::I32, Access::Channel),
            (Elem::I16, Access::Channel),
            (Elem::I32, Access::Channel),
        ];
        let mut insts = gate(Gate::Plain, 31);
        insts.truncate(12);
        let gated = insts.len() as u32 - 1;
        insts.extend([
            Inst::Load(2),
            Inst::Add(gated, gated + 1),
            Inst::Clamp(gated + 2, -32768, 32767),
            Inst::Load(3),
            Inst::Mul(gated + 3, gated + 4),
            Inst::RoundShr(gated + 5, if i % 2 == 0 { 10 } else { 15 }),
        ]);
        let l = lane(&mut m, &inputs, insts, Elem::I16);
        let op = Op::FusedMatMul { a_zero: 0, b_zero: 0, lane: l, to: Elem::I16 };
        let y = node(&mut m, op, &[x, w, scale, centre, factor]);
        for tier in Tier::available().into_iter().filter(|t| t.is_wide() && n % 32 == 0) {
            let mut m = m.clone();
            m.output("y", y);
            let compiled = compile(&m, &Options { tier, ..Options::default() }).unwrap();
            let leaf = compiled.kernels.iter().find(|k| k.name.contains(".leaf")).expect("a leaf");
            assert!(crate::disassemble(&leaf.code[..leaf.instructions]).contains("vpmaddwd zmm"));
        }
        check(&mut m, y, 3, &[]);
    }
}

/// Levels by comparisons with thresholds, as `passes` writes quantizers of few levels: all operands but the value are constants.
#[test]
fn ladders_of_comparisons() {
    for (levels, columns) in [(1i64, 64), (2, 64), (3, 40), (5, 190)] {
        let mut insts = vec![Inst::Load(0), Inst::Const(levels, Width::W32)];
        for level in (0..levels).rev() {
            let threshold = if level == 0 { i64::from(i32::MIN) + 1 } else { level * 9000 - 12_345 };
            let last = insts.len() as u32 - 1;
            insts.extend([Inst::Const(threshold, Width::W32), Inst::Const(level, Width::W32)]);
            insts.push(Inst::SelectLess(0, last + 1, last + 2, last));
        }
        let element = [(Elem::I32, Access::Element)];
        let mut m = module();
        let x = input(&mut m, Elem::I32, batched(&[13, columns]));
        let l = lane(&mut m, &element, insts.clone(), Elem::U8);
        let y = node(&mut m, Op::FusedMap { shape: batched(&[13, columns]), lane: l, to: Elem::U8 }, &[x]);
        check(&mut m, y, 4, &[(-50_000, 50_000)]);
        let (mut m, mut r) = (module(), Random(6));
        let a = input(&mut m, Elem::U8, batched(&[13, 37]));
        let w = random_constant(&mut m, &mut r, Elem::I8, &[37, columns], -128, 127);
        let l = lane(&mut m, &element, insts, Elem::I8);
        let y = node(&mut m, Op::FusedMatMul { a_zero: 0, b_zero: 0, lane: l, to: Elem::I8 }, &[a, w]);
        check(&mut m, y, 5, &[]);
    }
}
