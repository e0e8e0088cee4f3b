//! The command line: one file a verb, and the only floor that prints, exits and reads the
//! environment.
//!
//! What was typed (`args`, `options`) becomes options of the floors below; what they fail with
//! becomes one line and an exit code: 0 done, 1 refused or failed, 2 usage.

pub mod bench;
mod chosen;
pub mod decode;
pub mod export;
mod failure;
pub mod formats;
pub mod generate;
pub mod inspect;
mod log;
pub mod manual;
mod offline;
pub mod options;
mod output;
pub mod perplexity;
pub mod places;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod size;
pub mod verify;

#[cfg(feature = "fuse")]
pub mod args;
#[cfg(feature = "fuse")]
mod belongings;
#[cfg(feature = "fuse")]
mod control;
#[cfg(feature = "fuse")]
mod daemon;
#[cfg(feature = "fuse")]
mod facts;
#[cfg(feature = "fuse")]
mod fstab;
#[cfg(feature = "fuse")]
pub mod memory;
#[cfg(feature = "fuse")]
pub mod mount;
#[cfg(feature = "fuse")]
pub mod remount;
#[cfg(feature = "fuse")]
mod signals;
#[cfg(feature = "fuse")]
pub mod status;
#[cfg(feature = "fuse")]
pub mod umount;
#[cfg(feature = "fuse")]
pub mod views;
#[cfg(feature = "fuse")]
pub mod warm;
#[cfg(feature = "fuse")]
mod watch;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

#[cfg(feature = "fuse")]
use clap::CommandFactory;
use clap::{Parser, Subcommand};

use crate::kernel;

pub use failure::Failure;
use places::caches;

/// Mounts a full-precision model directory and shows it quantized.
#[derive(Parser, Debug)]
#[command(name = "quantfs", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    #[cfg(feature = "fuse")]
    Mount(Box<mount::Mount>),
    #[cfg(feature = "fuse")]
    Umount(umount::Umount),
    #[cfg(feature = "fuse")]
    Remount(Box<remount::Remount>),
    #[cfg(feature = "fuse")]
    Status(status::Status),
    #[cfg(feature = "fuse")]
    Warm(warm::Warm),
    Inspect(inspect::Inspect),
    Report(report::Report),
    Recipe(recipe::Recipe),
    Export(export::Export),
    Verify(verify::Verify),
    Generate(generate::Generate),
    Perplexity(perplexity::Perplexity),
    Bench(bench::Bench),
    Formats(formats::Formats),
    Completions(manual::Completions),
    Man(manual::Manual),
}

impl Verb {
    /// The file that standard error is, where we know.
    fn log(&self) -> io::Result<Option<PathBuf>> {
        match self {
            #[cfg(feature = "fuse")]
            Self::Mount(mount) => mount.log(),
            _ => Ok(None),
        }
    }

    /// Whether this process serves a mount by itself, and logs what it does.
    fn serves(&self) -> bool {
        match self {
            #[cfg(feature = "fuse")]
            Self::Mount(mount) => mount.serves(),
            _ => false,
        }
    }
}

/// Names the instruction set of the kernels, for bug reports.
const ISA_VARIABLE: &str = "QUANTFS_ISA";

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(line) = failure.line() {
                // Nobody is left to tell where standard error is closed.
                let _nobody = writeln!(io::stderr(), "quantfs: {line}");
            }
            ExitCode::from(failure.code())
        }
    }
}

