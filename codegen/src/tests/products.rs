//! Products with constant and computed right sides, and convolutions.

use super::*;

fn matmul(
    m: &mut Module,
    a: ValueId,
    b: ValueId,
    zeros: (i64, i64),
    lane: LaneName,
    extras: &[ValueId],
    to: Elem,
) -> ValueId {
    let operands: Vec<ValueId> = [a, b].into_iter().chain(extras.iter().copied()).collect();
    node(m, Op::FusedMatMul { a_zero: zeros.0, b_zero: zeros.1, lane, to }, &operands)
}

fn identity(m: &mut Module) -> LaneName {
    lane(m, &[(Elem::I32, Access::Element)], vec![Inst::Load(0)], Elem::I32)
}

#[test]
fn constant_weights_of_every_sign_and_zero_point() {
    let cases = [
        (Elem::U8, 131, Elem::I8, 0),
        (Elem::I8, 0, Elem::I8, 0),
        (Elem::I8, -7, Elem::U8, 99),
        (Elem::U8, 3, Elem::U8, 128),
        (Elem::I16, 0, Elem::I8, 0),
        (Elem::I16, -100, Elem::I8, 5),
    ];
    for (i, (a, az, b, bz)) in cases.into_iter().enumerate() {
        for (rows, k, n) in [(1, 1, 1), (5, 7, 9), (7, 64, 24), (33, 130, 17)] {
            let mut m = module();
            let mut r = Random((i * 7 + k) as u64);
            let x = input(&mut m, a, batched(&[rows, k]));
            let (lo, hi) = full(b);
            let w = random_constant(&mut m, &mut r, b, &[k, n], lo, hi);
            let l = identity(&mut m);
            let y = matmul(&mut m, x, w, (az, bz), l, &[], Elem::I32);
            check(&mut m, y, 5, &[]);
        }
    }
}

#[test]
fn epilogues_requantize_look_up_and_add() {
    for to in [Elem::U8, Elem::I8, Elem::I16, Elem::I32] {
        for shift in [20, 31, 32, 40] {
            let mut m = module();
            let mut r = Random(9);
            let (k, n) = (37, 29);
            let x = input(&mut m, Elem::U8, batched(&[11, k]));
            let w = random_constant(&mut m, &mut r, Elem::I8, &[k, n], -128, 127);
            let scale = random_constant(&mut m, &mut r, Elem::I32, &[n], -(1 << 31), (1 << 31) - 1);
            let l = requantize(&mut m, &[(Elem::I32, Access::Channel)], to, shift);
            let y = matmul(&mut m, x, w, (12, 0), l, &[scale], to);
            check(&mut m, y, 6, &[]);
        }
    }
}

#[test]
fn rows_residuals_and_tables() {
    let mut m = module();
    let mut r = Random(4);
    let (k, n) = (20, 19);
    let x = input(&mut m, Elem::U8, batched(&[13, k]));
    let residual = input(&mut m, Elem::I16, batched(&[13, n]));
    let row = input(&mut m, Elem::I32, batched(&[13, 1]));
    let w = random_constant(&mut m, &mut r, Elem::I8, &[k, n], -128, 127);
    let table = random_constant(&mut m, &mut r, Elem::I8, &[256], -128, 127);
    let insts = vec![
        Inst::Load(0),
        Inst::Load(2),
        Inst::MulWide(0, 1),
        Inst::RoundShr(2, 33),
        Inst::Clamp(3, -128, 127),
        Inst::Truncate(4),
        Inst::Table { input: 3, index: 5, bias: -128 },
        Inst::Load(1),
        Inst::Add(6, 7),
    ];
    let inputs = [
        (Elem::I32, Access::Element),
        (Elem::I16, Access::Element),
        (Elem::I32, Access::Row),
        (Elem::I8, Access::Table),
    ];
    let l = lane(&mut m, &inputs, insts, Elem::I16);
    let y = matmul(&mut m, x, w, (0, 0), l, &[residual, row, table], Elem::I16);
    check(&mut m, y, 6, &[]);
}

