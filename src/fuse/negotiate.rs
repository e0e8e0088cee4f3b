//! The handshake: what we ask of the kernel, and what it grants.

use fuser::{InitFlags, KernelConfig};

use super::shared::Shared;

/// Requests that the kernel may have outstanding for read-ahead. With a window of megabytes and one
/// megabyte a request, every encoding thread of a large machine has something to do.
const MAX_BACKGROUND: u16 = 256;

/// Backing files may lie on an ordinary file system, not on an overlay: one level is what still lets
/// an overlay be laid over our own mount.
const STACK_DEPTH: u32 = 1;

/// Wanted, and done without where the kernel is older.
const WANTED: [InitFlags; 7] = [
    // Listings come with attributes.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Look-ups and listings in one directory run side by side.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // A large O_DIRECT read is cut into requests that run side by side.
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // The kernel never drops pages on its own guess: contents do not change.
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    // Live files, which are read past the page cache, can be mapped.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// Asks for what helps. The largest write stays at fuser's default though nobody writes: it is also
/// what grants reads of one megabyte.
pub(super) fn negotiate(config: &mut KernelConfig, shared: &Shared) {
    for flag in WANTED {
        if config.add_capabilities(flag).is_err() {
            tracing::debug!(?flag, "not granted by this kernel");
        }
    }
    if shared.passes() && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err() {
        tracing::debug!("no passthrough in this kernel");
        shared.pass_nothing();
    } else if shared.passes()
        && let Err(most) = config.set_max_stack_depth(STACK_DEPTH)
    {
        tracing::debug!(most, "stack depth not granted");
    }
    let background = config.set_max_background(MAX_BACKGROUND);
    // Above this many the kernel reads ahead no further.
    let congestion = config.set_congestion_threshold(MAX_BACKGROUND);
    if let Err(nearest) = background.and(congestion) {
        tracing::debug!(nearest, "outstanding requests not granted");
    }
    tracing::debug!(kernel = %config.kernel_abi(), offered = ?config.capabilities(), "handshake");
}
