//! Convolutions.

use vitc_ir::ImageLayout::{ChannelsFirst, ChannelsLast};

use super::wide::{Gate, gate};
use super::*;

/// A convolution of an image of `size` x `size + 3`.
#[derive(Clone)]
struct Window {
    c: usize,
    o: usize,
    size: usize,
    k: usize,
    strides: [usize; 2],
    pads: [usize; 4],
    dilations: [usize; 2],
    groups: usize,
}

const PLAIN: Window =
    Window { c: 3, o: 10, size: 12, k: 4, strides: [4, 4], pads: [0; 4], dilations: [1, 1], groups: 1 };

fn conv(w: &Window, layout: ImageLayout, elem: Elem) {
    let mut m = module();
    let mut r = Random(11);
    let sizes = match layout {
        ChannelsFirst => [w.c, w.size, w.size + 3],
        ChannelsLast => [w.size, w.size + 3, w.c],
    };
    let x = input(&mut m, elem, batched(&sizes));
    let dims = [w.o, w.c / w.groups, w.k, w.k];
    let weights = random_constant(&mut m, &mut r, Elem::I8, &dims, -128, 127);
    let scale = random_constant(&mut m, &mut r, Elem::I32, &[w.o], 1 << 28, (1 << 31) - 1);
    let l = requantize(&mut m, &[(Elem::I32, Access::Channel)], Elem::I16, 31);
    let op = Op::FusedConv2d {
        strides: w.strides,
        pads: w.pads,
        dilations: w.dilations,
        groups: w.groups,
        layout,
        x_zero: if elem == Elem::U8 { 114 } else { -3 },
        lane: l,
        to: Elem::I16,
    };
    let y = node(&mut m, op, &[x, weights, scale]);
    check(&mut m, y, 2, &[]);
}

#[test]
fn windows() {
    for layout in [ChannelsFirst, ChannelsLast] {
        conv(&PLAIN, layout, Elem::U8);
        conv(&Window { k: 3, strides: [1, 2], dilations: [2, 1], ..PLAIN }, layout, Elem::U8);
        conv(&Window { k: 3, strides: [2, 1], pads: [1, 2, 0, 1], ..PLAIN }, layout, Elem::I8);
        conv(&Window { c: 6, o: 6, k: 3, strides: [1, 1], pads: [1; 4], groups: 6, ..PLAIN }, layout, Elem::U8);
        conv(&Window { c: 16, o: 20, k: 3, strides: [2, 2], ..PLAIN }, layout, Elem::I8);
    }
}

/// Windows whose rows are whole words of channels, which products read where they lie: turns of steps, steps left over, both.
#[test]
fn windows_in_runs() {
    for c in [4, 8, 16, 20] {
        let window = Window { c, o: 70, k: 3, strides: [1, 1], ..PLAIN };
        conv(&window, ChannelsLast, Elem::U8);
        conv(&Window { strides: [2, 2], dilations: [2, 1], ..window }, ChannelsLast, Elem::U8);
    }
}

#[test]
fn groups() {
    let grouped = Window { c: 12, o: 18, size: 5, k: 1, strides: [1, 1], groups: 3, ..PLAIN };
    for layout in [ChannelsFirst, ChannelsLast] {
        conv(&grouped, layout, Elem::U8);
        conv(&Window { c: 8, o: 4, groups: 4, ..grouped.clone() }, layout, Elem::I8);
        conv(&Window { k: 3, strides: [2, 1], ..grouped.clone() }, layout, Elem::U8);
        conv(&Window { k: 2, pads: [1, 0, 0, 1], ..grouped.clone() }, layout, Elem::U8);
    }
}

/// Groups of as many channels as vectors of sums hold side by side.
#[test]
fn groups_in_panels() {
    let pointwise = Window { c: 96, o: 96, size: 4, k: 1, strides: [1, 1], groups: 6, ..PLAIN };
    conv(&pointwise, ChannelsLast, Elem::U8);
    conv(&pointwise, ChannelsLast, Elem::I8);
    conv(&Window { c: 24, o: 48, groups: 3, ..pointwise.clone() }, ChannelsLast, Elem::U8);
    conv(&Window { c: 96, o: 96, groups: 3, ..pointwise.clone() }, ChannelsLast, Elem::U8);
    conv(&Window { c: 40, o: 128, groups: 2, ..pointwise.clone() }, ChannelsLast, Elem::U8);
    conv(&Window { c: 12, o: 32, groups: 2, ..pointwise }, ChannelsLast, Elem::U8);
}

