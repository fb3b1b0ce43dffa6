//! The machine that code is generated for.

use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};

use vitc_runtime::request_tiles;

use crate::CodegenError;

/// Which instructions the kernels may use; the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// AVX-512 as below, and matrix products by the tile unit (AMX, 8-bit integers).
    AmxInt8,
    /// 512-bit vectors with byte dot products (AVX-512 F, BW, DQ, VL, VBMI, VNNI).
    Avx512Vnni,
    /// 128-bit vectors through Cranelift, with every extension that this CPU has.
    Portable,
    /// 128-bit vectors through Cranelift with the instructions that every CPU of the architecture has (plus SSE4.1 on
    /// x86-64); shows that the extensions do not change a bit.
    Baseline,
}

impl Tier {
    /// Every tier, the fastest first.
    pub const ALL: [Tier; 4] = [Tier::AmxInt8, Tier::Avx512Vnni, Tier::Portable, Tier::Baseline];

    /// Whether leaves on 512-bit vectors take part.
    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Tier::AmxInt8 | Tier::Avx512Vnni)
    }

    /// The word for it in kernel names, flags and reports.
    pub fn word(self) -> &'static str {
        match self {
            Tier::AmxInt8 => "amx-int8",
            Tier::Avx512Vnni => "avx512-vnni",
            Tier::Portable => "portable",
            Tier::Baseline => "baseline",
        }
    }

    /// The tier of this word.
    pub fn named(word: &str) -> Option<Tier> {
        Tier::ALL.into_iter().find(|t| t.word() == word)
    }

    /// Why this machine cannot run kernels of this tier, in words; nothing if it can.
    pub fn missing(self) -> Option<String> {
        match self {
            Tier::AmxInt8 => missing_vectors().or_else(missing_tiles),
            Tier::Avx512Vnni => missing_vectors(),
            Tier::Portable | Tier::Baseline => None,
        }
    }

    /// The tiers that this machine can run, the fastest first.
    pub fn available() -> Vec<Tier> {
        Tier::ALL.into_iter().filter(|t| t.missing().is_none()).collect()
    }

    /// The fastest tier that this machine can run.
    pub fn best() -> Tier {
        Tier::ALL.into_iter().find(|t| t.missing().is_none()).unwrap_or(Tier::Portable)
    }

    /// This tier, if the machine can run it.
    ///
    /// # Errors
    /// [`CodegenError::Tier`], which says why not and which tiers it can run.
    pub fn checked(self) -> Result<Tier, CodegenError> {
        let Some(why) = self.missing() else { return Ok(self) };
        let available: Vec<&str> = Tier::available().into_iter().map(Tier::word).collect();
        Err(CodegenError::Tier { tier: self.word(), why, available: available.join(", ") })
    }
}

impl Default for Tier {
    /// [`Tier::best`].
    fn default() -> Self {
        Tier::best()
    }
}

/// The extensions that 512-bit kernels need and this machine lacks, in words.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn missing_vectors() -> Option<String> {
    let needs = [
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512vbmi", is_x86_feature_detected!("avx512vbmi")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ];
    let missing: Vec<&str> = needs.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
    (!missing.is_empty()).then(|| format!("this CPU lacks {}", missing.join(", ")))
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn missing_vectors() -> Option<String> {
    Some("512-bit kernels are for Linux on x86-64 only".into())
}

/// Why this process cannot use tiles. They may be emulated, for tests; those of this crate do so where there are none.
fn missing_tiles() -> Option<String> {
    let granted = request_tiles();
    #[cfg(all(any(test, feature = "emulate"), target_arch = "x86_64", target_os = "linux"))]
    let granted = granted.or_else(|why| {
        #[cfg(test)]
        crate::emulate::emulate_tiles();
        if crate::emulate::is_installed() { Ok(()) } else { Err(why) }
    });
    granted.err().map(String::from)
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
    let native = tier != Tier::Baseline;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_tiers() {
        for tier in Tier::ALL {
            assert_eq!(Tier::named(tier.word()), Some(tier));
        }
        assert_eq!(Tier::named("auto"), None);
    }

    #[test]
    fn the_best_tier_is_available_and_what_is_missing_says_why() {
        let available = Tier::available();
        assert_eq!(available.first(), Some(&Tier::best()));
        assert!(available.ends_with(&[Tier::Portable, Tier::Baseline]), "{available:?}");
        for tier in Tier::ALL {
            match tier.checked() {
                Ok(_) => assert!(available.contains(&tier)),
                Err(e) => {
                    let text = e.to_string();
                    assert!(!available.contains(&tier));
                    assert!(text.contains(tier.word()) && text.contains("portable, baseline"), "{text}");
                }
            }
        }
    }
}
