//! Linking in memory: cranelift-jit on pages of the runtime, which are never writable and executable at once.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_jit::{BranchProtection, JITBuilder, JITMemoryKind, JITMemoryProvider, JITModule};
use cranelift_module::{FuncId, ModuleError, ModuleResult, default_libcall_names};
use vitc_runtime::{KernelFn, MappedRegion};

use crate::CodegenError;

/// Bytes mapped at a time.
const REGION: usize = 256 << 10;

/// Mapped code; unmapped when the last owner goes.
#[derive(Debug, Default)]
pub(crate) struct Code(Mutex<Vec<Region>>);

#[derive(Debug)]
struct Region {
    pages: MappedRegion,
    used: usize,
}

impl Code {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<Region>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Provider(Arc<Code>);

impl JITMemoryProvider for Provider {
    fn allocate(&mut self, size: usize, align: u64, _kind: JITMemoryKind) -> io::Result<*mut u8> {
        let align = usize::try_from(align).map_err(io::Error::other)?;
        self.0.with(|regions| {
            let fits =
                |r: &Region| r.used.next_multiple_of(align).checked_add(size).is_some_and(|end| end <= r.pages.len());
            if !regions.last().is_some_and(fits) {
                let pages = MappedRegion::new_writable(size.max(REGION)).map_err(io::Error::other)?;
                regions.push(Region { pages, used: 0 });
            }
            let Some(region) = regions.last_mut() else { return Err(io::ErrorKind::OutOfMemory.into()) };
            let start = region.used.next_multiple_of(align);
            region.used = start + size;
            let bytes = region.pages.as_bytes_mut().ok_or(io::ErrorKind::PermissionDenied)?;
            Ok(bytes[start..start + size].as_mut_ptr())
        })
    }

    /// The pages belong to [`Code`]; they go when it goes.
    unsafe fn free_memory(&mut self) {}

    fn finalize(&mut self, _branch_protection: BranchProtection) -> ModuleResult<()> {
        let sealed = self.0.with(|regions| regions.iter_mut().try_for_each(|r| r.pages.make_executable()));
        sealed.map_err(|e| ModuleError::Allocation { err: io::Error::other(e) })
    }
}

/// A module that links kernels into memory of this process.
pub(crate) struct Linker {
    pub module: JITModule,
    code: Arc<Code>,
}

impl Linker {
    pub(crate) fn new(isa: OwnedTargetIsa) -> Linker {
        let code = Arc::new(Code::default());
        let mut builder = JITBuilder::with_isa(isa, default_libcall_names());
        builder.memory_provider(Box::new(Provider(Arc::clone(&code))));
        Linker { module: JITModule::new(builder), code }
    }

    /// Seals the code and returns its owner and the entry of each function.
    pub(crate) fn finish(mut self, functions: &[FuncId]) -> Result<(Arc<Code>, Vec<KernelFn>), CodegenError> {
        self.module
            .finalize_definitions()
            .map_err(|e| CodegenError::Backend { kernel: "(all)".into(), reason: e.to_string() })?;
        let entry = |&id: &FuncId| {
            let address = self.module.get_finalized_function(id);
            // SAFETY: `define` declared the function with the signature of `KernelFn` and the platform's calling
            // convention; the pages stay mapped and executable for as long as the returned owner lives.
            unsafe { std::mem::transmute::<*const u8, KernelFn>(address) }
        };
        let entries = functions.iter().map(entry).collect();
        Ok((self.code, entries))
    }
}
