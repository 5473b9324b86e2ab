//! The way from a method to an operation of the service, and from its outcome to an answer.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{
    failure::Failure,
    serve::{Arrives, Place},
};
use crate::{
    auth::{Action, Caller},
    service::{Error, Items, Result, Service},
};

/// The messages of an answer that is a stream, as tonic takes them.
pub(super) type AnswerStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The caller of a request.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller
        .cloned()
        .ok_or_else(|| Status::internal("the call came by no connection"))
}

/// The caller of a request whose message has arrived, and the message. Whom the caller acts for is
/// looked up now: the message may come long after the call began, and rights may have gone since.
pub(super) fn opened<T>(service: &Service, request: Request<T>) -> Result<(Caller, T), Status> {
    let caller = service.resolved(&caller(&request)?);
    Ok((caller, request.into_inner()))
}

/// The progress of a request that is still arriving.
pub(super) fn arrives<T>(request: &Request<T>) -> Arrives {
    let arrives = request.extensions().get::<Arrives>();
    arrives.cloned().unwrap_or_default()
}

/// Decodes a request for an operation. An invalid request is refused before the operation begins,
/// to callers who may do it.
pub(super) fn decoded<T>(
    service: &Service,
    caller: &Caller,
    action: Action,
    decode: impl FnOnce() -> Result<T>,
) -> Result<T, Status> {
    decode().map_err(|error| status(service.refuse(caller, action, error)))
}

/// The answer of an operation.
pub(super) async fn answer<T, M>(
    operation: impl Future<Output = Result<T>>,
    encode: impl FnOnce(T) -> M,
) -> Result<Response<M>, Status> {
    let outcome = operation.await.map_err(status)?;
    Ok(Response::new(encode(outcome)))
}

/// The answer of an operation whose outcome is a stream. Its place moves as messages go out. If
/// they do not go out while others wait for the place, the stream gives it up.
pub(super) async fn stream<T, M>(
    operation: impl Future<Output = Result<Items<T>>>,
    encode: impl Fn(T) -> M + Send + 'static,
) -> Result<Response<AnswerStream<M>>, Status>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let items = operation.await.map_err(status)?;
    let place = items.place();
    let messages = items.map(move |item| item.map(&encode).map_err(status));
    let messages: AnswerStream<M> = Box::pin(messages);
    let mut response = Response::new(messages);
    if let Some(place) = place {
        response.extensions_mut().insert(Place(place));
    }
    Ok(response)
}

/// The gRPC status for an error.
pub(super) fn status(error: Error) -> Status {
    Failure::from(error).into()
}