/// Kernels that work channel by channel: channels that do and do not fill vectors, borders on each side, images of one
/// column, kernels larger than the image.
#[test]
fn depthwise() {
    let plain =
        |c: usize, k: usize| Window { c, o: c, groups: c, size: 5, k, strides: [1, 1], pads: [k / 2; 4], ..PLAIN };
    for elem in [Elem::U8, Elem::I8] {
        conv(&plain(64, 3), ChannelsLast, elem);
        conv(&plain(83, 3), ChannelsLast, elem);
        conv(&Window { strides: [2, 2], ..plain(70, 5) }, ChannelsLast, elem);
    }
    conv(&plain(16, 3), ChannelsLast, Elem::U8);
    conv(&plain(8, 5), ChannelsLast, Elem::I8);
    conv(&Window { strides: [2, 1], ..plain(32, 3) }, ChannelsLast, Elem::U8);
    conv(&Window { strides: [1, 2], pads: [0, 2, 1, 0], ..plain(19, 3) }, ChannelsLast, Elem::U8);
    conv(&Window { pads: [2, 0, 2, 5], dilations: [2, 3], ..plain(33, 3) }, ChannelsLast, Elem::U8);
    conv(&Window { pads: [1, 0, 0, 1], ..plain(7, 2) }, ChannelsLast, Elem::I8);
    conv(&Window { size: 2, ..plain(129, 7) }, ChannelsLast, Elem::U8);
    conv(&Window { size: 1, strides: [3, 3], ..plain(64, 1) }, ChannelsLast, Elem::U8);
    conv(&Window { pads: [0; 4], size: 9, strides: [4, 3], ..plain(48, 2) }, ChannelsLast, Elem::U8);
}

/// Rows of every length in turns of pixels, channels that stay interleaved and others, results of every width.
#[test]
fn depthwise_turns() {
    let results = [(Elem::U8, Gate::Left), (Elem::I8, Gate::Right), (Elem::I16, Gate::Plain)];
    for (i, (c, k)) in [(64, 3), (128, 5), (70, 3), (192, 3), (64, 7), (16, 5)].into_iter().enumerate() {
        for (w, stride) in [(1, 1), (2, 1), (5, 1), (7, 1), (8, 1), (7, 2), (9, 3)] {
            let (to, form) = results[(i + w) % results.len()];
            let mut m = module();
            let mut r = Random((c + w) as u64);
            let x = input(&mut m, Elem::U8, batched(&[4, w, c]));
            let weights = random_constant(&mut m, &mut r, Elem::I8, &[c, 1, k, k], -128, 127);
            let scale = random_constant(&mut m, &mut r, Elem::I32, &[c], 1 << 29, 1 << 30);
            let factor = random_constant(&mut m, &mut r, Elem::I16, &[c], 1 << 8, i16::MAX.into());
            let inputs = [(Elem::I32, Access::Element), (Elem::I32, Access::Channel), (Elem::I16, Access::Channel)];
            let lane = lane(&mut m, &inputs, gate(form, 31), to);
            let op = Op::FusedConv2d {
                strides: [1, stride],
                pads: [k / 2; 4],
                dilations: [1, 1],
                groups: c,
                layout: ChannelsLast,
                x_zero: 9,
                lane,
                to,
            };
            let y = node(&mut m, op, &[x, weights, scale, factor]);
            check(&mut m, y, 5, &[]);
        }
    }
}

