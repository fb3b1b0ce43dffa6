//! What kernels and passes ask of tables.

/// Whether magnitudes of entries fall to a least one and rise from there: then the largest of any of them is that of the first or of
/// the last, as of GELU counted from its lowest value.
pub fn falls_and_rises(entries: &[i64]) -> bool {
    let least = entries.iter().enumerate().min_by_key(|(_, v)| v.abs()).map_or(0, |(i, _)| i);
    let (falling, rising) = entries.split_at(least);
    falling.is_sorted_by(|a, b| a.abs() >= b.abs()) && rising.is_sorted_by(|a, b| a.abs() <= b.abs())
}

#[cfg(test)]
mod tests {
    use super::falls_and_rises;

    #[test]
    fn valleys() {
        for valley in [&[][..], &[3], &[0, 0, 1, 7], &[9, -4, 4, -1, 2, 2], &[-5, -5, 0]] {
            assert!(falls_and_rises(valley), "{valley:?}");
        }
        for other in [&[1, 2, 1][..], &[-3, 1, 2, -1], &[4, 5, 0, 1]] {
            assert!(!falls_and_rises(other), "{other:?}");
        }
    }
}
