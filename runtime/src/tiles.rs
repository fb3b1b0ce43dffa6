//! The tile registers of a CPU with AMX: a process must ask the system for them before its first tile instruction.

/// Asks for the use of the tile registers for all threads of this process; again and again is allowed.
///
/// # Errors
/// In words, why this process cannot use them.
pub fn request_tiles() -> Result<(), &'static str> {
    imp::request()
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod imp {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// Leaf 7, edx.
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    /// Leaf 1, ecx: the system manages extended state.
    const OSXSAVE: u32 = 1 << 27;
    /// Tile configuration and tile data in the mask of managed state.
    const TILE_STATE: u64 = 0b11 << 17;
    /// `arch_prctl`: permission for a state that the system gives on request only.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    pub(super) fn request() -> Result<(), &'static str> {
        if !has_tile_unit() {
            return Err("this CPU has no AMX (amx-tile, amx-int8)");
        }
        if !is_state_managed() {
            return Err("the operating system does not manage AMX tile state");
        }
        // SAFETY: this call only widens what the system saves for the threads of this process.
        let status = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
        if status == 0 { Ok(()) } else { Err("the operating system does not grant AMX tile state") }
    }

    fn has_tile_unit() -> bool {
        let wanted = AMX_TILE | AMX_INT8;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & wanted == wanted
    }

    fn is_state_managed() -> bool {
        #[target_feature(enable = "xsave")]
        fn managed() -> u64 {
            // SAFETY: register 0 exists wherever the instruction does.
            unsafe { _xgetbv(0) }
        }
        // SAFETY: the instruction exists where the system has turned on the management of extended state.
        __cpuid(1).ecx & OSXSAVE != 0 && unsafe { managed() } & TILE_STATE == TILE_STATE
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod imp {
    pub(super) fn request() -> Result<(), &'static str> {
        Err("AMX is used on Linux on x86-64 only")
    }
}
