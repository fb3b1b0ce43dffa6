//! The wide tiers: leaf functions of AVX-512 (and AMX) code that the Cranelift kernels call.
//!
//! Cranelift owns a kernel: outer loops, addresses, copies at the edges. What runs at full width is assembled with iced-x86
//! and linked into the same module. Where a leaf does not fit (an element type, a stride, a lane program with too many
//! values at once), the kernel is the one of the portable tier; the results are the same bits.

pub(crate) mod asm;
pub(crate) mod attention;
pub(crate) mod depthwise;
mod dot;
pub(crate) mod exp;
pub(crate) mod gemm;
pub(crate) mod lane;
pub(crate) mod linear;
pub(crate) mod map;
mod nibbles;
pub(crate) mod norm;
pub(crate) mod pack;
pub(crate) mod peak;
mod tiles;
