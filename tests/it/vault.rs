//! The vault: repositories in a directory and on an S3 server.
//!
//! Absent: Azure and Google, which have no server to run here.

mod access;
mod away;
pub mod copies;
mod courtesy;
mod deletes;
mod dense;
mod drill;
mod early;
mod encrypted;
mod endings;
mod handover;
mod heal;
mod images;
mod lazy;
mod lazy_clients;
mod life;
mod parts;
pub mod proxy;
mod relay;
mod repos;
mod returning;
mod reuse;
pub mod server;
mod together;
mod trouble;
mod two;
