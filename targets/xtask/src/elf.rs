//! Shared library and C library requirements of a program, read with `readelf`.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::shell;

/// Requirements of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirements {
    /// Required shared libraries; empty for a static program.
    pub libraries: Vec<String>,
    /// Newest version of the GNU C library whose functions it uses.
    pub glibc: Option<Version>,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// `major.minor`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32);

impl Version {
    /// Parses `2.31`; a third number is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.');
        Some(Self(
            numbers.next()?.parse().ok()?,
            numbers.next()?.parse().ok()?,
        ))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Requirements {
    /// Combines the requirements of two programs.
    pub fn and(mut self, other: &Self) -> Self {
        for library in &other.libraries {
            if !self.libraries.contains(library) {
                self.libraries.push(library.clone());
            }
        }
        self.glibc = self.glibc.max(other.glibc);
        self.bytes += other.bytes;
        self
    }

    /// Reads the requirements of a program.
    pub fn of(program: &Path) -> anyhow::Result<Self> {
        let readelf = |option: &str| {
            shell::output(
                Command::new("readelf")
                    .env("LC_ALL", "C")
                    .args([option, "--wide"])
                    .arg(program),
            )
        };
        Ok(Self {
            libraries: needed(&readelf("--dynamic")?),
            glibc: newest_glibc(&readelf("--version-info")?),
            bytes: std::fs::metadata(program)
                .with_context(|| format!("cannot read {}", program.display()))?
                .len(),
        })
    }
}

/// Returns the names in lines such as `0x1 (NEEDED)  Shared library: [libc.so.6]`.
fn needed(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
        .collect()
}

/// Returns the newest version in lines such as `Name: GLIBC_2.17  Flags: none`.
fn newest_glibc(text: &str) -> Option<Version> {
    text.split_whitespace()
        .filter_map(|word| Version::parse(word.strip_prefix("GLIBC_")?))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readelfs_lines_are_understood() {
        let text = " 0x0000000000000001 (NEEDED)  Shared library: [libm.so.6]\n\
                    0x000000000000000e (SONAME)  Library soname: [x]\n";
        assert_eq!(needed(text), ["libm.so.6"]);
        let text = "0x0010: Name: GLIBC_2.17 Flags: none\n Name: GLIBC_2.4 Flags: none";
        assert_eq!(newest_glibc(text), Version::parse("2.17"));
        assert_eq!(newest_glibc("There is no dynamic section"), None);
    }
}
