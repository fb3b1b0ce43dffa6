//! Physical layouts of packed constants: what a backend wants to stream, or what takes few bytes to keep, described as plain
//! index arithmetic.

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
    /// Elements of few bits of a tensor of any rank, in two's complement, row-major one after another: element `i` is bits
    /// `bits * i` and on, the lowest bit of a byte first. For keeping; kernels read it unpacked.
    Bits {
        /// Bits of an element, 1 to 7.
        bits: u32,
    },
    /// Elements that are codes of few bits times a factor of 1 to 16, one factor for each column of a group of rows: the codes as
    /// `Bits` keeps them, then from a new byte the factors less one, row-major, two to a byte, the first one low. For keeping.
    Groups {
        /// Bits of a code, 1 to 7.
        bits: u32,
        /// Rows of a group; the last one may have fewer.
        rows: usize,
    },
}

/// Largest factor of a group.
pub const LARGEST_FACTOR: u8 = 16;

/// Rows of groups that are tried where elements have no layout of few bits without.
const GROUPS: [usize; 4] = [64, 32, 16, 8];

/// Most bits that are worth packing.
const MOST_BITS: u32 = 6;

impl Layout {
    /// The layout that takes least, of those that keep every bit of a [k, n] matrix of signed bytes; in panels of `columns`
    /// where kernels can read it so.
    pub fn narrowest(columns: usize, (k, n): (usize, usize), plain: &[u8]) -> Layout {
        let grouped = GROUPS.iter().filter_map(|&rows| Layout::groups(rows, n, plain));
        match Layout::few_bits(plain).into_iter().chain(grouped).min_by_key(|layout| layout.packed_len(k, n)) {
            Some(Layout::Bits { bits: 4 }) => Layout::Dot4Nibbles { columns },
            Some(few) => few,
            None => Layout::Dot4 { columns },
        }
    }

    /// The fewest bits for these signed bytes, where they are few.
    pub fn few_bits(plain: &[u8]) -> Option<Layout> {
        let bits = plain.iter().map(|&b| width(b as i8)).max().unwrap_or(1).max(2);
        (bits <= MOST_BITS).then_some(Layout::Bits { bits })
    }

    /// Groups of `rows` for a matrix of `n` columns, where each has a factor that leaves codes of few bits.
    fn groups(rows: usize, n: usize, plain: &[u8]) -> Option<Layout> {
        let mut bits = 2;
        for factors in plain.chunks((rows * n).max(1)).map(|group| factors(n, group)) {
            for factor in factors {
                bits = bits.max(factor.1);
                if bits > MOST_BITS {
                    return None;
                }
            }
        }
        Some(Layout::Groups { bits, rows })
    }

    /// Columns of a panel; 1 where there are no panels.
    pub fn columns(self) -> usize {
        match self {
            Layout::Dot4 { columns } | Layout::Dot4Nibbles { columns } => columns,
            Layout::Bits { .. } | Layout::Groups { .. } => 1,
        }
    }

    /// Bits of an element, or of its code.
    pub fn bits(self) -> u32 {
        match self {
            Layout::Dot4 { .. } => 8,
            Layout::Dot4Nibbles { .. } => 4,
            Layout::Bits { bits } | Layout::Groups { bits, .. } => bits,
        }
    }

    /// Bits that an element takes in the mean, padding aside.
    pub fn mean_bits(self) -> f64 {
        let factors = match self {
            Layout::Groups { rows, .. } => 4.0 / rows as f64,
            _ => 0.0,
        };
        f64::from(self.bits()) + factors
    }

    /// Whether kernels read it as it is on some tier; other layouts are unpacked first.
    pub fn is_panels(self) -> bool {
        matches!(self, Layout::Dot4 { .. } | Layout::Dot4Nibbles { .. })
    }

    /// How a tensor of these dimensions is packed: how many matrices, of how many rows and columns. `None` for a rank that the
    /// layout does not have, or when a product overflows.
    pub fn matrices(self, dims: &[usize]) -> Option<(usize, usize, usize)> {
        let product = |dims: &[usize]| dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        match (self, dims) {
            (Layout::Bits { .. }, dims) => Some((1, 1, product(dims)?)),
            (_, [lead @ .., k, n]) => Some((product(lead)?, *k, *n)),
            _ => None,
        }
    }

    /// Bytes of one packed [k, n] matrix; `None` when that is more than there can be.
    pub fn checked_len(self, k: usize, n: usize) -> Option<usize> {
        let (rows, columns) = match self.is_panels() {
            true => (k.checked_next_multiple_of(4)?, n.checked_next_multiple_of(self.columns())?),
            false => (k, n),
        };
        let codes = rows.checked_mul(columns)?.checked_mul(self.bits() as usize)?.div_ceil(8);
        match self {
            Layout::Groups { rows, .. } => codes.checked_add(k.div_ceil(rows.max(1)).checked_mul(n)?.div_ceil(2)),
            _ => Some(codes),
        }
    }

