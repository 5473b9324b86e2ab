//! One request, from its header to its reply: validation, and the call of the export.
//!
//! The outcome of a request is always a reply. Only the framing of the stream can end a connection,
//! and that is decided elsewhere.

use std::borrow::Cow;

use bytes::Bytes;

use super::outbox::{Body, Reply};
use crate::export::{Access, Export, ExportError, ExportInfo, Piece};
use crate::handshake::{MetaContext, Terms};
use crate::limits::{EXTENT_WINDOW_BYTES, MAX_EXTENT_WINDOWS, MAX_EXTENTS, MAX_REQUEST_BYTES};
use crate::wire::{
    Command, CommandFlags, ErrorCode, Framing, Request, StatusFlags, StatusQuery,
    decode_status_query,
};

/// Carries out a request that is not a disconnect, with the payload that came with it. `checked` is
/// the result of [`Rules::check`], which is called once for each request.
pub(super) async fn execute<E: Export>(
    export: &E,
    rules: Rules<'_>,
    request: Request,
    checked: Result<Question, Refusal>,
    payload: Bytes,
) -> Reply {
    let body = match checked {
        Ok(question) => match rules.look_into(request, &payload) {
            Ok((request, contexts)) => {
                match run(export, &contexts, &request, question, payload).await {
                    Ok(body) => body,
                    Err(error) => failure(&request, error),
                }
            }
            Err(refusal) => refusal.into(),
        },
        Err(refusal) => refusal.into(),
    };
    Reply::to(&request, body)
}

/// A request that is answered with an error without calling the export.
#[derive(Clone, Copy)]
pub(super) struct Refusal {
    code: ErrorCode,
    message: &'static str,
}

impl Refusal {
    const fn invalid(message: &'static str) -> Self {
        let code = ErrorCode::Invalid;
        Self { code, message }
    }

    pub(super) const READ_ONLY: Self = Self {
        code: ErrorCode::NotPermitted,
        message: "the export is read-only",
    };
}

impl From<Refusal> for Body {
    fn from(refusal: Refusal) -> Self {
        Self::Error {
            code: refusal.code,
            offset: None,
            message: refusal.message.to_owned(),
        }
    }
}

/// A question to an export.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Question {
    Read,
    Cache,
    BlockStatus,
    Write,
    WriteZeroes,
    Trim,
    Flush,
}

/// The questions that one connection may ask its export.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    size_bytes: u64,
    access: Access,
    terms: &'a Terms,
}

impl<'a> Rules<'a> {
    pub(super) fn new(info: &ExportInfo, terms: &'a Terms) -> Self {
        Self {
            size_bytes: info.size_bytes,
            access: info.access,
            terms,
        }
    }

    /// The most contexts in an answer to `BLOCK_STATUS`.
    pub(super) fn contexts(&self) -> u32 {
        u32::try_from(self.terms.contexts.len()).unwrap_or(u32::MAX)
    }

    /// "Error values" and "Command flags": refuses requests that must be answered with an error
    /// before anything is done.
    pub(super) fn check(&self, request: &Request) -> Result<Question, Refusal> {
        let (question, mut allowed_flags) = self.question(request)?;
        let takes_payload = matches!(question, Question::Write | Question::BlockStatus);
        if self.terms.framing == Framing::Extended && takes_payload {
            allowed_flags = allowed_flags.with(CommandFlags::PAYLOAD_LEN);
        }
        if !request.flags.is_subset_of(allowed_flags) {
            return Err(Refusal::invalid("unknown command flag"));
        }
        if question == Question::BlockStatus && request.has_payload {
            let most = StatusQuery::payload_bytes(self.terms.contexts.len());
            if request.length_bytes > most as u64 {
                return Err(Refusal::invalid("more contexts than were selected"));
            }
            // The payload has the range.
            return Ok(question);
        }
        if !request.is_within(self.size_bytes) {
            let message = "the range exceeds the export";
            return Err(match question {
                // As if the device were longer and its end did not fit.
                Question::Write | Question::WriteZeroes => Refusal {
                    code: ErrorCode::NoSpace,
                    message,
                },
                _ => Refusal::invalid(message),
            });
        }
        match question {
            Question::Read | Question::Cache
                if request.length_bytes > u64::from(MAX_REQUEST_BYTES) =>
            {
                // The protocol keeps EOVERFLOW for this one case.
                let code = if request.flags.contains(CommandFlags::DF) {
                    ErrorCode::Overflow
                } else {
                    ErrorCode::Invalid
                };
                let message = "the length exceeds the maximum block size";
                Err(Refusal { code, message })
            }
            Question::BlockStatus if self.terms.contexts.is_empty() => {
                Err(Refusal::invalid("no metadata context was selected"))
            }
            Question::BlockStatus if request.length_bytes == 0 => {
                Err(Refusal::invalid("no length to report extents of"))
            }
            Question::Flush if (request.offset, request.length_bytes) != (0, 0) => {
                Err(Refusal::invalid("a flush has no range"))
            }
            question => Ok(question),
        }
    }

