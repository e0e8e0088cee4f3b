//! Where models lie: the caches of the Hugging Face hub. With `belongings` the only reader of the
//! environment for paths.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::source::Caches;

/// Where the Hugging Face hub's caches lie: `HF_HUB_CACHE`, `HF_HOME/hub`, `~/.cache/huggingface/hub`.
#[must_use]
pub fn caches() -> Caches {
    let named = |name: &str| std::path::absolute(env::var_os(name)?).ok();
    let given = [named("HF_HUB_CACHE"), named("HF_HOME").map(|home| home.join("hub"))];
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
    let usual = cache.map(|cache| cache.join("huggingface/hub"));
    Caches { hub: given.into_iter().chain([usual]).flatten().collect() }
}

pub(super) fn variable(name: &str) -> Option<PathBuf> {
    // The XDG base directory specification asks to ignore relative paths.
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

pub(super) fn home() -> Option<PathBuf> {
    env::home_dir().filter(|home| home.is_absolute() && home != Path::new("/nonexistent"))
}