    /// Bytes of one packed [k, n] matrix that is there.
    pub fn packed_len(self, k: usize, n: usize) -> usize {
        self.checked_len(k, n).expect("a matrix in memory has a length")
    }

    /// Packs row-major [k, n] bytes, of which the layout keeps every bit: [`Layout::narrowest`] says which do.
    pub fn pack(self, k: usize, n: usize, plain: &[u8]) -> Vec<u8> {
        match self {
            Layout::Dot4 { columns } => dot4(columns, (k, n), plain),
            Layout::Dot4Nibbles { columns } => join_nibbles(&dot4(columns, (k, n), plain), columns),
            Layout::Bits { bits } => join_bits(plain, bits),
            Layout::Groups { bits, rows } => join_groups(plain, n, bits, rows),
        }
    }

    /// The row-major bytes of a packed [k, n] matrix.
    pub fn unpack(self, k: usize, n: usize, packed: &[u8]) -> Vec<u8> {
        match self {
            Layout::Dot4 { columns } => undo_dot4(columns, (k, n), packed),
            Layout::Dot4Nibbles { columns } => undo_dot4(columns, (k, n), &split_nibbles(packed, columns)),
            Layout::Bits { bits } => split_bits(packed, bits, k * n),
            Layout::Groups { bits, rows } => split_groups(packed, (k, n), bits, rows),
        }
    }
}

/// Bits of an integer in two's complement.
fn width(x: i8) -> u32 {
    9 - (x ^ (x >> 7)).leading_zeros()
}

/// For each column of a group of rows the largest factor that all elements have, and the bits of the largest code that it leaves.
fn factors(n: usize, group: &[u8]) -> Vec<(u8, u32)> {
    (0..n).map(|c| factor(group[c..].iter().step_by(n).map(|&b| b as i8))).collect()
}

fn factor(elements: impl Iterator<Item = i8> + Clone) -> (u8, u32) {
    let common = elements.clone().fold(0, |g, x| gcd(g, x.unsigned_abs()));
    let factor = (2..=LARGEST_FACTOR).rev().find(|&f| common > 0 && common.is_multiple_of(f)).unwrap_or(1);
    (factor, elements.map(|x| width((i16::from(x) / i16::from(factor)) as i8)).max().unwrap_or(1))
}

fn gcd(mut a: u8, mut b: u8) -> u8 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Row-major bytes in the order of `Dot4`.
fn dot4(columns: usize, (k, n): (usize, usize), plain: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; k.next_multiple_of(4) * n.next_multiple_of(columns)];
    for run in runs(columns, k, n) {
        let to = bytes[run.packed..].iter_mut().step_by(4);
        to.zip(&plain[run.plain..][..run.columns]).for_each(|(to, &from)| *to = from);
    }
    bytes
}

/// What [`dot4`] made, row-major again.
fn undo_dot4(columns: usize, (k, n): (usize, usize), bytes: &[u8]) -> Vec<u8> {
    let mut plain = vec![0; k * n];
    for run in runs(columns, k, n) {
        let from = bytes[run.packed..].iter().step_by(4);
        plain[run.plain..][..run.columns].iter_mut().zip(from).for_each(|(to, &from)| *to = from);
    }
    plain
}

