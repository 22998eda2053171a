//! What people see of snapshots, letter by letter.

use rowd_proto::{Place, Tags, Time};

use super::*;
use crate::render::Format;

fn plain() -> Output {
    let now = 1_769_850_000;
    Output { format: Format::Table, quiet: false, color: false, terminal: false, now }
}

fn snapshot(name: &str) -> Snapshot {
    Snapshot {
        id: format!("s-{name}"),
        name: name.to_owned(),
        description: String::new(),
        disk_id: "d-1".to_owned(),
        disk_name: Some("data1".to_owned()),
        size: 20 << 30,
        created_at: Time::from_unix(1_769_850_000),
        kind: SnapshotKind::Manual,
        consistency: Consistency::Crash,
        status: SnapshotStatus::Accomplished,
        progress: 100,
        remaining_s: None,
        reason: None,
        instant_access: true,
        instant_access_until: None,
        presence: vec![Place::Pool],
        repo: None,
        copy: None,
        actions: Vec::new(),
        exclusive_bytes: 12288,
        stored_bytes: 1 << 20,
        parent: None,
        expires_at: None,
        made_disks: Vec::new(),
        images: Vec::new(),
        tags: Tags::new(),
        clients: Vec::new(),
        encrypted: false,
        policy_id: None,
        scheduled_at: None,
        protected: false,
        filling: None,
    }
}

#[test]
fn a_table_of_normal_snapshots_is_quiet() {
    assert_eq!(
        table(&[snapshot("mon"), snapshot("tuesday")], &plain()),
        "SNAPSHOT       ID           SIZE  EXCLUSIVE  STORED  CREATED\n\
         data1@mon      s-mon      20 GiB     12 KiB   1 MiB  2026-01-31T09:00:00Z\n\
         data1@tuesday  s-tuesday  20 GiB     12 KiB   1 MiB  2026-01-31T09:00:00Z"
    );
}

#[test]
fn what_is_not_normal_is_said() {
    let mut undo = snapshot("before");
    undo.kind = SnapshotKind::Undo;
    undo.expires_at = Some(Time::from_unix(1_769_853_600));
    undo.disk_name = None;
    let mut parent = snapshot("base");
    parent.made_disks = vec!["d-2".to_owned(), "d-3".to_owned()];
    parent.status = SnapshotStatus::Deleting;
    let text = table(&[undo, parent], &plain());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("d-1@before "), "{text}");
    assert!(lines[1].ends_with("undo            expires 2026-01-31T10:00:00Z"), "{text}");
    assert!(lines[2].ends_with("      deleting  2 disks made from it"), "{text}");
}

#[test]
fn one_snapshot_in_full() {
    assert_eq!(
        fields(&snapshot("mon"), &plain()),
        "name         mon\n\
         id           s-mon\n\
         disk         data1 (d-1)\n\
         size         20 GiB\n\
         exclusive    12 KiB\n\
         stored       1 MiB\n\
         created      2026-01-31T09:00:00Z\n\
         kind         manual\n\
         consistency  crash\n\
         status       accomplished"
    );
}

#[test]
fn a_snapshot_on_its_way_says_where_it_goes_and_until_when_it_can_be_used() {
    let mut one = snapshot("mon");
    one.status = SnapshotStatus::Progressing;
    (one.progress, one.remaining_s, one.instant_access) = (37, Some(12), false);
    (one.repo, one.copy) = (Some("backup".to_owned()), Some("c-1".to_owned()));
    let text = fields(&one, &plain());
    for line in [
        "status       progressing, 37 %",
        "remaining    12 s",
        "in pool      until it is copied",
        "repository   backup",
        "copy         c-1",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert!(table(&[one.clone()], &plain()).ends_with("progressing, 37 %  to backup"));
    one.status = SnapshotStatus::Accomplished;
    (one.instant_access, one.instant_access_until) = (true, Some(Time::from_unix(1_769_853_600)));
    one.presence.push(Place::Repository);
    let text = table(&[one.clone()], &plain());
    assert!(text.ends_with("in backup, instant access until 2026-01-31T10:00:00Z"), "{text}");
    one.status = SnapshotStatus::Failed;
    one.reason = Some("no route".to_owned());
    let text = fields(&one, &plain());
    assert!(text.contains("reason       no route"), "{text}");
    assert!(text.contains("try again    rowctl copy retry c-1"), "{text}");
}

#[test]
fn a_diff_ends_with_its_total() {
    let ranges = [
        DiffRange { offset: 0, length: 8192, zero: false },
        DiffRange { offset: 1 << 20, length: 4096, zero: true },
    ];
    assert_eq!(
        diff_table(&ranges, &plain()),
        " OFFSET  LENGTH  NOW\n\
         \x20     0    8192  data\n\
         1048576    4096  zero\n\
         2 ranges, 12 KiB, of which 4 KiB are zeros now"
    );
    assert_eq!(diff_table(&[], &plain()), "no difference");
}

#[test]
fn json_has_every_field_of_the_contract() {
    let json = serde_json::to_value(snapshot("mon")).unwrap();
    for field in [
        "id",
        "name",
        "disk_id",
        "size",
        "created_at",
        "kind",
        "consistency",
        "status",
        "progress",
        "instant_access",
        "instant_access_until",
        "remaining_s",
        "reason",
        "presence",
        "repo",
        "copy",
        "exclusive_bytes",
        "tags",
    ] {
        assert!(json.get(field).is_some(), "{field}");
    }
    assert_eq!(json["created_at"], "2026-01-31T09:00:00Z");
    assert_eq!(json["size"], 20u64 << 30);
    assert_eq!(json["kind"], "manual");
    assert_eq!(json["status"], "accomplished");
}
