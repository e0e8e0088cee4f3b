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
    errno::errno,
    generation::Generation,
    handles::Handle,
    inode::{Inode, OF_ROOT},
    live::Live,
    negotiate, passthrough,
    shared::{Root, Shared},
    target::{FOREVER, Lookup, Target},
};

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

/// An entry of a listing: inode, offset of the next one, name, and what is known of it.
struct Item<'a>(FileAttr, u64, &'a str, Duration);

impl Adapter {
    /// Does `then` with where an inode leads, now or later; a panic ends this request alone.
    fn at(
        &self,
        what: &'static str,
        number: INodeNo,
        then: impl FnOnce(&Self, Result<Target, Errno>) + Send + 'static,
    ) {
        let this = Self(Arc::clone(&self.0));
        self.0.with_target(number, move |target| guarded(what, || then(&this, target)));
    }

    fn reply_entry(&self, target: &Target, reply: ReplyEntry) {
        let (attr, attr_ttl) = self.0.attr_of(target);
        // A kernel that must be told each name is told those of views that were listed by then.
        let among_many = match target {
            Target::Link(_) => true,
            Target::Node(view, 0) => view.inode(0) != Inode::Root,
            _ => false,
        };
        let brief = among_many && !self.0.has_epochs();
        let name_ttl = if brief { self.0.absent_ttl() } else { FOREVER };
        reply.entry_with_ttls(&attr_ttl, &name_ttl, &attr, NO_REUSE);
    }

    fn look_up(&self, parent: Result<Target, Errno>, name: &OsStr, reply: ReplyEntry) {
        match parent.and_then(|parent| self.0.find(parent, name)) {
            Err(e) => reply.error(e),
            Ok(Lookup::Absent) => reply.entry(&self.0.absent_ttl(), &self.0.owner.absent(), NO_REUSE),
            Ok(Lookup::Here(target)) => self.reply_entry(&target, reply),
            Ok(Lookup::Unmade(directory, slot)) => {
                let this = Self(Arc::clone(&self.0));
                directory.wake(&slot, move |view| match view {
                    Ok(view) => guarded("lookup", || this.reply_entry(&Target::Node(view, 0), reply)),
                    Err(e) => reply.error(e),
                });
            }
        }
    }

    fn reply_attr(&self, number: INodeNo, target: Result<Target, Errno>, reply: ReplyAttr) {
        match target {
            Err(e) => reply.error(e),
            Ok(target) => {
                let (attr, ttl) = self.0.attr_of(&target);
                reply.attr(&ttl, &FileAttr { ino: number, ..attr });
            }
        }
    }

    fn open_file(&self, target: Result<Target, Errno>, reply: ReplyOpen) {
        match target {
            Err(e) => reply.error(e),
            Ok(Target::Hidden(_) | Target::Views(_) | Target::Asleep(..)) => reply.error(Errno::EISDIR),
            Ok(Target::Link(_)) => reply.error(Errno::ELOOP),
            Ok(Target::Live(generation, live)) => self.open_live(generation, live, reply),
            Ok(Target::Node(generation, node)) => self.open_node(generation, node, reply),
        }
    }

