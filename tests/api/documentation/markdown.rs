//! As much of Markdown as these pages use.

use std::collections::HashMap;

/// A block of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The heading above it.
    pub heading: String,
    /// The word behind the fence.
    pub language: String,
    /// The code, without the indentation of its fence.
    pub code: String,
}

/// The lines outside of blocks of code, and the blocks.
fn divide(page: &str) -> (Vec<&str>, Vec<Block>) {
    let (mut prose, mut blocks) = (Vec::new(), Vec::new());
    let (mut heading, mut open) = (String::new(), None::<(usize, Block)>);
    for line in page.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        match (&mut open, text.strip_prefix("```")) {
            (None, Some(language)) => {
                let (heading, language) = (heading.clone(), language.to_owned());
                open = Some((indent, Block { heading, language, code: String::new() }));
            }
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
            (Some((indent, block)), None) => {
                block.code += line.get(*indent..).unwrap_or_default();
                block.code.push('\n');
            }
            (None, None) => {
                if let Some(title) = title(line) {
                    heading = title.to_owned();
                }
                prose.push(line);
            }
        }
    }
    assert_eq!(open, None, "a block is not closed");
    (prose, blocks)
}

fn title(line: &str) -> Option<&str> {
    let title = line.trim_start_matches('#').strip_prefix(' ')?;
    line.starts_with('#').then_some(title)
}

/// The blocks of code, in their order.
pub fn blocks(page: &str) -> Vec<Block> {
    divide(page).1
}

/// The lines outside of blocks of code.
pub fn prose(page: &str) -> Vec<&str> {
    divide(page).0
}

/// The anchors of a page: one for each heading, as GitHub makes them.
pub fn anchors(page: &str) -> Vec<String> {
    let mut known = HashMap::<String, usize>::new();
    let titles = prose(page).into_iter().filter_map(title);
    titles
        .map(|title| {
            let words = title.to_lowercase();
            let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let count = known.entry(anchor.clone()).or_default();
            *count += 1;
            match *count {
                1 => anchor,
                count => format!("{anchor}-{}", count - 1),
            }
        })
        .collect()
}

/// The targets of all links and pictures.
pub fn links(page: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(page) {
        let line = without_code(line);
        for part in line.split("](").skip(1) {
            links.extend(part.split_once(')').map(|(target, _)| target.to_owned()));
        }
    }
    links
}

/// What stands in backticks.
pub fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The line, with nothing between its backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// The cells of each row below the header of the tables in a section, which its heading names.
pub fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let lines = prose(page).into_iter();
    let mut section = lines.skip_while(|line| *line != heading).skip(1);
    let level = heading.split(' ').next().unwrap().len();
    let is_inside = |line: &&str| {
        title(line).is_none() || line.chars().take_while(|c| *c == '#').count() > level
    };
    let lines: Vec<&str> = section.by_ref().take_while(is_inside).collect();
    let is_row = |line: &str| line.starts_with('|') && !line.starts_with("|-");
    let rows = lines.windows(2).filter(|pair| {
        // A header has the line of dashes below it.
        is_row(pair[1]) && pair[0].starts_with('|')
    });
    rows.map(|pair| pair[1].trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn pages_are_read_as_they_are_meant() {
    let page = "# A\n[b](#c) `[no](link)`\n\n```js\n# no heading\n```\n## `B` & c\n- x\n\n  ```sh\n  a\n    b\n  ```\n\n| h | i |\n|---|---|\n| 1 | `2` |\n| 3 | 4 |\n\n## a\n";
    assert_eq!(anchors(page), ["a", "b--c", "a-1"]);
    assert_eq!(links(page), ["#c"]);
    let blocks = blocks(page);
    assert_eq!(blocks.len(), 2);
    assert_eq!((&*blocks[0].heading, &*blocks[0].code), ("A", "# no heading\n"));
    assert_eq!((&*blocks[1].language, &*blocks[1].code), ("sh", "a\n  b\n"));
    assert_eq!(rows(page, "## `B` & c"), [["1", "`2`"], ["3", "4"]]);
}
