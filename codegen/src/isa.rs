//! The machine that code is generated for.

use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};

use crate::CodegenError;

/// Which instructions the kernels may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// 128-bit vectors through Cranelift, with every extension that this CPU has.
    #[default]
    Portable,
    /// 128-bit vectors through Cranelift with the instructions that every CPU of the architecture has (plus SSE4.1 on
    /// x86-64); shows that the extensions do not change a bit.
    Baseline,
}

impl Tier {
    /// The word for it in kernel names and reports.
    pub fn word(self) -> &'static str {
        match self {
            Tier::Portable => "portable",
            Tier::Baseline => "baseline",
        }
    }
}

/// The host's ISA with the extensions of `tier`.
pub(crate) fn host(tier: Tier) -> Result<OwnedTargetIsa, CodegenError> {
    let target = |e: &dyn std::fmt::Display| CodegenError::Target(e.to_string());
    let mut flags = settings::builder();
    let fixed = [
        ("opt_level", "speed"),
        ("is_pic", "false"),
        ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
        ("enable_probestack", "false"),
        ("unwind_info", "false"),
        ("use_colocated_libcalls", "false"),
    ];
    for (name, value) in fixed {
        flags.set(name, value).map_err(|e| target(&e))?;
    }
    let native = tier == Tier::Portable;
    let mut builder = cranelift_native::builder_with_options(native).map_err(|e| target(&e))?;
    if native && cfg!(target_arch = "x86_64") {
        // Cranelift would use it for `vpmullq` where `vpmuldq` does.
        builder.set("has_avx512dq", "false").map_err(|e| target(&e))?;
    }
    if !native && cfg!(target_arch = "x86_64") {
        for feature in ["has_sse3", "has_ssse3", "has_sse41", "has_sse42"] {
            builder.enable(feature).map_err(|e| target(&e))?;
        }
    }
    builder.finish(settings::Flags::new(flags)).map_err(|e| target(&e))
}
