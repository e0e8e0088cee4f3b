//! The requests of the kernel: each is converted, answered by the view, and replied to.
//!
//! No request waits here: a read that has to encode takes its reply along to the worker that
//! finishes it, so that a few threads serve everybody. A panic ends its own request (with EIO) and
//! nothing else. Whatever would change something is refused with EROFS.

use std::{
    ffi::OsStr,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation as Reuse, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use crate::view;

use super::{
    attr::Shape,
    errno::errno,
    generation::Generation,
    handles::Handle,
    inode::Inode,
    live::{HIDDEN_DIR, Live},
    negotiate, passthrough,
    shared::Shared,
};

/// How long the kernel may believe names and attributes: they do not change for as long as their
/// generation lives.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Inode numbers are never used again.
const NO_REUSE: Reuse = Reuse(0);

/// statfs counts in these; many programs expect the page's size.
const STATFS_BLOCK: u32 = 4096;

/// Longest name, as on every Linux file system.
const NAME_MAX: u32 = 255;

/// A session's side of the protocol.
#[derive(Debug)]
pub(super) struct Adapter(pub(super) Arc<Shared>);

/// Runs a request. Where it panics its reply is dropped on the way, which answers EIO.
fn guarded(what: &'static str, request: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(request)).is_err() {
        tracing::error!("a panic ended a request ({what}); its reader got EIO");
    }
}

/// Where an inode leads.
enum Target {
    Node(Arc<Generation>, u32),
    Hidden,
    Live(Live),
}

impl Adapter {
    /// # Errors
    /// ESTALE for a node of a view that is gone.
    fn target(&self, number: INodeNo) -> Result<Target, Errno> {
        Ok(match Inode::of(number).ok_or(Errno::ENOENT)? {
            Inode::Root => Target::Node(self.0.current(), 0),
            Inode::Node { generation, index } => {
                let generation = self.0.generation(generation).ok_or(Errno::ESTALE)?;
                if !generation.contains(index) {
                    return Err(Errno::ESTALE);
                }
                Target::Node(generation, index)
            }
            Inode::Hidden => Target::Hidden,
            Inode::Live(live) => Target::Live(live),
        })
    }

    fn attr(&self, generation: &Generation, node: u32) -> FileAttr {
        self.0.owner.attr(generation.inode(node), generation.shape(node), generation.modified(node))
    }

    /// Attributes with their life time.
    fn attr_of(&self, target: &Target) -> (FileAttr, Duration) {
        let started = self.0.started;
        match target {
            Target::Node(generation, node) => (self.attr(generation, *node), FOREVER),
            Target::Hidden => (self.0.owner.attr(Inode::Hidden, Shape::Directory { directories: 0 }, started), FOREVER),
            // Nobody knows its length before it is opened; reads past the page cache need none.
            Target::Live(live) => {
                let attr = self.0.owner.attr(Inode::Live(*live), Shape::File { len: 0 }, SystemTime::now());
                (attr, Duration::ZERO)
            }
        }
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<Option<Target>, Errno> {
        Ok(match self.target(parent)? {
            Target::Node(_, 0) if name == HIDDEN_DIR => Some(Target::Hidden),
            Target::Node(generation, node) => {
                let found = name.to_str().and_then(|name| generation.lookup(node, name));
                found.map(|child| Target::Node(generation, child))
            }
            Target::Hidden => Live::find(name).map(Target::Live),
            Target::Live(_) => return Err(Errno::ENOTDIR),
        })
    }

    fn open_file(&self, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        match self.target(number) {
            Err(e) => reply.error(e),
            Ok(Target::Hidden) => reply.error(Errno::EISDIR),
            Ok(Target::Live(live)) => {
                let content = self.0.current().facts.live(live);
                let handle = self.0.handles.add(Handle::Live(content));
                reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
            }
            Ok(Target::Node(generation, node)) => self.open_node(generation, node, reply),
        }
    }

    fn open_node(&self, generation: Arc<Generation>, node: u32, reply: ReplyOpen) {
        if !generation.is_file(node) {
            return reply.error(Errno::EISDIR);
        }
        match generation.may_pass(node).filter(|_| self.0.passes()) {
            None => self.0.opened(generation, node, None, reply),
            Some(file) => passthrough::open(&self.0, generation, node, file, reply),
        }
    }

    fn open_directory(&self, number: INodeNo, reply: ReplyOpen) {
        let (handle, flags) = match self.target(number) {
            Err(e) => return reply.error(e),
            Ok(Target::Live(_)) => return reply.error(Errno::ENOTDIR),
            Ok(Target::Hidden) => (Handle::Hidden, FopenFlags::empty()),
            // The root's number survives its view, so the kernel must not keep its listing.
            Ok(Target::Node(generation, 0)) => (Handle::Directory { generation, node: 0 }, FopenFlags::empty()),
            Ok(Target::Node(generation, node)) => {
                (Handle::Directory { generation, node }, FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE)
            }
        };
        reply.opened(self.0.handles.add(handle), flags);
    }

    /// Calls `add(inode, offset of the next entry, kind, name, target)` until it says that it is full.
    fn list(
        &self,
        handle: FileHandle,
        offset: u64,
        mut add: impl FnMut(INodeNo, u64, FileType, &str, Option<&Target>) -> bool,
    ) -> Result<(), Errno> {
        let handle = self.0.handles.get(handle).ok_or(Errno::EBADF)?;
        let (own, parent, children) = match handle.as_ref() {
            Handle::Directory { generation, node } => {
                (generation.inode(*node), generation.inode(generation.parent(*node)), generation.children(*node))
            }
            Handle::Hidden => (Inode::Hidden, Inode::Root, 0..0),
            _ => return Err(Errno::ENOTDIR),
        };
        for (at, (inode, name)) in (1..).zip([(own, "."), (parent, "..")]).skip(usize::try_from(offset).unwrap_or(2)) {
            if add(inode.number(), at, FileType::Directory, name, None) {
                return Ok(());
            }
        }
        let skip = usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX);
        let target = |n: usize| match handle.as_ref() {
            Handle::Directory { generation, .. } => {
                let node = children.clone().nth(n)?;
                Some((Target::Node(Arc::clone(generation), node), generation.name(node)))
            }
            _ => Live::ALL.get(n).map(|live| (Target::Live(*live), live.name())),
        };
        for n in skip.. {
            let Some((target, name)) = target(n) else { break };
            let attr = self.attr_of(&target).0;
            if add(attr.ino, n as u64 + 3, attr.kind, name, Some(&target)) {
                break;
            }
        }
        Ok(())
    }

