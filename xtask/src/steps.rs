//! Running other programs: where the repository is, which cargo, what failed.
//!
//! Used by every command. A program is run with its output going straight to the terminal, after
//! a line that says what is run, so that anybody can repeat a step by hand. Nothing here goes
//! through a shell.
//!
//! The root is asked of cargo at run time (`CARGO_MANIFEST_DIR`) and not compiled in: a build
//! directory may be shared by several checkouts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a command of this program failed, as one line for the user.
#[derive(Debug)]
pub(crate) struct Failed(String);

impl Failed {
    /// With this reason.
    pub(crate) fn new(why: impl Into<String>) -> Failed {
        Failed(why.into())
    }

    /// For `map_err`: what was tried, and the error.
    pub(crate) fn to<E: fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> Failed {
        let what = what.into();
        move |error| Failed(format!("cannot {what}: {error}"))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    match here.as_deref().and_then(Path::parent) {
        Some(root) => root.to_owned(),
        None => PathBuf::from("."),
    }
}

/// Where cargo puts what it builds for the workspace.
pub(crate) fn target_dir(root: &Path) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join(dir),
        None => root.join("target"),
    }
}

/// The cargo that runs us, with these arguments.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Says what is run, runs it in `root`, and fails if it fails.
pub(crate) fn run(root: &Path, command: &mut Command) -> Result<(), Failed> {
    let shown = shown(command);
    eprintln!("$ {shown}");
    let status =
        command.current_dir(root).status().map_err(Failed::to(format!("start {shown}")))?;
    if status.success() { Ok(()) } else { Err(Failed::new(format!("{shown}: {status}"))) }
}

/// A command as one would type it; cargo by its name and not by its path.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let mut line = name.into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Whether a program of this name is on the path.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).any(|folder| folder.join(program).is_file())
}

/// Whether this runs where everything has to be there (`CI=true`).
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// `udm` for a run that is to be like a user's: the one given, or a release build.
pub(crate) fn release_udm(root: &Path, given: Option<&PathBuf>) -> Result<PathBuf, Failed> {
    if let Some(udm) = given {
        return Ok(udm.clone());
    }
    run(root, &mut cargo(&["build", "--quiet", "--release", "--package", "udm"]))?;
    Ok(target_dir(root).join("release/udm"))
}

#[cfg(test)]
mod tests {
    use super::{cargo, is_installed, root, shown};

    #[test]
    fn the_root_has_the_workspace() {
        assert!(root().join("xtask/Cargo.toml").is_file());
    }

    #[test]
    fn commands_are_shown_as_typed() {
        assert!(shown(&cargo(&["fmt", "--all"])).ends_with("cargo fmt --all"));
        assert!(is_installed("sh"));
        assert!(!is_installed("no-such-program-of-ours"));
    }
}
