//! Policies as people read them.
//!
//! Absent: asking for them (`policy.rs`), and the words of schedules (`words.rs`).

use rowd_proto::{
    Consistency, Policies, Policy, PolicyCatchUp, PolicyCopy, PolicyPreviewed, PolicyPruneReason,
    PolicyPruned, PolicyPrunedCopy,
};

use crate::render::{self, Columns, Fields, Heading, Output, Text};

use super::words;

pub fn names(policy: &Policy) -> String {
    policy.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// `in backup for 90d`.
fn copies(rule: &PolicyCopy) -> String {
    format!("in {} for {}", rule.repo, words::keep(&rule.keep))
}

pub fn fields(policy: &Policy, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("name", policy.name.clone());
    fields.add("id", policy.id.clone());
    fields.add_some("description", Some(policy.description.clone()));
    fields.add("schedule", words::schedule(&policy.schedule));
    fields.add("time zone", policy.timezone.clone());
    fields.add("keep", words::keep(&policy.keep));
    fields.add_some("copies", policy.copy.as_ref().map(copies));
    fields.add("consistency", policy.consistency.name());
    fields.add_some("catch up", (policy.catch_up == PolicyCatchUp::Once).then_some("once"));
    fields.add_some("tags", Some(render::tags(&policy.tags)));
    fields.add_some(
        "jitter",
        (policy.jitter > 0)
            .then(|| format!("up to {} after each time", words::length(policy.jitter))),
    );
    let instances: Vec<&str> = policy.instances.iter().map(|one| one.name.as_str()).collect();
    fields.add_some("instances", Some(instances.join(", ")));
    fields.add_some("disks", Some(names(policy)));
    fields.add("created", output.full_time(policy.created_at));
    fields.add_some("next run", policy.next_run_at.map(|at| output.full_time(at)));
    fields.add_some(
        "last run",
        policy.last_run.map(|run| {
            let at = output.full_time(run.scheduled_at);
            match run.skipped {
                0 => Text::from(format!("{at}, {} made", run.made)),
                skipped => Text::Alarm(format!(
                    "{at}, {} made, {skipped} left out: see rowctl events",
                    run.made
                )),
            }
        }),
    );
    fields.add_some("last success", policy.last_success_at.map(|at| output.full_time(at)));
    fields.render(output)
}

pub fn table(found: &Policies, output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("POLICY"),
        Heading::Left("ID"),
        Heading::Left("SCHEDULE"),
        Heading::Left("ZONE"),
        Heading::Left("KEEP"),
        Heading::Left("COPIES"),
        Heading::Left("LEVEL"),
        Heading::Right("DISKS"),
        Heading::Left("NEXT RUN"),
        Heading::Left("LAST SUCCESS"),
    ]);
    for policy in &found.policies {
        let level = policy.consistency;
        columns.row([
            policy.name.clone().into(),
            policy.id.clone().into(),
            words::schedule(&policy.schedule).into(),
            policy.timezone.clone().into(),
            words::keep(&policy.keep).into(),
            policy.copy.as_ref().map_or_else(String::new, copies).into(),
            if level == Consistency::Crash { "" } else { level.name() }.into(),
            policy.disks.len().to_string().into(),
            policy.next_run_at.map_or_else(String::new, |at| output.time(at)).into(),
            policy.last_success_at.map_or_else(String::new, |at| output.time(at)).into(),
        ]);
    }
    columns.render(output)
}

pub fn preview(found: &PolicyPreviewed, output: &Output) -> String {
    let mut lines = vec![format!("policy {} is due", found.policy.name)];
    lines.extend(found.runs.iter().map(|at| format!("  {}", output.full_time(*at))));
    if found.policy.disks.is_empty() {
        lines
            .push(format!("but no disk has it: rowctl policy apply {} DISK...", found.policy.name));
    }
    if found.pruned.is_empty() {
        lines.push("no snapshot would go now".to_owned());
    }
    let why = |reason| match reason {
        PolicyPruneReason::Expired => "its time is over",
        PolicyPruneReason::Counted => "there are enough newer ones",
        PolicyPruneReason::Quota => "the oldest beyond the quota",
    };
    let mut columns = Columns::new(&[
        Heading::Left("WOULD GO NOW"),
        Heading::Left("ID"),
        Heading::Left("COPY IN"),
        Heading::Left("WHY"),
    ]);
    for PolicyPruned { id, name, reason } in &found.pruned {
        columns.row([name.clone().into(), id.clone().into(), "".into(), why(*reason).into()]);
    }
    for PolicyPrunedCopy { id, name, repo, reason } in &found.pruned_copies {
        let (name, id, repo) = (name.clone(), id.clone(), repo.clone());
        columns.row([name.into(), id.into(), repo.into(), why(*reason).into()]);
    }
    let going = columns.render(output);
    lines.extend((!going.is_empty()).then_some(going));
    lines.join("\n")
}
