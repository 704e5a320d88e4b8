//! `cargo xtask package`: a Debian package and a tarball for a device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Args;
use edge_lmm_targets::{Build, Device};
use sha2::{Digest, Sha256};

use crate::cross::{self, BuildOptions, CONVERTER};
use crate::deb::{Entry, gzip, package, tar};
use crate::elf::Requirements;
use crate::emulate::Emulator;
use crate::{sbom, shell};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Creates a Debian package, a tarball to unpack over the root of an image, a list of components
/// (SBOM) and checksums.
///
/// The package has two programs: edge-lmm, and edge-lmm-convert, which makes records. The manual
/// pages and completions come from the programs themselves, run under emulation where needed. The service's memory limit is that of the device's profile: name the size, as in
/// raspberry-pi-5-8gb, for a limit in bytes; a board's plain name gives a share of the memory.
#[derive(Args)]
pub struct Cmd {
    /// Device, such as raspberry-pi-5 or host
    #[arg(long, value_name = "DEVICE")]
    target: String,
    /// Program to use with the edge-lmm-convert beside it, instead of building them
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    build: BuildOptions,
    /// Maintainer of the package [default: DEBFULLNAME and DEBEMAIL, or else the author of the
    /// newest commit]
    #[arg(long, value_name = "NAME <ADDRESS>", value_parser = parse_maintainer)]
    maintainer: Option<String>,
    /// Folder to write to
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
}

fn parse_maintainer(text: &str) -> Result<String, String> {
    let parts = text
        .strip_suffix('>')
        .and_then(|text| text.split_once(" <"))
        .and_then(|(name, address)| Some((name, address.split_once('@')?)));
    let plain = |part: &str| !part.is_empty() && !part.contains(['<', '>', '@', '\n']);
    match parts {
        Some((name, (user, host))) if [name, user, host].into_iter().all(plain) => {
            Ok(text.to_owned())
        }
        _ => Err(format!("expected \"Name <user@host>\", not {text:?}")),
    }
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let device = edge_lmm_targets::device(&self.target)?;
        let (program, converter) = match &self.program {
            Some(program) => (program.clone(), program.with_file_name(CONVERTER)),
            None => {
                let built = cross::build(&[&self.target], &self.build)?;
                let converter = cross::build_converter(&built[0], &self.build)?;
                (built[0].program.clone(), converter)
            }
        };
        ensure!(
            converter.is_file(),
            "{} is missing; the package contains it in addition to {}",
            converter.display(),
            program.display()
        );
        let time = build_time()?;
        let maintainer = match self.maintainer {
            Some(maintainer) => maintainer,
            None => default_maintainer()?,
        };
        let triple = self.build.triple(&device);
        let build = self.build.build(&device);
        let packages = sbom::packages(&triple, &build.features)?;
        let components = sbom::cyclonedx(&packages, &triple)?;
        let mut content = from_program(&device, &program)?;
        content.extend(from_converter(&device, &converter)?);
        content.extend(own_files(&packages, &components)?);
        content.extend(service(&device, &self.target, &build)?);
        content.push(changelog(time, &maintainer)?);
        content.sort_by(|a, b| a.path.cmp(&b.path));

        let architecture = architecture(&device)?;
        let requirements = Requirements::of(&program)?.and(&Requirements::of(&converter)?);
        let control = control_files(&requirements, &build, architecture, &maintainer, &content)?;
        fs::create_dir_all(&self.output)
            .with_context(|| format!("cannot create {}", self.output.display()))?;
        let stem = format!("edge-lmm-{VERSION}-{}", self.target);
        let files = [
            (
                format!("edge-lmm_{VERSION}_{architecture}.deb"),
                package(&control, &content, time)?,
            ),
            (format!("{stem}.tar.gz"), gzip(&tar(&content, time)?)?),
            (format!("{stem}.cdx.json"), components.into_bytes()),
        ];
        let mut sums = String::new();
        for (name, bytes) in &files {
            fs::write(self.output.join(name), bytes)
                .with_context(|| format!("cannot write {name}"))?;
            println!("{name}: {} bytes", bytes.len());
            sums += &format!("{}  {name}\n", hexadecimal(&Sha256::digest(bytes)));
        }
        fs::write(self.output.join("SHA256SUMS"), sums)?;
        Ok(())
    }
}

