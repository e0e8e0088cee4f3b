//! Attributes: what `stat` says of a node of the view.

use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo};

use super::{inode::Inode, mount::Access};

/// What programs that buffer read at least: those that look at a header should not have megabytes made for it. Who
/// reads a lot takes larger steps by itself, and the kernel reads ahead.
const BLOCK_LEN: u32 = 4096;

/// Size of the blocks that `stat` counts, whatever the block size is.
const STAT_BLOCK: u64 = 512;

/// Who owns what is shown, and which permissions are taken away.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// User of every file.
    pub uid: u32,
    /// Group of every file.
    pub gid: u32,
    /// Bits that are taken from 0444 and 0555.
    pub umask: u16,
}

/// A directory or a file, as far as its attributes go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// With so many subdirectories.
    Directory { directories: u32 },
    /// With so many bytes.
    File { len: u64 },
    /// To a path of so many bytes.
    Link { len: u64 },
}

impl Shape {
    pub(super) fn kind(self) -> FileType {
        match self {
            Self::Directory { .. } => FileType::Directory,
            Self::File { .. } => FileType::RegularFile,
            Self::Link { .. } => FileType::Symlink,
        }
    }
}

/// The permissions of everybody but the owner.
const OTHERS: u16 = 0o077;

impl Owner {
    /// The same for a mount that others may not use. The kernel answers them from its cache without
    /// asking who they are, so the permissions have to say it.
    pub(super) fn fenced(self, access: Access, mounter: u32) -> Self {
        match access {
            Access::Everyone => self,
            // The kernel itself turns others away here; the mask would lock out whoever mounts in another
            // user's name.
            Access::Owner if self.uid != mounter => self,
            Access::Owner | Access::OwnerAndRoot => Self { umask: self.umask | OTHERS, ..self },
        }
    }

    pub(super) fn attr(&self, inode: Inode, shape: Shape, modified: SystemTime) -> FileAttr {
        let (perm, nlink, size) = match shape {
            Shape::Directory { directories } => (0o555, directories.saturating_add(2), 0),
            Shape::File { len } => (0o444, 1, len),
            Shape::Link { len } => (0o777, 1, len),
        };
        FileAttr {
            ino: inode.number(),
            size,
            blocks: size.div_ceil(STAT_BLOCK),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind: shape.kind(),
            // Nobody asks for a link's.
            perm: if shape.kind() == FileType::Symlink { perm } else { perm & !self.umask },
            nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: BLOCK_LEN,
            flags: 0,
        }
    }

    /// The answer that a name is absent, in a form that the kernel remembers: an entry without an
    /// inode.
    pub(super) fn absent(&self) -> FileAttr {
        let nothing = self.attr(Inode::Root, Shape::File { len: 0 }, SystemTime::UNIX_EPOCH);
        FileAttr { ino: INodeNo(0), ..nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_may_not_use_says_so() {
        let umask = |uid, access| Owner { uid, gid: 0, umask: 0o002 }.fenced(access, 7).umask;
        assert_eq!(umask(7, Access::Everyone), 0o002);
        assert_eq!([umask(7, Access::Owner), umask(7, Access::OwnerAndRoot)], [0o077; 2]);
        assert_eq!([umask(8, Access::Owner), umask(8, Access::OwnerAndRoot)], [0o002, 0o077]);
    }

    #[test]
    fn sizes_and_permissions() {
        let owner = Owner { uid: 7, gid: 8, umask: 0o077 };
        let file =
            owner.attr(Inode::Node { generation: 0, index: 5 }, Shape::File { len: 513 }, SystemTime::UNIX_EPOCH);
        assert_eq!((file.size, file.blocks, file.perm, file.nlink), (513, 2, 0o400, 1));
        assert_eq!((file.uid, file.gid), (7, 8));
        let dir = owner.attr(Inode::Root, Shape::Directory { directories: 3 }, SystemTime::UNIX_EPOCH);
        assert_eq!((dir.perm, dir.nlink, dir.ino), (0o500, 5, INodeNo::ROOT));
        assert_eq!(owner.absent().ino, INodeNo(0));
    }
}
