//! Where real numbers become integers and integers real numbers, outside the compiled graph.
//!
//! Both directions compute in `f64` and round once, half to even, so the result does not depend on the machine. The
//! buffers given here have been checked against their specs by the session.

use crate::program::{OutputSpec, Quantize, TensorSpec};
use crate::tensor::{Elem, Plain};

/// 1.5 * 2^52: adding it to a number below 2^51 leaves that number, rounded half to even, in the low bits.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// An integer that `f32` inputs are quantized to.
trait Quantized: Plain {
    const MIN: f64;
    const MAX: f64;
    fn truncate(bits: u64) -> Self;
}

macro_rules! quantized {
    ($($int:ident),*) => {$(
        impl Quantized for $int {
            const MIN: f64 = $int::MIN as f64;
            const MAX: f64 = $int::MAX as f64;
            fn truncate(bits: u64) -> Self {
                bits as $int
            }
        }
    )*};
}

quantized!(i8, u8, i16, u16, i32);

/// The affine maps of the channels, ready for the inner loop.
#[derive(Debug)]
pub(crate) struct Quantizer {
    inv_scale: Vec<f64>,
    offset: Vec<f64>,
    /// Elements from one channel to the next.
    stride: usize,
}

impl Quantizer {
    /// Prepares the conversion of tensors of this spec.
    pub(crate) fn new(spec: &TensorSpec, quantize: &Quantize) -> Self {
        let inv_scale = quantize.scale.iter().map(|scale| scale.recip()).collect();
        let stride = spec.dims.iter().skip(quantize.axis.saturating_add(1)).product();
        Self { inv_scale, offset: quantize.offset.clone(), stride }
    }

    /// Converts `f32` bytes to integers of type `elem`.
    pub(crate) fn convert(&self, elem: Elem, source: &[u8], target: &mut [u8]) {
        match elem {
            Elem::I8 => self.convert_to::<i8>(source, target),
            Elem::U8 => self.convert_to::<u8>(source, target),
            Elem::I16 => self.convert_to::<i16>(source, target),
            Elem::U16 => self.convert_to::<u16>(source, target),
            Elem::I32 => self.convert_to::<i32>(source, target),
            Elem::F32 | Elem::I64 => debug_assert!(false, "Program::new admits no quantization to {elem}"),
        }
    }

    fn convert_to<T: Quantized>(&self, source: &[u8], target: &mut [u8]) {
        match self.inv_scale.as_slice() {
            &[inv_scale] => quantize_run::<T>(source, target, inv_scale, self.offset[0]),
            _ if self.stride == 1 => self.convert_interleaved::<T>(source, target),
            _ => self.convert_planes::<T>(source, target),
        }
    }

    /// Channels run along the last axis.
    fn convert_interleaved<T: Quantized>(&self, source: &[u8], target: &mut [u8]) {
        let channels = self.inv_scale.len();
        let sources = source.chunks_exact(channels * size_of::<f32>());
        for (source, target) in sources.zip(target.chunks_exact_mut(channels * size_of::<T>())) {
            let affine = self.inv_scale.iter().zip(&self.offset);
            let numbers = source.chunks_exact(size_of::<f32>()).zip(target.chunks_exact_mut(size_of::<T>()));
            for ((x, q), (&inv_scale, &offset)) in numbers.zip(affine) {
                quantize::<T>(f32::read(x), inv_scale, offset).write(q);
            }
        }
    }

    /// Each channel is a plane of `stride` elements.
    fn convert_planes<T: Quantized>(&self, source: &[u8], target: &mut [u8]) {
        let sources = source.chunks_exact(self.stride * size_of::<f32>());
        let planes = sources.zip(target.chunks_exact_mut(self.stride * size_of::<T>()));
        let affine = self.inv_scale.iter().zip(&self.offset).cycle();
        for ((source, target), (&inv_scale, &offset)) in planes.zip(affine) {
            quantize_run::<T>(source, target, inv_scale, offset);
        }
    }
}

