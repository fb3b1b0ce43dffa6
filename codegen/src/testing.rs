//! What the kernel tests share: guarded buffers, a generator of numbers, and one-kernel programs.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use vitc_runtime::KernelFn;

use crate::isa::{self, Tier};
use crate::kernel::{Kernels, Spec};
use crate::link::{Code, Linker};

/// At which end of a buffer the inaccessible page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    After,
    Before,
}

/// Bytes that end right before an inaccessible page, or start right after one.
pub(crate) struct Guarded {
    base: *mut u8,
    mapped: usize,
    start: usize,
    len: usize,
}

impl Guarded {
    pub(crate) fn new(bytes: &[u8]) -> Guarded {
        Guarded::at(bytes, Edge::After)
    }

    pub(crate) fn at(bytes: &[u8], edge: Edge) -> Guarded {
        let body = bytes.len().max(1).next_multiple_of(4096);
        let mapped = body + 2 * 4096;
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping of our own, of which the inner pages are made accessible.
        let base = unsafe {
            let base = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, anonymous, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(base.add(4096), body, libc::PROT_READ | libc::PROT_WRITE), 0);
            base.cast::<u8>()
        };
        let start = match edge {
            Edge::After => 4096 + body - bytes.len(),
            Edge::Before => 4096,
        };
        let mut guarded = Guarded { base, mapped, start, len: bytes.len() };
        guarded.bytes_mut().copy_from_slice(bytes);
        guarded
    }

    pub(crate) fn of<T: Copy>(values: &[T]) -> Guarded {
        // SAFETY: any plain number may be read as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) };
        Guarded::new(bytes)
    }

    pub(crate) fn ptr(&mut self) -> *mut u8 {
        self.base.wrapping_add(self.start)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range lies in the accessible pages of our own mapping.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(self.start), self.len) }
    }

    pub(crate) fn values<T: Copy>(&mut self) -> Vec<T> {
        let count = self.len / size_of::<T>();
        let p = self.ptr().cast::<T>();
        // SAFETY: `count` elements lie within the buffer; they may be unaligned.
        (0..count).map(|i| unsafe { p.add(i).read_unaligned() }).collect()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: exactly our own mapping.
        unsafe { libc::munmap(self.base.cast(), self.mapped) };
    }
}

/// A small generator of pseudo-random numbers.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) ^ (self.0 << 31) >> 17
    }

    /// A number from `lo..=hi`; the ends are drawn often.
    pub(crate) fn within(&mut self, lo: i64, hi: i64) -> i64 {
        match self.next() % 16 {
            0 => lo,
            1 => hi,
            _ => {
                let span = (i128::from(hi) - i128::from(lo) + 1) as u128;
                let wide = u128::from(self.next()) << 40 | u128::from(self.next());
                (i128::from(lo) + (wide % span) as i128) as i64
            }
        }
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 5) as u8).collect()
    }
}

/// One compiled kernel.
pub(crate) struct Single {
    pub run: KernelFn,
    pub code: Vec<u8>,
    pub scratch: usize,
    _owner: std::sync::Arc<Code>,
}

pub(crate) fn compile(spec: Spec, tier: Tier) -> Single {
    let mut linker = Linker::new(isa::host(tier).unwrap());
    let mut kernels = Kernels::default();
    kernels.get(&mut linker.module, spec, "kernel").unwrap();
    let (kernel, id) = kernels.list.remove(0);
    let (owner, entries) = linker.finish(&[id]).unwrap();
    Single { run: entries[0], code: kernel.code, scratch: kernels.scratch_bytes, _owner: owner }
}

impl Single {
    /// Calls the kernel once, checking what the ABI says must survive.
    pub(crate) fn call(&self, args: &mut [&mut Guarded], begin: usize, end: usize, batch: usize) {
        let table: Vec<*mut u8> = args.iter_mut().map(|g| g.ptr()).collect();
        call(self.run, &table, begin..end, batch, self.scratch, Edge::After);
    }
}

/// Calls a kernel between guarded scratch and a guarded argument table.
pub(crate) fn call(
    kernel: KernelFn,
    args: &[*mut u8],
    items: std::ops::Range<usize>,
    batch: usize,
    scratch: usize,
    edge: Edge,
) {
    let mut table = Guarded::of(args);
    let mut scratch = Guarded::at(&vec![0xa5; scratch.next_multiple_of(64)], edge);
    let (begin, end) = (items.start as i64, items.end as i64);
    let before = control_word();
    // SAFETY: the tests give each kernel the buffers it was specified for; guard pages catch what they get wrong.
    unsafe { kernel(table.ptr().cast(), begin, end, batch as i64, scratch.ptr()) };
    assert_eq!(control_word(), before, "a kernel changed the control word");
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    assert!(!crate::emulate::holds_tiles(), "a kernel kept its tiles");
}

/// Rounding, masks and sticky flags of the vector unit; zero where there is no such word.
#[cfg(target_arch = "x86_64")]
fn control_word() -> u32 {
    let mut word = 0u32;
    // SAFETY: stores four bytes to a local variable.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word) };
    word
}

#[cfg(not(target_arch = "x86_64"))]
fn control_word() -> u32 {
    0
}
