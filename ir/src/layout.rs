//! Physical layouts of packed constants: what a backend wants to stream, described as plain index arithmetic.

/// A physical layout of a [K, N] matrix of bytes (leading dimensions are separate matrices one after another).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// Panels of `columns` columns; within a panel, groups of four rows of K; within a group, for each column its four K
    /// values next to each other, as dot-product instructions want them. K is padded with zeros to a multiple of 4, N to a
    /// multiple of `columns`.
    Dot4 {
        /// Columns of a panel.
        columns: usize,
    },
    /// The same order with two elements of -8 to 7 in a byte, in two's complement: of each group of four rows of a panel,
    /// the first half of its bytes in the low halves and the second in the high halves. So one mask, or one shift and the
    /// mask, unpacks consecutive bytes.
    Dot4Nibbles {
        /// Columns of a panel.
        columns: usize,
    },
    /// The order of `Dot4` with elements of few bits, in two's complement, one after another: element `i` of a matrix is bits
    /// `bits * i` and on, the lowest bit of a byte first. For keeping; kernels read it unpacked.
    Dot4Bits {
        /// Columns of a panel.
        columns: usize,
        /// Bits of an element, 1 to 7.
        bits: u32,
    },
}

impl Layout {
    /// The layout in panels of `columns` that takes least, of those that keep every bit of these signed bytes.
    pub fn narrowest(columns: usize, plain: &[u8]) -> Layout {
        let bits = |b: u8| 8 - ((b as i8) ^ ((b as i8) >> 7)).leading_zeros() + 1;
        match plain.iter().map(|&b| bits(b)).max().unwrap_or(1).max(2) {
            4 => Layout::Dot4Nibbles { columns },
            bits @ 2..=6 => Layout::Dot4Bits { columns, bits },
            _ => Layout::Dot4 { columns },
        }
    }

    /// Columns of a panel.
    pub fn columns(self) -> usize {
        match self {
            Layout::Dot4 { columns } | Layout::Dot4Nibbles { columns } | Layout::Dot4Bits { columns, .. } => columns,
        }
    }

    /// Bits of an element.
    pub fn bits(self) -> u32 {
        match self {
            Layout::Dot4 { .. } => 8,
            Layout::Dot4Nibbles { .. } => 4,
            Layout::Dot4Bits { bits, .. } => bits,
        }
    }

    /// Whether the layout keeps every bit of these elements, as signed bytes.
    pub fn holds(self, plain: &[u8]) -> bool {
        let half = 1i16 << (self.bits() - 1);
        plain.iter().all(|&b| (-half..half).contains(&i16::from(b as i8)))
    }

    /// Bytes of one packed [k, n] matrix.
    pub fn packed_len(self, k: usize, n: usize) -> usize {
        (k.next_multiple_of(4) * n.next_multiple_of(self.columns()) * self.bits() as usize).div_ceil(8)
    }

    /// Packs row-major [k, n] bytes that the layout [holds](Layout::holds).
    pub fn pack(self, k: usize, n: usize, plain: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; k.next_multiple_of(4) * n.next_multiple_of(self.columns())];
        for run in self.runs(k, n) {
            let to = bytes[run.packed..].iter_mut().step_by(4);
            to.zip(&plain[run.plain..][..run.columns]).for_each(|(to, &from)| *to = from);
        }
        match self {
            Layout::Dot4 { .. } => bytes,
            Layout::Dot4Nibbles { columns } => join_nibbles(&bytes, columns),
            Layout::Dot4Bits { bits, .. } => join_bits(&bytes, bits),
        }
    }

    /// The row-major bytes of a packed [k, n] matrix.
    pub fn unpack(self, k: usize, n: usize, packed: &[u8]) -> Vec<u8> {
        let split;
        let bytes = match self {
            Layout::Dot4 { .. } => packed,
            Layout::Dot4Nibbles { columns } => {
                split = split_nibbles(packed, columns);
                &split
            }
            Layout::Dot4Bits { bits, columns } => {
                split = split_bits(packed, bits, k.next_multiple_of(4) * n.next_multiple_of(columns));
                &split
            }
        };
        let mut plain = vec![0; k * n];
        for run in self.runs(k, n) {
            let from = bytes[run.packed..].iter().step_by(4);
            plain[run.plain..][..run.columns].iter_mut().zip(from).for_each(|(to, &from)| *to = from);
        }
        plain
    }

    /// The pieces of rows that panels hold, panel by panel.
    fn runs(self, k: usize, n: usize) -> impl Iterator<Item = Run> {
        let columns = self.columns();
        let panel_bytes = k.next_multiple_of(4) * columns;
        (0..n.div_ceil(columns)).flat_map(move |panel| {
            (0..k).map(move |row| Run {
                plain: row * n + panel * columns,
                packed: panel * panel_bytes + row / 4 * 4 * columns + row % 4,
                columns: columns.min(n - panel * columns),
            })
        })
    }
}

/// Consecutive elements of a row; packed they are four bytes apart.
struct Run {
    plain: usize,
    packed: usize,
    columns: usize,
}

/// Bytes in the order of `Dot4` as nibbles: of each group the first half low, the second half high.
fn join_nibbles(bytes: &[u8], columns: usize) -> Vec<u8> {
    let join = |group: &[u8]| {
        let (low, high) = group.split_at(2 * columns);
        low.iter().zip(high).map(|(l, h)| (l & 0x0f) | (h << 4)).collect::<Vec<u8>>()
    };
    bytes.chunks_exact(4 * columns).flat_map(join).collect()
}

