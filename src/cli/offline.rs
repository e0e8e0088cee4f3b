//! A view without a mount, for the verbs that read all of it.

use std::sync::Arc;

use crate::{
    cli::{Failure, options::ViewArgs},
    plan, source,
    view::{Engine, View},
};

/// Cache of a run that reads everything once: room for the scales of the largest weights.
const CACHE: usize = 256 << 20;

/// Plans the view of a source and makes it readable.
///
/// # Errors
/// What keeps the view from being planned.
pub(super) fn view(
    name: &str,
    args: &ViewArgs,
    caches: &source::Caches,
    threads: Option<usize>,
) -> Result<Arc<View>, Failure> {
    if let Some(threads) = threads {
        // What reads the view must not take more than what encodes it.
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let mut engine = crate::view::Options { cache_bytes: CACHE, ..Default::default() };
    if let Some(threads) = threads {
        engine.threads = threads;
    }
    Ok(planned(name, args, caches, engine)?.0)
}

/// The same on all processors, and what its arguments mean.
///
/// # Errors
/// What keeps the view from being planned.
pub(super) fn view_with_options(
    name: &str,
    args: &ViewArgs,
    caches: &source::Caches,
) -> Result<(Arc<View>, plan::Options), Failure> {
    planned(name, args, caches, crate::view::Options { cache_bytes: CACHE, ..Default::default() })
}

fn planned(
    name: &str,
    args: &ViewArgs,
    caches: &source::Caches,
    engine: crate::view::Options,
) -> Result<(Arc<View>, plan::Options), Failure> {
    let (source, options) = args.open(name, caches)?;
    let plan = plan::build(source.as_ref(), &options)?;
    Ok((View::new(Arc::new(plan), source, Engine::new(engine)?), options))
}
