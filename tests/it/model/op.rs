//! What the model test does to a pool: operations as proptest makes and shrinks them.
//!
//! Invariants: objects are chosen by number, modulo how many there are, so that every operation of a
//! shrunk list still means something.
//! Absent: what operations do (`machine.rs`).

use proptest::prelude::*;

/// One data request, in blocks of the disk; `skew` bytes are cut off its start and end.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    pub kind: ItemKind,
    pub at: u16,
    pub blocks: u16,
    pub skew: (u16, u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    Write,
    Zero,
    ZeroStored,
    Trim,
}

#[derive(Clone, Debug)]
pub enum Op {
    Data { disk: u8, items: Vec<Item> },
    Flush { disk: u8 },
    Snapshot { disk: u8 },
    DeleteSnapshot { snapshot: u8, force: bool },
    Rollback { disk: u8, snapshot: u8, busy: bool },
    Undo { disk: u8, force: bool },
    Reinit { disk: u8 },
    Clone { snapshot: u8, extra_blocks: u8 },
    Create { blocks: u16 },
    Lazy { blocks: u16, seed: u64 },
    Fetch { disk: u8, from: u16, chunks: u8 },
    DeleteDisk { disk: u8, busy: bool },
    Resize { disk: u8, blocks: u16 },
    Rename { disk: u8 },
    Tag { disk: u8 },
    RenameSnapshot { snapshot: u8 },
    Group { disks: u8, keep: Option<bool> },
    DeleteGroup { group: u8, force: bool },
    ReturnToGroup { group: u8, disks: u8, first: bool, busy: bool },
    Image { snapshots: u8 },
    DeleteImage { image: u8, snapshots: bool, force: bool },
    Deploy { image: u8 },
    Keep { disk: u8, access: bool },
    Copy { snapshot: u8 },
    Access { snapshot: u8, on: bool },
    Return { disk: u8, snapshot: u8, busy: bool },
    Checkpoint,
    ReclaimStep { leaves: u8, steps: u8 },
    ReclaimAll,
    Reopen,
    CrashReopen,
    PowerCut { seed: u64 },
    Verify,
}

/// Lists of operations, as long as a case may be.
pub fn cases() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..120)
}

fn item() -> impl Strategy<Value = Item> {
    let kind = prop_oneof![
        6 => Just(ItemKind::Write),
        1 => Just(ItemKind::Zero),
        1 => Just(ItemKind::ZeroStored),
        2 => Just(ItemKind::Trim),
    ];
    let blocks = prop_oneof![4 => 1u16..4, 4 => 1u16..30, 1 => 60u16..140];
    let skew = prop_oneof![
        3 => Just((0, 0)),
        1 => (0u16..4096, 0u16..4096),
    ];
    (kind, any::<u16>(), blocks, skew).prop_map(|(kind, at, blocks, skew)| Item {
        kind,
        at,
        blocks,
        skew,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let blocks = prop_oneof![6 => 1u16..300, 1 => 4500u16..5000];
    let items = prop::collection::vec(item(), 1..5);
    let data = (any::<u8>(), items).prop_map(|(disk, items)| Op::Data { disk, items });
    let step = (1u8..4, 1u8..4).prop_map(|(leaves, steps)| Op::ReclaimStep { leaves, steps });
    // All disks half of the time.
    let some = prop_oneof![Just(0), any::<u8>()];
    let returns = (any::<(u8, bool, bool)>(), some)
        .prop_map(|((group, first, busy), disks)| Op::ReturnToGroup { group, disks, first, busy });
    let group = (prop_oneof![Just(u8::MAX), any::<u8>()], any::<Option<bool>>())
        .prop_map(|(disks, keep)| Op::Group { disks, keep });
    let lazy = (1u16..300, any::<u64>()).prop_map(|(blocks, seed)| Op::Lazy { blocks, seed });
    let fetch = (any::<u8>(), any::<u16>(), 1u8..20).prop_map(|(disk, from, chunks)| Op::Fetch {
        disk,
        from,
        chunks,
    });
    prop_oneof![
        40 => data,
        4 => any::<u8>().prop_map(|disk| Op::Flush { disk }),
        9 => any::<u8>().prop_map(|disk| Op::Snapshot { disk }),
        6 => any::<(u8, bool)>().prop_map(|(snapshot, force)| Op::DeleteSnapshot { snapshot, force }),
        4 => any::<(u8, u8, bool)>()
            .prop_map(|(disk, snapshot, busy)| Op::Rollback { disk, snapshot, busy }),
        2 => any::<(u8, bool)>().prop_map(|(disk, force)| Op::Undo { disk, force }),
        1 => any::<u8>().prop_map(|disk| Op::Reinit { disk }),
        3 => (any::<u8>(), 0u8..9)
            .prop_map(|(snapshot, extra_blocks)| Op::Clone { snapshot, extra_blocks }),
        2 => blocks.clone().prop_map(|blocks| Op::Create { blocks }),
        3 => lazy,
        6 => fetch,
        2 => any::<(u8, bool)>().prop_map(|(disk, busy)| Op::DeleteDisk { disk, busy }),
        2 => (any::<u8>(), blocks).prop_map(|(disk, blocks)| Op::Resize { disk, blocks }),
        1 => any::<u8>().prop_map(|disk| Op::Rename { disk }),
        1 => any::<u8>().prop_map(|disk| Op::Tag { disk }),
        1 => any::<u8>().prop_map(|snapshot| Op::RenameSnapshot { snapshot }),
        4 => group,
        1 => any::<(u8, bool)>().prop_map(|(group, force)| Op::DeleteGroup { group, force }),
        4 => returns,
        3 => any::<u8>().prop_map(|snapshots| Op::Image { snapshots }),
        2 => any::<(u8, bool, bool)>()
            .prop_map(|(image, snapshots, force)| Op::DeleteImage { image, snapshots, force }),
        2 => any::<u8>().prop_map(|image| Op::Deploy { image }),
        7 => any::<(u8, bool)>().prop_map(|(disk, access)| Op::Keep { disk, access }),
        7 => any::<u8>().prop_map(|snapshot| Op::Copy { snapshot }),
        4 => any::<(u8, bool)>().prop_map(|(snapshot, on)| Op::Access { snapshot, on }),
        4 => any::<(u8, u8, bool)>()
            .prop_map(|(disk, snapshot, busy)| Op::Return { disk, snapshot, busy }),
        4 => Just(Op::Checkpoint),
        8 => step,
        3 => Just(Op::ReclaimAll),
        2 => Just(Op::Reopen),
        4 => Just(Op::CrashReopen),
        6 => any::<u64>().prop_map(|seed| Op::PowerCut { seed }),
        3 => Just(Op::Verify),
    ]
}
