//! Manifests from files, for questions without a cluster.

use std::{fs, io::Write, path::PathBuf};

use anyhow::Context;

use crate::{cluster::Index, source::manifest};

/// What the manifests come to. What is wrong with them, and what of them is not used, goes to `err`.
pub fn index(paths: &[PathBuf], err: &mut impl Write) -> anyhow::Result<Index> {
    for path in paths {
        // A mistyped path would otherwise mean "no policies", and all would be allowed.
        let listed =
            if path.is_dir() { fs::read_dir(path).map(drop) } else { fs::File::open(path).map(drop) };
        listed.with_context(|| format!("cannot read {}", path.display()))?;
    }
    let loaded = manifest::load(paths);
    for problem in &loaded.problems {
        writeln!(err, "{problem}")?;
    }
    for (kind, count) in &loaded.ignored {
        writeln!(err, "not used: {count} of kind {kind}")?;
    }
    let mut index = Index::new(None);
    for located in loaded.objects {
        index.apply(located.object);
    }
    Ok(index)
}
