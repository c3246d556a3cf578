//! README.md and the pages of `docs/`: their links, their names, and their examples, which are run.

mod commands;
mod links;
mod markdown;
mod migrating;
mod names;
mod results;
mod shown;
mod snippets;

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Path and text of README.md and of every page in `docs/`.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = vec![root().join("README.md")];
    let entries = fs::read_dir(root().join("docs")).unwrap();
    paths.extend(entries.map(|entry| entry.unwrap().path()));
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The text of a page, such as `docs/realtime.md`.
fn page(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}
