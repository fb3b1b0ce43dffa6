//! What rounds the weights of a softmax.
//!
//! Rounded to nearest, every weight below half a step becomes zero, and rows of many small weights lose what these carry
//! together. Instead a threshold is added that depends on the key alone and is spread evenly over a step: small weights then
//! survive in proportion, the sum of a row is kept, and no bit depends on chance.

/// Steps of 1/256 that key `i` is rounded up by: multiples of the golden ratio, of which any run of neighbours is spread
/// evenly. The first is one half.
pub fn dither(key: usize) -> u8 {
    const GOLDEN: u8 = 158; // 256 (sqrt(5) - 1)/2
    128u8.wrapping_add(GOLDEN.wrapping_mul(key as u8))
}

#[cfg(test)]
mod tests {
    use super::dither;

    #[test]
    fn neighbours_are_spread_evenly() {
        assert_eq!((dither(0), dither(256)), (128, 128));
        for first in 0..64 {
            let mut run: Vec<u8> = (first..first + 16).map(dither).collect();
            run.sort_unstable();
            assert!(run.windows(2).all(|w| w[1] - w[0] <= 40), "{run:?}");
        }
    }
}