/// Returns the modification time of all files, in seconds since 1970, so that equal sources give
/// equal packages.
fn build_time() -> anyhow::Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(time) => time
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH is {time:?}, expected seconds")),
        Err(_) => {
            let mut git = Command::new("git");
            git.args(["log", "-1", "--format=%ct"])
                .current_dir(shell::root());
            // Without git, as in a source archive, uses 1970.
            Ok(shell::output(&mut git)
                .ok()
                .and_then(|time| time.trim().parse().ok())
                .unwrap_or(0))
        }
    }
}

/// Returns the maintainer according to Debian's environment variables, or else the author of the
/// newest commit.
fn default_maintainer() -> anyhow::Result<String> {
    let named = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let maintainer = match (named("DEBFULLNAME"), named("DEBEMAIL")) {
        (Some(name), Some(address)) => format!("{name} <{address}>"),
        _ => {
            let mut git = Command::new("git");
            git.args(["log", "-1", "--format=%an <%ae>"])
                .current_dir(shell::root());
            shell::output(&mut git)
                .unwrap_or_default()
                .trim()
                .to_owned()
        }
    };
    parse_maintainer(&maintainer)
        .map_err(anyhow::Error::msg)
        .context("the package has no maintainer; use --maintainer")
}

fn architecture(device: &Device) -> anyhow::Result<&'static str> {
    match device.triple.split('-').next() {
        Some("aarch64") => Ok("arm64"),
        Some("x86_64") => Ok("amd64"),
        _ => bail!("Debian has no architecture for {}", device.triple),
    }
}

