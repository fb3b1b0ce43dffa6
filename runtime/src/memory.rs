//! Pages from the operating system that are never writable and executable at once and are returned on drop.
//!
//! A [`MappedRegion`] starts writable and can only lose that right: there is no way back from
//! [`make_readonly`](MappedRegion::make_readonly) or [`make_executable`](MappedRegion::make_executable).

use std::io;
use std::ptr::NonNull;

use crate::error::RuntimeError;
use crate::program::KernelFn;

/// What the pages of a [`MappedRegion`] permit at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Read and write.
    Writable,
    /// Read.
    ReadOnly,
    /// Read and execute.
    Executable,
}

impl Protection {
    fn flags(self) -> libc::c_int {
        match self {
            Protection::Writable => libc::PROT_READ | libc::PROT_WRITE,
            Protection::ReadOnly => libc::PROT_READ,
            Protection::Executable => libc::PROT_READ | libc::PROT_EXEC,
        }
    }
}

/// An anonymous private mapping, page-aligned and zeroed, unmapped on drop.
#[derive(Debug)]
pub struct MappedRegion {
    base: NonNull<u8>,
    len: usize,
    mapped: usize,
    protection: Protection,
}

// SAFETY: the region is owned memory; no thread-bound state is attached to the mapping.
unsafe impl Send for MappedRegion {}
// SAFETY: through `&MappedRegion` the memory can only be read; writing takes `&mut` or a raw pointer.
unsafe impl Sync for MappedRegion {}

impl MappedRegion {
    /// Maps at least `len` writable zero bytes, rounded up to whole pages (one page for `len` of zero).
    ///
    /// # Errors
    /// [`RuntimeError::Map`] when the system has no such memory.
    pub fn new_writable(len: usize) -> Result<Self, RuntimeError> {
        let mapped = whole_pages(len).ok_or_else(|| out_of_memory(len))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped, Protection::Writable.flags(), flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(RuntimeError::Map { len, source: io::Error::last_os_error() });
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| out_of_memory(len))?;
        Ok(Self { base, len, mapped, protection: Protection::Writable })
    }

    /// Maps a regular file read-only.
    ///
    /// Nobody may shorten or overwrite the file while it is mapped: the bytes would change under shared references, and an
    /// access past the new end would end the process. Writers that replace the file by renaming are safe.
    ///
    /// # Errors
    /// [`RuntimeError::File`] when the file cannot be opened or mapped, or is not a regular file.
    pub fn open_file(path: &std::path::Path) -> Result<Self, RuntimeError> {
        use std::os::fd::AsRawFd;
        let fault = |source| RuntimeError::File { path: path.display().to_string(), source };
        let file = std::fs::File::open(path).map_err(fault)?;
        let metadata = file.metadata().map_err(fault)?;
        let len = usize::try_from(metadata.len()).map_err(|_| out_of_memory(usize::MAX))?;
        if !metadata.is_file() {
            return Err(fault(io::Error::other("it is not a regular file")));
        }
        if len == 0 {
            let mut empty = Self::new_writable(0)?;
            empty.make_readonly()?;
            return Ok(empty);
        }
        let mapped = whole_pages(len).ok_or_else(|| out_of_memory(len))?;
        let prot = Protection::ReadOnly.flags();
        // SAFETY: a fresh private mapping at an address of the kernel's choice touches no existing memory; what remains, that
        // the file changes while mapped, is the documented duty of whoever owns the file.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(fault(io::Error::last_os_error()));
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| out_of_memory(len))?;
        Ok(Self { base, len, mapped, protection: Protection::ReadOnly })
    }

    /// Bytes asked for on construction.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte was asked for.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the pages permit at present.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// First byte of the region, page-aligned.
    pub fn as_ptr(&self) -> *const u8 {
        self.base.as_ptr()
    }

    /// First byte of the region, page-aligned. Writing through it faults once the region has been sealed.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The bytes of the region.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: `len <= mapped` bytes at `base` are mapped readable and initialised (zero at first).
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// The bytes of the region for writing, or `None` once it has been sealed.
    pub fn as_bytes_mut(&mut self) -> Option<&mut [u8]> {
        if self.protection != Protection::Writable {
            return None;
        }
        // SAFETY: as in `as_bytes`; the pages are writable and `&mut self` makes this the only reference.
        Some(unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) })
    }

    /// Seals the region as code: readable and executable, not writable.
    ///
    /// # Errors
    /// [`RuntimeError::Protect`] when the system refuses; the region then keeps its protection.
    pub fn make_executable(&mut self) -> Result<(), RuntimeError> {
        self.flush_instructions();
        self.protect(Protection::Executable)
    }

    /// Seals the region as data: readable only.
    ///
    /// # Errors
    /// [`RuntimeError::Protect`] when the system refuses; the region then keeps its protection.
    pub fn make_readonly(&mut self) -> Result<(), RuntimeError> {
        self.protect(Protection::ReadOnly)
    }

    fn protect(&mut self, protection: Protection) -> Result<(), RuntimeError> {
        // SAFETY: the range is exactly our own mapping, and no reference to its bytes outlives `&mut self`.
        let status = unsafe { libc::mprotect(self.base.as_ptr().cast(), self.mapped, protection.flags()) };
        if status != 0 {
            return Err(RuntimeError::Protect { len: self.len, source: io::Error::last_os_error() });
        }
        self.protection = protection;
        Ok(())
    }

    /// Makes written instructions visible to instruction fetch; x86 does so by itself.
    fn flush_instructions(&mut self) {
        #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
        {
            unsafe extern "C" {
                fn __clear_cache(begin: *mut libc::c_void, end: *mut libc::c_void);
            }
            // SAFETY: the range is our own mapping; the call only synchronises caches.
            unsafe { __clear_cache(self.base.as_ptr().cast(), self.base.as_ptr().add(self.mapped).cast()) };
        }
    }

    /// A writable region that starts with `bytes`.
    fn holding(bytes: &[u8]) -> Result<Self, RuntimeError> {
        let mut region = Self::new_writable(bytes.len())?;
        if let Some(room) = region.as_bytes_mut() {
            room.copy_from_slice(bytes);
        }
        Ok(region)
    }
}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        // SAFETY: the range is exactly our own mapping and nothing borrowed from `self` is alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