    /// Decodes a payload that is not data. Returns the request without the payload, and the
    /// contexts that it requests.
    fn look_into(
        &self,
        request: Request,
        payload: &[u8],
    ) -> Result<(Request, Cow<'a, [MetaContext]>), Refusal> {
        let is_status = Command::from_u16(request.command) == Some(Command::BlockStatus);
        if !is_status || !request.has_payload {
            return Ok((request, Cow::Borrowed(&self.terms.contexts)));
        }
        let query = decode_status_query(payload)
            .map_err(|_| Refusal::invalid("the payload is no length and contexts"))?;
        let mut contexts: Vec<MetaContext> = Vec::with_capacity(query.context_ids.len());
        for id in query.context_ids {
            if contexts.iter().any(|context| context.id() == id) {
                return Err(Refusal::invalid("a metadata context twice"));
            }
            let agreed = self.terms.contexts.iter();
            let Some(context) = agreed.clone().find(|context| context.id() == id) else {
                return Err(Refusal::invalid("a metadata context that was not selected"));
            };
            contexts.push(context.clone());
        }
        let plain = Request {
            flags: request.flags.without(CommandFlags::PAYLOAD_LEN),
            length_bytes: query.length_bytes,
            has_payload: false,
            ..request
        };
        self.check(&plain)?;
        Ok((plain, Cow::Owned(contexts)))
    }

    /// The question of a request, and the flags that it may have.
    fn question(&self, request: &Request) -> Result<(Question, CommandFlags), Refusal> {
        // FUA is valid on any command once it was announced. Read-only exports announce no flag.
        let usual = if self.access.is_writable() {
            CommandFlags::FUA
        } else {
            CommandFlags::NONE
        };
        let command = Command::from_u16(request.command);
        Ok(match command {
            Some(Command::Read) if self.terms.framing > Framing::Simple => {
                (Question::Read, usual.with(CommandFlags::DF))
            }
            Some(Command::Read) => (Question::Read, usual),
            Some(Command::Cache) => (Question::Cache, usual),
            Some(Command::BlockStatus) => {
                (Question::BlockStatus, usual.with(CommandFlags::REQ_ONE))
            }
            Some(Command::Write | Command::Trim | Command::WriteZeroes)
                if !self.access.is_writable() =>
            {
                return Err(Refusal::READ_ONLY);
            }
            Some(Command::Write) => (Question::Write, usual),
            Some(Command::Trim) => (Question::Trim, usual),
            // Zeroes are always fast: an export takes note of them, and writes none.
            Some(Command::WriteZeroes) => {
                let zeroes = CommandFlags::NO_HOLE.with(CommandFlags::FAST_ZERO);
                (Question::WriteZeroes, usual.with(zeroes))
            }
            Some(Command::Flush) if self.access.is_writable() => (Question::Flush, usual),
            // FLUSH is not announced, and a disconnect never comes here.
            Some(Command::Flush | Command::Disconnect) | None => {
                return Err(Refusal::invalid("unknown command"));
            }
        })
    }
}

async fn run<E: Export>(
    export: &E,
    contexts: &[MetaContext],
    request: &Request,
    question: Question,
    payload: Bytes,
) -> Result<Body, ExportError> {
    let (offset, length_bytes) = (request.offset, request.length_bytes);
    // The length of a request with bytes was checked against the limit.
    let few_bytes = u32::try_from(length_bytes).unwrap_or(u32::MAX);
    let durable = request.flags.contains(CommandFlags::FUA);
    match question {
        Question::Flush => {
            export.flush().await?;
            Ok(Body::Done)
        }
        _ if length_bytes == 0 => Ok(Body::Done),
        Question::Write => {
            assert_eq!(
                payload.len() as u64,
                length_bytes,
                "a write comes with its whole payload"
            );
            export.write(offset, payload, durable).await?;
            Ok(Body::Done)
        }
        Question::WriteZeroes => {
            let may_punch_hole = !request.flags.contains(CommandFlags::NO_HOLE);
            export
                .write_zeroes(offset, length_bytes, may_punch_hole, durable)
                .await?;
            Ok(Body::Done)
        }
        Question::Trim => {
            export.trim(offset, length_bytes, durable).await?;
            Ok(Body::Done)
        }
        Question::Read => {
            let pieces = export.read(offset, few_bytes).await?;
            // A reply of any other length would put the client out of step with the stream.
            assert_eq!(
                pieces.iter().map(Piece::length_bytes).sum::<u64>(),
                length_bytes,
                "an export returns what was asked for"
            );
            let whole = request.flags.contains(CommandFlags::DF);
            Ok(Body::Data { pieces, whole })
        }
        Question::Cache => {
            export.prefetch(offset, few_bytes).await?;
            Ok(Body::Done)
        }
        Question::BlockStatus => {
            let limit = if request.flags.contains(CommandFlags::REQ_ONE) {
                1
            } else {
                MAX_EXTENTS as usize
            };
            let mut status = Vec::with_capacity(contexts.len());
            for context in contexts {
                let extents = match context {
                    MetaContext::BaseAllocation => {
                        let allocation = |at, window| allocation(export, at, window);
                        merged(offset, length_bytes, limit, allocation).await?
                    }
                    MetaContext::DirtySince { reference, .. } => {
                        let changes = |at, window| changes(export, *reference, at, window);
                        merged(offset, length_bytes, limit, changes).await?
                    }
                };
                status.push((context.id(), extents));
            }
            Ok(Body::Status(status))
        }
    }
}

