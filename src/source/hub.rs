//! The Hugging Face cache: `org/name[@revision]` to a snapshot's directory, and back.
//!
//! A cache holds `models--org--name/{refs/<revision>, snapshots/<commit>/, blobs/<hash>}`; a ref is a
//! file with a commit in it, the files of a snapshot are links to blobs. Nothing is downloaded, and
//! nothing is guessed: a name that fits several snapshots, or none, is refused with what there is.
//! Reads no environment: [`Caches`] says where to look.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::source::Error;

/// Where caches lie, first to last: `HF_HUB_CACHE`, `HF_HOME/hub`, `~/.cache/huggingface/hub`.
#[derive(Clone, Debug, Default)]
pub struct Caches {
    /// Directories that hold `models--*` folders.
    pub hub: Vec<PathBuf>,
}

/// A snapshot in a cache.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// `org/name@revision`, for messages.
    pub(super) name: String,
    /// `org/name`.
    pub(super) repo: String,
    pub(super) commit: String,
    pub(super) dir: PathBuf,
}

/// Whether a name can only be meant as a path: it is no `org/name[@revision]`, nor a single name.
pub(super) fn is_path(what: &str) -> bool {
    let (repo, _) = split(what);
    what.ends_with(".safetensors") || repo.split('/').count() > 2 || !repo.split('/').all(is_repo_part)
}

/// The Hub's own rule for names: letters, digits, `-`, `_` and `.`, neither first nor last of them
/// `.` or `-`, and no `--` or `..` (which would make `models--org--name` ambiguous).
fn is_repo_part(part: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    let inner = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    edge(part.chars().next()) && edge(part.chars().last()) && inner && !part.contains("--") && !part.contains("..")
}

fn split(what: &str) -> (&str, Option<&str>) {
    what.split_once('@').map_or((what, None), |(repo, revision)| (repo, Some(revision)))
}

/// Looks a repository up in the caches.
pub(super) fn find(what: &str, caches: &Caches) -> Result<Snapshot, Error> {
    let (repo, revision) = split(what);
    let folder = format!("models--{}", repo.replace('/', "--"));
    let mut why = missing(repo, &folder, caches);
    for dir in caches.hub.iter().map(|hub| hub.join(&folder)).filter(|dir| dir.is_dir()) {
        match commit(&dir, revision) {
            Ok(commit) => {
                let shown = revision.unwrap_or(commit.get(..12).unwrap_or(&commit));
                let name = format!("{repo}@{shown}");
                return Ok(Snapshot { name, repo: repo.to_owned(), dir: dir.join("snapshots").join(&commit), commit });
            }
            Err(reason) => why = format!("in {}: {reason}; there is {}", dir.display(), inventory(&dir)),
        }
    }
    Err(Error::refused(what, why))
}

fn missing(repo: &str, folder: &str, caches: &Caches) -> String {
    let hubs: Vec<_> = caches.hub.iter().map(|hub| hub.display().to_string()).collect();
    let looked =
        if hubs.is_empty() { "no cache is known".to_owned() } else { format!("no {folder} in {}", hubs.join(", ")) };
    format!(
        "there is no such directory, and no such model in the Hugging Face cache ({looked}): `hf download {repo}` gets it"
    )
}

/// The commit that a revision means; without one, `main`, or else the only snapshot.
fn commit(dir: &Path, revision: Option<&str>) -> Result<String, String> {
    let commits = commits(dir);
    let name = revision.unwrap_or("main");
    if let Some(commit) = read_ref(dir, name) {
        let downloaded = commits.contains(&commit);
        return if downloaded {
            Ok(commit)
        } else {
            Err(format!("`{name}` is commit {commit}, which is not downloaded"))
        };
    }
    let fits = |commit: &&String| revision.is_none_or(|prefix| !prefix.is_empty() && commit.starts_with(prefix));
    match commits.iter().filter(fits).collect::<Vec<_>>().as_slice() {
        [commit] => Ok((*commit).clone()),
        [] => Err(format!("there is no revision `{name}`")),
        _ if revision.is_some() => Err(format!("`{name}` is the start of several commits")),
        _ => Err("there are several snapshots and no `main`: name one with @revision".into()),
    }
}

/// The snapshots there are.
fn commits(dir: &Path) -> Vec<String> {
    let mut names = names(&dir.join("snapshots"));
    names.retain(|name| !name.starts_with('.') && dir.join("snapshots").join(name).is_dir());
    names
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The commit in a ref's file. A revision may hold slashes (`refs/pr/1`), but leads nowhere else.
fn read_ref(dir: &Path, revision: &str) -> Option<String> {
    let plain = revision.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let text = plain.then(|| fs::read_to_string(dir.join("refs").join(revision)).ok())??;
    let commit = text.trim();
    let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
    plain.then(|| commit.to_owned())
}

/// What could have been asked for, in words.
fn inventory(dir: &Path) -> String {
    let mut have = vec![];
    push_refs(&dir.join("refs"), "", &mut have);
    have.extend(commits(dir));
    if have.is_empty() { "no revision at all: the download was never finished".into() } else { have.join(", ") }
}

fn push_refs(dir: &Path, above: &str, out: &mut Vec<String>) {
    for name in names(dir) {
        let (path, full) = (dir.join(&name), format!("{above}{name}"));
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => push_refs(&path, &format!("{full}/"), out),
            _ => out.push(full),
        }
    }
}

/// The repository's folder and the commit, of a path at or below a snapshot.
fn snapshot_above(path: &Path) -> Option<(&Path, &str, &str)> {
    path.ancestors().find_map(|snapshot| {
        let snapshots = snapshot.parent().filter(|dir| dir.ends_with("snapshots"))?;
        let folder = snapshots.parent()?;
        let name = folder.file_name()?.to_str()?.strip_prefix("models--")?;
        Some((folder, name, snapshot.file_name()?.to_str()?))
    })
}

/// The blobs that the links of a snapshot lead to.
pub(super) fn blobs_of(path: &Path) -> Option<PathBuf> {
    snapshot_above(path).map(|(folder, ..)| folder.join("blobs"))
}

/// `org/name` and the commit.
pub(super) fn repo_of(path: &Path) -> Option<(String, String)> {
    snapshot_above(path).map(|(_, name, commit)| (name.replace("--", "/"), commit.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for repo in ["org/name", "gpt2", "o/n@main", "o/n@refs/pr/1", "Qwen/Qwen2.5-0.5B", "_a/b_"] {
            assert!(!is_path(repo), "{repo}");
        }
        for path in [
            "/a/b",
            "./a",
            "../a",
            ".",
            "..",
            "~/a",
            "a/b/c",
            "a/",
            "x.safetensors",
            "a/x.safetensors",
            "a b",
            "a--b",
            "",
        ] {
            assert!(is_path(path), "{path}");
        }
    }

    #[test]
    fn snapshots_know_their_repository() {
        let path = Path::new("/c/models--org--name/snapshots/abc/transformer");
        assert_eq!(repo_of(path), Some(("org/name".into(), "abc".into())));
        assert_eq!(blobs_of(path), Some("/c/models--org--name/blobs".into()));
        assert_eq!(repo_of(Path::new("/c/model/snapshots/abc")), None);
    }
}
