//! Inode numbers: a generation and an index, fixed for the life of a view.
//!
//! `generation << 32 | index + 1`. The root is 1 in every generation, since the kernel never asks for
//! its number again; the hidden directory and its files have a generation of their own.

use fuser::INodeNo;

use super::live::Live;

/// The generation of the hidden directory; views never get that far.
const HIDDEN: u32 = u32::MAX;

/// What an inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inode {
    /// The root of the current view.
    Root,
    /// A node of the view that was mounted as the so-manieth.
    Node {
        /// Which view.
        generation: u32,
        /// Which node of it.
        index: u32,
    },
    /// `.quantfs`.
    Hidden,
    /// A file of `.quantfs`.
    Live(Live),
}

impl Inode {
    /// A node of a view; its first node is the root.
    pub(super) fn node(generation: u32, index: u32) -> Self {
        if index == 0 { Self::Root } else { Self::Node { generation, index } }
    }

    pub(super) fn number(self) -> INodeNo {
        let of = |generation: u32, index: u32| INodeNo((u64::from(generation) << 32) | (u64::from(index) + 1));
        match self {
            Self::Root => INodeNo::ROOT,
            Self::Node { generation, index } => of(generation, index),
            Self::Hidden => of(HIDDEN, 0),
            Self::Live(live) => of(HIDDEN, 1 + live as u32),
        }
    }

    /// `None` for a number that we never gave out.
    pub(super) fn of(number: INodeNo) -> Option<Self> {
        let high = u32::try_from(number.0 >> 32).ok()?;
        let low = u32::try_from(number.0 & u64::from(u32::MAX)).ok()?.checked_sub(1)?;
        match (high, low) {
            (_, 0) if number == INodeNo::ROOT => Some(Self::Root),
            (HIDDEN, 0) => Some(Self::Hidden),
            (HIDDEN, n) => Live::ALL.into_iter().find(|live| *live as u32 == n - 1).map(Self::Live),
            (generation, index) => Some(Self::Node { generation, index }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        assert_eq!(Inode::node(7, 0), Inode::Root);
        let mut all = vec![Inode::Root, Inode::Hidden, Inode::node(0, 1), Inode::node(3, u32::MAX - 1)];
        all.extend(Live::ALL.map(Inode::Live));
        for inode in all {
            assert_eq!(Inode::of(inode.number()), Some(inode));
        }
        assert_eq!(Inode::of(INodeNo(0)), None);
        assert_eq!(Inode::of(INodeNo(3 << 32)), None);
        assert_eq!(Inode::of(INodeNo((u64::from(HIDDEN) << 32) | 9)), None);
    }
}
