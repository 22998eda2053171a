//! `rowctl repo`: object stores that hold copies of snapshots.
//!
//! Invariants: no credential is an argument, only where credentials are.
//! Absent: copies of snapshots.

use clap::{Args, Subcommand};
use rowd_proto::size::{self, Size};
use rowd_proto::{Repo, RepoAdd, RepoCheck, RepoList, RepoRemove, RepoSet, RepoShow};

use crate::confirm::confirm;
use crate::error::{Outcome, Result};
use crate::render::{Columns, Fields, Heading, Output};

use super::Context;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a repository known; an empty place becomes a new one
    #[command(after_help = "Examples:
  rowctl repo add backup file:///srv/backup/rowd
  rowctl repo add minio s3://rowd/host1 --endpoint https://minio.example:9000 \\
      --credentials file:/etc/rowd/minio.keys
  rowctl repo add aws s3://my-bucket --region eu-central-1 --credentials systemd:aws

Credentials are NAME=VALUE lines in a file that only root can read, or in the daemon's
environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3; AZURE_STORAGE_ACCOUNT_NAME
and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN for az. For gs the file is the JSON
key of a service account.")]
    Add(Add),
    /// List repositories
    #[command(visible_alias = "ls", after_help = "Example:\n  rowctl repo list")]
    List,
    /// Show one repository
    #[command(after_help = "Example:\n  rowctl repo show backup")]
    Show {
        /// Name
        repo: String,
    },
    /// Choose the repository that snapshots are copied to when none is named
    #[command(after_help = "Examples:
  rowctl repo set backup --default
  rowctl repo set backup --no-default")]
    Set(Set),
    /// Forget a repository; what is in it stays
    #[command(visible_alias = "rm", after_help = "Example:\n  rowctl repo remove backup --yes")]
    Remove {
        /// Name
        repo: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Try out all that is needed of a repository
    #[command(after_help = "Example:\n  rowctl repo check backup")]
    Check {
        /// Name
        repo: String,
    },
}

#[derive(Args, Debug)]
pub struct Add {
    name: String,
    /// file:///DIR, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX
    url: String,
    /// Server to ask, where it is not the one of the cloud: `https://HOST[:PORT]`
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Region of the bucket [default: us-east-1]
    #[arg(long)]
    region: Option<String>,
    /// Where the credentials are: env, file:/PATH or systemd:NAME
    #[arg(long, value_name = "SOURCE", default_value = "env")]
    credentials: String,
    /// Use plain HTTP beyond this host, in a network you trust
    #[arg(long)]
    allow_http: bool,
    /// Bytes per second at most, as in 20MiB
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<Size>,
    /// Take a repository that is there, and make no new one
    #[arg(long)]
    existing: bool,
    /// Copy new snapshots there, unless --repo or --local says otherwise
    #[arg(long)]
    default: bool,
}

#[derive(Args, Debug)]
pub struct Set {
    /// Name
    repo: String,
    #[command(flatten)]
    default: Default,
}

/// One of the two.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Default {
    /// Copy new snapshots there, unless --repo or --local says otherwise
    #[arg(long)]
    default: bool,
    /// Keep new snapshots in the pool, unless --repo says otherwise
    #[arg(long)]
    no_default: bool,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    match verb {
        Verb::Add(args) => {
            let repo = client.call_patiently(&RepoAdd {
                name: args.name,
                url: args.url,
                endpoint: args.endpoint,
                region: args.region,
                credentials: Some(args.credentials),
                allow_http: args.allow_http,
                bandwidth: args.bandwidth.map_or(0, |rate| rate.0),
                existing: args.existing,
                default: args.default,
            })?;
            print(&repo, context)?;
        }
        Verb::List => {
            let all = client.call(&RepoList {})?.repos;
            context.output.list(&all, |one| one.name.clone(), |output| table(&all, output))?;
        }
        Verb::Show { repo } => print(&client.call(&RepoShow { repo })?, context)?,
        Verb::Set(Set { repo, default: Default { default, .. } }) => {
            print(&client.call(&RepoSet { repo, default })?, context)?;
        }
        Verb::Remove { repo, yes } => {
            let found = client.call(&RepoShow { repo: repo.clone() })?;
            confirm(yes, &format!("forget repository {repo}; what is in it stays"))?;
            client.call(&RepoRemove { repo })?;
            context.output.object(&found, &found.name, |_| {
                format!("repository {} is forgotten; what is in it stays", found.name)
            })?;
        }
        Verb::Check { repo } => {
            let checked = client.call_patiently(&RepoCheck { repo })?;
            context.output.object(&checked, &checked.id, |output| {
                let mut columns =
                    Columns::new(&[Heading::Left("WORKS"), Heading::Right("MILLISECONDS")]);
                for step in &checked.steps {
                    columns.row([step.what.clone().into(), step.millis.to_string().into()]);
                }
                columns.render(output)
            })?;
        }
    }
    Ok(Outcome::Done)
}

fn print(repo: &Repo, context: &Context) -> Result<()> {
    context.output.object(repo, &repo.name, |output| fields(repo, output))
}

fn fields(repo: &Repo, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("name", repo.name.clone());
    fields.add("id", repo.id.clone());
    fields.add("url", repo.url.clone());
    fields.add_some("endpoint", repo.endpoint.clone());
    fields.add_some("region", repo.region.clone());
    fields.add("credentials", repo.credentials.clone());
    fields.add_some("plain http", repo.allow_http.then(|| "allowed".to_owned()));
    fields.add_some("bandwidth", bandwidth(repo));
    fields.add_some("default", repo.default.then_some("yes"));
    fields.add("added", output.full_time(repo.added_at));
    fields.render(output)
}

fn bandwidth(repo: &Repo) -> Option<String> {
    (repo.bandwidth > 0).then(|| format!("{}/s", size::human(repo.bandwidth)))
}

fn table(repos: &[Repo], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("REPOSITORY"),
        Heading::Left("URL"),
        Heading::Left("ENDPOINT"),
        Heading::Right("BANDWIDTH"),
        Heading::Left("NOTE"),
    ]);
    for repo in repos {
        columns.row([
            repo.name.clone().into(),
            repo.url.clone().into(),
            repo.endpoint.clone().unwrap_or_default().into(),
            bandwidth(repo).unwrap_or_default().into(),
            if repo.default { "default" } else { "" }.into(),
        ]);
    }
    columns.render(output)
}
