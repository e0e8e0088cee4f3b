//! `quantfs mount`: a view at a directory, by a process in the background.

use std::{
    io::{self, Write},
    num::NonZero,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    thread,
    time::Duration,
};

use clap::Args;
use serde_json::Value;

use crate::{
    cli::{
        Failure,
        args::{CacheArgs, MountArgs, Passthrough},
        caches,
        control::{Answers, Control, Request},
        daemon::{self, Ready, Report},
        facts::Facts,
        options::ViewArgs,
        signals::{self, Stop},
        size,
    },
    fuse::{self, Force, MountOptions, Session, SessionOptions},
    plan, source,
    store::{self, Store},
    view::{Engine, View},
};

/// Threads that take requests and never encode: more gain nothing, since they only copy.
const MAX_FUSE_THREADS: usize = 8;

/// How long the end of a mount waits for its last tiles to be stored. What is not is encoded again.
const SETTLING: Duration = Duration::from_secs(5);

/// Mount a view of a model: every weight is shown quantized, nothing is converted ahead of time
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    quantfs mount ~/models/Some-Llama /mnt/q4 --bits 4 --group-size 64\n  \
    quantfs mount org/name@main /mnt/q8 --spec 8bit --rule '*lm_head*=source'\n  \
    mount -t fuse.quantfs ~/models/Some-Llama /mnt/q4 -o spec=mlx-mxfp4,allow_other")]
pub struct Mount {
    /// A model directory, a repo id of the Hugging Face cache, or a .safetensors file
    pub source: String,
    /// An empty directory (or /dev/fd/N, a descriptor that is mounted already)
    pub mountpoint: PathBuf,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    mount: MountArgs,
}

impl Mount {
    /// Whether this process serves, and logs, by itself.
    pub(super) fn serves(&self) -> bool {
        self.mount.foreground || self.mount.report
    }
}

/// Runs the verb; `typed` are the arguments that it was started with.
///
/// # Errors
/// What keeps the view from being planned or mounted.
pub fn run(args: &Mount, typed: &[std::ffi::OsString], out: &mut dyn Write) -> Result<(), Failure> {
    if let Some(options) = args.mount.options.first() {
        // A way to write them that fstab's does not know: nothing may be dropped in silence.
        return Err(Failure::usage(format!("-o {options}: write it apart from other letters")));
    }
    if args.mount.report {
        daemon::detach();
        let served = serve(args, |ready| daemon::report(&Report::Ready(ready)));
        if let Err(failure) = &served {
            let line = failure.line().unwrap_or_default().to_owned();
            // A parent that has had its report reads no second one.
            daemon::report(&Report::Failed { code: failure.code(), line })?;
        }
        served
    } else if args.mount.foreground {
        serve(args, |ready| {
            tracing::info!("{} as {} on {}", ready.source, ready.spec, ready.mountpoint);
            if args.mount.json { tell_json(&ready, None, out) } else { Ok(()) }
        })
    } else {
        let (ready, log) = daemon::start(typed, &args.mountpoint)?;
        if args.mount.json {
            tell_json(&ready, Some(&log), out)?;
        } else {
            tell(&ready, &log, out)?;
        }
        Ok(())
    }
}

fn tell_json(ready: &Ready, log: Option<&Path>, out: &mut dyn Write) -> io::Result<()> {
    let mut facts = serde_json::to_value(ready)?;
    facts["log"] = log.map(|log| log.display().to_string()).into();
    writeln!(out, "{facts}")?;
    out.flush()
}

fn tell(ready: &Ready, log: &Path, out: &mut dyn Write) -> io::Result<()> {
    let at = &ready.mountpoint;
    writeln!(out, "{} as {} on {at}", ready.source, ready.spec)?;
    for warning in &ready.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    writeln!(out, "process {}, log {}", ready.pid, log.display())?;
    writeln!(out, "unmount with `quantfs umount {at}`")?;
    Ok(())
}