/// Quantizes numbers that share a scale, in the widest vectors that the processor has. The operations and so the bits are the same in
/// all of them: nothing is contracted or reordered.
fn quantize_run<T: Quantized>(source: &[u8], target: &mut [u8], inv_scale: f64, offset: f64) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
        {
            // SAFETY: the processor has these instructions.
            return unsafe { wide::avx512::<T>(source, target, inv_scale, offset) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has these instructions.
            return unsafe { wide::avx2::<T>(source, target, inv_scale, offset) };
        }
    }
    quantize_all::<T>(source, target, inv_scale, offset);
}

/// [`quantize_all`] compiled for processors with wider vectors than all have.
#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{Quantized, quantize_all};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    pub(super) fn avx512<T: Quantized>(source: &[u8], target: &mut [u8], inv_scale: f64, offset: f64) {
        quantize_all::<T>(source, target, inv_scale, offset);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2<T: Quantized>(source: &[u8], target: &mut [u8], inv_scale: f64, offset: f64) {
        quantize_all::<T>(source, target, inv_scale, offset);
    }
}

/// Inlined where it is called, so that it is compiled with the instructions of the caller.
#[inline(always)]
fn quantize_all<T: Quantized>(source: &[u8], target: &mut [u8], inv_scale: f64, offset: f64) {
    let numbers = source.chunks_exact(size_of::<f32>()).zip(target.chunks_exact_mut(size_of::<T>()));
    for (x, q) in numbers {
        quantize::<T>(f32::read(x), inv_scale, offset).write(q);
    }
}

/// Clamping before rounding gives the same integer, since both ends are integers.
#[inline(always)]
fn quantize<T: Quantized>(x: f32, inv_scale: f64, offset: f64) -> T {
    let x = if x.is_nan() { 0.0 } else { f64::from(x) };
    let clamped = (x * inv_scale + offset).clamp(T::MIN, T::MAX);
    T::truncate((clamped + ROUND).to_bits())
}

/// Converts the integers of an output to `f32`.
pub(crate) fn dequantize(output: &OutputSpec, source: &[u8], target: &mut [u8]) {
    match output.spec.elem {
        Elem::F32 => target.copy_from_slice(source),
        Elem::I8 => dequantize_from::<i8>(output, source, target, f64::from),
        Elem::U8 => dequantize_from::<u8>(output, source, target, f64::from),
        Elem::I16 => dequantize_from::<i16>(output, source, target, f64::from),
        Elem::U16 => dequantize_from::<u16>(output, source, target, f64::from),
        Elem::I32 => dequantize_from::<i32>(output, source, target, f64::from),
        Elem::I64 => dequantize_from::<i64>(output, source, target, |q| q as f64),
    }
}

