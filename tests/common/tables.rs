//! Which table of kernels the tests run on.

use quantfs::kernel;

/// Selects what `QUANTFS_ISA` names, as the program does; without it the best table stays. The library
/// reads no environment, so whatever computes bytes comes by here first.
pub(crate) fn select_kernels() {
    let name = std::env::var("QUANTFS_ISA").ok();
    if let Err(e) = kernel::select(name.as_deref()) {
        panic!("QUANTFS_ISA: {e}");
    }
}