/// A bias and a map for each pixel and channel added to the sums: what the border of shifted channels lacks.
#[test]
fn maps_of_pixels() {
    let depthwise =
        |c: usize, k: usize| Window { c, o: c, groups: c, size: 5, k, strides: [1, 1], pads: [k / 2; 4], ..PLAIN };
    let dense = Window { c: 16, o: 20, size: 6, k: 3, strides: [1, 1], ..PLAIN };
    let windows = [
        depthwise(16, 3),
        depthwise(64, 3),
        depthwise(83, 5),
        Window { strides: [2, 2], ..depthwise(128, 3) },
        dense.clone(),
        Window { o: 96, strides: [2, 1], ..dense.clone() },
        Window { pads: [1; 4], ..dense.clone() },
        Window { c: 96, o: 96, k: 1, groups: 6, ..dense.clone() },
        Window { c: 12, o: 18, groups: 3, ..dense },
    ];
    for w in windows {
        let mut m = module();
        let mut r = Random(13);
        let x = input(&mut m, Elem::U8, batched(&[w.size, w.size + 3, w.c]));
        let weights = random_constant(&mut m, &mut r, Elem::I8, &[w.o, w.c / w.groups, w.k, w.k], -128, 127);
        let bias = random_constant(&mut m, &mut r, Elem::I32, &[w.o], -100_000, 100_000);
        let scale = random_constant(&mut m, &mut r, Elem::I32, &[w.o], 1 << 28, (1 << 31) - 1);
        let inputs = [
            (Elem::I32, Access::Element),
            (Elem::I32, Access::Channel),
            (Elem::I32, Access::Element),
            (Elem::I32, Access::Channel),
        ];
        let insts = vec![
            Inst::Load(0),
            Inst::Load(1),
            Inst::Add(0, 1),
            Inst::Load(2),
            Inst::Add(2, 3),
            Inst::Load(3),
            Inst::MulWide(4, 5),
            Inst::RoundShr(6, 38),
            Inst::Truncate(7),
        ];
        let mended = lane(&mut m, &inputs, insts, Elem::U8);
        let along = |d: usize, size: usize| (size + w.pads[d] + w.pads[2 + d] - w.k) / w.strides[d] + 1;
        let pixels = [along(0, w.size), along(1, w.size + 3), w.o];
        let map = random_constant(&mut m, &mut r, Elem::I32, &pixels, -(1 << 20), 1 << 20);
        let op = Op::FusedConv2d {
            strides: w.strides,
            pads: w.pads,
            dilations: w.dilations,
            groups: w.groups,
            layout: ChannelsLast,
            x_zero: 131,
            lane: mended,
            to: Elem::U8,
        };
        let y = node(&mut m, op, &[x, weights, bias, map, scale]);
        check(&mut m, y, 3, &[]);
    }
}

/// A lane program with a bias, a table of bytes, a residual, and a scalar.
#[test]
fn depthwise_lane_programs() {
    for (c, w) in [(16, 4), (70, 3), (128, 1)] {
        let mut m = module();
        let mut r = Random(5);
        let x = input(&mut m, Elem::U8, batched(&[6, w, c]));
        let residual = input(&mut m, Elem::I16, batched(&[6, w, c]));
        let weights = random_constant(&mut m, &mut r, Elem::I8, &[c, 1, 3, 3], -128, 127);
        let bias = random_constant(&mut m, &mut r, Elem::I32, &[c], -100_000, 100_000);
        let scale = random_constant(&mut m, &mut r, Elem::I32, &[c], 1 << 28, (1 << 31) - 1);
        let one = constant(&mut m, Elem::I32, &[1], &[1 << 30]);
        let table = random_constant(&mut m, &mut r, Elem::U8, &[256], 0, 255);
        let inputs = [
            (Elem::I32, Access::Element),
            (Elem::I32, Access::Channel),
            (Elem::I32, Access::Channel),
            (Elem::U8, Access::Table),
        ];
        let insts = vec![
            Inst::Load(0),
            Inst::Load(1),
            Inst::Add(0, 1),
            Inst::Load(2),
            Inst::MulWide(2, 3),
            Inst::RoundShr(4, 40),
            Inst::Clamp(5, 0, 255),
            Inst::Truncate(6),
            Inst::Table { input: 3, index: 7, bias: 0 },
        ];
        let looked_up = lane(&mut m, &inputs, insts, Elem::U8);
        let op = |lane, to| Op::FusedConv2d {
            strides: [1, 1],
            pads: [1; 4],
            dilations: [1, 1],
            groups: c,
            layout: ChannelsLast,
            x_zero: 9,
            lane,
            to,
        };
        let y = node(&mut m, op(looked_up, Elem::U8), &[x, weights, bias, scale, table]);
        let inputs = [(Elem::I32, Access::Element), (Elem::I32, Access::Scalar), (Elem::I16, Access::Element)];
        let insts = vec![
            Inst::Load(0),
            Inst::Load(1),
            Inst::MulWide(0, 1),
            Inst::RoundShr(2, 40),
            Inst::Truncate(3),
            Inst::Clamp(4, -0x8000, 0x7fff),
            Inst::Load(2),
            Inst::Add(5, 6),
        ];
        let added = lane(&mut m, &inputs, insts, Elem::I16);
        let y = node(&mut m, op(added, Elem::I16), &[y, weights, one, residual]);
        check(&mut m, y, 8, &[]);
    }
}
