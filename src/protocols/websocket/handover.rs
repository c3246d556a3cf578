//! Hands a TCP connection over: the server offers it with an upgrade request, and the handler that
//! answers the request may accept it.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// A value that the server attaches to a connection. It is dropped when the connection ends.
pub type Guard = Box<dyn Any + Send + Sync>;

/// A TCP connection, with the bytes that were read from it and those that are to be written first.
pub struct Connection {
    /// The connection.
    pub io: TcpStream,
    /// The bytes after the request.
    pub read: BytesMut,
    /// The response to the request.
    pub unwritten: BytesMut,
    /// Kept as long as the connection.
    pub guard: Guard,
}

/// The offer, in the extensions of an upgrade request: the server hands its connection over as soon
/// as it has the response. The handler's side writes it, together with its first frames.
#[derive(Clone, Default)]
pub struct Handover(Rc<RefCell<Option<oneshot::Sender<Connection>>>>);

impl Handover {
    /// Accepts the offer. The connection arrives after the handler has returned the response; the
    /// receiver fails if it is lost before.
    pub fn accept(&self) -> oneshot::Receiver<Connection> {
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().replace(sender);
        receiver
    }

    /// The sender to the handler that accepted the offer, if one did.
    pub fn taken(&self) -> Option<oneshot::Sender<Connection>> {
        self.0.borrow_mut().take()
    }
}
