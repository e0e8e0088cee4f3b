//! `quantfs remount`: another configuration at a mount that goes on.

use std::{
    io::{self, ErrorKind, Write},
    path::PathBuf,
};

use clap::Args;

use crate::{
    cli::{
        Failure,
        control::{self, Request},
        options::ViewArgs,
        views::ManyArgs,
    },
    fuse,
};

/// Show something else at a mount: new openings see it at once, open files keep what they were opened on
///
/// What is said is the whole new configuration: nothing of the old one is kept but the source, the cache and who
/// may use the mount. With nothing said the same is planned anew, from what the source is now (a recipe stays as it was
/// read).
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    quantfs remount /mnt/q4 --spec 8bit\n  \
    quantfs remount /mnt/q4 --spec 4bit --rule '*down_proj*=6bit'\n  \
    quantfs remount /mnt/q4            after the source changed")]
pub struct Remount {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    many: ManyArgs,
    /// Print what is shown now as JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A path that is no mount of ours; what keeps the new views from being planned: the old ones stay then.
pub fn run(args: &Remount, out: &mut dyn Write) -> Result<(), Failure> {
    let entry = fuse::find(&args.mountpoint)?;
    let said = !(args.view.says_nothing() && args.many == ManyArgs::default());
    let asked = if said { Some(Box::new((args.view.resolved()?, args.many.resolved()))) } else { None };
    let at = entry.path.display().to_string();
    // Plans may take long; whether the daemon listens at all is told at once.
    control::ask(&entry, Request::Status).map_err(|e| match e.kind() {
        ErrorKind::WouldBlock => Failure::refused(format!("{at}: its daemon does not answer; nothing was changed")),
        _ => refused(e, &at),
    })?;
    let done = control::ask(&entry, Request::Remount { asked }).map_err(|e| refused(e, &at))?;
    if args.json {
        writeln!(out, "{done:#}")?;
        return Ok(());
    }
    writeln!(out, "{at} is {} now", done["spec"].as_str().unwrap_or_default())?;
    for warning in done["warnings"].as_array().into_iter().flatten() {
        writeln!(out, "warning: {}", warning.as_str().unwrap_or_default())?;
    }
    Ok(())
}

/// Why a request was not met.
fn refused(e: io::Error, at: &str) -> Failure {
    match e.kind() {
        ErrorKind::ConnectionRefused => Failure::refused(format!("{at}: its daemon is dead; mount it again")),
        ErrorKind::PermissionDenied => Failure::refused(format!("{at}: another user's mount")),
        ErrorKind::WouldBlock => Failure::refused(format!("{at}: the daemon is still at it; `quantfs status` tells")),
        _ => Failure::from(e).of(at),
    }
}
