//! Links of the documentation: files and anchors exist, and the book is complete.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::BOOK;
use super::markdown::Page;

/// Returns a line for each link that leads nowhere, and for each page that the book lacks.
pub fn check(root: &Path, pages: &[Page]) -> Vec<String> {
    let by_path: HashMap<&Path, &Page> = pages.iter().map(|page| (&*page.path, page)).collect();
    let mut problems = Vec::new();
    for page in pages {
        for link in &page.links {
            if let Err(problem) = resolve(root, &by_path, page, &link.target) {
                let path = page.path.display();
                problems.push(format!("{path}:{}: {}: {problem}", link.line, link.target));
            }
        }
    }
    problems.extend(missing_chapters(pages));
    problems
}

fn resolve(
    root: &Path,
    pages: &HashMap<&Path, &Page>,
    page: &Page,
    target: &str,
) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match file {
        "" => page.path.clone(),
        _ => normal(&page.path.with_file_name(file)).ok_or("outside of the repository")?,
    };
    if page.path.starts_with(BOOK) && !path.starts_with(BOOK) {
        return Err(format!(
            "outside of {BOOK}, so that the book has no such page; name the file without a link"
        ));
    }
    if !root.join(&path).exists() {
        return Err("there is no such file".to_owned());
    }
    if anchor.is_empty() {
        return Ok(());
    }
    match pages.get(&*path) {
        Some(page) if page.anchors.iter().any(|other| other == anchor) => Ok(()),
        Some(_) => Err("there is no such heading".to_owned()),
        None => Err("only Markdown files have anchors".to_owned()),
    }
}

/// Removes `.` and `..`; returns `None` if the path leaves its start.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if !normal.pop() {
                    return None;
                }
            }
            part => normal.push(part),
        }
    }
    Some(normal)
}

/// Returns a line for each page of the book that its summary does not list.
fn missing_chapters(pages: &[Page]) -> Vec<String> {
    let summary_path = Path::new(BOOK).join("SUMMARY.md");
    let Some(summary) = pages.iter().find(|page| page.path == summary_path) else {
        return vec![format!("{} is missing", summary_path.display())];
    };
    let listed = |page: &Page| {
        let mut links = summary.links.iter();
        links.any(|link| Path::new(BOOK).join(&link.target) == page.path)
    };
    pages
        .iter()
        .filter(|page| page.path.starts_with(BOOK) && page.path != summary_path && !listed(page))
        .map(|page| format!("{} lacks {}", summary_path.display(), page.path.display()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_nothing_are_found() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(root.path().join(BOOK)).expect("a folder");
        let texts = [
            (
                "README.md",
                "[a](docs/a.md#one) [b](docs/a.md#two) [c](no.md) [d](../x) [e](#none)\n",
            ),
            (
                "docs/a.md",
                "# One\n[r](../README.md) [s](a.md#one) [web](https://example.org/x)\n",
            ),
            ("docs/b.md", "# B\n"),
            ("docs/SUMMARY.md", "[A](a.md)\n"),
        ];
        let mut pages = Vec::new();
        for (path, text) in texts {
            std::fs::write(root.path().join(path), text).expect("a file");
            pages.push(Page::parse(Path::new(path), text));
        }
        let problems = check(root.path(), &pages);
        let starts = [
            "README.md:1: docs/a.md#two: there is no such heading",
            "README.md:1: no.md: there is no such file",
            "README.md:1: ../x: outside of the repository",
            "README.md:1: #none: there is no such heading",
            "docs/a.md:2: ../README.md: outside of docs",
            "docs/SUMMARY.md lacks docs/b.md",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(problem.starts_with(start), "{problem}");
        }
    }
}
