//! Exact hexadecimal floats, `0x1.4p-5`: every `f64` has one spelling and it parses back to the same bits.

const FRACTION: u64 = (1 << 52) - 1;

/// The spelling of a real number; every NaN is `nan`.
pub(super) fn print(v: f64) -> String {
    let sign = if v.is_sign_negative() { "-" } else { "" };
    if v.is_nan() {
        "nan".into()
    } else if v.is_infinite() {
        format!("{sign}inf")
    } else if v == 0.0 {
        format!("{sign}0x0p0")
    } else {
        format!("{sign}{}", magnitude(v.to_bits()))
    }
}

/// Subnormal numbers are written normalised too: the smallest is `0x1p-1074`.
fn magnitude(bits: u64) -> String {
    let (biased, fraction) = ((bits >> 52 & 0x7ff) as i64, bits & FRACTION);
    let (exponent, fraction) = if biased == 0 {
        let shift = fraction.leading_zeros() - 11;
        (-1022 - i64::from(shift), (fraction << shift) & FRACTION)
    } else {
        (biased - 1023, fraction)
    };
    let digits = format!("{fraction:013x}");
    match digits.trim_end_matches('0') {
        "" => format!("0x1p{exponent}"),
        digits => format!("0x1.{digits}p{exponent}"),
    }
}

/// The number spelled so: a hexadecimal float that some `f64` equals exactly, `inf`, `-inf`, `nan`, or a decimal (for
/// texts written by hand), which is rounded to the nearest `f64`.
pub(super) fn parse(word: &str) -> Option<f64> {
    if word == "nan" {
        return Some(f64::NAN);
    }
    let (negative, rest) = word.strip_prefix('-').map_or((false, word), |rest| (true, rest));
    let magnitude = match rest.strip_prefix("0x") {
        _ if rest == "inf" => f64::INFINITY,
        Some(hex) => parse_hex(hex)?,
        None => parse_decimal(rest)?,
    };
    Some(if negative { -magnitude } else { magnitude })
}

fn parse_decimal(word: &str) -> Option<f64> {
    let plain = word.starts_with(|c: char| c.is_ascii_digit());
    let value = plain.then(|| word.parse::<f64>().ok()).flatten()?;
    value.is_finite().then_some(value)
}

fn parse_hex(word: &str) -> Option<f64> {
    let (mantissa, exponent) = word.split_once('p')?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() || whole.len() + fraction.len() > 64 {
        return None;
    }
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    let mut value = 0u64;
    for c in significant.chars() {
        let digit = c.to_digit(16)?;
        value = value.checked_mul(16)? + u64::from(digit);
    }
    let dropped = 4 * (digits.len() - significant.len()) as i64;
    let exponent = i64::from(exponent.parse::<i32>().ok()?) - 4 * fraction.len() as i64 + dropped;
    compose(value, exponent)
}

/// `value * 2^exponent`, when it is an `f64`.
fn compose(value: u64, exponent: i64) -> Option<f64> {
    if value == 0 {
        return Some(0.0);
    }
    let zeros = value.trailing_zeros();
    let (value, exponent) = (value >> zeros, exponent + i64::from(zeros));
    let length = 64 - i64::from(value.leading_zeros());
    let top = exponent + length - 1;
    if length > 53 || top > 1023 || exponent < -1074 {
        return None;
    }
    let bits = if top < -1022 {
        value << (exponent + 1074)
    } else {
        ((top + 1023) as u64) << 52 | (value << (53 - length)) & FRACTION
    };
    Some(f64::from_bits(bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spellings() {
        let known = [
            (1.0, "0x1p0"),
            (-0.0, "-0x0p0"),
            (0.0, "0x0p0"),
            (0.0390625, "0x1.4p-5"),
            (-255.0, "-0x1.fep7"),
            (f64::MAX, "0x1.fffffffffffffp1023"),
            (f64::MIN_POSITIVE, "0x1p-1022"),
            (f64::from_bits(1), "0x1p-1074"),
            (f64::from_bits(FRACTION), "0x1.ffffffffffffep-1023"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ];
        for (value, text) in known {
            assert_eq!(print(value), text);
            assert_eq!(parse(text).map(f64::to_bits), Some(value.to_bits()), "{text}");
        }
        assert_eq!(print(f64::from_bits(f64::NAN.to_bits() | 1 << 63 | 5)), "nan");
    }

    #[test]
    fn other_spellings_of_a_number() {
        for (text, value) in [("0.5", 0.5), ("1e-3", 1e-3), ("-2", -2.0), ("0x10.8p-4", 1.03125), ("0x000p9", 0.0)] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
        let refused = ["", "-", "0x", "0xp1", "0x1", "0x1.p", "0x1pq", "0x1.fffffffffffff8p0", "0x1p1024", "0x1p-1075"];
        let refused = refused.iter().chain(&["1e999", "-nan", "--1", "0x.8p0", "infinity", "0x1p99999999999", "e5"]);
        for text in refused {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_number_comes_back(bits: u64, subnormal: bool) {
            let v = f64::from_bits(if subnormal { bits & !(0x7ff << 52) } else { bits });
            let back = parse(&print(v)).unwrap();
            prop_assert!(back.to_bits() == v.to_bits() || (v.is_nan() && back.to_bits() == f64::NAN.to_bits()));
        }

        #[test]
        fn no_text_panics(text in "-?(0x)?[0-9a-fp.-]{0,24}") {
            let _ = parse(&text);
        }
    }
}
