//! Fixed newstyle option haggling: from the greeting to an opened export and agreed terms.
//!
//! Invariants: every option is answered before the next is read; an option that is not understood
//! or not well formed is answered with an error and leaves the state as it was; the connection ends
//! only if the next option cannot be found, or this one cannot be answered.

use std::collections::HashSet;
use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::export::{Export, ExportError, Exports};
use super::inbox::Inbox;
use super::limits::{
    LIST_PAGE_EXPORTS, MAX_LISTED_REFERENCES, MAX_OPTION_BYTES, MAX_OPTIONS, MAX_REFERENCES,
    MAX_REQUEST_BYTES, MIN_BLOCK_BYTES, PREFERRED_BLOCK_BYTES,
};
use super::wire::{
    ClientFlags, Framing, InfoKind, OptionCode, OptionHeader, OptionReplyCode, WireError,
    decode_client_flags, decode_export_name, decode_info_request, decode_meta_query,
    decode_option_header, encode_block_size_info, encode_export_info, encode_export_name_reply,
    encode_greeting, encode_listed_export, encode_meta_context, encode_option_reply,
    encode_text_info,
};

mod deadline;
mod error;
mod terms;

#[cfg(test)]
mod tests;

pub use deadline::Deadline;
pub use error::{HandshakeError, NoPlace};
pub(crate) use terms::MetaContext;
pub use terms::Terms;
use terms::{DIRTY_PREFIX, lists};

/// The outcome of a handshake, other than an error.
#[derive(Debug)]
pub enum Negotiated<E, P> {
    /// The client has an export.
    Export {
        /// The export.
        export: E,
        /// The terms agreed on for it.
        terms: Terms,
        /// The slot of the connection, taken just before the answer that gives the client its
        /// export.
        place: P,
    },
    /// TLS comes next, and in it options again.
    StartTls(ClientFlags),
    /// The client sent `ABORT`: it only wanted to query exports.
    Aborted,
}

/// The state of TLS on a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Security {
    /// No TLS, and the server offers none.
    Plain,
    /// No TLS yet; the client may begin it.
    Offered,
    /// No TLS yet; the server answers nothing else before.
    Required,
    /// The connection has TLS.
    Tls,
}

/// The parts of a handshake besides its stream.
pub struct Desk<'a, X, P> {
    /// The exports that the client may have.
    pub exports: &'a X,
    /// The time limit of the handshake.
    pub deadline: &'a Deadline,
    /// Takes a slot for the connection, which it keeps until the slot is dropped.
    pub admit: &'a (dyn Fn() -> Result<P, NoPlace> + Send + Sync),
}

impl<X, P> fmt::Debug for Desk<'_, X, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// Greets the client, and answers its options until it has an export, gives up or wants TLS.
///
/// # Errors
///
/// The connection is lost, or the client breaks the rules, takes too long, or is refused an export
/// in a way that leaves no other answer.
pub async fn negotiate<S, X, P>(
    stream: &mut S,
    inbox: &mut Inbox,
    desk: &Desk<'_, X, P>,
    security: Security,
) -> Result<Negotiated<X::Export, P>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    X: Exports,
{
    let client = desk.deadline.run(greet(stream, inbox)).await??;
    haggle(stream, inbox, desk, client, security).await
}

/// The same after the greeting: terms agreed on before TLS do not count.
///
/// # Errors
///
/// As for [`negotiate`].
pub async fn haggle<S, X, P>(
    stream: &mut S,
    inbox: &mut Inbox,
    desk: &Desk<'_, X, P>,
    client: ClientFlags,
    security: Security,
) -> Result<Negotiated<X::Export, P>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    X: Exports,
{
    let mut haggling = Haggling {
        desk,
        stream,
        inbox,
        client,
        security,
        terms: Terms::default(),
        contexts_export: String::new(),
        opened: None,
    };
    for _ in 0..MAX_OPTIONS {
        if let Some(negotiated) = desk.deadline.run(haggling.step()).await?? {
            return Ok(negotiated);
        }
    }
    Err(HandshakeError::TooManyOptions)
}