/// Locations of completions: the shell, the folder, and prefix and suffix of the file name.
const COMPLETIONS: [(&str, &str, &str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions", "", ""),
    ("zsh", "usr/share/zsh/vendor-completions", "_", ""),
    ("fish", "usr/share/fish/vendor_completions.d", "", ".fish"),
];

/// Returns the completions of a program; `print` returns the text for a shell.
fn completions(
    program: &str,
    print: impl Fn(&str) -> anyhow::Result<String>,
) -> anyhow::Result<Vec<Entry>> {
    COMPLETIONS
        .iter()
        .map(|(shell, folder, before, after)| {
            let path = format!("{folder}/{before}{program}{after}");
            Ok(Entry::file(path, print(shell)?))
        })
        .collect()
}

/// Returns the converter with its manual page and completions.
fn from_converter(device: &Device, program: &Path) -> anyhow::Result<Vec<Entry>> {
    let emulator = Emulator::new(device)?;
    let print = |what: &str| shell::output(emulator.command(program).args(["--generate", what]));
    let mut entries = completions(CONVERTER, print)?;
    entries.push(Entry::program(
        format!("usr/bin/{CONVERTER}"),
        fs::read(program)?,
    ));
    entries.push(Entry::file(
        format!("usr/share/man/man1/{CONVERTER}.1.gz"),
        gzip(print("man")?.as_bytes())?,
    ));
    Ok(entries)
}

/// Returns the program with its manual pages and completions.
fn from_program(device: &Device, program: &Path) -> anyhow::Result<Vec<Entry>> {
    let emulator = Emulator::new(device)?;
    let mut entries = vec![Entry::program("usr/bin/edge-lmm", fs::read(program)?)];
    entries.extend(completions("edge-lmm", |shell| {
        shell::output(emulator.command(program).args(["completions", shell]))
    })?);
    let folder = tempfile::tempdir()?;
    shell::run(emulator.command(program).arg("man").arg(folder.path()))?;
    for page in fs::read_dir(folder.path())? {
        let page = page?;
        let name = page.file_name();
        let path = format!("usr/share/man/man1/{}.gz", name.to_string_lossy());
        entries.push(Entry::file(path, gzip(&fs::read(page.path())?)?));
    }
    Ok(entries)
}

/// Returns the service unit with its device settings, user and folders.
fn service(device: &Device, target: &str, build: &Build) -> anyhow::Result<Vec<Entry>> {
    let packaging = shell::root().join("targets/packaging");
    let unit = fs::read_to_string(packaging.join("edge-lmm@.service"))?;
    let unit = unit.replace("@MEMORY_MAX@", &memory_limit(device, target));
    ensure!(
        !unit.contains("@MEMORY_MAX@"),
        "the memory limit is not filled in"
    );
    let mut entries = vec![
        Entry::file("usr/lib/systemd/system/edge-lmm@.service", unit),
        Entry::file(
            "usr/lib/sysusers.d/edge-lmm.conf",
            fs::read(packaging.join("edge-lmm.sysusers"))?,
        ),
        Entry::folder("var/lib/edge-lmm"),
        Entry::folder("etc/edge-lmm"),
    ];
    if build.has("cuda") {
        entries.push(Entry::file(
            "usr/lib/systemd/system/edge-lmm@.service.d/cuda.conf",
            fs::read(packaging.join("cuda.conf"))?,
        ));
    }
    Ok(entries)
}

/// Returns the documents.
fn own_files(packages: &[sbom::Package], components: &str) -> anyhow::Result<Vec<Entry>> {
    let licence = fs::read_to_string(shell::root().join("LICENSE"))?;
    let document = |name: &str| format!("usr/share/doc/edge-lmm/{name}");
    Ok(vec![
        Entry::file(document("copyright"), licence),
        Entry::file(
            document("README.Debian"),
            fs::read(shell::root().join("targets/packaging/README.Debian"))?,
        ),
        Entry::file(
            document("third-party-licences.txt.gz"),
            gzip(sbom::licences(packages).as_bytes())?,
        ),
        Entry::file(document("sbom.cdx.json"), components),
    ])
}

/// Returns the changelog that Debian requires in every package.
fn changelog(time: u64, maintainer: &str) -> anyhow::Result<Entry> {
    let date = shell::output(Command::new("date").env("LC_ALL", "C").args([
        "--utc",
        "--rfc-email",
        &format!("--date=@{time}"),
    ]))?;
    let text = format!(
        "edge-lmm ({VERSION}) stable; urgency=medium\n\n  * Release {VERSION}.\n\n \
         -- {maintainer}  {date}"
    );
    Ok(Entry::file(
        "usr/share/doc/edge-lmm/changelog.gz",
        gzip(text.as_bytes())?,
    ))
}

/// Returns the bytes for a device of a known size. For a board with several sizes, returns the
/// percentage that is right for the smallest one and conservative for the others.
fn memory_limit(device: &Device, target: &str) -> String {
    if target == device.name && target != "host" {
        device.usable_bytes().to_string()
    } else if target == "host" {
        "90%".to_owned()
    } else {
        format!("{}%", device.usable_percent())
    }
}

fn control_files(
    requirements: &Requirements,
    build: &Build,
    architecture: &str,
    maintainer: &str,
    content: &[Entry],
) -> anyhow::Result<Vec<Entry>> {
    let bytes: usize = content
        .iter()
        .filter_map(|e| Some(e.content.as_ref()?.len()))
        .sum();
    let mut depends = vec!["passwd".to_owned()];
    if let Some(version) = requirements.glibc {
        depends.push(format!("libc6 (>= {version})"));
    }
    for (name, package) in [("libgcc_s", "libgcc-s1"), ("libstdc++", "libstdc++6")] {
        let mut libraries = requirements.libraries.iter();
        if libraries.any(|library| library.starts_with(name)) {
            depends.push(package.to_owned());
        }
    }
    if build.has("cuda") {
        // It creates the group `render`, without which systemd does not start the server.
        depends.push("udev".to_owned());
    }
    let control = format!(
        "Package: edge-lmm\n\
         Version: {VERSION}\n\
         Architecture: {architecture}\n\
         Maintainer: {maintainer}\n\
         Installed-Size: {}\n\
         Depends: {}\n\
         Section: science\n\
         Priority: optional\n\
         Description: runs large multimodal models on small devices\n \
         edge-lmm answers questions about images, videos and audio with models\n \
         of a few billion parameters, quantized to 4 and 8 bits, and reports where the\n \
         time goes. Records in /var/lib/edge-lmm can be served on a Unix socket with\n \
         the service edge-lmm@NAME. edge-lmm-convert creates records from checkpoints.\n",
        bytes.div_ceil(1024),
        depends.join(", "),
    );
    let packaging = shell::root().join("targets/packaging");
    let mut entries = vec![Entry::file("control", control)];
    for script in ["postinst", "prerm", "postrm"] {
        entries.push(Entry::program(script, fs::read(packaging.join(script))?));
    }
    Ok(entries)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_limit_follows_the_profile() {
        let limit = |name: &str| memory_limit(&edge_lmm_targets::device(name).unwrap(), name);
        // 8 GiB without 512 MiB; 3.5 of 4 GiB.
        assert_eq!(limit("raspberry-pi-5-8gb"), (8053063680u64).to_string());
        assert_eq!(limit("raspberry-pi-5"), "87%");
    }

    #[test]
    fn the_gpu_is_opened_to_services_that_can_use_it() {
        let jetson = edge_lmm_targets::device("jetson-orin-nano-8gb").unwrap();
        let files = |build: &Build| {
            let entries = service(&jetson, &jetson.name, build).unwrap();
            entries
                .into_iter()
                .map(|entry| entry.path)
                .collect::<Vec<_>>()
        };
        let opened = "usr/lib/systemd/system/edge-lmm@.service.d/cuda.conf".to_owned();
        assert!(files(&jetson.build).contains(&opened));
        assert!(!files(&Build::default()).contains(&opened));
    }

    #[test]
    fn shells_find_completions_by_the_name_of_the_program() {
        let entries = completions("tool", |shell| Ok(shell.to_owned())).unwrap();
        let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
        let expected = [
            "usr/share/bash-completion/completions/tool",
            "usr/share/zsh/vendor-completions/_tool",
            "usr/share/fish/vendor_completions.d/tool.fish",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn the_readme_says_what_the_unit_restricts() {
        let packaging = shell::root().join("targets/packaging");
        let read = |name: &str| fs::read_to_string(packaging.join(name)).unwrap();
        let (unit, readme) = (read("edge-lmm@.service"), read("README.Debian"));
        let restricts_files = |line: &&str| {
            [
                "ProtectHome=",
                "ProtectSystem=",
                "PrivateTmp=",
                "PrivateDevices=",
            ]
            .iter()
            .any(|setting| line.starts_with(setting))
        };
        let settings: Vec<&str> = unit.lines().filter(restricts_files).collect();
        assert_eq!(settings.len(), 4);
        for setting in settings {
            assert!(readme.contains(setting), "README.Debian lacks {setting}");
        }
    }

    #[test]
    fn a_maintainer_has_a_name_and_an_address() {
        assert!(parse_maintainer("Ada Lovelace <ada@analytical.engine>").is_ok());
        for text in [
            "",
            "Ada",
            "<ada@x.org>",
            "Ada <ada>",
            "Ada <@x>",
            "Ada\nX <a@x>",
            "A <a@x> B",
        ] {
            assert!(parse_maintainer(text).is_err(), "{text:?}");
        }
    }
}
