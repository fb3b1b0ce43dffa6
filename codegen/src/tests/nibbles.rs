//! Weights of four bits: the same bits on every tier, streamed and unpacked at load.

use vitc_ir::layout::Layout;

use super::wide::product;
use super::*;
use crate::Nibbles;

/// Keeps the low four bits of weights, two to a byte.
fn halve(m: &mut Module) {
    let nibble = |b: &u8| ((b << 4) as i8 >> 4) as u8;
    for c in m.consts.iter_mut().filter(|c| c.ty.elem == Elem::I8 && c.ty.shape.rank() == 2) {
        let dims = c.ty.shape.as_fixed().unwrap();
        let layout = Layout::Dot4Nibbles { columns: 8 };
        let plain: Vec<u8> = c.data.iter().map(nibble).collect();
        (c.data, c.layout) = (layout.pack(dims[0], dims[1], &plain).into(), Some(layout));
    }
}

#[test]
fn nibbles_on_every_tier_streamed_and_unpacked() {
    for (i, n) in [1, 17, 63, 64, 65, 128, 190].into_iter().enumerate() {
        for (j, rows) in [1, 5, 6, 13, 16, 21].into_iter().enumerate() {
            let to = [Elem::U8, Elem::I8, Elem::I16, Elem::I32][(i + j) % 4];
            let k = [4, 37, 64, 130, 320][(i * 3 + j) % 5];
            let (mut m, y) = product(rows, k, n, to, (i + j) % 3 == 0, (i + j) % 2 == 0);
            halve(&mut m);
            m.output("y", y);
            for tier in Tier::available() {
                let nibbles = if j % 3 < 2 { Nibbles::Streamed } else { Nibbles::Unpacked };
                check_with(&m, &Options { tier, nibbles, ..Options::default() }, 1 + j % 2, 1 + i % 2, 7, &[]);
            }
        }
    }
}

/// Chunks of K, each unpacked in turn; rows that are copied first; more rows than a pass takes.
#[test]
fn nibbles_of_every_depth() {
    let sizes = [(17, 768, 130), (40, 450, 64), (33, 1536, 65), (16, 640, 1), (530, 770, 70), (7, 3072, 100)];
    for (rows, k, n) in sizes {
        let (mut m, y) = product(rows, k, n, Elem::I16, false, rows % 2 == 0);
        halve(&mut m);
        m.output("y", y);
        for tier in Tier::available() {
            check_with(&m, &Options { tier, nibbles: Nibbles::Streamed, ..Options::default() }, 1, 2, 11, &[]);
        }
    }
}

#[test]
fn streamed_nibbles_take_half_the_memory() {
    for tier in Tier::available() {
        let (mut m, y) = product(21, 768, 256, Elem::U8, false, false);
        halve(&mut m);
        m.output("y", y);
        let of = |nibbles| compile(&m, &Options { tier, nibbles, ..Options::default() }).unwrap();
        let (streamed, unpacked) = (of(Nibbles::Streamed), of(Nibbles::Unpacked));
        // weights that happen to lie at an aligned address are used there, and what is behind them in the pool moves up
        let stored = |c: &crate::Compiled| c.parts.stored.iter().map(|s| (**s).as_ref().len()).sum::<usize>();
        let bytes = |c: &crate::Compiled| (*c.parts.consts).as_ref().len() + stored(c);
        assert!((bytes(&unpacked) - bytes(&streamed)).abs_diff(768 * 256 / 2) <= 64);
        assert!(streamed.kernels.iter().any(|k| k.name.starts_with("gemm_u8s4")));
        assert!(unpacked.kernels.iter().all(|k| !k.name.starts_with("gemm_u8s4")));
    }
}
