//! Inode numbers: a generation and an index, fixed for the life of a view.
//!
//! `generation << 32 | index + 1`. The root is 1 whatever it shows, since the kernel never asks for its number
//! again; the hidden directory at the root, and links beside many views, have generations of their own.

use fuser::INodeNo;

use super::live::Live;

/// The generation of what the root hides; views never get that far.
pub(super) const OF_ROOT: u32 = u32::MAX;

/// The generation of links; an index is the generation that a link leads to.
const LINKS: u32 = u32::MAX - 1;

/// The index of the hidden directory, in the view whose root hides it; its files follow. No plan has so many files.
const HIDDEN: u32 = u32::MAX - 16;

/// What an inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inode {
    /// The root of the mount.
    Root,
    /// A node of a view; index 0 is the directory of a view among many, whose generation is above 0.
    Node {
        /// Which view.
        generation: u32,
        /// Which node of it.
        index: u32,
    },
    /// `.quantfs` in the root of this generation.
    Hidden(u32),
    /// A file of it.
    Live(u32, Live),
    /// Another spelling of the name of this generation.
    Link(u32),
}

impl Inode {
    pub(super) fn number(self) -> INodeNo {
        let of = |generation: u32, index: u32| INodeNo((u64::from(generation) << 32) | (u64::from(index) + 1));
        match self {
            Self::Root => INodeNo::ROOT,
            Self::Node { generation, index } => of(generation, index),
            Self::Hidden(generation) => of(generation, HIDDEN),
            Self::Live(generation, live) => of(generation, HIDDEN + 1 + live as u32),
            Self::Link(generation) => of(LINKS, generation),
        }
    }

    /// `None` for a number that we never gave out.
    pub(super) fn of(number: INodeNo) -> Option<Self> {
        let generation = u32::try_from(number.0 >> 32).ok()?;
        let index = u32::try_from(number.0 & u64::from(u32::MAX)).ok()?.checked_sub(1)?;
        match (generation, index.checked_sub(HIDDEN)) {
            _ if number == INodeNo::ROOT => Some(Self::Root),
            (LINKS, None) => Some(Self::Link(index)),
            (_, Some(0)) => Some(Self::Hidden(generation)),
            (_, Some(n)) => {
                Live::ALL.into_iter().find(|live| *live as u32 == n - 1).map(|live| Self::Live(generation, live))
            }
            (OF_ROOT, None) => None,
            (generation, None) => Some(Self::Node { generation, index }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let mut all = vec![Inode::Root, Inode::Hidden(OF_ROOT), Inode::Hidden(3), Inode::Link(0), Inode::Link(7)];
        all.extend([(0, 1), (1, 0), (3, HIDDEN - 1)].map(|(generation, index)| Inode::Node { generation, index }));
        all.extend(Live::ALL.map(|live| Inode::Live(OF_ROOT, live)));
        all.extend(Live::ALL.map(|live| Inode::Live(5, live)));
        for inode in all {
            assert_eq!(Inode::of(inode.number()), Some(inode));
        }
        assert_eq!(Inode::of(INodeNo(0)), None);
        assert_eq!(Inode::of(INodeNo(3 << 32)), None);
        assert_eq!(Inode::of(INodeNo((3 << 32) | u64::from(u32::MAX))), None);
        assert_eq!(Inode::of(INodeNo((u64::from(OF_ROOT) << 32) | 9)), None);
    }
}