/// The pieces of rows that panels hold, panel by panel.
fn runs(columns: usize, k: usize, n: usize) -> impl Iterator<Item = Run> {
    let panel_bytes = k.next_multiple_of(4) * columns;
    (0..n.div_ceil(columns)).flat_map(move |panel| {
        (0..k).map(move |row| Run {
            plain: row * n + panel * columns,
            packed: panel * panel_bytes + row / 4 * 4 * columns + row % 4,
            columns: columns.min(n - panel * columns),
        })
    })
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

/// Codes of few bits, then the factors of groups.
fn join_groups(plain: &[u8], n: usize, bits: u32, rows: usize) -> Vec<u8> {
    let (mut codes, mut less_one) = (Vec::with_capacity(plain.len()), Vec::new());
    for group in plain.chunks(rows.saturating_mul(n).max(1)) {
        let of: Vec<u8> = factors(n, group).into_iter().map(|(factor, _)| factor).collect();
        for row in group.chunks(n) {
            codes.extend(row.iter().zip(&of).map(|(&x, &f)| (i16::from(x as i8) / i16::from(f)) as u8));
        }
        less_one.extend(of.into_iter().map(|f| f - 1));
    }
    let mut packed = join_bits(&codes, bits);
    packed.extend(less_one.chunks(2).map(|pair| pair.iter().rev().fold(0, |byte, f| byte << 4 | f)));
    packed
}

/// What [`join_groups`] made, as bytes again.
fn split_groups(packed: &[u8], (k, n): (usize, usize), bits: u32, rows: usize) -> Vec<u8> {
    let (codes, factors) = packed.split_at((k * n * bits as usize).div_ceil(8));
    let factors: Vec<u8> = factors.iter().flat_map(|byte| [(byte & 15) + 1, (byte >> 4) + 1]).collect();
    let mut plain = split_bits(codes, bits, k * n);
    // a file may say any number of rows
    for (group, factors) in plain.chunks_mut((rows.min(k) * n).max(1)).zip(factors.chunks(n.max(1))) {
        for row in group.chunks_mut(n) {
            row.iter_mut().zip(factors).for_each(|(x, &f)| *x = x.wrapping_mul(f));
        }
    }
    plain
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
                let packed = layout.pack(k, n, &plain);
                assert_eq!(2 * packed.len(), bytes.packed_len(k, n));
                assert_eq!(layout.unpack(k, n, &packed), plain);
            }
        }
    }

    #[test]
    fn few_bits_come_back() {
        for bits in [2, 3, 4, 5, 6, 7] {
            let layout = Layout::Bits { bits };
            for (k, n) in SIZES {
                let half = 1i32 << (bits - 1);
                let plain: Vec<u8> = (0..(k * n) as i32).map(|i| (i * 5 % (2 * half) - half) as u8).collect();
                let packed = layout.pack(k, n, &plain);
                assert_eq!(packed.len(), layout.packed_len(k, n));
                assert_eq!(layout.unpack(k, n, &packed), plain, "{bits} bits");
            }
        }
    }

    /// Codes of `bits` times a factor for each column of a group of `rows`.
    fn grouped(bits: u32, rows: usize, (k, n): (usize, usize)) -> Vec<u8> {
        let half = 1i32 << (bits - 1);
        let most = (127 / half).min(i32::from(LARGEST_FACTOR)) as usize;
        let factor = |i: usize| (1 + (i / n / rows * 5 + i % n * 3) % most) as i32;
        (0..k * n).map(|i| ((i as i32 * 7 % (2 * half) - half) * factor(i)) as u8).collect()
    }

    #[test]
    fn codes_with_factors_come_back() {
        for (bits, rows) in [(2, 8), (3, 16), (4, 16), (4, 64), (5, 8), (6, 32)] {
            for (k, n) in SIZES.into_iter().chain([(64, 5), (131, 3), (48, 1)]) {
                let (layout, plain) = (Layout::Groups { bits, rows }, grouped(bits, rows, (k, n)));
                let packed = layout.pack(k, n, &plain);
                assert_eq!(packed.len(), layout.packed_len(k, n));
                assert_eq!(layout.unpack(k, n, &packed), plain, "{bits} bits, groups of {rows} of {k} rows");
            }
        }
    }

    #[test]
    fn groups_of_more_rows_than_there_are_hold_all() {
        let plain = grouped(4, 16, (6, 3));
        let [some, any] = [16, usize::MAX].map(|rows| Layout::Groups { bits: 4, rows });
        let packed = any.pack(6, 3, &plain);
        assert_eq!(packed, some.pack(6, 3, &plain));
        assert_eq!((packed.len(), any.unpack(6, 3, &packed)), (any.packed_len(6, 3), plain));
    }

    #[test]
    fn groups_are_found_by_looking() {
        let (k, n) = (128, 6);
        for (bits, rows) in [(3, 8), (4, 16), (4, 64), (5, 32)] {
            let plain = grouped(bits, rows, (k, n));
            let found = Layout::narrowest(8, (k, n), &plain);
            assert!(found.packed_len(k, n) <= Layout::Groups { bits, rows }.packed_len(k, n), "{found:?}");
            assert_eq!(found.unpack(k, n, &found.pack(k, n, &plain)), plain);
        }
        let mut plain = grouped(4, 16, (k, n));
        (plain[0], plain[n]) = (127, 126);
        assert_eq!(Layout::narrowest(8, (k, n), &plain), Layout::Dot4 { columns: 8 });
    }

    #[test]
    fn the_narrowest_layout_keeps_every_bit() {
        for (largest, bits) in
            [(0i8, 2), (1, 2), (-2, 2), (2, 3), (-8, 4), (8, 5), (-17, 6), (31, 6), (41, 8), (-127, 8)]
        {
            let plain = [0, largest as u8, 1];
            let layout = Layout::narrowest(8, (3, 1), &plain);
            assert_eq!(layout.bits(), bits, "{largest}");
            assert_eq!(layout.unpack(3, 1, &layout.pack(3, 1, &plain)), plain);
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