/// A look-up that ends a program stores its entries itself.
#[test]
fn look_ups_that_give_the_result() {
    for (elem, n, bias) in [(Elem::U8, 1, 0), (Elem::U8, 24, -128), (Elem::I8, 13, 0), (Elem::I8, 31, -128)] {
        let mut m = module();
        let mut r = Random(n as u64);
        let x = input(&mut m, Elem::U8, batched(&[7, 9]));
        let w = random_constant(&mut m, &mut r, Elem::I8, &[9, n], -128, 127);
        let s = random_constant(&mut m, &mut r, Elem::I32, &[n], -(1 << 24), 1 << 24);
        let t = random_constant(&mut m, &mut r, elem, &[256], full(elem).0, full(elem).1);
        let insts = vec![
            Inst::Load(0),
            Inst::Load(1),
            Inst::MulWide(0, 1),
            Inst::RoundShr(2, 34),
            Inst::Truncate(3),
            Inst::Clamp(4, bias, bias + 255),
            Inst::Table { input: 2, index: 5, bias },
        ];
        let inputs = [(Elem::I32, Access::Element), (Elem::I32, Access::Channel), (elem, Access::Table)];
        let l = lane(&mut m, &inputs, insts, elem);
        let y = matmul(&mut m, x, w, (0, 0), l, &[s, t], elem);
        check(&mut m, y, 5, &[]);
    }
}

/// K over all of 1..=130, with odd N and M from one row to many, on either tier and at batches of one to three.
#[test]
fn products_of_every_depth() {
    let mut r = Random(11);
    for k in (1..=130).step_by(3).chain([2, 64, 127, 128, 130, 192]) {
        let (a, rows) = ([Elem::U8, Elem::I8, Elem::I16][k % 3], [1, 2, 5, 11, 33][k % 5]);
        let n = 1 + 2 * (k % 13);
        let mut m = module();
        let x = input(&mut m, a, batched(&[rows, k]));
        let limit = if a == Elem::I16 { (1i64 << 31) / (k as i64 * 32768) } else { 128 }.min(128);
        let w = random_constant(&mut m, &mut r, Elem::I8, &[k, n], -limit, limit - 1);
        let l = identity(&mut m);
        let zero = if a == Elem::I16 { 0 } else { 77 };
        let y = matmul(&mut m, x, w, (zero, 0), l, &[], Elem::I32);
        m.output("y", y);
        let tier = [Tier::Portable, Tier::Baseline][k / 3 % 2];
        check_at(&m, tier, 1 + k % 3, 1 + k % 2, r.next(), &[]);
    }
    for (rows, k, n) in [(197, 64, 9), (197, 197, 5)] {
        let mut m = module();
        let x = input(&mut m, Elem::U8, batched(&[rows, k]));
        let w = random_constant(&mut m, &mut r, Elem::I8, &[k, n], -128, 127);
        let l = identity(&mut m);
        let y = matmul(&mut m, x, w, (3, 0), l, &[], Elem::I32);
        m.output("y", y);
        check_at(&m, Tier::Portable, 1, 2, 1, &[]);
    }
}

#[test]
fn fifteen_bit_requantize() {
    let mut m = module();
    let mut r = Random(4);
    let (k, n) = (64, 24);
    let x = input(&mut m, Elem::U8, batched(&[9, k]));
    let w = random_constant(&mut m, &mut r, Elem::I8, &[k, n], -128, 127);
    let scale = random_constant(&mut m, &mut r, Elem::I16, &[n], -32768, 32767);
    let insts = vec![
        Inst::Load(0),
        Inst::RoundShr(0, 4),
        Inst::Clamp(1, -32768, 32767),
        Inst::Load(1),
        Inst::MulHigh15(2, 3),
        Inst::Const(-11, Width::W32),
        Inst::Add(4, 5),
    ];
    let l = lane(&mut m, &[(Elem::I32, Access::Element), (Elem::I16, Access::Channel)], insts, Elem::I8);
    let y = matmul(&mut m, x, w, (0, 0), l, &[scale], Elem::I8);
    check(&mut m, y, 6, &[]);
}