fn dequantize_from<T: Plain>(output: &OutputSpec, source: &[u8], target: &mut [u8], real: impl Fn(T) -> f64) {
    let zero_point = f64::from(output.zero_point);
    let numbers = source.chunks_exact(size_of::<T>()).zip(target.chunks_exact_mut(size_of::<f32>()));
    for ((q, x), scale) in numbers.zip(output.scale.iter().cycle()) {
        (((real(T::read(q)) - zero_point) * scale) as f32).write(x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Element, TensorView, TensorViewMut};

    fn spec(elem: Elem, dims: &[usize]) -> TensorSpec {
        TensorSpec { name: "t".to_owned(), elem, dims: dims.to_vec() }
    }

    fn convert<T: Element>(dims: &[usize], quantize: &Quantize, xs: &[f32]) -> Vec<T> {
        let mut qs = vec![T::default(); xs.len()];
        let shape = [xs.len()];
        let source = TensorView::of(&shape, xs).unwrap();
        let mut target = TensorViewMut::of(&shape, &mut qs).unwrap();
        Quantizer::new(&spec(T::ELEM, dims), quantize).convert(T::ELEM, source.bytes(), target.bytes_mut());
        qs
    }

    fn plain(scale: f64, offset: f64) -> Quantize {
        Quantize { scale: vec![scale], offset: vec![offset], axis: 0 }
    }

    #[test]
    fn ties_go_to_even() {
        let xs = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5];
        assert_eq!(convert::<i8>(&[8], &plain(1.0, 0.0), &xs), [-2, -2, 0, 0, 2, 2, 126, 127]);
    }

    #[test]
    fn nan_is_zero_and_infinities_clamp() {
        let xs = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE];
        assert_eq!(convert::<u8>(&[7], &plain(0.1, 131.0), &xs), [131, 131, 255, 0, 255, 0, 131]);
        assert_eq!(convert::<i8>(&[7], &plain(1e-30, -3.0), &xs), [-3, -3, 127, -128, 127, -128, -3]);
        assert_eq!(convert::<i16>(&[7], &plain(0.1, 7.0), &xs)[..4], [7, 7, i16::MAX, i16::MIN]);
        assert_eq!(convert::<u16>(&[7], &plain(0.1, 7.0), &xs)[..4], [7, 7, u16::MAX, 0]);
        assert_eq!(convert::<i32>(&[7], &plain(0.1, 7.0), &xs)[..4], [7, 7, i32::MAX, i32::MIN]);
    }

    #[test]
    fn the_round_constant_agrees_with_the_library_on_every_u8_and_i16_tie() {
        let xs: Vec<f32> = (-70_000..70_000).map(|half| half as f32 / 2.0).collect();
        let expected = |lo: f64, hi: f64| -> Vec<f64> {
            xs.iter().map(|&x| f64::from(x).round_ties_even().clamp(lo, hi)).collect()
        };
        let bytes = convert::<u8>(&[xs.len()], &plain(1.0, 0.0), &xs);
        assert!(bytes.iter().map(|&q| f64::from(q)).eq(expected(0.0, 255.0)));
        let words = convert::<i16>(&[xs.len()], &plain(1.0, 0.0), &xs);
        assert!(words.iter().map(|&q| f64::from(q)).eq(expected(-32768.0, 32767.0)));
    }

    #[test]
    fn channels_follow_their_axis() {
        let quantize = |axis| Quantize { scale: vec![1.0, 0.5, 0.25], offset: vec![0.0, 1.0, 2.0], axis };
        let xs = [1.0; 12];
        let planes = convert::<u8>(&[0, 3, 2, 1], &quantize(1), &xs);
        assert_eq!(planes, [1, 1, 3, 3, 6, 6, 1, 1, 3, 3, 6, 6]);
        let interleaved = convert::<u8>(&[0, 2, 3], &quantize(2), &xs);
        assert_eq!(interleaved, [1, 3, 6, 1, 3, 6, 1, 3, 6, 1, 3, 6]);
    }

    fn real<T: Element>(scale: &[f64], zero_point: i32, qs: &[T]) -> Vec<f32> {
        let mut xs = vec![0f32; qs.len()];
        let shape = [qs.len()];
        let output = OutputSpec { spec: spec(T::ELEM, &[0, scale.len()]), scale: scale.to_vec(), zero_point };
        let source = TensorView::of(&shape, qs).unwrap();
        dequantize(&output, source.bytes(), TensorViewMut::of(&shape, &mut xs).unwrap().bytes_mut());
        xs
    }

    #[test]
    fn integers_become_real_numbers() {
        assert_eq!(real(&[0.5], 10, &[10i32, 12, 7]), [0.0, 1.0, -1.5]);
        assert_eq!(real(&[1.0, 2.0], 0, &[3i8, 3, -1, -1]), [3.0, 6.0, -1.0, -2.0]);
        assert_eq!(real(&[1.0], i32::MIN, &[i32::MAX]), [4_294_967_295f64 as f32]);
        assert_eq!(real(&[0.25], 128, &[0u8, 255]), [-32.0, 31.75]);
    }
}