/// Sealed machine code.
#[derive(Debug)]
pub struct CodeMemory {
    region: MappedRegion,
}

impl CodeMemory {
    /// Copies position-independent machine code into pages of its own and seals them.
    ///
    /// # Errors
    /// [`RuntimeError::Map`] or [`RuntimeError::Protect`] when the system refuses.
    pub fn new(code: &[u8]) -> Result<Self, RuntimeError> {
        let mut region = MappedRegion::holding(code)?;
        region.make_executable()?;
        Ok(Self { region })
    }

    /// Bytes of code.
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Whether there is no code.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }

    /// Address of the byte at `offset`, or `None` outside the code.
    pub fn entry(&self, offset: usize) -> Option<*const u8> {
        (offset < self.len()).then(|| self.region.as_ptr().wrapping_add(offset))
    }

    /// The kernel that starts at `offset`, or `None` outside the code. It must not be called after `self` is gone.
    ///
    /// # Safety
    /// A function that follows the [`KernelFn`] ABI starts at `offset`.
    pub unsafe fn kernel(&self, offset: usize) -> Option<KernelFn> {
        // SAFETY: the caller promises that a function of this type starts at the address, which is not null.
        self.entry(offset).map(|entry| unsafe { std::mem::transmute::<*const u8, KernelFn>(entry) })
    }
}

/// Sealed, page-aligned constants: an owner of bytes for [`ProgramParts::consts`](crate::ProgramParts::consts).
#[derive(Debug)]
pub struct ConstMemory {
    region: MappedRegion,
}

