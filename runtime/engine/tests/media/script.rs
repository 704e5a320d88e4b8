//! Scripts that stand in for programs.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes an executable script.
///
/// A shell writes it. A file that this process has open for writing is inherited by a process that
/// another test starts at that moment, and the system starts no program that is open for writing.
pub fn write(path: &Path, text: &str) {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", r#"/bin/cat > "$1" && /bin/chmod 755 "$1""#, "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut input = shell.stdin.take().expect("an input");
    input.write_all(text.as_bytes()).expect("a script");
    drop(input);
    assert!(
        shell.wait().expect("an end").success(),
        "{}",
        path.display()
    );
}
