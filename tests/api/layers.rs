//! Which parts of the program the lower folders may use: nothing there imports from above.

use std::path::{Path, PathBuf};

/// A folder of `src`, and what it may use of this crate beside itself.
const LAYERS: [(&str, &[&str]); 3] =
    [("protocols", &[]), ("feed", &["models", "mongoose", "views"]), ("hub", &["feed", "models"])];

#[test]
fn nothing_is_imported_from_above() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (folder, below) in LAYERS {
        let files = sources(&src.join(folder));
        assert!(!files.is_empty(), "src/{folder} has no sources");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let above = reach(file.strip_prefix(&src).unwrap());
            for (line, import) in imports(&text, above) {
                if import != folder && !below.contains(&import.as_str()) {
                    let file = file.strip_prefix(&src).unwrap().display();
                    wrong.push(format!("src/{file}:{line}: {folder} may not use {import}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The path from a file's module to the root of the crate.
fn reach(file: &Path) -> String {
    let module = file.with_extension("");
    let depth = module.iter().filter(|name| *name != "mod").count();
    "super::".repeat(depth)
}

/// The parts of the crate that a file names by `crate::…`, in code and in links of its
/// documentation, or in a `use` that climbs to the root by `super`; with their lines.
fn imports(text: &str, to_root: String) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for root in ["crate::".to_owned(), format!("\nuse {to_root}")] {
        for (at, _) in text.match_indices(&root) {
            let start = at + root.len();
            for (offset, name) in first_names(&text[start..]) {
                let line = text[..start + offset].matches('\n').count() + 1;
                found.push((line, name.to_owned()));
            }
        }
    }
    found
}

/// The first name of a path, or of each path between braces, and where it is.
fn first_names(path: &str) -> Vec<(usize, &str)> {
    let name = |from: usize| {
        let start = from + path[from..].len() - path[from..].trim_start().len();
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let name = path[start..].split(|c| !is_part(c)).next().unwrap_or_default();
        (start, name)
    };
    if !path.starts_with('{') {
        return vec![name(0)];
    }
    let mut names = vec![name(1)];
    let mut open = 0;
    for (at, c) in path.char_indices().skip(1) {
        match c {
            '{' => open += 1,
            '}' if open == 0 => break,
            '}' => open -= 1,
            ',' if open == 0 => names.push(name(at + 1)),
            _ => {}
        }
    }
    names.retain(|(_, name)| !name.is_empty());
    names
}