/// Attention over views: q, k, v split into heads, k transposed; the result joined again and multiplied.
fn attention(a: Elem, tokens: usize, heads: usize, d: usize) {
    let mut m = module();
    let c = heads * d;
    let q = input(&mut m, a, batched(&[tokens, c]));
    let k = input(&mut m, Elem::I8, batched(&[tokens, c]));
    let v = input(&mut m, Elem::I8, batched(&[tokens, c]));
    let p = input(&mut m, a, batched(&[heads, tokens, tokens]));
    let split = batched(&[tokens, heads, d]);
    let head = |m: &mut Module, x, perm: &[usize]| {
        let x = view(m, Op::Reshape { shape: split.clone() }, &[x]);
        view(m, Op::Transpose { perm: perm.to_vec() }, &[x])
    };
    let (q, k, v) = (head(&mut m, q, &[0, 2, 1, 3]), head(&mut m, k, &[0, 2, 3, 1]), head(&mut m, v, &[0, 2, 1, 3]));
    let l = identity(&mut m);
    let scores = matmul(&mut m, q, k, (if a == Elem::U8 { 77 } else { 0 }, 0), l.clone(), &[], Elem::I32);
    let values = matmul(&mut m, p, v, (0, 3), l, &[], Elem::I32);
    m.output("scores", scores);
    let narrow = lane(&mut m, &[(Elem::I32, Access::Element)], vec![Inst::Load(0), Inst::Shr(0, 9)], Elem::U8);
    let values =
        node(&mut m, Op::FusedMap { shape: batched(&[heads, tokens, d]), lane: narrow, to: Elem::U8 }, &[values]);
    let values = view(&mut m, Op::Transpose { perm: vec![0, 2, 1, 3] }, &[values]);
    let values = view(&mut m, Op::Reshape { shape: batched(&[tokens, c]) }, &[values]);
    let w = random_constant(&mut m, &mut Random(8), Elem::I8, &[c, 10], -128, 127);
    let l = identity(&mut m);
    let y = matmul(&mut m, values, w, (100, 0), l, &[], Elem::I32);
    let small = if a == Elem::I16 { (-2000, 2000) } else { full(a) };
    check(&mut m, y, 3, &[small, full(Elem::I8), full(Elem::I8), small]);
}

#[test]
fn attention_over_views() {
    attention(Elem::U8, 9, 3, 8);
    attention(Elem::U8, 17, 2, 16);
    attention(Elem::U8, 5, 3, 6);
    attention(Elem::I8, 13, 1, 7);
    attention(Elem::I16, 11, 2, 12);
    attention(Elem::U8, 1, 2, 4);
}

