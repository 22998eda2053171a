//! The model test: random histories on a tiny, nearly full pool, compared with plain maps step by step.
//!
//! Invariants: a seed decides everything; a failing case is shrunk and printed with the command that
//! repeats it. `ROWD_MODEL_CASES` and `ROWD_MODEL_SEED` choose how many and which.
//! Absent: real clients and real crashes; this is the engine alone, in this process.

mod compare;
mod copies;
mod data;
mod groups;
mod images;
mod lazy;
pub mod machine;
pub mod op;
mod power;
mod reference;
mod returning;
mod threads;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use machine::{Machine, Outcome};
use op::Op;
use rowd::pool::file::IoMode;

/// About a minute on two cores.
const CASES: u32 = 150;
/// Fewer on a real device, whose syncs take time.
const CASES_DIRECT: u32 = 30;
const SEED: u64 = 1;

fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is a number"))
}

fn run(ops: &[Op], io: IoMode) -> Outcome {
    let mut machine = Machine::in_mode(io)?;
    for (at, op) in ops.iter().enumerate() {
        machine.step(op).map_err(|why| format!("step {at}, {op:?}: {why}"))?;
    }
    machine.finish().map_err(|why| format!("at the end: {why}"))
}

/// Promise: after any history, crashes and power cuts included, every disk and snapshot holds what the
/// model holds, no block is leaked or shared by mistake, and every counter is exact.
#[test]
fn any_history_leaves_what_plain_maps_say() {
    compare_histories(IoMode::Buffered, CASES);
}

/// Promise: the same holds past the page cache, where journal pages are written whole and again.
#[test]
fn any_history_in_direct_mode_leaves_what_plain_maps_say() {
    compare_histories(IoMode::Direct, CASES_DIRECT);
}

fn compare_histories(io: IoMode, cases: u32) {
    let (seed, cases) = (number("ROWD_MODEL_SEED", SEED), number("ROWD_MODEL_CASES", cases.into()));
    println!("model test: seed {seed}, {cases} cases, {} I/O", io.name());
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: u32::try_from(cases).expect("a number of cases"),
        max_shrink_time: 30_000,
        max_shrink_iters: 4000,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&op::cases(), |ops| run(&ops, io).map_err(TestCaseError::fail));
    if let Err(TestError::Fail(why, ops)) = &outcome {
        let ops: Vec<String> = ops.iter().map(|op| format!("  {op:?}")).collect();
        let ops = ops.join("\n");
        panic!(
            "{why}\nshrunk to\n{ops}\nrepeat with: ROWD_MODEL_SEED={seed} ROWD_MODEL_CASES={cases} \
             cargo test --release -p rowd-tests --test it any_history"
        );
    }
    outcome.expect("only a failing case ends a run");
}