async fn allocation<E: Export>(
    export: &E,
    offset: u64,
    length_bytes: u64,
) -> Result<Vec<(u64, StatusFlags)>, ExportError> {
    let extents = export.extents(offset, length_bytes).await?.into_iter();
    let status = |hole| {
        if hole {
            StatusFlags::HOLE
        } else {
            StatusFlags::DATA
        }
    };
    Ok(extents
        .map(|extent| (extent.length_bytes, status(extent.hole)))
        .collect())
}

async fn changes<E: Export>(
    export: &E,
    reference: u32,
    offset: u64,
    length_bytes: u64,
) -> Result<Vec<(u64, StatusFlags)>, ExportError> {
    let changes = export
        .changes(reference as usize, offset, length_bytes)
        .await?
        .into_iter();
    let status = |changed| {
        if changed {
            StatusFlags::DIRTY
        } else {
            StatusFlags::CLEAN
        }
    };
    Ok(changes
        .map(|extent| (extent.length_bytes, status(extent.changed)))
        .collect())
}

/// At most `limit` extents of the range from its start on, neighbours with equal status merged.
///
/// The range is looked up in windows, so that neither a fragmented export nor a long range makes
/// this hold more than one window's extents. The number of windows is limited.
async fn merged<F>(
    offset: u64,
    length_bytes: u64,
    limit: usize,
    look_up: impl Fn(u64, u64) -> F,
) -> Result<Vec<(u64, StatusFlags)>, ExportError>
where
    F: Future<Output = Result<Vec<(u64, StatusFlags)>, ExportError>>,
{
    let mut merged: Vec<(u64, StatusFlags)> = Vec::new();
    let end = offset + length_bytes;
    let mut at = offset;
    for _ in 0..MAX_EXTENT_WINDOWS {
        if at == end {
            break;
        }
        // A long request lets others have their turn.
        tokio::task::consume_budget().await;
        let window = (end - at).min(EXTENT_WINDOW_BYTES);
        let extents = look_up(at, window).await?;
        assert!(
            extents.iter().any(|(length_bytes, _)| *length_bytes > 0),
            "an export has extents wherever it has bytes"
        );
        for (length_bytes, status) in extents {
            // Never beyond the request: where it has 32 bits, so have these and their sums.
            let length = length_bytes.min(end - at);
            if length == 0 {
                continue;
            }
            let full = merged.len() == limit;
            match merged.last_mut() {
                Some((last_length, last_status)) if *last_status == status => {
                    *last_length += length;
                }
                _ if full => return Ok(merged),
                _ => merged.push((length, status)),
            }
            at += length;
        }
    }
    Ok(merged)
}

fn failure(request: &Request, error: ExportError) -> Body {
    let message = error.to_string();
    let (code, offset) = match error {
        // The protocol wants an offset inside the request, and damage may begin where a chunk does.
        ExportError::Damaged { offset, .. } => {
            let last = request.length_bytes.saturating_sub(1);
            let inside = offset.clamp(request.offset, request.offset + last);
            (ErrorCode::Io, Some(inside))
        }
        ExportError::NotFound { .. } | ExportError::Unavailable { .. } => (ErrorCode::Io, None),
        ExportError::NoSpace { .. } => (ErrorCode::NoSpace, None),
        ExportError::ReadOnly | ExportError::Denied { .. } => (ErrorCode::NotPermitted, None),
        ExportError::Detached { .. } | ExportError::Stopping => (ErrorCode::Stopping, None),
    };
    Body::Error {
        code,
        offset,
        message,
    }
}