    fn read_handle(&self, handle: FileHandle, offset: u64, len: u32, access: view::Access, reply: ReplyData) {
        let Some(handle) = self.0.handles.get(handle) else { return reply.error(Errno::EBADF) };
        match handle.as_ref() {
            Handle::Live(content) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let to = from.saturating_add(len as usize).min(content.len());
                reply.data(&content[from..to]);
            }
            Handle::File { generation, node } => generation.read_then(
                *node,
                offset,
                len,
                access,
                Box::new(move |bytes| match bytes {
                    Ok(bytes) => reply.data(bytes),
                    Err(e) => reply.error(Errno::from_i32(errno(&e))),
                }),
            ),
            Handle::Directory { .. } | Handle::Hidden => reply.error(Errno::EISDIR),
        }
    }

    fn labels(&self, number: INodeNo) -> Result<Vec<(&'static str, String)>, Errno> {
        Ok(match self.target(number)? {
            Target::Node(generation, _) => generation.facts.labels(),
            Target::Hidden | Target::Live(_) => Vec::new(),
        })
    }

    fn statfs_of(&self, reply: ReplyStatfs) {
        let generation = self.0.current();
        let (bytes, files) = generation.totals();
        let blocks = bytes.div_ceil(u64::from(STATFS_BLOCK));
        reply.statfs(blocks, 0, 0, files, 0, STATFS_BLOCK, NAME_MAX, STATFS_BLOCK);
    }
}

/// The two-step way of extended attributes: first the size, then the value.
fn reply_sized(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate::negotiate(config, &self.0);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("lookup", || match self.find(parent, name) {
            Err(e) => reply.error(e),
            Ok(None) => reply.entry(&self.0.absent_ttl(), &self.0.owner.absent(), NO_REUSE),
            Ok(Some(target)) => {
                let (attr, attr_ttl) = self.attr_of(&target);
                reply.entry_with_ttls(&attr_ttl, &FOREVER, &attr, NO_REUSE);
            }
        });
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        guarded("getattr", || {
            // An open file answers for itself, even when its view is gone.
            let open = handle.and_then(|handle| self.0.handles.get(handle));
            let target = match open.as_deref() {
                Some(Handle::File { generation, node } | Handle::Directory { generation, node }) => {
                    Ok(Target::Node(Arc::clone(generation), *node))
                }
                _ => self.target(number),
            };
            match target {
                Err(e) => reply.error(e),
                Ok(target) => {
                    let (attr, ttl) = self.attr_of(&target);
                    reply.attr(&ttl, &FileAttr { ino: number, ..attr });
                }
            }
        });
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded("open", || self.open_file(number, flags, reply));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let direct = flags.0 & libc::O_DIRECT != 0;
        let access = if direct { view::Access::Direct } else { view::Access::Detect };
        guarded("read", || self.read_handle(handle, offset, len, access, reply));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        guarded("release", || {
            self.0.handles.remove(handle);
            reply.ok();
        });
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        guarded("opendir", || self.open_directory(number, reply));
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        guarded("releasedir", || {
            self.0.handles.remove(handle);
            reply.ok();
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guarded("readdir", || {
            match self.list(handle, offset, |inode, next, kind, name, _| reply.add(inode, next, kind, name)) {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(e),
            }
        });
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        guarded("readdirplus", || {
            let listed = self.list(handle, offset, |inode, next, _, name, target| {
                let (attr, ttl) = match target {
                    Some(target) => self.attr_of(target),
                    // The kernel takes only the number and the type of the dots.
                    None => (dots(self.0.owner.absent(), inode), Duration::ZERO),
                };
                reply.add(inode, next, name, &ttl, &attr, NO_REUSE)
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(e),
            }
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        guarded("statfs", || self.statfs_of(reply));
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        guarded("getxattr", || match self.labels(number) {
            Err(e) => reply.error(e),
            Ok(labels) => match labels.iter().find(|(label, _)| name == *label) {
                Some((_, value)) => reply_sized(value.as_bytes(), size, reply),
                None => reply.error(Errno::NO_XATTR),
            },
        });
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        guarded("listxattr", || match self.labels(number) {
            Err(e) => reply.error(e),
            Ok(labels) => {
                let names: String = labels.iter().flat_map(|(name, _)| [name, "\0"]).collect();
                reply_sized(names.as_bytes(), size, reply);
            }
        });
    }

    fn access(&self, _: &Request, _: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        if mask.contains(AccessFlags::W_OK) { reply.error(Errno::EROFS) } else { reply.ok() }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // The kernel answers these two itself once it has heard ENOSYS.
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    // From here on: what would change something.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &std::path::Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }
}

fn dots(attr: FileAttr, ino: INodeNo) -> FileAttr {
    FileAttr { ino, kind: FileType::Directory, perm: 0o555, ..attr }
}