/// What [`join_nibbles`] made, as bytes again, with their signs.
fn split_nibbles(packed: &[u8], columns: usize) -> Vec<u8> {
    let low = |b: &u8| ((b << 4) as i8 >> 4) as u8;
    let high = |b: &u8| (*b as i8 >> 4) as u8;
    packed.chunks_exact(2 * columns).flat_map(|group| group.iter().map(low).chain(group.iter().map(high))).collect()
}

/// The low `bits` of each byte, one after another.
fn join_bits(bytes: &[u8], bits: u32) -> Vec<u8> {
    let mask = (1u64 << bits) - 1;
    // eight elements are whole bytes
    let join = |eight: &[u8]| {
        let word = eight.iter().rev().fold(0u64, |word, &b| word << bits | u64::from(b) & mask);
        word.to_le_bytes().into_iter().take((eight.len() * bits as usize).div_ceil(8))
    };
    bytes.chunks(8).flat_map(join).collect()
}

/// What [`join_bits`] made of `count` bytes, with their signs.
fn split_bits(packed: &[u8], bits: u32, count: usize) -> Vec<u8> {
    let split = |group: &[u8]| {
        let word = group.iter().rev().fold(0u64, |word, &b| word << 8 | u64::from(b));
        (0..8).map(move |i| (((word >> (i * bits)) as u8) << (8 - bits)) as i8 >> (8 - bits)).map(|b| b as u8)
    };
    packed.chunks(bits as usize).flat_map(split).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [(usize, usize); 5] = [(1, 1), (4, 8), (5, 9), (7, 17), (12, 16)];

    #[test]
    fn packing_is_undone_by_unpacking_and_pads_with_zeros() {
        let layout = Layout::Dot4 { columns: 8 };
        for (k, n) in SIZES {
            let plain: Vec<u8> = (0..k * n).map(|i| (i % 250) as u8 + 1).collect();
            let packed = layout.pack(k, n, &plain);
            assert_eq!(packed.len(), layout.packed_len(k, n));
            assert_eq!(layout.unpack(k, n, &packed), plain);
            assert_eq!(packed.iter().filter(|&&b| b != 0).count(), k * n);
        }
    }

    #[test]
    fn nibbles_come_back_in_half_the_bytes() {
        for columns in [1, 3, 8, 64] {
            let (layout, bytes) = (Layout::Dot4Nibbles { columns }, Layout::Dot4 { columns });
            for (k, n) in SIZES {
                let plain: Vec<u8> = (0..k * n).map(|i| ((i * 5 % 16) as i8 - 8) as u8).collect();
                assert!(layout.holds(&plain));
                let packed = layout.pack(k, n, &plain);
                assert_eq!(2 * packed.len(), bytes.packed_len(k, n));
                assert_eq!(layout.unpack(k, n, &packed), plain);
            }
        }
        assert!(!Layout::Dot4Nibbles { columns: 8 }.holds(&[8]));
        assert!(!Layout::Dot4Nibbles { columns: 8 }.holds(&[-9i8 as u8]));
    }

    #[test]
    fn few_bits_come_back() {
        for (columns, bits) in [1, 3, 8, 64].into_iter().flat_map(|c| [2, 3, 5, 6, 7].map(|b| (c, b))) {
            let layout = Layout::Dot4Bits { columns, bits };
            for (k, n) in SIZES {
                let half = 1i32 << (bits - 1);
                let plain: Vec<u8> = (0..(k * n) as i32).map(|i| (i * 5 % (2 * half) - half) as u8).collect();
                assert!(layout.holds(&plain) && !layout.holds(&[half as u8]));
                let packed = layout.pack(k, n, &plain);
                assert_eq!(packed.len(), layout.packed_len(k, n));
                assert_eq!(layout.unpack(k, n, &packed), plain, "{bits} bits, {columns} columns");
            }
        }
    }

    #[test]
    fn the_narrowest_layout_holds_and_the_next_does_not() {
        let columns = 8;
        for (largest, bits) in
            [(0i8, 2), (1, 2), (-2, 2), (2, 3), (-8, 4), (8, 5), (-17, 6), (31, 6), (32, 8), (-128, 8)]
        {
            let layout = Layout::narrowest(columns, &[0, largest as u8, 1]);
            assert_eq!((layout.bits(), layout.columns()), (bits, columns), "{largest}");
            assert!(layout.holds(&[largest as u8]));
        }
    }

    /// What a kernel relies on: unpacked in order, a group's low halves and then its high ones are the group in bytes.
    #[test]
    fn halves_of_a_group_are_consecutive() {
        let (k, n, columns) = (8, 6, 3);
        let plain: Vec<u8> = (0..k * n).map(|i| ((i * 7 % 16) as i8 - 8) as u8).collect();
        let packed = Layout::Dot4Nibbles { columns }.pack(k, n, &plain);
        let low = |b: &u8| ((b << 4) as i8 >> 4) as u8;
        let high = |b: &u8| (*b as i8 >> 4) as u8;
        let groups = packed.chunks(2 * columns);
        let unpacked: Vec<u8> = groups.flat_map(|g| g.iter().map(low).chain(g.iter().map(high))).collect();
        assert_eq!(unpacked, Layout::Dot4 { columns }.pack(k, n, &plain));
    }
}
