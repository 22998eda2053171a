//! The NBD handshake: from an accepted connection to an export in use.
//!
//! Follows the "NBD protocol", doc/proto.md, "Fixed newstyle negotiation".
//!
//! Invariants:
//! - a client that has not asked for an export yet costs this task, one buffer and nothing else;
//! - whatever a client sends, the handshake ends: within [`DEADLINE`], after [`OPTIONS_MAX`]
//!   options, [`DATA_MAX`] bytes kept and [`DRAIN_MAX`] bytes thrown away;
//! - nothing is read beyond the option that ends the handshake: requests that follow it stay in the
//!   socket for the transmission phase.
//!
//! Absent: the meaning of options (`options`); oldstyle and unfixed newstyle beyond `EXPORT_NAME`.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::exports::{Exports, Negotiated};
use super::options::{Options, Step};
use super::wire_option::{self, ClientFlags, OPTION_HEADER_LEN, OptionHeader};
use crate::error::{Error, ErrorKind, Result};

/// Time for the whole handshake. Clients that connect and stay silent would otherwise hold
/// connections for ever; an honest one needs milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Options in one handshake. Clients send fewer than ten; one that asks for the details of every
/// export may reconnect.
pub const OPTIONS_MAX: u32 = 64;

/// Bytes of data one option may have: a name of 4096 bytes, and a dozen queries of that length.
pub const OPTION_DATA_MAX: u32 = 64 << 10;

/// Bytes of option data in one handshake: a few options of the largest size.
pub const DATA_MAX: u32 = 256 << 10;

/// Bytes of longer options that are read and thrown away, in one handshake, so that the client can
/// be told that they are too long instead of losing its connection.
pub const DRAIN_MAX: u32 = 1 << 20;

/// Agrees with a client on an export and opens it. `None`: the client left, as is its right.
///
/// # Errors The client broke the protocol, exceeded a limit, asked by `EXPORT_NAME` for what cannot
/// be had, or disappeared in the middle of a message. The connection is of no further use.
pub async fn negotiate<S, E>(stream: &mut S, exports: &E) -> Result<Option<Negotiated<E::Target>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    negotiate_within(DEADLINE, stream, exports).await
}

/// The same with another deadline, so that a test of it need not take seconds.
async fn negotiate_within<S, E>(
    deadline: Duration,
    stream: &mut S,
    exports: &E,
) -> Result<Option<Negotiated<E::Target>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    tokio::time::timeout(deadline, converse(stream, exports)).await.unwrap_or_else(|_| {
        let message = format!("the client did not finish the handshake within {deadline:?}");
        Err(Error::new(ErrorKind::TimedOut, message))
    })
}

async fn converse<S, E>(stream: &mut S, exports: &E) -> Result<Option<Negotiated<E::Target>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let mut out = Vec::new();
    wire_option::put_greeting(&mut out);
    send(stream, &out).await?;
    let Some(flags) = receive(stream).await? else {
        return Ok(None);
    };
    let client = ClientFlags::decode(flags)
        .ok_or_else(|| Error::invalid("the client set handshake flags that were not offered"))?;

    let mut options = Options::new(exports, client);
    let mut budget = Budget::new();
    loop {
        let Some(header) = receive(stream).await? else {
            return Ok(None);
        };
        let OptionHeader { option, length } = OptionHeader::decode(&header)
            .ok_or_else(|| Error::invalid("the client sent an option without its magic"))?;
        out.clear();
        let step = match budget.admit(length)? {
            Admitted::Keep => {
                let data = receive_data(stream, length).await?;
                options.answer(option, &data, &mut out)
            }
            Admitted::Drain => {
                drain(stream, length).await?;
                options.answer_too_big(option, &mut out)
            }
        };
        match step {
            Step::Next => send(stream, &out).await?,
            Step::Enter(negotiated) => {
                send(stream, &out).await?;
                return Ok(Some(negotiated));
            }
            Step::Leave => {
                leave(stream, &out).await;
                return Ok(None);
            }
            Step::Close(error) => return Err(error),
        }
    }
}

/// What a client may still send in this handshake.
struct Budget {
    options: u32,
    data: u32,
    drain: u32,
}

/// What to do with the data of an option.
enum Admitted {
    Keep,
    Drain,
}

impl Budget {
    fn new() -> Self {
        Budget { options: OPTIONS_MAX, data: DATA_MAX, drain: DRAIN_MAX }
    }

    fn admit(&mut self, length: u32) -> Result<Admitted> {
        let spend = |budget: &mut u32, amount: u32, what: &str| match budget.checked_sub(amount) {
            Some(left) => {
                *budget = left;
                Ok(())
            }
            None => Err(Error::invalid(format!("the client sent {what} in one handshake"))),
        };
        spend(&mut self.options, 1, "too many options")?;
        if length <= OPTION_DATA_MAX {
            spend(&mut self.data, length, "too much option data")?;
            Ok(Admitted::Keep)
        } else {
            spend(&mut self.drain, length, "far too long option data")?;
            Ok(Admitted::Drain)
        }
    }
}

/// Reads a message of fixed size. `None`: the client closed before its first byte.
async fn receive<const N: usize, S>(stream: &mut S) -> Result<Option<[u8; N]>>
where
    S: AsyncRead + Unpin,
{
    const { assert!(N >= 4 && N <= OPTION_HEADER_LEN) };
    let mut bytes = [0; N];
    let first = match stream.read(&mut bytes).await {
        Ok(count) => count,
        // A client that closes with our bytes unread resets the connection.
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => 0,
        Err(e) => return Err(lost(&e)),
    };
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut bytes[first..]).await.map_err(|e| lost(&e))?;
    Ok(Some(bytes))
}

/// Reads the data of an option, whose length was checked against its limit.
async fn receive_data<S: AsyncRead + Unpin>(stream: &mut S, length: u32) -> Result<Vec<u8>> {
    debug_assert!(length <= OPTION_DATA_MAX, "an option that was not admitted");
    let length = usize::try_from(length).map_err(|_| Error::internal("a 16-bit machine"))?;
    let mut data = vec![0; length];
    stream.read_exact(&mut data).await.map_err(|e| lost(&e))?;
    Ok(data)
}

async fn drain<S: AsyncRead + Unpin>(stream: &mut S, length: u32) -> Result<()> {
    let mut rest = stream.take(u64::from(length));
    let drained = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map_err(|e| lost(&e))?;
    if drained < u64::from(length) {
        return Err(lost(&io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).await.map_err(|e| lost(&e))?;
    stream.flush().await.map_err(|e| lost(&e))
}

/// Answers `ABORT`. The client need not wait for that, so a failure to send it is none.
async fn leave<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) {
    if let Err(e) = send(stream, bytes).await {
        tracing::trace!("the client left before its goodbye was answered: {e}");
    }
}

fn lost(e: &io::Error) -> Error {
    Error::io("the client was lost during the handshake", e)
}

#[cfg(test)]
#[path = "handshake_tests/mod.rs"]
mod tests;
