//! `quantfs mount`: a view at a directory, by a process in the background.

use std::{
    io::{self, Write},
    num::NonZero,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use sd_notify::NotifyState;
use serde_json::Value;

use crate::{
    cli::{
        Failure,
        args::{CacheArgs, MountArgs, Passthrough},
        control::{Answers, Control, Request},
        daemon::{self, Ready, Report},
        facts::OfMount,
        options::ViewArgs,
        signals::{self, Stop},
        size,
        views::{Config, ManyArgs, Opened, Prospect},
    },
    fuse::{self, Force, Live, MountOptions, Session, SessionOptions, Show},
    source,
    store::{self, Store},
    view::Engine,
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
    quantfs mount ~/models/Some-Llama /mnt/llama --view small=3bit --view vllm=ct-4bit-g128 --any-view\n  \
    mount -t fuse.quantfs ~/models/Some-Llama /mnt/q4 -o spec=mlx-mxfp4,allow_other")]
pub struct Mount {
    /// A model directory, a repo id of the Hugging Face cache, or a .safetensors file
    pub source: String,
    /// An empty directory (or /dev/fd/N, a descriptor that is mounted already)
    pub mountpoint: PathBuf,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    many: ManyArgs,
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

    /// The file that the background process logs to.
    ///
    /// # Errors
    /// Where the directory of logs cannot be had.
    pub(super) fn log(&self) -> io::Result<Option<PathBuf>> {
        self.mount.report.then(|| daemon::log_of(&self.mountpoint)).transpose()
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
        if args.view.target()?.is_some() {
            // It may take longer than a mount may, and here somebody sees its progress; the process finds the answer.
            Config::new(&args.source, &args.view, &args.many)?.open()?;
        }
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
    if at.starts_with("/dev/fd/") {
        writeln!(out, "unmount it where it is mounted; status and remount do not reach it")?;
    } else {
        writeln!(out, "unmount with `quantfs umount {at}`")?;
    }
    Ok(())
}

/// Mounts, says so, and stays until the mount is gone.
fn serve(args: &Mount, say: impl FnOnce(Ready) -> io::Result<()>) -> Result<(), Failure> {
    daemon::limit_arenas();
    let stop = Stop::new()?;
    let config = Config::new(&args.source, &args.view, &args.many)?;
    let opened = config.open()?;
    let store = args.cache.cache_dir.as_ref().map(|dir| open_store(dir, args, &*opened.source)).transpose()?;
    let of_mount = OfMount::new(Engine::with_store(args.cache.engine(), store)?);
    let (source, options) = (opened.name().to_owned(), mount_options(args, &opened));
    let Prospect { show, spec, warnings } = opened.prospect(&config, &of_mount)?;
    let mounted = fuse::mount(&args.mountpoint, &options)?;
    let session = Arc::new(Session::start(mounted, show.clone(), &session_options(args))?);
    of_mount.attach(&session);
    let daemon = Arc::new(Daemon {
        session: Arc::clone(&session),
        of_mount,
        config: Mutex::new(config),
        show: Mutex::new(show),
    });
    let asked = Arc::clone(&daemon);
    stop.watch(Arc::clone(&session), move || asked.status())?;
    let _control = control(daemon);
    let mountpoint = session.place().path.display().to_string();
    notify(&[NotifyState::Ready, NotifyState::MainPid(process::id()), NotifyState::Status(&spec)]);
    let said = say(Ready { source, spec, mountpoint, pid: process::id(), warnings });
    if let Err(e) = said {
        // Who asked for the mount is gone, and does not know that it is there.
        session.unmount(Force::Yes)?;
        return Err(e.into());
    }
    let _ended = session.wait(None);
    tracing::info!("the mount is gone");
    notify(&[NotifyState::Stopping]);
    signals::end_within(signals::END_GRACE + SETTLING, "a worker or a disk hangs");
    settle(&session);
    Ok(())
}

/// Tells systemd, where it waits to hear (`Type=notify`).
fn notify(news: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(news) {
        tracing::warn!("systemd was not told: {e}");
    }
}

/// Lets what was read last reach the cache directory.
fn settle(session: &Session) {
    let begun = Instant::now();
    let left = || SETTLING.saturating_sub(begun.elapsed());
    if !session.awake().iter().all(|view| view.settle(left())) {
        tracing::info!("the cache directory was not up to date in time; the next mount goes on with it");
    }
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

fn mount_options(args: &Mount, opened: &Opened) -> MountOptions {
    MountOptions {
        source: opened.name().to_owned(),
        source_roots: opened.source.local_roots().to_vec(),
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
        released: daemon::release_memory,
    }
}

/// The control channel; a mount works without it, but `status` does not see it.
fn control(daemon: Arc<Daemon>) -> Option<Control> {
    let Some(device) = daemon.session.place().device else {
        tracing::info!("a mount that was handed over has no control socket: its device number is unknown");
        return None;
    };
    Control::listen(device, daemon).inspect_err(|e| tracing::warn!("no control socket: {e}")).ok()
}

struct Daemon {
    session: Arc<Session>,
    of_mount: Arc<OfMount>,
    /// Held while another one takes over.
    config: Mutex<Config>,
    show: Mutex<Show>,
}

impl Daemon {
    fn status(&self) -> Result<Value, String> {
        let show = self.show.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let facts = match show {
            Show::One(view) => view.facts,
            Show::Many(catalog) => catalog.facts(),
        };
        serde_json::from_slice(&facts.live(Live::Status)).map_err(|e| e.to_string())
    }

    /// Shows something else from now on; without words the same, planned from what the source is now.
    fn remount(&self, asked: Option<&(ViewArgs, ManyArgs)>) -> Result<Value, Failure> {
        let mut config_of_now = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        let config = match asked {
            Some((view, many)) => config_of_now.with(view, many)?,
            None => config_of_now.clone(),
        };
        let Prospect { show, spec, warnings } = config.open()?.prospect(&config, &self.of_mount)?;
        self.session.swap(show.clone())?;
        *config_of_now = config;
        *self.show.lock().unwrap_or_else(PoisonError::into_inner) = show;
        notify(&[NotifyState::Status(&spec)]);
        let milliseconds = (begun.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        tracing::info!("remounted as {spec} in {milliseconds:.1} ms");
        Ok(serde_json::json!({ "spec": spec, "warnings": warnings, "milliseconds": milliseconds }))
    }
}

impl Answers for Daemon {
    fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Status => self.status(),
            Request::Remount { asked } => {
                self.remount(asked.as_deref()).map_err(|failure| failure.line().unwrap_or_default().to_owned())
            }
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