#[test]
#[ignore = "a measurement"]
fn measure_a_block() {
    let (tokens, heads, d) = (197, 3, 64);
    let c = heads * d;
    let mut m = module();
    let mut r = Random(1);
    let q = input(&mut m, Elem::U8, batched(&[tokens, c]));
    let k = input(&mut m, Elem::I8, batched(&[tokens, c]));
    let x = input(&mut m, Elem::I16, batched(&[tokens, c]));
    let pixels = input(&mut m, Elem::U8, batched(&[3, 224, 224]));
    let split = batched(&[tokens, heads, d]);
    let head = |m: &mut Module, x, perm: &[usize]| {
        let x = view(m, Op::Reshape { shape: split.clone() }, &[x]);
        view(m, Op::Transpose { perm: perm.to_vec() }, &[x])
    };
    let (qh, kt, v) = (head(&mut m, q, &[0, 2, 1, 3]), head(&mut m, k, &[0, 2, 3, 1]), head(&mut m, k, &[0, 2, 1, 3]));
    let l = identity(&mut m);
    let scores = matmul(&mut m, qh, kt, (128, 0), l.clone(), &[], Elem::I32);
    let values: Vec<i64> = (0..32).map(|i| (255.0 * 2f64.powi(20) * 2f64.powf(-f64::from(i) / 32.0)) as i64).collect();
    let t = constant(&mut m, Elem::I32, &[32], &values);
    let p = node(&mut m, Op::IntExp { limit: 300_000, multiplier: 5, shift: 9, table_bits: 20 }, &[scores, t]);
    let s = node(&mut m, Op::IntReduceSum { axis: 3, keep: true }, &[p]);
    let s = node(&mut m, Op::IntReciprocal { numerator: 1 << 30 }, &[s]);
    let rq = requantize(&mut m, &[(Elem::I32, Access::Row)], Elem::U8, 34);
    let y = matmul(&mut m, p, v, (0, 0), rq, &[s], Elem::U8);
    m.output("attention", y);
    let gamma = random_constant(&mut m, &mut r, Elem::I32, &[c], -2000, 2000);
    let op = Op::IntLayerNorm {
        epsilon: 17,
        centred: true,
        guard: 5,
        norm_bits: 9,
        recip_bits: 12,
        shift: 12,
        zero_point: 9,
        to: Elem::U8,
    };
    let y = node(&mut m, op, &[x, gamma, gamma]);
    let w = random_constant(&mut m, &mut r, Elem::I8, &[c, 4 * c], -128, 127);
    let scale = random_constant(&mut m, &mut r, Elem::I32, &[4 * c], 1 << 30, (1 << 31) - 1);
    let table = random_constant(&mut m, &mut r, Elem::U8, &[256], 0, 255);
    let insts = vec![
        Inst::Load(0),
        Inst::Load(1),
        Inst::MulWide(0, 1),
        Inst::RoundShr(2, 42),
        Inst::Clamp(3, 0, 255),
        Inst::Truncate(4),
        Inst::Table { input: 2, index: 5, bias: 0 },
    ];
    let inputs = [(Elem::I32, Access::Element), (Elem::I32, Access::Channel), (Elem::U8, Access::Table)];
    let l = lane(&mut m, &inputs, insts, Elem::U8);
    let y = matmul(&mut m, y, w, (9, 0), l, &[scale, table], Elem::U8);
    m.output("gelu", y);
    let w = random_constant(&mut m, &mut r, Elem::I8, &[c, 3, 16, 16], -128, 127);
    let scale = random_constant(&mut m, &mut r, Elem::I32, &[c], 1 << 30, (1 << 31) - 1);
    let l = requantize(&mut m, &[(Elem::I32, Access::Channel)], Elem::I16, 37);
    let (strides, pads, dilations) = ([16, 16], [0; 4], [1, 1]);
    let layout = ImageLayout::ChannelsFirst;
    let op = Op::FusedConv2d { strides, pads, dilations, groups: 1, layout, x_zero: 0, lane: l, to: Elem::I16 };
    let y = node(&mut m, op, &[pixels, w, scale]);
    m.output("patches", y);

    let compiled = compile(&m, &Options::default()).unwrap();
    let program = Arc::new(compiled.into_program().unwrap());
    let mut session = Session::new(program, SessionOptions { threads: 1, ..SessionOptions::default() }).unwrap();
    let given: Vec<(vitc_runtime::Elem, Vec<usize>, Vec<u8>)> = m
        .inputs
        .iter()
        .map(|i| {
            let (elem, dims) = (m.ty(i.value).elem, m.ty(i.value).shape.at(1));
            let bytes = data(&mut r, elem, dims.iter().product(), full(elem)).1;
            (runtime_elem(elem), dims, bytes)
        })
        .collect();
    let views: Vec<TensorView<'_>> = given.iter().map(|g| TensorView::new(g.0, &g.1, &g.2).unwrap()).collect();
    let mut best = vec![u64::MAX; session.program().steps().len()];
    for _ in 0..200 {
        session.profile(true);
        session.run(&views, OutputForm::Raw).unwrap();
        for (b, s) in best.iter_mut().zip(session.step_profiles()) {
            *b = (*b).min(s.nanos);
        }
    }
    for (s, nanos) in session.program().steps().iter().zip(&best) {
        let rate = s.macs_per_image as f64 / *nanos as f64;
        println!("MEASURED {:40} {:8.1} us {rate:6.1} GMAC/s", s.name, *nanos as f64 / 1e3);
    }
}