    fn open_live(&self, generation: u32, live: Live, reply: ReplyOpen) {
        let this = Self(Arc::clone(&self.0));
        self.0.with_facts(generation, move |facts| match facts {
            Err(e) => reply.error(e),
            Ok(facts) => guarded("open", || {
                let handle = this.0.handles.add(Handle::Live(facts.live(live)));
                reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
            }),
        });
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

    fn open_directory(&self, target: Result<Target, Errno>, reply: ReplyOpen) {
        let cached = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        let (handle, flags) = match target {
            Err(e) => return reply.error(e),
            Ok(Target::Live(..) | Target::Link(_) | Target::Asleep(..)) => return reply.error(Errno::ENOTDIR),
            Ok(Target::Hidden(generation)) => (Handle::Hidden(generation), FopenFlags::empty()),
            // The root's number survives what it shows, so the kernel must not keep its listing.
            Ok(Target::Views(directory)) => (Handle::Views(directory.listed()), FopenFlags::empty()),
            Ok(Target::Node(generation, node)) => {
                let flags = if generation.inode(node) == Inode::Root { FopenFlags::empty() } else { cached };
                (Handle::Directory { generation, node }, flags)
            }
        };
        reply.opened(self.0.handles.add(handle), flags);
    }

    /// Calls `add` with one entry after another until it says that it is full.
    fn list(&self, handle: FileHandle, offset: u64, mut add: impl FnMut(Item<'_>) -> bool) -> Result<(), Errno> {
        let handle = self.0.handles.get(handle).ok_or(Errno::EBADF)?;
        let (own, parent) = match handle.as_ref() {
            Handle::Directory { generation, node } => (generation.inode(*node), generation.parent(*node)),
            Handle::Views(_) => (Inode::Root, Inode::Root),
            Handle::Hidden(OF_ROOT) => (Inode::Hidden(OF_ROOT), Inode::Root),
            Handle::Hidden(generation) => {
                (Inode::Hidden(*generation), Inode::Node { generation: *generation, index: 0 })
            }
            Handle::File { .. } | Handle::Live(_) => return Err(Errno::ENOTDIR),
        };
        for (at, (inode, name)) in (1..).zip([(own, "."), (parent, "..")]).skip(usize::try_from(offset).unwrap_or(2)) {
            // The kernel takes only the number and the type of the dots.
            if add(Item(dots(self.0.owner.absent(), inode.number()), at, name, Duration::ZERO)) {
                return Ok(());
            }
        }
        for n in usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX).. {
            let Some((target, name)) = listed(&handle, n) else { break };
            let (attr, ttl) = self.0.attr_of(&target);
            // The kernel takes a listing for new when it comes, also one that was on its way when the root changed.
            let ttl = if own == Inode::Root { Duration::ZERO } else { ttl };
            if add(Item(attr, n as u64 + 3, name, ttl)) {
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
            Handle::Directory { .. } | Handle::Views(_) | Handle::Hidden(_) => reply.error(Errno::EISDIR),
        }
    }

    fn labels(&self, target: Result<Target, Errno>) -> Result<Vec<(&'static str, String)>, Errno> {
        Ok(match target? {
            Target::Node(generation, _) => generation.facts.labels(),
            Target::Views(_) => self.0.root().facts().labels(),
            Target::Hidden(_) | Target::Live(..) | Target::Link(_) | Target::Asleep(..) => Vec::new(),
        })
    }

    fn statfs_of(&self, reply: ReplyStatfs) {
        let (bytes, files) = match self.0.root() {
            Root::One(generation) => generation.totals(),
            Root::Many(directory) => {
                let listed = directory.listed();
                listed.iter().fold((0, 0), |(bytes, files), (_, seen)| (bytes + seen.bytes, files + seen.files))
            }
        };
        let blocks = bytes.div_ceil(u64::from(STATFS_BLOCK));
        reply.statfs(blocks, 0, 0, files, 0, STATFS_BLOCK, NAME_MAX, STATFS_BLOCK);
    }
}

/// The entry of this number in a directory, the dots not counted.
fn listed(handle: &Handle, n: usize) -> Option<(Target, &str)> {
    match handle {
        Handle::Directory { generation, node } => {
            let child = generation.children(*node).nth(n)?;
            Some((Target::Node(Arc::clone(generation), child), generation.name(child)))
        }
        Handle::Views(views) => {
            let (slot, seen) = views.get(n)?;
            Some((Target::Asleep(Arc::clone(slot), *seen), &slot.name))
        }
        Handle::Hidden(generation) => Live::ALL.get(n).map(|live| (Target::Live(*generation, *live), live.name())),
        Handle::File { .. } | Handle::Live(_) => None,
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
        let name = name.to_owned();
        self.at("lookup", parent, move |this, parent| this.look_up(parent, &name, reply));
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        // An open file answers for itself, even when its view is gone.
        let open = handle.and_then(|handle| self.0.handles.get(handle));
        match open.as_deref() {
            Some(Handle::File { generation, node } | Handle::Directory { generation, node }) => {
                let target = Target::Node(Arc::clone(generation), *node);
                guarded("getattr", || self.reply_attr(number, Ok(target), reply));
            }
            _ => self.at("getattr", number, move |this, target| this.reply_attr(number, target, reply)),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        self.at("open", number, move |this, target| this.open_file(target, reply));
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
        self.at("opendir", number, move |this, target| this.open_directory(target, reply));
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        guarded("releasedir", || {
            self.0.handles.remove(handle);
            reply.ok();
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guarded("readdir", || {
            match self.list(handle, offset, |Item(attr, next, name, _)| reply.add(attr.ino, next, attr.kind, name)) {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(e),
            }
        });
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        guarded("readdirplus", || {
            let add = |Item(attr, next, name, ttl): Item<'_>| reply.add(attr.ino, next, name, &ttl, &attr, NO_REUSE);
            match self.list(handle, offset, add) {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(e),
            }
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        guarded("statfs", || self.statfs_of(reply));
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        self.at("getxattr", number, move |this, target| match this.labels(target) {
            Err(e) => reply.error(e),
            Ok(labels) => match labels.iter().find(|(label, _)| name == *label) {
                Some((_, value)) => reply_sized(value.as_bytes(), size, reply),
                None => reply.error(Errno::NO_XATTR),
            },
        });
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        self.at("listxattr", number, move |this, target| match this.labels(target) {
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

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        self.at("readlink", number, move |_, target| match target {
            Ok(Target::Link(slot)) => reply.data(slot.name.as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(e) => reply.error(e),
        });
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
