//! A session and the WebSocket that carries it, as one task.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{MaybeDone, maybe_done};
use pin_project_lite::pin_project;

use super::session::Session;

pin_project! {
    /// Polls what serves a session and then what carries it, until both are done. What the
    /// application sends is so written in the same turn, without a wake-up.
    pub(super) struct Turns<A: Future, T: Future> {
        session: Arc<Session>,
        #[pin]
        application: MaybeDone<A>,
        #[pin]
        transport: MaybeDone<T>,
    }
}

impl<A: Future, T: Future> Turns<A, T> {
    pub(super) fn new(session: Arc<Session>, application: A, transport: T) -> Self {
        let (application, transport) = (maybe_done(application), maybe_done(transport));
        Self { session, application, transport }
    }
}

impl<A: Future, T: Future> Future for Turns<A, T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let parts = self.project();
        let application = parts.session.before_transport(|| parts.application.poll(context));
        let transport = parts.transport.poll(context);
        if application.is_ready() && transport.is_ready() { Poll::Ready(()) } else { Poll::Pending }
    }
}