/// Rows that are patches of an image, read through an index map.
#[test]
fn rows_of_patches() {
    for elem in [Elem::U8, Elem::I8] {
        let (channels, rows, height, columns, width, n) = (3, 5, 4, 3, 4, 70);
        let mut m = module();
        let mut r = Random(77);
        let x = input(&mut m, elem, batched(&[channels, rows * height, columns * width]));
        let cut = Op::Reshape { shape: batched(&[channels, rows, height, columns, width]) };
        let cut = view(&mut m, cut, &[x]);
        let cut = view(&mut m, Op::Transpose { perm: vec![0, 2, 4, 1, 3, 5] }, &[cut]);
        let k = channels * height * width;
        let a = view(&mut m, Op::Reshape { shape: batched(&[rows, columns, k]) }, &[cut]);
        let w = random_constant(&mut m, &mut r, Elem::I8, &[k, n], -128, 127);
        let scale = random_constant(&mut m, &mut r, Elem::I32, &[n], 1 << 29, 1 << 30);
        let l = requantize(&mut m, &[(Elem::I32, Access::Channel)], Elem::I16, 36);
        let y = matmul(&mut m, a, w, (7, 0), l, &[scale], Elem::I16);
        let product = m.nodes.len() - 1;
        assert!(crate::is_operand_view_supported(&m, product, 0, &vec![true; m.nodes.len()]));
        check(&mut m, y, 6, &[]);
    }
}

/// Both sides computed, as heads of values that lie side by side: the right one with its columns or its k one after another, of
/// either sign, with a zero point on the left.
#[test]
fn both_sides_computed() {
    let mut r = Random(79);
    for (rows, k, n) in [(1, 1, 1), (7, 3, 5), (5, 70, 64), (40, 48, 196), (33, 196, 48), (17, 130, 81)] {
        for (right, turned) in [(Elem::I8, false), (Elem::I8, true), (Elem::U8, false), (Elem::U8, true)] {
            let mut m = module();
            let heads = 1 + r.within(0, 2) as usize;
            let left = [Elem::U8, Elem::I8][k % 2];
            let sizes = if turned { [n, heads, k] } else { [k, heads, n] };
            let a = input(&mut m, left, batched(&[heads, rows, k]));
            let b = input(&mut m, right, batched(&sizes));
            let perm = if turned { vec![0, 2, 3, 1] } else { vec![0, 2, 1, 3] };
            let b = view(&mut m, Op::Transpose { perm }, &[b]);
            let scale = random_constant(&mut m, &mut r, Elem::I32, &[n], 1 << 29, 1 << 30);
            let l = requantize(&mut m, &[(Elem::I32, Access::Channel)], Elem::I16, 36);
            let b_zero = if right == Elem::U8 { 128 } else { 0 };
            let y = matmul(&mut m, a, b, (if left == Elem::U8 { 77 } else { 0 }, b_zero), l, &[scale], Elem::I16);
            check(&mut m, y, r.next(), &[]);
        }
    }
}

/// The right side of a product of two activations has one stride along either dimension, or it is copied.
#[test]
fn a_right_side_of_split_dimensions_is_no_view() {
    let mut m = module();
    let mut r = Random(78);
    let x = input(&mut m, Elem::U8, batched(&[2, 6, 5, 6]));
    let turned = view(&mut m, Op::Transpose { perm: vec![0, 1, 3, 2, 4] }, &[x]);
    for (rows, columns) in [(10, 36), (60, 6)] {
        let a = input(&mut m, Elem::U8, batched(&[3, rows]));
        let b = view(&mut m, Op::Reshape { shape: batched(&[rows, columns]) }, &[turned]);
        let scale = random_constant(&mut m, &mut r, Elem::I32, &[columns], 1 << 29, 1 << 30);
        let l = requantize(&mut m, &[(Elem::I32, Access::Channel)], Elem::I16, 36);
        matmul(&mut m, a, b, (0, 0), l, &[scale], Elem::I16);
    }
    let all = vec![true; m.nodes.len()];
    let products = (0..m.nodes.len()).filter(|&n| matches!(m.nodes[n].op, Op::FusedMatMul { .. }));
    assert!(products.clone().all(|n| !crate::is_operand_view_supported(&m, n, 1, &all)));
    assert!(products.clone().all(|n| crate::is_operand_view_supported(&m, n, 0, &all)));
}