impl ConstMemory {
    /// Copies `bytes` into read-only pages of their own.
    ///
    /// # Errors
    /// [`RuntimeError::Map`] or [`RuntimeError::Protect`] when the system refuses.
    pub fn new(bytes: &[u8]) -> Result<Self, RuntimeError> {
        let mut region = MappedRegion::holding(bytes)?;
        region.make_readonly()?;
        Ok(Self { region })
    }

    /// `len` bytes: each piece at its offset, zeros elsewhere. A piece is freed before the next one is asked for.
    ///
    /// # Errors
    /// As [`ConstMemory::new`].
    ///
    /// # Panics
    /// When a piece leaves the `len` bytes.
    pub fn gather(len: usize, pieces: impl IntoIterator<Item = (usize, Vec<u8>)>) -> Result<Self, RuntimeError> {
        let mut region = MappedRegion::new_writable(len)?;
        if let Some(room) = region.as_bytes_mut() {
            pieces.into_iter().for_each(|(at, piece)| room[at..at + piece.len()].copy_from_slice(&piece));
        }
        region.make_readonly()?;
        Ok(Self { region })
    }
}

impl AsRef<[u8]> for ConstMemory {
    fn as_ref(&self) -> &[u8] {
        self.region.as_bytes()
    }
}

/// `len` rounded up to whole pages, at least one; `None` beyond what a slice may span.
fn whole_pages(len: usize) -> Option<usize> {
    let bytes = len.max(1).checked_next_multiple_of(page_size())?;
    isize::try_from(bytes).is_ok().then_some(bytes)
}

fn page_size() -> usize {
    // SAFETY: sysconf only reads a system constant.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
}

fn out_of_memory(len: usize) -> RuntimeError {
    RuntimeError::Map { len, source: io::Error::from(io::ErrorKind::OutOfMemory) }
}

impl AsRef<[u8]> for MappedRegion {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_starts_zeroed_writable_and_page_aligned() {
        let mut region = MappedRegion::new_writable(5000).unwrap();
        assert_eq!(region.as_ptr() as usize % page_size(), 0);
        assert_eq!(region.protection(), Protection::Writable);
        assert!(region.as_bytes().iter().all(|&byte| byte == 0));
        region.as_bytes_mut().unwrap()[4999] = 7;
        assert_eq!(region.as_bytes()[4999], 7);
    }

    #[test]
    fn a_sealed_region_never_becomes_writable_again() {
        let mut region = MappedRegion::holding(&[1, 2, 3]).unwrap();
        region.make_readonly().unwrap();
        assert!(region.as_bytes_mut().is_none());
        region.make_executable().unwrap();
        assert!(region.as_bytes_mut().is_none());
        assert_eq!(region.as_bytes(), [1, 2, 3]);
    }

    #[test]
    fn empty_and_impossible_lengths() {
        assert!(MappedRegion::new_writable(0).unwrap().is_empty());
        assert!(matches!(MappedRegion::new_writable(usize::MAX), Err(RuntimeError::Map { .. })));
        assert!(matches!(MappedRegion::new_writable(isize::MAX as usize - 8191), Err(RuntimeError::Map { .. })));
        assert!(ConstMemory::new(&[]).unwrap().as_ref().is_empty());
        assert_eq!(ConstMemory::gather(5, [(3, vec![7, 8]), (0, vec![9])]).unwrap().as_ref(), [9, 0, 0, 7, 8]);
    }

    #[test]
    fn an_entry_lies_inside_the_code() {
        let code = CodeMemory::new(&[0xc3, 0xc3]).unwrap();
        assert!(code.entry(1).is_some());
        assert!(code.entry(2).is_none());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn sealed_code_runs() {
        // mov rax, [rdi]; mov byte [rax], 42; ret
        let code = CodeMemory::new(&[0x48, 0x8b, 0x07, 0xc6, 0x00, 0x2a, 0xc3]).unwrap();
        let mut target = 0u8;
        let args = [&raw mut target];
        // SAFETY: the bytes above are a kernel that writes one byte through its first argument.
        unsafe { code.kernel(0).unwrap()(args.as_ptr(), 0, 1, 1, std::ptr::null_mut()) };
        assert_eq!(target, 42);
    }
}
