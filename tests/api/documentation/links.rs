//! Links and anchors lead somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{markdown, page, pages, root};

#[test]
fn every_link_and_every_anchor_resolves() {
    let (mut broken, mut count) = (Vec::new(), 0);
    for (path, text) in pages() {
        for link in markdown::links(&text) {
            count += 1;
            if !resolves(&path, &link) {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(count > 100, "{count}");
}

/// Whether a link of a page leads to something in the repository, or out of it.
fn resolves(page: &Path, link: &str) -> bool {
    if link.starts_with("https://") {
        return true;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => page.to_owned(),
        file => page.parent().unwrap().join(file),
    };
    if anchor.is_empty() {
        return target.exists();
    }
    let text = fs::read_to_string(target).unwrap_or_default();
    markdown::anchors(&text).iter().any(|known| known == anchor)
}

#[test]
fn every_file_that_a_page_names_exists() {
    const FOLDERS: [&str; 5] = ["src/", "tests/", "benches/", "deploy/", "examples/"];
    let mut named = Vec::new();
    for (_, text) in pages() {
        for span in markdown::prose(&text).into_iter().flat_map(markdown::code_spans) {
            if FOLDERS.iter().any(|folder| span.starts_with(folder)) {
                named.push(span.to_owned());
            }
        }
    }
    for row in markdown::rows(&page("docs/architecture.md"), "## Why each part exists") {
        named.extend(markdown::code_spans(row[0]).map(|part| format!("src/{part}")));
    }
    for path in &named {
        assert!(root().join(path).exists(), "{path}");
    }
    assert!(named.len() > 30, "{named:?}");
}

#[test]
fn the_readme_leads_to_every_page_and_is_short() {
    let readme = page("README.md");
    assert!(readme.lines().count() < 200, "{}", readme.lines().count());
    let links: BTreeSet<String> = markdown::links(&readme).into_iter().collect();
    for (path, _) in pages() {
        let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        assert!(path == "README.md" || links.contains(&path), "{path}");
    }
}

#[test]
fn the_pages_that_the_server_shows_lead_only_to_each_other() {
    const SHOWN: [&str; 3] = ["client.md", "realtime.md", "../src/demo/index.html"];
    for name in ["docs/realtime.md", "docs/client.md"] {
        for link in markdown::links(&page(name)) {
            let to = link.split('#').next().unwrap_or_default();
            let is_here = to.is_empty() || SHOWN.contains(&to) || to.starts_with("https://");
            assert!(is_here, "{name}: {link}");
        }
    }
}
