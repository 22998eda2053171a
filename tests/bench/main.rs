//! The benchmark: rowd in one table with other NBD servers, and the curves nobody publishes.
//!
//! Invariants: whatever it makes and starts is gone when it ends, also after Ctrl-C; it prints the
//! machine before the numbers.
//! Absent: judging noise; a reader sees the ratio of each round.

mod control;
mod curves;
mod daemon;
mod fio;
mod guard;
mod machine;
mod nbd;
mod options;
mod race;
mod report;
mod server;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use options::Options;

/// What all takes that does not grow with `--mapped`, with room to spare: the largest are copies.
const SPACE: u64 = 21 << 30;
/// What the larger size of the curves takes of its own, as one and a half.
const SPACE_OF_MAPPED: (u64, u64) = (3, 2);
const BEGIN: &str = "<!-- the last run begins -->";
const END: &str = "<!-- the last run ends -->";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{}", options::HELP);
        return ExitCode::SUCCESS;
    }
    if args.iter().any(|arg| arg == "--list") {
        println!("--only:\n  {}", options::names().join("\n  "));
        println!("--server:\n  {}", server::Kind::ALL.map(server::Kind::name).join("\n  "));
        return ExitCode::SUCCESS;
    }
    match Options::parse(&args).and_then(|options| run(&options)) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("rowd-bench: {why}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, String> {
    let free = machine::free_bytes(&options.dir);
    let needed = SPACE + options.mapped * SPACE_OF_MAPPED.0 / SPACE_OF_MAPPED.1;
    if free < needed && !options.quick {
        return Err(format!(
            "{} has {} free; this run needs {}: choose another --dir, or a smaller --mapped",
            options.dir.display(),
            rowd_proto::size::human(free),
            rowd_proto::size::human(needed)
        ));
    }
    guard::watch_signals();
    let dir = tempfile::TempDir::with_prefix_in("rowd-bench-", &options.dir)
        .map_err(|e| format!("{}: {e}", options.dir.display()))?;
    let facts = machine::facts(options);
    if !options.quick {
        machine::keep_memory_in_use(dir.path());
    }
    let race = race::run(options, dir.path());
    let curves = curves::run(options, dir.path());
    let text = render(options, &facts, race.as_ref(), curves.as_ref());
    println!("{text}");
    let tables = [race.as_ref(), curves.as_ref()];
    let short: usize = tables.iter().flatten().map(|(table, _)| table.short()).sum();
    let value = |table: Option<&(report::Table, Value)>| table.map(|(_, value)| value.clone());
    if let Some(path) = &options.json {
        let facts: serde_json::Map<String, Value> =
            facts.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let all = json!({
            "facts": facts, "quick": options.quick, "race": value(tables[0]),
            "curves": value(tables[1]),
        });
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        std::fs::write(path, format!("{all:#}\n")).map_err(failed)?;
    }
    if options.write_results {
        write_results(&text)?;
    }
    Ok(if short > 0 && options.strict { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

type Part<'a> = Option<&'a (report::Table, Value)>;

fn render(options: &Options, facts: &[(&str, String)], race: Part<'_>, curves: Part<'_>) -> String {
    let mut text = String::new();
    let mut put = |line: &str| writeln!(text, "{line}").expect("a text grows");
    if options.quick {
        put("A quick run: it shows that everything works, and measures nothing.\n");
    }
    for (name, value) in facts {
        put(&format!("* {name}: {value}"));
    }
    let human = rowd_proto::size::human;
    if let Some((table, _)) = race {
        put(&format!(
            "\nMedians of {} rounds of {} s on {} disks, fio's nbd engine over Unix sockets, data in the \
             page cache:\n",
            options.rounds,
            options.runtime,
            human(options.disk)
        ));
        put(&table.to_string());
    }
    if let Some((table, _)) = curves {
        let [small, large] = options.sizes().map(human);
        put(&format!("\nThe curves, small {small} and large {large}:\n"));
        put(&table.to_string());
    }
    text
}

/// Puts the run between the marks in RESULTS.md; what people wrote around them stays.
fn write_results(run: &str) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/RESULTS.md");
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let old = std::fs::read_to_string(&path).map_err(failed)?;
    let (head, rest) = old.split_once(BEGIN).ok_or("RESULTS.md has lost its first mark")?;
    let (_, tail) = rest.split_once(END).ok_or("RESULTS.md has lost its second mark")?;
    let new = format!("{head}{BEGIN}\n\n{}\n\n{END}{tail}", run.trim());
    std::fs::write(&path, new).map_err(failed)
}
