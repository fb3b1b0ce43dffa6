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
}

impl Layout {
    /// Bytes of one packed [k, n] matrix.
    pub fn packed_len(self, k: usize, n: usize) -> usize {
        let Layout::Dot4 { columns } = self;
        k.next_multiple_of(4) * n.next_multiple_of(columns)
    }

    /// Offset of element (`row`, `column`) in the packed matrix.
    pub fn offset(self, k: usize, row: usize, column: usize) -> usize {
        let Layout::Dot4 { columns } = self;
        let panel = (column / columns) * k.next_multiple_of(4) * columns;
        panel + (row / 4) * 4 * columns + (column % columns) * 4 + row % 4
    }

    /// Packs row-major [k, n] bytes.
    pub fn pack(self, k: usize, n: usize, plain: &[u8]) -> Vec<u8> {
        let mut packed = vec![0; self.packed_len(k, n)];
        for row in 0..k {
            for column in 0..n {
                packed[self.offset(k, row, column)] = plain[row * n + column];
            }
        }
        packed
    }

    /// The row-major bytes of a packed [k, n] matrix.
    pub fn unpack(self, k: usize, n: usize, packed: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(k * n);
        for row in 0..k {
            plain.extend((0..n).map(|column| packed[self.offset(k, row, column)]));
        }
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_undone_by_unpacking_and_pads_with_zeros() {
        let layout = Layout::Dot4 { columns: 8 };
        for (k, n) in [(1, 1), (4, 8), (5, 9), (7, 17)] {
            let plain: Vec<u8> = (0..k * n).map(|i| (i % 250) as u8 + 1).collect();
            let packed = layout.pack(k, n, &plain);
            assert_eq!(packed.len(), layout.packed_len(k, n));
            assert_eq!(layout.unpack(k, n, &packed), plain);
            assert_eq!(packed.iter().filter(|&&b| b != 0).count(), k * n);
        }
    }
}
