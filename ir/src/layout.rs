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

    /// Where element (`row`, `column`) is in the packed matrix: its byte, and the bits below it in that byte.
    fn place(self, k: usize, row: usize, column: usize) -> (usize, u32) {
        let columns = self.columns();
        let panel = (column / columns) * k.next_multiple_of(4) * columns;
        let within = (column % columns) * 4 + row % 4;
        match self {
            Layout::Dot4 { .. } => (panel + (row / 4) * 4 * columns + within, 0),
            Layout::Dot4Nibbles { .. } => {
                let half = 2 * columns;
                (panel / 2 + (row / 4) * half + within % half, if within < half { 0 } else { 4 })
            }
        }
    }

    /// Packs row-major [k, n] bytes that the layout [holds](Layout::holds).
    pub fn pack(self, k: usize, n: usize, plain: &[u8]) -> Vec<u8> {
        let mask = if self.elements_per_byte() == 1 { 0xff } else { 0x0f };
        let mut packed = vec![0; self.packed_len(k, n)];
        for row in 0..k {
            for column in 0..n {
                let (byte, shift) = self.place(k, row, column);
                packed[byte] |= (plain[row * n + column] & mask) << shift;
            }
        }
        packed
    }

    /// The row-major bytes of a packed [k, n] matrix.
    pub fn unpack(self, k: usize, n: usize, packed: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(k * n);
        for row in 0..k {
            plain.extend((0..n).map(|column| {
                let (byte, shift) = self.place(k, row, column);
                match self {
                    Layout::Dot4 { .. } => packed[byte],
                    // Up to the sign bit, then down with the sign.
                    Layout::Dot4Nibbles { .. } => ((packed[byte] << (4 - shift)) as i8 >> 4) as u8,
                }
            }));
        }
        plain
    }
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
