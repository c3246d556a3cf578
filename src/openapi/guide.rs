//! What a reader needs besides the operations, as pages: Markdown in, HTML out; and a page to try
//! the events on.
//!
//! The texts are those of the repository, so that there is one of each. Their headings get the ids
//! that GitHub gives them, and their tables names of columns in each cell, which a narrow screen
//! shows in place of a header.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};

/// Around a text; its scripts, styles and links are this server's.
const FRAME: &str = include_str!("../docs/frame.html");

/// The conventions of all operations, which are also the description of the OpenAPI document.
const CONVENTIONS: &str = include_str!("about.md");

/// Name below `/docs/`, title and text of each page.
const PAGES: [(&str, &str, &str); 3] = [
    ("conventions", "Conventions", CONVENTIONS),
    ("realtime", "Realtime", include_str!("../../docs/realtime.md")),
    ("client", "The client", include_str!("../../docs/client.md")),
];

/// An example of each event; `/docs/events.js` shows and sends them.
const EVENTS: &str = include_str!("../docs/events.html");

/// The page of this name, as HTML.
pub fn page(name: &str) -> Option<String> {
    if name == "events" {
        return Some(framed("Events", EVENTS));
    }
    let (_, title, text) = PAGES.iter().find(|(known, ..)| *known == name)?;
    let text = render(text);
    // A description of an OpenAPI document begins without a title.
    let heading = if text.starts_with("<h1") { String::new() } else { format!("<h1>{title}</h1>") };
    Some(framed(title, &(heading + &text)))
}

fn framed(title: &str, content: &str) -> String {
    FRAME.replace("%title%", title).replace("%content%", content)
}

fn render(markdown: &str) -> String {
    let events: Vec<_> = Parser::new_ext(markdown, Options::ENABLE_TABLES).collect();
    let mut columns: Vec<String> = Vec::new();
    let (mut column, mut in_head) = (0, false);
    let mut shown = Vec::with_capacity(events.len());
    for (index, event) in events.iter().enumerate() {
        let rest = || events.iter().skip(index + 1);
        shown.push(match event {
            Event::Start(Tag::Heading { level, .. }) => {
                let id = slug(&text_until(rest(), TagEnd::Heading(*level)));
                Event::Html(format!("<{level} id=\"{id}\">").into())
            }
            Event::Start(Tag::TableHead) => {
                (columns, in_head) = (Vec::new(), true);
                event.clone()
            }
            Event::Start(Tag::TableRow) => {
                column = 0;
                event.clone()
            }
            Event::End(TagEnd::TableHead) => {
                in_head = false;
                event.clone()
            }
            Event::Start(Tag::TableCell) if in_head => {
                columns.push(text_until(rest(), TagEnd::TableCell));
                event.clone()
            }
            Event::Start(Tag::TableCell) => {
                let name = columns.get(column).map(String::as_str).unwrap_or_default();
                column += 1;
                Event::Html(format!("<td data-column=\"{}\">", escaped(name)).into())
            }
            Event::End(TagEnd::TableCell) if !in_head => Event::Html("</td>".into()),
            Event::Start(Tag::Link { dest_url, .. }) => {
                Event::Html(format!("<a href=\"{}\">", escaped(&served(dest_url))).into())
            }
            Event::End(TagEnd::Link) => Event::Html("</a>".into()),
            event => event.clone(),
        });
    }
    let mut out = String::new();
    html::push_html(&mut out, shown.into_iter());
    out
}

/// Where the server has what a page of the repository links to.
fn served(link: &str) -> String {
    let (page, anchor) = link.split_at(link.find('#').unwrap_or(link.len()));
    match page.strip_suffix(".md") {
        Some(name) => format!("/docs/{name}{anchor}"),
        None if page == "../src/demo/index.html" => "/demo".to_owned(),
        None => link.to_owned(),
    }
}

/// The plain text up to an end.
fn text_until<'a>(events: impl Iterator<Item = &'a Event<'a>>, end: TagEnd) -> String {
    let inside = events.take_while(|event| **event != Event::End(end));
    inside
        .filter_map(|event| match event {
            Event::Text(text) | Event::Code(text) => Some(&**text),
            _ => None,
        })
        .collect()
}

/// The id of a heading, as GitHub makes it.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_have_ids_and_cells_the_names_of_their_columns() {
        let html = render("## A `b` & c.D\n\n| One \"1\" | `Two` |\n|---|---|\n| x | [y](#a) |\n");
        assert!(html.contains("<h2 id=\"a-b--cd\">A <code>b</code> &amp; c.D</h2>"), "{html}");
        assert!(html.contains("<th>One \"1\"</th><th><code>Two</code></th>"), "{html}");
        let cells = "<td data-column=\"One &quot;1&quot;\">x</td><td data-column=\"Two\"><a href=\"#a\">y</a></td>";
        assert!(html.contains(cells), "{html}");
        let links = render("[a](client.md) [b](realtime.md#c) [d](https://e)");
        let expected = r#"<a href="/docs/client">a</a> <a href="/docs/realtime#c">b</a> <a href="https://e">d</a>"#;
        assert!(links.contains(expected), "{links}");
    }

    #[test]
    fn there_are_these_pages_and_no_others() {
        let prose = PAGES.map(|(name, title, _)| (name, title));
        for (name, title) in prose.into_iter().chain([("events", "Events")]) {
            let page = page(name).unwrap();
            assert!(page.contains(&format!("<title>{title}</title>")), "{name}");
            assert!(!page.contains("%content%"), "{name}");
        }
        assert_eq!(page("other"), None);
    }
}
