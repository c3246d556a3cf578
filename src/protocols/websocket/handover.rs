//! How a connection is handed over: offered with an upgrade request, taken by whoever answers it.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// What the server has attached to a connection. It is dropped when the connection ends.
pub type Guard = Box<dyn Any + Send + Sync>;

/// A connection with what was read of it already.
pub struct Connection {
    /// The connection.
    pub io: TcpStream,
    /// Bytes behind the request.
    pub read: BytesMut,
    /// Kept as long as the connection.
    pub guard: Guard,
}

/// Put into the extensions of an upgrade request by a server that hands its connection over once
/// the response is written.
#[derive(Clone, Default)]
pub struct Handover(Rc<RefCell<Option<oneshot::Sender<Connection>>>>);

impl Handover {
    /// Takes the offer; the connection comes when the response is written, or never.
    pub fn accept(&self) -> oneshot::Receiver<Connection> {
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().replace(sender);
        receiver
    }

    /// Whoever took the offer, if anyone did.
    pub fn taken(&self) -> Option<oneshot::Sender<Connection>> {
        self.0.borrow_mut().take()
    }
}