/// Mounts, says so, and stays until the mount is gone.
fn serve(args: &Mount, say: impl FnOnce(Ready) -> io::Result<()>) -> Result<(), Failure> {
    daemon::limit_arenas();
    let stop = Stop::new()?;
    let view = plan_view(args)?;
    let facts = Arc::new(Facts::new(Arc::clone(view.plan()), Arc::clone(view.engine())));
    let mounted = fuse::mount(&args.mountpoint, &mount_options(args, &view))?;
    let options = session_options(args);
    let session = Arc::new(Session::start(mounted, Arc::clone(&view), Arc::clone(&facts) as _, &options)?);
    facts.attach(&session);
    stop.watch(Arc::clone(&session))?;
    let _control = control(&session, &facts);
    let said = say(Ready {
        source: view.plan().source.clone(),
        spec: view.plan().spec.clone(),
        mountpoint: session.place().path.display().to_string(),
        pid: process::id(),
        warnings: view.plan().warnings.clone(),
    });
    if let Err(e) = said {
        // Who asked for the mount is gone, and does not know that it is there.
        session.unmount(Force::Yes)?;
        return Err(e.into());
    }
    let _ended = session.wait(None);
    tracing::info!("the mount is gone");
    signals::end_within(signals::END_GRACE + SETTLING, "a worker or a disk hangs");
    if !view.settle(SETTLING) {
        tracing::info!("the cache directory was not up to date in time; the next mount goes on with it");
    }
    Ok(())
}

fn plan_view(args: &Mount) -> Result<Arc<View>, Failure> {
    // The directory of the process changes later.
    let path = Path::new(&args.source);
    let name =
        if path.exists() { std::path::absolute(path)?.to_string_lossy().into_owned() } else { args.source.clone() };
    let (source, options) = args.view.open(&name, &caches())?;
    let plan = plan::build(source.as_ref(), &options)?;
    let store = args.cache.cache_dir.as_ref().map(|dir| open_store(dir, args, &*source)).transpose()?;
    Ok(View::new(Arc::new(plan), source, Engine::with_store(args.cache.engine(), store)?))
}

/// Opens `--cache-dir`, which must be neither in what is shown nor where it is shown: the one would be
/// a source that changes, the other a daemon that waits for itself.
fn open_store(options: &store::Options, args: &Mount, source: &dyn source::Source) -> Result<Arc<Store>, Failure> {
    let dir = options.dir.display();
    if let Some(root) = source.local_roots().iter().find(|root| store::lies_in(&options.dir, root)) {
        let why = format!("--cache-dir {dir}: lies in the source ({}); name a directory elsewhere", root.display());
        return Err(Failure::refused(why));
    }
    if store::lies_in(&options.dir, &args.mountpoint) {
        return Err(Failure::refused(format!(
            "--cache-dir {dir}: lies in the mount point; name a directory elsewhere"
        )));
    }
    let store = Store::open(options)?;
    tracing::info!("finished tiles are kept in {}, {} at most", store.path().display(), size::render(store.limit()));
    Ok(store)
}

fn mount_options(args: &Mount, view: &View) -> MountOptions {
    MountOptions {
        source: view.plan().source.clone(),
        source_roots: view.source().local_roots().to_vec(),
        access: args.mount.access(),
    }
}

/// Threads that take requests.
pub(super) fn fuse_threads() -> usize {
    thread::available_parallelism().map_or(2, NonZero::get).clamp(2, MAX_FUSE_THREADS)
}

fn session_options(args: &Mount) -> SessionOptions {
    SessionOptions {
        owner: args.mount.owner(),
        threads: fuse_threads(),
        readahead: args.cache.window(),
        passthrough: args.cache.passthrough == Passthrough::Auto,
        epochs: true,
    }
}

/// The control channel; a mount works without it, but `status` does not see it.
fn control(session: &Arc<Session>, facts: &Arc<Facts>) -> Option<Control> {
    let Some(device) = session.place().device else {
        tracing::info!("a mount that was handed over has no control socket: its device number is unknown");
        return None;
    };
    let answers = Arc::new(Daemon { session: Arc::clone(session), facts: Arc::clone(facts) });
    Control::listen(device, answers).inspect_err(|e| tracing::warn!("no control socket: {e}")).ok()
}

struct Daemon {
    session: Arc<Session>,
    facts: Arc<Facts>,
}

impl Answers for Daemon {
    fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Status => Ok(self.facts.status()),
            Request::Unmount { force: true } => {
                signals::stop(&self.session, Force::Yes, signals::FORCED_GRACE);
                Ok(Value::Null)
            }
            Request::Unmount { force: false } => {
                let open = self.session.open_files();
                self.session.unmount(Force::No).map_err(|e| e.to_string())?;
                Ok(serde_json::json!({ "open_files": open, "pid": process::id() }))
            }
        }
    }
}
