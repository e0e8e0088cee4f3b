//! The promises of every source, one function each: a new source is tested by calling [`hold`].

use quantfs::source::{Error, FileId, Source};

/// Asserts every promise that holds for a source whose files do not change meanwhile.
pub(crate) fn hold(source: &dyn Source) {
    paths_are_plain_and_sorted(source);
    every_path_is_found(source);
    any_split_reads_the_same_bytes(source);
    reads_past_the_end_fail(source);
    advice_changes_nothing(source);
    threads_read_alike(source);
    local_files_are_the_same(source);
}

fn ids(source: &dyn Source) -> impl Iterator<Item = FileId> {
    (0..u32::try_from(source.entries().len()).unwrap()).map(FileId)
}

/// The whole of a file.
pub(crate) fn content(source: &dyn Source, id: FileId) -> Vec<u8> {
    let mut buf = vec![0xa5; usize::try_from(source.entry(id).len()).unwrap()];
    source.read_exact_at(id, 0, &mut buf).unwrap();
    buf
}

fn paths_are_plain_and_sorted(source: &dyn Source) {
    let paths: Vec<_> = source.entries().iter().map(|e| e.path.as_str()).collect();
    assert!(paths.is_sorted_by(|a, b| a < b), "sorted, without duplicates: {paths:?}");
    for path in paths {
        assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path} is not plain");
    }
}

fn every_path_is_found(source: &dyn Source) {
    for id in ids(source) {
        assert_eq!(source.find(&source.entry(id).path), Some(id));
    }
    assert_eq!(source.find("no/such/file"), None);
    assert_eq!(source.find(""), None);
}

fn any_split_reads_the_same_bytes(source: &dyn Source) {
    for id in ids(source) {
        let whole = content(source, id);
        for size in [1, 7, 64, 4096] {
            // The end is what off-by-one errors miss, so the last pieces are always read.
            let starts = (0..whole.len()).step_by(size);
            let skip = starts.len().saturating_sub(50);
            for start in starts.skip(skip) {
                let mut buf = vec![0x5a; size.min(whole.len() - start)];
                source.read_exact_at(id, start as u64, &mut buf).unwrap();
                assert!(buf == whole[start..start + buf.len()], "{} at {start}", source.entry(id).path);
            }
        }
    }
}

fn reads_past_the_end_fail(source: &dyn Source) {
    for id in ids(source) {
        let len = source.entry(id).len();
        source.read_exact_at(id, len, &mut []).unwrap();
        for start in [len, len + 1, len.saturating_sub(1), u64::MAX / 4] {
            let error = source.read_exact_at(id, start, &mut [0; 2]).unwrap_err();
            assert!(matches!(error, Error::Changed { .. } | Error::Io { .. }), "{error}");
            assert!(error.to_string().contains(&source.entry(id).path), "{error} names the file");
        }
    }
}

fn advice_changes_nothing(source: &dyn Source) {
    for id in ids(source) {
        let before = content(source, id);
        for range in [0..1, 0..u64::MAX, 5..5, source.entry(id).len()..source.entry(id).len() + 9] {
            source.hint(id, range.clone());
            source.release(id, range);
        }
        assert!(before == content(source, id));
    }
}

fn threads_read_alike(source: &dyn Source) {
    let whole: Vec<_> = ids(source).map(|id| content(source, id)).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ids(source).for_each(|id| assert!(content(source, id) == whole[id.0 as usize])));
        }
    });
}

fn local_files_are_the_same(source: &dyn Source) {
    for id in ids(source) {
        let Some(file) = source.local_file(id) else { continue };
        let mut read = vec![];
        std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut read).unwrap();
        assert!(read == content(source, id));
    }
}