async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    inbox: &mut Inbox,
) -> Result<ClientFlags, HandshakeError> {
    send(stream, &encode_greeting()).await?;
    let flags = inbox
        .take::<{ super::wire::CLIENT_FLAGS_BYTES }, _>(stream)
        .await?;
    Ok(decode_client_flags(&flags)?)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// A handshake after the greeting.
struct Haggling<'a, S, X: Exports, P> {
    desk: &'a Desk<'a, X, P>,
    stream: &'a mut S,
    inbox: &'a mut Inbox,
    client: ClientFlags,
    security: Security,
    terms: Terms,
    /// The export that `terms.contexts` were chosen for; for another one they do not count.
    contexts_export: String,
    /// Kept from one option to the next: clients name the same export in several.
    opened: Option<Opened<X::Export>>,
}

/// Contexts for a listing: those of the export's ancestors, if there is a wildcard, and those of
/// named snapshots.
async fn dirty_contexts<E: Export>(
    export: &E,
    queries: &[&str],
) -> Result<Vec<MetaContext>, ExportError> {
    let is_wild = |query: &&str| lists(query, DIRTY_PREFIX);
    let mut snapshots = Vec::new();
    if queries.is_empty() || queries.iter().any(is_wild) {
        snapshots = export.ancestors(MAX_LISTED_REFERENCES).await?;
    }
    let named: Vec<_> = dirty_names(queries).collect();
    // As many as can be chosen: for more, a client asks again.
    let known = export.has_references(&named).await?;
    for (name, _) in named.iter().zip(known).filter(|(_, is_known)| *is_known) {
        if !snapshots.iter().any(|other| other == name) {
            snapshots.push((*name).to_owned());
        }
    }
    Ok(MetaContext::dirty(snapshots.iter().map(String::as_str)).collect())
}

/// Snapshots that queries name, each once, and no more than can be chosen.
fn dirty_names<'d>(queries: &[&'d str]) -> impl Iterator<Item = &'d str> {
    let mut seen = HashSet::new();
    let names = queries
        .iter()
        .filter_map(|query| query.strip_prefix(DIRTY_PREFIX));
    names
        .filter(|name| !name.is_empty())
        .filter(move |name| seen.insert(*name))
        .take(MAX_REFERENCES as usize)
}

/// An export and the name the client used for it.
struct Opened<E> {
    name: String,
    export: E,
}

