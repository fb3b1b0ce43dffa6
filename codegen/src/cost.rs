//! What kernels cost, as far as the choice between equal ones needs it: figures of a core, formulas over sizes, and the
//! choices themselves, each of which may be set by hand (`vitc tune` does) and none of which changes a bit of a result.
//!
//! The formulas count what bounds a product: multiply-accumulates at the rate that products of ours reach, the start of a unit,
//! and bytes of weights. They rank alternatives; `measured` in the tests prints them beside the clock.

use std::collections::BTreeMap;

use crate::Nibbles;
use crate::isa::Tier;

/// A core, in cycles and bytes. Rates are those of products with their loads, not of bare instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Core {
    /// Clock in GHz.
    pub clock_ghz: f64,
    /// Second-level cache.
    pub l2: usize,
    /// A core's share of the last-level cache.
    pub near: usize,
    /// Multiply-accumulates of bytes in a cycle: on the tile unit, where there is one, and on 512-bit vectors.
    pub tile_macs: f64,
    pub vector_macs: f64,
    /// Starting the tile unit and filling and draining its pipeline of blocks.
    pub tile_start: f64,
    /// Bytes in a cycle from the last-level cache and from memory.
    pub near_bytes: f64,
    pub memory_bytes: f64,
    /// Waiting for all threads.
    pub barrier: f64,
}

/// Granite Rapids, of which the tile unit's figures are: 16 x 64 x 384 in 450 cycles, 30 GB/s of cache and 15 of memory, so at 2.7 GHz.
const TILES: Core = Core {
    clock_ghz: 2.7,
    l2: 2 << 20,
    near: 16 << 20,
    tile_macs: 870.0,
    vector_macs: 118.0,
    tile_start: 700.0,
    near_bytes: 11.0,
    memory_bytes: 5.5,
    barrier: 1500.0,
};

/// Zen 4, measured: 228 G multiply-accumulates a second at 3.6 GHz, 21 GB/s of memory.
const VECTORS: Core = Core {
    clock_ghz: 3.6,
    l2: 1 << 20,
    near: 16 << 20,
    tile_macs: 0.0,
    vector_macs: 60.0,
    tile_start: 0.0,
    near_bytes: 16.0,
    memory_bytes: 5.8,
    barrier: 1500.0,
};

/// Which instructions a kernel's inner part uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// The tile unit.
    Tiles,
    /// 512-bit vectors.
    Vectors,
    /// 128-bit vectors, through Cranelift.
    Portable,
}

/// What the threads share of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// Rows of outputs; every thread reads all weights.
    Rows,
    /// Panels of columns; every thread reads its part of the weights, and waits for the others before and after.
    Columns,
}

/// What is chosen for one kernel; nothing where the cost model decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// Its instructions.
    pub unit: Option<Unit>,
    /// What threads share.
    pub split: Option<Split>,
    /// Bytes of rows that are copied together before they are multiplied.
    pub copied_bytes: Option<usize>,
    /// Whether weights of four bits are unpacked in every pass, and not once at load.
    pub streamed: Option<bool>,
}

/// What is chosen by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// For all kernels.
    pub all: Choice,
    /// For kernels by the key of their [`Offer`]; what is set here goes before what is set for all.
    pub kernels: BTreeMap<String, Choice>,
}

impl Choices {
    /// What holds for the kernel of this key.
    pub(crate) fn of(&self, key: &str) -> Choice {
        let own = self.kernels.get(key).copied().unwrap_or_default();
        Choice {
            unit: own.unit.or(self.all.unit),
            split: own.split.or(self.all.split),
            copied_bytes: own.copied_bytes.or(self.all.copied_bytes),
            streamed: own.streamed.or(self.all.streamed),
        }
    }
}

/// A kernel for which there are alternatives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What [`Choices`] know it by: its work, not its instructions.
    pub key: String,
    /// What it is, with the cost model's own choices filled in.
    pub chosen: Choice,
    /// What else it can be, one thing changed at a time.
    pub others: Vec<Choice>,
}

/// Sizes of a product: rows of an image, inner size, columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub rows: usize,
    pub k: usize,
    pub n: usize,
}

/// Bytes of copied rows at a time: they are read once for each panel, from the second-level cache, a quarter of which they get.
pub(crate) fn copied_bytes(core: &Core) -> usize {
    core.l2 / 4
}

/// Whether a kernel should unpack its weights of four bits in every pass: where the caches lose them from one image to the next
/// (`all` bytes of weights), and memory, not products, decides.
pub(crate) fn streams_nibbles(tier: Tier, nibbles: Nibbles, sizes: Sizes, all: usize) -> bool {
    let core = Core::of(tier);
    match nibbles {
        Nibbles::Unpacked => false,
        Nibbles::Streamed => true,
        Nibbles::Auto if all <= core.near => false,
        // Vectors unpack beside their products; with tiles it takes time of its own, some 16 bytes in a cycle.
        Nibbles::Auto if tier != Tier::AmxInt8 => true,
        Nibbles::Auto => {
            let bytes = (sizes.k * sizes.n) as f64;
            let spent = core.product(Unit::Tiles, sizes) + bytes / 40.0;
            spent <= bytes / core.memory_bytes
        }
    }
}

