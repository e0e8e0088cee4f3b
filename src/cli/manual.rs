//! `quantfs completions` and `quantfs man`: what shells and `man` know of the flags, from the flags themselves.

use std::{fs, io::Write, path::PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Failure;

use super::Cli;

/// Print completions for a shell
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    quantfs completions bash > /etc/bash_completion.d/quantfs\n  \
    quantfs completions fish > ~/.config/fish/completions/quantfs.fish")]
pub struct Completions {
    /// Which shell
    pub shell: Shell,
}

/// Print the manual page of a verb, or of the program
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  quantfs man | man -l -\n  quantfs man mount | man -l -\n  \
    quantfs man --dir /usr/local/share/man/man1")]
pub struct Manual {
    /// A verb
    pub verb: Option<String>,
    /// Write all pages into this directory instead
    #[arg(long, conflicts_with = "verb")]
    pub dir: Option<PathBuf>,
}

/// Runs `quantfs completions`.
///
/// # Errors
/// Where the output is closed.
pub fn complete(args: &Completions, out: &mut dyn Write) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "quantfs", &mut script);
    out.write_all(&script)?;
    Ok(())
}

/// Runs `quantfs man`.
///
/// # Errors
/// A verb that there is not, a directory that cannot be written.
pub fn explain(args: &Manual, out: &mut dyn Write) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    if let Some(dir) = &args.dir {
        fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
            .map_err(|source| Failure::refused(format!("{}: cannot write the pages: {source}", dir.display())))?;
        return Ok(());
    }
    let page = match &args.verb {
        None => command,
        Some(verb) => {
            let found = command.find_subcommand(verb).cloned();
            let found =
                found.ok_or_else(|| Failure::usage(format!("{verb}: no such verb; `quantfs help` lists them")))?;
            let name = format!("quantfs-{verb}");
            found.display_name(name)
        }
    };
    Man::new(page).render(out)?;
    Ok(())
}