/// Bytes at a multiple of 64, as those of an artifact are.
struct Aligned(Vec<u8>, usize);

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        let start = self.0.as_ptr().addr().next_multiple_of(64) - self.0.as_ptr().addr();
        &self.0[start..start + self.1]
    }
}

/// Weights that are stored as a kernel reads them are not copied, on tiers whose layout it is; the bits are the same anyway.
#[test]
fn stored_weights_are_used_where_they_lie() {
    // On tiles 37 k are padded to 64; as few as 20 run on vectors. 200 columns would be padded
    // too much: those are stored as the other tiers read them.
    for (k, n, in_place) in
        [(64, 128, [1, 1]), (20, 64, [1, 1]), (384, 220, [1, 1]), (37, 120, [0, 1]), (64, 200, [0, 0])]
    {
        let (mut m, y) = super::wide::product(21, k, n, Elem::I16, false, true);
        let weights = m.consts.iter_mut().find(|c| c.ty.elem == Elem::I8).unwrap();
        let layout = crate::weight_layout(k, n);
        let packed = layout.pack(k, n, &weights.data);
        let len = packed.len();
        let room: Vec<u8> = vec![0; len + 64];
        let mut aligned = Aligned(room, len);
        let start = aligned.as_ref().as_ptr().addr() - aligned.0.as_ptr().addr();
        aligned.0[start..start + len].copy_from_slice(&packed);
        (weights.layout, weights.data) = (Some(layout), bytes::Bytes::from_owner(aligned));
        m.output("y", y);
        for tier in Tier::available() {
            let parts = compile(&m, &Options { tier, ..Options::default() }).unwrap().parts;
            let wants = match tier {
                Tier::AmxInt8 => in_place[0],
                Tier::Avx512Vnni => in_place[1],
                _ => usize::from(layout.columns() == 8),
            };
            assert_eq!(parts.stored.len(), wants, "{tier:?} {k} {n}");
            check_at(&m, tier, 2, 2, 9, &[]);
        }
    }
}

/// Rows of a read in another order, through reshapes: shuffled windows. As a view, and as a copy.
#[test]
fn rows_in_another_order() {
    for (tokens, k, n, elem) in
        [(6, 4, 8, Elem::U8), (25, 30, 70, Elem::U8), (49, 64, 64, Elem::I8), (12, 9, 5, Elem::I16)]
    {
        for copied in [false, true] {
            let mut m = module();
            let mut r = Random(tokens as u64 * 3 + k as u64);
            let x = input(&mut m, elem, batched(&[tokens, k]));
            let index: Vec<usize> = (0..tokens).map(|i| (i * 5 + 2) % tokens).collect();
            let order = Op::Gather { axis: 1, index };
            let moved = if copied { node(&mut m, order, &[x]) } else { view(&mut m, order, &[x]) };
            let a = view(&mut m, Op::Reshape { shape: batched(&[1, tokens, k]) }, &[moved]);
            let w = random_constant(&mut m, &mut r, Elem::I8, &[k, n], -128, 127);
            let scale = random_constant(&mut m, &mut r, Elem::I32, &[n], 1 << 29, 1 << 30);
            let l = requantize(&mut m, &[(Elem::I32, Access::Channel)], Elem::U8, 41);
            let y = matmul(&mut m, a, w, (7, 0), l, &[scale], Elem::U8);
            check(&mut m, y, 6, &[]);
        }
    }
}