impl Core {
    /// The core that kernels of a tier are made for.
    pub(crate) fn of(tier: Tier) -> &'static Core {
        if tier == Tier::AmxInt8 { &TILES } else { &VECTORS }
    }

    /// Cycles of a product whose weights are near.
    pub(crate) fn product(&self, unit: Unit, Sizes { rows, k, n }: Sizes) -> f64 {
        let up = |x: usize, to: usize| x.next_multiple_of(to) as f64;
        match unit {
            Unit::Tiles => self.tile_start + up(rows, 16) * up(k, 64) * up(n, 64) / self.tile_macs,
            // A row by itself is bound by loads of weights from the second-level cache.
            Unit::Vectors if rows < 6 => rows as f64 * up(k, 4) * up(n, 16) / 32.0,
            Unit::Portable if rows < 6 => rows as f64 * up(k, 4) * up(n, 8) / 8.0,
            Unit::Vectors => up(rows, 6) * up(k, 4) * up(n, 16) / self.vector_macs,
            Unit::Portable => up(rows, 6) * up(k, 4) * up(n, 8) / self.vector_macs * 2.4,
        }
    }

    /// The faster of tiles and vectors.
    pub(crate) fn unit(&self, sizes: Sizes) -> Unit {
        let tiles = self.tile_macs > 0.0 && sizes.rows >= 16;
        let faster = tiles && self.product(Unit::Tiles, sizes) < self.product(Unit::Vectors, sizes);
        if faster { Unit::Tiles } else { Unit::Vectors }
    }

    /// The faster unit for both products of a head of attention. On tiles each has a start of its own.
    pub(crate) fn attention_unit(&self, rows: usize, d: usize, keys: usize, columns: usize) -> Unit {
        let parts = [Sizes { rows, k: d, n: keys }, Sizes { rows, k: keys, n: columns }];
        let cycles = |unit| parts.iter().map(|&sizes| self.product(unit, sizes)).sum::<f64>();
        let tiles = self.tile_macs > 0.0 && rows >= 16;
        if tiles && cycles(Unit::Tiles) < cycles(Unit::Vectors) { Unit::Tiles } else { Unit::Vectors }
    }

    /// What threads should share of a product of one image; `grain` is the fewest rows that a thread gets.
    pub(crate) fn split(&self, unit: Unit, sizes: Sizes, grain: usize, threads: usize) -> Split {
        let cycles = |rows: usize, n: usize| self.pass(unit, Sizes { rows, n, ..sizes }, threads);
        let most = |items: usize, grain: usize| (items.div_ceil(grain).div_ceil(threads) * grain).min(items);
        let rows = cycles(most(sizes.rows, grain), sizes.n);
        let columns = cycles(sizes.rows, most(sizes.n, 64)) + self.barrier;
        if threads > 1 && columns < 0.9 * rows { Split::Columns } else { Split::Rows }
    }

    /// Cycles of a product that reads its weights from the last-level cache or, if they are too many, from memory: products and
    /// reading go on at the same time.
    pub(crate) fn pass(&self, unit: Unit, sizes: Sizes, threads: usize) -> f64 {
        let bytes = sizes.k * sizes.n;
        // Two threads of ours get half as much again from memory as one.
        let memory = self.memory_bytes * if threads > 1 { 0.75 } else { 1.0 };
        let rate = if bytes > self.near { memory } else { self.near_bytes };
        self.product(unit, sizes).max(bytes as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn sizes(rows: usize, k: usize, n: usize) -> Sizes {
        Sizes { rows, k, n }
    }

    #[test]
    fn tiles_are_for_what_fills_them() {
        let unit = |rows, k, n| TILES.unit(sizes(rows, k, n));
        assert_eq!([unit(197, 384, 384), unit(16, 192, 192), unit(49, 96, 96)], [Unit::Tiles; 3]);
        assert_eq!([unit(1, 384, 1000), unit(15, 768, 768), unit(16, 4, 64)], [Unit::Vectors; 3]);
        assert_eq!(VECTORS.unit(sizes(197, 384, 384)), Unit::Vectors);
        assert_eq!(TILES.attention_unit(197, 64, 197, 64), Unit::Tiles);
        assert_eq!(TILES.attention_unit(16, 16, 16, 16), Unit::Vectors);
    }

    #[test]
    fn columns_are_split_where_there_are_no_rows_to_share() {
        let split = |rows, k, n, threads| VECTORS.split(Unit::Vectors, sizes(rows, k, n), 6, threads);
        assert_eq!(split(1, 768, 3072, 2), Split::Columns);
        assert_eq!(split(1, 768, 3072, 1), Split::Rows);
        assert_eq!(split(1, 64, 64, 2), Split::Rows, "one panel");
        assert_eq!([split(197, 384, 1536, 2), split(197, 768, 3072, 2)], [Split::Rows; 2]);
    }

    #[test]
    fn weights_of_four_bits_are_streamed_where_memory_decides() {
        let streams = |tier, rows, all| streams_nibbles(tier, Nibbles::Auto, sizes(rows, 768, 3072), all);
        assert!(streams(Tier::Avx512Vnni, 197, 85 << 20) && !streams(Tier::Avx512Vnni, 1, 5 << 20));
        assert!(streams(Tier::AmxInt8, 49, 85 << 20) && !streams(Tier::AmxInt8, 197, 85 << 20));
    }

    #[test]
    fn own_choices_go_before_those_for_all() {
        let own = Choice { unit: Some(Unit::Portable), ..Choice::default() };
        let all = Choice { unit: Some(Unit::Vectors), split: Some(Split::Columns), ..Choice::default() };
        let choices = Choices { all, kernels: [("a".to_string(), own)].into() };
        assert_eq!(choices.of("a"), Choice { unit: Some(Unit::Portable), ..all });
        assert_eq!(choices.of("b"), all);
    }
}
