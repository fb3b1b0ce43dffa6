//! What a state costs.

use std::collections::BTreeMap;

use crate::quantize::{Groups, Width};

/// The bits of one operand of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// Those of a knob.
    Knob(usize),
    /// Always so many.
    Fixed(u32),
}

/// One product, as far as it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Name of the ONNX node.
    pub name: String,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Elements of its weights; none where it multiplies activations.
    pub elements: u64,
    /// Whether its weights are a matrix, whose groups of rows can have steps of their own.
    pub matrix: bool,
    /// Left and right operand.
    pub factors: [Factor; 2],
}

/// What a state is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Bytes of the weights of products.
    Bytes,
    /// Mean bits of the two factors of a multiply-accumulate.
    Bits,
    /// Multiply-accumulates times the bits of one factor times those of the other.
    BitOps,
    /// Nanoseconds of all kernels for one image.
    Nanos,
}

/// Times of kernels for one image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// With weights of so many bits, by the name of the product.
    pub products: BTreeMap<(String, u32), f64>,
    /// Of everything else.
    pub rest: f64,
}

/// Costs of the states of some knobs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Costs {
    /// What computes.
    pub products: Vec<Product>,
    /// Groups of rows of weights with steps of their own.
    pub groups: Groups,
    /// Nanoseconds, where they were measured.
    pub times: Times,
}

impl Costs {
    /// The cost of a state.
    pub fn of(&self, cost: Cost, state: &[u32]) -> f64 {
        let bits = |factor| match factor {
            Factor::Knob(k) => f64::from(state[k]),
            Factor::Fixed(bits) => f64::from(bits),
        };
        let kept = |p: &Product| self.kept(p, bits(p.factors[1]));
        let sum = |f: &dyn Fn(&Product) -> f64| self.products.iter().map(f).sum::<f64>();
        let macs = |p: &Product| p.macs as f64;
        match cost {
            Cost::Bytes => sum(&|p| p.elements as f64 * kept(p) / 8.0),
            Cost::Bits => sum(&|p| macs(p) * (bits(p.factors[0]) + kept(p))) / (2.0 * sum(&macs)).max(1.0),
            Cost::BitOps => sum(&|p| macs(p) * bits(p.factors[0]) * bits(p.factors[1])),
            Cost::Nanos => self.nanos(&bits),
        }
    }

    /// What a right factor of so many bits takes: steps of groups are kept beside weights.
    fn kept(&self, of: &Product, bits: f64) -> f64 {
        match Width::of_weights(bits as u32).filter(|_| of.matrix) {
            Some(width) => self.groups.bits(width),
            None => bits,
        }
    }

    /// Products of one name are timed together.
    fn nanos(&self, bits: &dyn Fn(Factor) -> f64) -> f64 {
        let of: BTreeMap<&str, u32> =
            self.products.iter().map(|p| (p.name.as_str(), bits(p.factors[1]) as u32)).collect();
        let time = |(name, bits): (&str, u32)| self.times.products.get(&(name.to_string(), bits)).copied();
        self.times.rest + of.into_iter().filter_map(time).sum::<f64>()
    }
}