impl<S, X, P> Haggling<'_, S, X, P>
where
    S: AsyncRead + AsyncWrite + Unpin,
    X: Exports,
{
    /// Reads one option and answers it.
    async fn step(&mut self) -> Result<Option<Negotiated<X::Export, P>>, HandshakeError> {
        let header = self
            .inbox
            .take::<{ super::wire::OPTION_HEADER_BYTES }, _>(self.stream)
            .await?;
        let OptionHeader { option, data_bytes } = decode_option_header(&header)?;
        let code = OptionCode::from_u32(option);
        if !self.client.fixed_newstyle && code != Some(OptionCode::ExportName) {
            return Err(HandshakeError::NotFixedNewstyle { option });
        }
        if data_bytes > MAX_OPTION_BYTES {
            self.reply(option, OptionReplyCode::TooBig, b"option data are too long")
                .await?;
            return Err(HandshakeError::OptionTooBig { option, data_bytes });
        }
        let data = self
            .inbox
            .take_vec(self.stream, data_bytes as usize)
            .await?;

        if self.security == Security::Required
            && !matches!(code, Some(OptionCode::StartTls | OptionCode::Abort))
        {
            if code == Some(OptionCode::ExportName) {
                return Err(HandshakeError::NotSecure);
            }
            let why = b"this server wants TLS first";
            self.reply(option, OptionReplyCode::TlsRequired, why)
                .await?;
            return Ok(None);
        }

        match code {
            None => {
                self.reply(option, OptionReplyCode::Unsupported, b"unknown option")
                    .await?;
            }
            Some(OptionCode::StartTls) => return self.start_tls(option, &data).await,
            Some(OptionCode::ExportName) => return self.export_name(&data).await.map(Some),
            Some(OptionCode::Abort) => {
                // The client may be gone already; either way it got what it asked for.
                let _ = self.reply(option, OptionReplyCode::Ack, b"").await;
                return Ok(Some(Negotiated::Aborted));
            }
            Some(OptionCode::List) => self.list(option, &data).await?,
            Some(OptionCode::Info) => {
                if let Some((opened, out)) = self.info(option, &data).await? {
                    send(self.stream, &out).await?;
                    self.opened = Some(opened);
                }
            }
            Some(OptionCode::Go) => {
                return self.go(option, &data).await;
            }
            Some(OptionCode::StructuredReply) => {
                if self.refuses_data(option, &data).await? {
                    return Ok(None);
                }
                let (code, why) = if self.terms.framing == Framing::Extended {
                    let why = &b"extended headers were agreed on"[..];
                    (OptionReplyCode::ExtendedHeaders, why)
                } else {
                    self.terms.framing = Framing::Structured;
                    (OptionReplyCode::Ack, &b""[..])
                };
                self.reply(option, code, why).await?;
            }
            Some(OptionCode::ExtendedHeaders) => {
                if self.refuses_data(option, &data).await? {
                    return Ok(None);
                }
                self.terms.framing = Framing::Extended;
                self.reply(option, OptionReplyCode::Ack, b"").await?;
            }
            Some(OptionCode::ListMetaContext) => self.list_contexts(option, &data).await?,
            Some(OptionCode::SetMetaContext) => self.set_contexts(option, &data).await?,
        }
        Ok(None)
    }

    async fn start_tls(
        &mut self,
        option: u32,
        data: &[u8],
    ) -> Result<Option<Negotiated<X::Export, P>>, HandshakeError> {
        let (code, why) = match self.security {
            Security::Plain => (OptionReplyCode::Unsupported, &b"there is no TLS here"[..]),
            Security::Tls => (OptionReplyCode::Invalid, &b"TLS is there already"[..]),
            Security::Offered | Security::Required => {
                if self.refuses_data(option, data).await? {
                    return Ok(None);
                }
                // Bytes that came in the clear must not be taken for bytes that come in TLS.
                if !self.inbox.unread().is_empty() {
                    return Err(HandshakeError::BeforeTls);
                }
                self.reply(option, OptionReplyCode::Ack, b"").await?;
                return Ok(Some(Negotiated::StartTls(self.client)));
            }
        };
        self.reply(option, code, why).await?;
        Ok(None)
    }

    async fn export_name(
        &mut self,
        data: &[u8],
    ) -> Result<Negotiated<X::Export, P>, HandshakeError> {
        if self.terms.framing == Framing::Extended {
            return Err(HandshakeError::ExtendedExportName);
        }
        let name = decode_export_name(data)?;
        let mut opened = self.open(name).await.map_err(HandshakeError::Refused)?;
        let renewed = self.renew_references(&mut opened).await;
        renewed.map_err(HandshakeError::Refused)?;
        let place = (self.desk.admit)().map_err(HandshakeError::NoPlace)?;
        let info = opened.export.info();
        let reply = encode_export_name_reply(
            info.size_bytes,
            self.terms.transmission_flags(info.access),
            self.client.no_zeroes,
        );
        send(self.stream, &reply).await?;
        Ok(self.end(opened, place))
    }

    async fn list(&mut self, option: u32, data: &[u8]) -> Result<(), HandshakeError> {
        if self.refuses_data(option, data).await? {
            return Ok(());
        }
        let mut after: Option<String> = None;
        loop {
            let page = self.desk.exports.list(after.as_deref(), LIST_PAGE_EXPORTS);
            let page = match self.desk.deadline.asking(page).await {
                Ok(page) => page,
                Err(error) => return self.refuse(option, &error).await,
            };
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            self.desk.deadline.listed(page.len());
            let mut out = Vec::new();
            for export in &page {
                let line = encode_listed_export(&export.name, &export.description);
                encode_option_reply(&mut out, option, OptionReplyCode::Server, &line);
            }
            send(self.stream, &out).await?;
        }
        self.reply(option, OptionReplyCode::Ack, b"").await
    }

    /// Answers `GO`; ends the handshake if the client may have the export and there is a place for
    /// it.
    async fn go(
        &mut self,
        option: u32,
        data: &[u8],
    ) -> Result<Option<Negotiated<X::Export, P>>, HandshakeError> {
        let Some((opened, out)) = self.info(option, data).await? else {
            return Ok(None);
        };
        match (self.desk.admit)() {
            Ok(place) => {
                send(self.stream, &out).await?;
                Ok(Some(self.end(opened, place)))
            }
            Err(full) => {
                let why = full.to_string();
                self.reply(option, OptionReplyCode::Policy, why.as_bytes())
                    .await?;
                Ok(None)
            }
        }
    }

    /// The properties of an export for the answer to `INFO` and `GO`. `None` if the client may not
    /// have it; the refusal has been sent.
    async fn info(
        &mut self,
        option: u32,
        data: &[u8],
    ) -> Result<Option<(Opened<X::Export>, Vec<u8>)>, HandshakeError> {
        let request = match decode_info_request(data) {
            Ok(request) => request,
            Err(error) => {
                self.reply_malformed(option, &error).await?;
                return Ok(None);
            }
        };
        let mut opened = match self.open(request.name).await {
            Ok(opened) => opened,
            Err(error) => {
                self.refuse(option, &error).await?;
                return Ok(None);
            }
        };
        if let Err(error) = self.renew_references(&mut opened).await {
            self.refuse(option, &error).await?;
            return Ok(None);
        }
        let info = opened.export.info();
        let flags = self.terms.transmission_flags(info.access);
        let items = std::iter::once(encode_export_info(info.size_bytes, flags)).chain(
            request.wants.iter().map(|&kind| match kind {
                InfoKind::Name => encode_text_info(kind, &info.name),
                InfoKind::Description => encode_text_info(kind, &info.description),
                InfoKind::BlockSize => encode_block_size_info(
                    MIN_BLOCK_BYTES,
                    PREFERRED_BLOCK_BYTES,
                    MAX_REQUEST_BYTES,
                ),
            }),
        );
        let mut out = Vec::new();
        for item in items {
            encode_option_reply(&mut out, option, OptionReplyCode::Info, &item);
        }
        encode_option_reply(&mut out, option, OptionReplyCode::Ack, b"");
        Ok(Some((opened, out)))
    }

    async fn list_contexts(&mut self, option: u32, data: &[u8]) -> Result<(), HandshakeError> {
        let Some((opened, queries)) = self.meta_query(option, data).await? else {
            return Ok(());
        };
        let listed = dirty_contexts(&opened.export, &queries);
        let listed = self.desk.deadline.asking(listed).await;
        let dirty = match listed {
            Ok(dirty) => dirty,
            Err(error) => return self.refuse(option, &error).await,
        };
        self.opened = Some(opened);
        let contexts = [MetaContext::BaseAllocation].into_iter().chain(dirty);
        // The protocol reserves the id in a listing.
        let contexts: Vec<_> = contexts
            .filter(|context| {
                let name = context.name();
                queries.is_empty() || queries.iter().any(|query| lists(query, &name))
            })
            .map(|context| (0, context))
            .collect();
        self.reply_contexts(option, &contexts).await
    }

    async fn set_contexts(&mut self, option: u32, data: &[u8]) -> Result<(), HandshakeError> {
        // "Replaces all previously-set metadata contexts (including when this command fails)".
        self.terms.contexts.clear();
        let Some((mut opened, queries)) = self.meta_query(option, data).await? else {
            return Ok(());
        };
        let named: Vec<_> = dirty_names(&queries).collect();
        let chosen = opened.export.choose_references(&named);
        let chosen = match self.desk.deadline.asking(chosen).await {
            Ok(chosen) => chosen,
            Err(error) => return self.refuse(option, &error).await,
        };
        let allocation = MetaContext::BaseAllocation;
        if queries.contains(&&*allocation.name()) {
            self.terms.contexts.push(allocation);
        }
        let there = named.iter().zip(chosen);
        let there = there.filter(|(_, there)| *there).map(|(name, _)| *name);
        self.terms.contexts.extend(MetaContext::dirty(there));
        self.contexts_export.clone_from(&opened.name);
        self.opened = Some(opened);
        let contexts = self.terms.contexts.iter();
        let contexts: Vec<_> = contexts
            .map(|context| (context.id(), context.clone()))
            .collect();
        self.reply_contexts(option, &contexts).await
    }

    /// The export and the queries of either context option, if it may be answered at all.
    async fn meta_query<'d>(
        &mut self,
        option: u32,
        data: &'d [u8],
    ) -> Result<Option<(Opened<X::Export>, Vec<&'d str>)>, HandshakeError> {
        if self.terms.framing == Framing::Simple {
            let why = b"metadata contexts need structured replies";
            self.reply(option, OptionReplyCode::Invalid, why).await?;
            return Ok(None);
        }
        let query = match decode_meta_query(data) {
            Ok(query) => query,
            Err(error) => {
                self.reply_malformed(option, &error).await?;
                return Ok(None);
            }
        };
        match self.open(query.export).await {
            Ok(opened) => Ok(Some((opened, query.queries))),
            Err(error) => {
                self.refuse(option, &error).await?;
                Ok(None)
            }
        }
    }

    async fn reply_contexts(
        &mut self,
        option: u32,
        contexts: &[(u32, MetaContext)],
    ) -> Result<(), HandshakeError> {
        let mut out = Vec::new();
        for (id, context) in contexts {
            let data = encode_meta_context(*id, &context.name());
            encode_option_reply(&mut out, option, OptionReplyCode::MetaContext, &data);
        }
        encode_option_reply(&mut out, option, OptionReplyCode::Ack, b"");
        Ok(send(self.stream, &out).await?)
    }

    async fn open(&mut self, name: &str) -> Result<Opened<X::Export>, ExportError> {
        if let Some(opened) = self.opened.take_if(|opened| opened.name == name) {
            return Ok(opened);
        }
        if name.is_empty() {
            // The protocol's "default export", which does not exist here.
            return Err(ExportError::not_found(name));
        }
        let name = name.to_owned();
        let opened = self.desk.exports.open(&name);
        let export = self.desk.deadline.asking(opened).await?;
        Ok(Opened { name, export })
    }

    /// Chooses the references of the contexts that were agreed on for an export: it may have been
    /// opened again meanwhile. If any of them is gone, nothing is agreed on any more.
    async fn renew_references(
        &mut self,
        opened: &mut Opened<X::Export>,
    ) -> Result<(), ExportError> {
        if self.contexts_export != opened.name {
            return Ok(());
        }
        let snapshots = self
            .terms
            .contexts
            .iter()
            .filter_map(|context| match context {
                MetaContext::DirtySince { snapshot, .. } => Some(&**snapshot),
                MetaContext::BaseAllocation => None,
            });
        let snapshots: Vec<_> = snapshots.collect();
        if !snapshots.is_empty() {
            let there = opened.export.choose_references(&snapshots);
            let there = self.desk.deadline.asking(there).await?;
            if !there.iter().all(|there| *there) {
                self.terms.contexts.clear();
            }
        }
        Ok(())
    }

    /// Ends the handshake with this export.
    fn end(&mut self, opened: Opened<X::Export>, place: P) -> Negotiated<X::Export, P> {
        let mut terms = std::mem::take(&mut self.terms);
        if self.contexts_export != opened.name {
            terms.contexts.clear();
        }
        Negotiated::Export {
            export: opened.export,
            terms,
            place,
        }
    }

    /// Answers an option that must not have data, but has.
    async fn refuses_data(&mut self, option: u32, data: &[u8]) -> Result<bool, HandshakeError> {
        if data.is_empty() {
            return Ok(false);
        }
        self.reply(option, OptionReplyCode::Invalid, b"this option has no data")
            .await?;
        Ok(true)
    }

    async fn refuse(&mut self, option: u32, error: &ExportError) -> Result<(), HandshakeError> {
        let code = match error {
            // There is no code for "it exists, but": the message says which.
            ExportError::NotFound { .. }
            | ExportError::Damaged { .. }
            | ExportError::Unavailable { .. }
            | ExportError::NoSpace { .. }
            | ExportError::ReadOnly
            | ExportError::Detached { .. } => OptionReplyCode::Unknown,
            ExportError::Denied { .. } => OptionReplyCode::Policy,
            ExportError::Stopping => OptionReplyCode::Stopping,
        };
        self.reply(option, code, error.to_string().as_bytes()).await
    }

    async fn reply_malformed(
        &mut self,
        option: u32,
        error: &WireError,
    ) -> Result<(), HandshakeError> {
        let code = match error {
            WireError::StringTooLong { .. } | WireError::TooManyQueries { .. } => {
                OptionReplyCode::TooBig
            }
            _ => OptionReplyCode::Invalid,
        };
        self.reply(option, code, error.to_string().as_bytes()).await
    }

    async fn reply(
        &mut self,
        option: u32,
        code: OptionReplyCode,
        data: &[u8],
    ) -> Result<(), HandshakeError> {
        let mut out = Vec::new();
        encode_option_reply(&mut out, option, code, data);
        Ok(send(self.stream, &out).await?)
    }
}
