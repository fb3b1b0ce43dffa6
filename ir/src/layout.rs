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
}

impl Layout {
    /// Columns of a panel.
    pub fn columns(self) -> usize {
        match self {
            Layout::Dot4 { columns } | Layout::Dot4Nibbles { columns } => columns,
        }
    }

    /// Elements that share a byte.
    pub fn elements_per_byte(self) -> usize {
        match self {
            Layout::Dot4 { .. } => 1,
            Layout::Dot4Nibbles { .. } => 2,
        }
    }

    /// Whether the layout keeps every bit of these elements, as signed bytes.
    pub fn holds(self, plain: &[u8]) -> bool {
        match self {
            Layout::Dot4 { .. } => true,
            Layout::Dot4Nibbles { .. } => plain.iter().all(|&b| (-8..8).contains(&(b as i8))),
        }
    }

    /// Bytes of one packed [k, n] matrix.
    pub fn packed_len(self, k: usize, n: usize) -> usize {
        k.next_multiple_of(4) * n.next_multiple_of(self.columns()) / self.elements_per_byte()
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