fn run(typed: Vec<OsString>) -> Result<(), Failure> {
    let typed = spelled_out(typed)?;
    let name = OsString::from("quantfs");
    let cli = match Cli::try_parse_from(std::iter::once(&name).chain(&typed)) {
        Ok(cli) => cli,
        // clap knows how to print: help on standard output, usage errors on standard error.
        Err(e) => e.exit(),
    };
    log::start(cli.verb.serves(), cli.verb.log()?)?;
    select_kernels()?;
    let out = &mut io::stdout();
    match &cli.verb {
        #[cfg(feature = "fuse")]
        Verb::Mount(args) => mount::run(args, &typed, out),
        #[cfg(feature = "fuse")]
        Verb::Umount(args) => umount::run(args, out),
        #[cfg(feature = "fuse")]
        Verb::Remount(args) => remount::run(args, out),
        #[cfg(feature = "fuse")]
        Verb::Status(args) => status::run(args, out),
        #[cfg(feature = "fuse")]
        Verb::Warm(args) => warm::run(args, out),
        Verb::Inspect(args) => inspect::run(args, out),
        Verb::Report(args) => report::run(args, out),
        Verb::Recipe(args) => recipe::run(args, out),
        Verb::Export(args) => export::run(args, out),
        Verb::Verify(args) => verify::run(args, out),
        Verb::Generate(args) => generate::run(args, out),
        Verb::Perplexity(args) => perplexity::run(args, out),
        Verb::Bench(args) => bench::run(args, out),
        Verb::Formats(args) => formats::run(args, out),
        Verb::Completions(args) => manual::complete(args, out),
        Verb::Man(args) => manual::explain(args, out),
    }?;
    out.flush()?;
    Ok(())
}

/// A first argument that is no verb means `mount`, as mount.fuse3 calls us; the options of `mount` in
/// fstab's way become flags.
#[cfg(feature = "fuse")]
fn spelled_out(mut typed: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    let command = Cli::command();
    let first = typed.first().and_then(|arg| arg.to_str()).unwrap_or("-");
    let known = first == "help" || command.get_subcommands().any(|verb| verb.get_name() == first);
    if !known && !first.starts_with('-') && typed.len() > 1 && is_source(first) {
        typed.insert(0, "mount".into());
    }
    if typed.first().is_none_or(|verb| verb != "mount") {
        return Ok(typed);
    }
    let mount = command.find_subcommand("mount");
    fstab::expand(typed, |name| {
        mount.is_some_and(|mount| mount.get_arguments().any(|arg| arg.get_long() == Some(name) && !arg.is_hide_set()))
    })
}

/// Whether a word is a path or a repo id, and not a misspelt verb.
#[cfg(feature = "fuse")]
fn is_source(word: &str) -> bool {
    word.contains(['/', '.', '@']) || std::fs::symlink_metadata(word).is_ok()
}

#[cfg(not(feature = "fuse"))]
fn spelled_out(typed: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    Ok(typed)
}

/// Refuses a name that means nothing.
fn select_kernels() -> Result<(), Failure> {
    let name = std::env::var_os(ISA_VARIABLE).map(|name| name.to_string_lossy().into_owned());
    let selected = kernel::select(name.as_deref());
    selected.map_err(|e| Failure::usage(format!("{ISA_VARIABLE}: {e}; name one of these or unset it")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use clap::CommandFactory;

    use super::*;

    #[cfg(feature = "fuse")]
    fn words(args: &[&str]) -> Vec<String> {
        let typed = args.iter().map(OsString::from).collect();
        spelled_out(typed).unwrap().into_iter().map(|s| s.into_string().unwrap()).collect()
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[cfg(feature = "fuse")]
    #[test]
    fn no_verb_means_mount() {
        assert_eq!(words(&["/m", "/mnt", "-o", "rw,spec=8bit,dev,suid"]), ["mount", "/m", "/mnt", "--spec=8bit"]);
        assert_eq!(words(&["status"]), ["status"]);
        assert_eq!(words(&["--help"]), ["--help"]);
        assert_eq!(words(&["org/name", "/mnt"]), ["mount", "org/name", "/mnt"]);
        assert_eq!(words(&["src", "/mnt"]), ["mount", "src", "/mnt"], "a directory that exists");
        assert_eq!(words(&["umont", "/mnt"]), ["umont", "/mnt"], "a misspelt verb");
        assert_eq!(words(&["warm", "x", "-o"]), ["warm", "x", "-o"]);
    }
}
