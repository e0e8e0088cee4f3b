//! `quantfs warm`: a mount's files read ahead of their readers, into the page cache.
//!
//! The page cache and not the daemon's own: it is shared by all readers, it holds as much as there is
//! memory, and what lies there is never asked for again.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use clap::Args;
use globset::GlobBuilder;

use crate::{
    bulk::Progress,
    cli::{Failure, memory, progress::Bar, size},
    fuse,
};

/// Bytes of a read: one request of the kernel.
const CHUNK: usize = 1 << 20;

/// Chunks that are read at once, so that all of the daemon's threads have work.
const READERS: usize = 8;

/// Compute a mount's files ahead, with a progress bar
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  quantfs warm /mnt/q4\n  quantfs warm /mnt/q4 'model-0000[12]*'")]
pub struct Warm {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// Only the files whose path below the mount point fits this glob (`*` crosses directories)
    pub pattern: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A path that is no mount of ours, a pattern that fits nothing, a file that cannot be read.
pub fn run(args: &Warm, out: &mut dyn Write) -> Result<(), Failure> {
    let root = fuse::find(&args.mountpoint)?.path;
    let files = chosen(&root, args.pattern.as_deref())?;
    let total = files.iter().map(|(_, len)| len).sum();
    let free = memory::available();
    let fits = free.is_none_or(|free| free >= total);
    if let Some(free) = free.filter(|_| !fits && !args.json) {
        let (total, free) = (size::render(total), size::render(free));
        writeln!(out, "warning: {total} do not fit into {free} of free memory; the first will be forgotten")?;
    }
    let bar = Bar::new("warm");
    bar.begin(total);
    let read = read_all(&files, &bar);
    bar.finish();
    read?;
    if args.json {
        let at = root.display().to_string();
        let facts = serde_json::json!({ "mountpoint": at, "files": files.len(), "bytes": total, "fits": fits });
        writeln!(out, "{facts}")?;
    } else {
        writeln!(out, "{}: {} files, {} are in memory", root.display(), files.len(), size::render(total))?;
    }
    Ok(())
}

fn chosen(root: &Path, pattern: Option<&str>) -> Result<Vec<(PathBuf, u64)>, Failure> {
    let mut files = Vec::new();
    walk(root, &mut files)?;
    let Some(pattern) = pattern else { return Ok(files) };
    let wrong = |e: globset::Error| Failure::usage(format!("{pattern}: no pattern: {}", e.kind()));
    let glob = GlobBuilder::new(pattern).literal_separator(false).build().map_err(wrong)?.compile_matcher();
    files.retain(|(path, _)| path.strip_prefix(root).is_ok_and(|below| glob.is_match(below)));
    if files.is_empty() {
        return Err(Failure::refused(format!("{pattern}: fits no file of {}", root.display())));
    }
    Ok(files)
}

fn walk(dir: &Path, files: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_dir() { walk(&entry.path(), files)? } else { files.push((entry.path(), found.len())) }
    }
    files.sort();
    Ok(())
}

/// Reads the files in order, several chunks at a time. Ends at the first failure.
fn read_all(files: &[(PathBuf, u64)], bar: &dyn Progress) -> Result<(), Failure> {
    for (path, len) in files {
        bar.note(&path.file_name().unwrap_or_default().to_string_lossy());
        let file = File::open(path).map_err(|e| failed(path, e))?;
        let chunks = usize::try_from(len.div_ceil(CHUNK as u64)).unwrap_or(usize::MAX);
        let (next, broken) = (AtomicUsize::new(0), Mutex::new(None));
        thread::scope(|scope| {
            for _ in 0..READERS.min(chunks) {
                scope.spawn(|| {
                    if let Err(e) = read_chunks(&file, &next, chunks, bar) {
                        next.store(chunks, Ordering::Relaxed);
                        *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                    }
                });
            }
        });
        if let Some(e) = broken.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(failed(path, e));
        }
    }
    Ok(())
}

fn read_chunks(file: &File, next: &AtomicUsize, chunks: usize, bar: &dyn Progress) -> io::Result<()> {
    let mut buf = vec![0; CHUNK];
    loop {
        let chunk = next.fetch_add(1, Ordering::Relaxed);
        if chunk >= chunks {
            return Ok(());
        }
        let mut at = chunk as u64 * CHUNK as u64;
        let end = at + CHUNK as u64;
        while at < end {
            let room = usize::try_from(end - at).unwrap_or(CHUNK);
            let n = file.read_at(&mut buf[..room], at)?;
            if n == 0 {
                break;
            }
            at += n as u64;
            bar.advance(n as u64);
        }
    }
}

fn failed(path: &Path, e: io::Error) -> Failure {
    Failure::refused(format!("{}: cannot read: {e}; the mount's log says why", path.display()))
}
