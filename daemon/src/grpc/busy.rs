//! Connections are busy while requests are under way on them.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use tonic::{
    Status,
    body::Body,
    codegen::{
        Body as HttpBody, Service,
        http::{Request, Response},
    },
    service::Routes,
};

use crate::net::seats::{self, Seat};

/// The services, where each request keeps its connection's seat until its answer has been sent.
#[derive(Debug, Clone)]
pub struct Busy(Routes);

impl Busy {
    /// These services.
    #[must_use]
    pub fn new(routes: Routes) -> Self {
        Self(routes.prepare())
    }
}

impl Service<Request<Body>> for Busy {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Answer>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.0, context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let seat = request.extensions().get::<Arc<Seat>>();
        // One that has given way is about to be closed.
        let busy = seat.and_then(|seat| seat.begin());
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| Answer { body, _busy: busy }))
        })
    }
}

/// An answer that is being sent.
#[derive(Debug)]
pub struct Answer {
    body: Body,
    _busy: Option<seats::Busy>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
