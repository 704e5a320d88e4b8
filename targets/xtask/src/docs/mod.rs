//! `cargo xtask docs`: checks the documentation and builds the book.

mod commands;
mod links;
mod markdown;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;
use clap::Args;

use self::markdown::Page;
use crate::shell;

/// Folder of the book, below the repository root.
const BOOK: &str = "docs";

/// Checks links and commands of the documentation and builds the book.
///
/// Relative links and their anchors must exist. The book (target/book) is built by mdBook. Blocks of
/// commands (```sh) run in a temporary folder, in which a small model of the tests stands for the
/// models that the text names. A marker behind the language names what a block needs that is not
/// here, as in ```sh,needs-board; these blocks are listed.
#[derive(Args)]
pub struct Cmd {
    /// Folder with edge-lmm (features data and plots) and edge-lmm-convert
    #[arg(long, value_name = "FOLDER", default_value = "target/debug")]
    programs: PathBuf,
    /// Only run the commands of these files
    #[arg(value_name = "FILE")]
    only: Vec<PathBuf>,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let root = shell::root();
        let pages = pages(&root)?;
        let mut problems = links::check(&root, &pages);
        problems.extend(pages.iter().flat_map(commands::check_markers));
        if !problems.is_empty() {
            bail!("the documentation is wrong:\n{}", problems.join("\n"));
        }
        shell::run(
            Command::new("sh")
                .args(["targets/check-tool.sh", "mdbook", "build", BOOK])
                .current_dir(&root),
        )?;
        let chosen = |page: &&Page| self.only.is_empty() || self.only.contains(&page.path);
        let programs = root.join(&self.programs);
        commands::run(&root, &programs, pages.iter().filter(chosen))
    }
}

/// Reads all Markdown files of the repository.
fn pages(root: &Path) -> anyhow::Result<Vec<Page>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .args(["--", "*.md"])
        .current_dir(root);
    let list = shell::output(&mut git)?;
    let files = list.lines().map(Path::new);
    files
        .filter(|path| root.join(path).exists())
        .map(|path| Page::read(root, path))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_no_dead_links_and_no_unknown_markers() {
        let root = shell::root();
        let pages = pages(&root).expect("the pages");
        let mut problems = links::check(&root, &pages);
        problems.extend(pages.iter().flat_map(commands::check_markers));
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
}
