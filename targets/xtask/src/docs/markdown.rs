//! Links, anchors and code blocks of a Markdown file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A Markdown file, reduced to the parts that are checked.
pub struct Page {
    /// Path below the repository root.
    pub path: PathBuf,
    /// Anchors of the headings.
    pub anchors: Vec<String>,
    /// Links and images.
    pub links: Vec<Link>,
    /// Code blocks.
    pub blocks: Vec<Block>,
}

/// A link or an image.
pub struct Link {
    /// Line in the file, counted from 1.
    pub line: usize,
    /// Destination as written.
    pub target: String,
}

/// A code block.
pub struct Block {
    /// Line of the fence, counted from 1.
    pub line: usize,
    /// Info string of the fence: the language and markers, separated by commas.
    pub info: String,
    /// Content.
    pub text: String,
}

impl Page {
    /// Reads the file at `path` below `root`.
    ///
    /// # Errors
    /// If the file cannot be read as UTF-8.
    pub fn read(root: &Path, path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(root.join(path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(path, &text))
    }

    /// Parses the text of the file at `path`.
    pub fn parse(path: &Path, text: &str) -> Self {
        let mut page = Self {
            path: path.to_owned(),
            anchors: Vec::new(),
            links: Vec::new(),
            blocks: Vec::new(),
        };
        let mut anchors = Anchors::default();
        let mut heading = None;
        let mut block = None;
        let line = |offset: usize| 1 + text[..offset].matches('\n').count();
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let title = heading.take().unwrap_or_default();
                    page.anchors.push(anchors.add(&title));
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(Link {
                        line: line(range.start),
                        target: dest_url.into_string(),
                    });
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info = match kind {
                        CodeBlockKind::Fenced(info) => info.into_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    block = Some(Block {
                        line: line(range.start),
                        info,
                        text: String::new(),
                    });
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(block) = &mut block {
                        block.text += &text;
                    } else if let Some(title) = &mut heading {
                        title.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        page
    }
}

/// Anchors that a page already has: a repeated heading gets a number.
#[derive(Default)]
struct Anchors(HashMap<String, usize>);

impl Anchors {
    /// Returns the anchor that GitHub and mdBook give a heading.
    fn add(&mut self, title: &str) -> String {
        let mut anchor = String::new();
        for character in title.trim().to_lowercase().chars() {
            match character {
                ' ' => anchor.push('-'),
                '-' | '_' => anchor.push(character),
                _ if character.is_alphanumeric() => anchor.push(character),
                _ => {}
            }
        }
        let seen = self.0.entry(anchor.clone()).or_default();
        *seen += 1;
        match *seen {
            1 => anchor,
            n => format!("{anchor}-{}", n - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_links_anchors_and_blocks() {
        let text = "# `serve`: a server\n\nSee [b](b.md#x) and ![c](c.svg).\n\n```sh,background\nls\n```\n\n\
                    | [d](d) |\n|---|\n| e |\n\n## A server\n\n## A server\n";
        let page = Page::parse(Path::new("a.md"), text);
        assert_eq!(page.anchors, ["serve-a-server", "a-server", "a-server-1"]);
        let links: Vec<_> = page.links.iter().map(|l| (l.line, &*l.target)).collect();
        assert_eq!(links, [(3, "b.md#x"), (3, "c.svg"), (9, "d")]);
        let [block] = &page.blocks[..] else {
            panic!("one block");
        };
        assert_eq!(
            (block.line, &*block.info, &*block.text),
            (5, "sh,background", "ls\n")
        );
    }
}
