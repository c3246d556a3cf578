//! The events of Socket.IO.

use bson::oid::ObjectId;
use serde::{Deserialize, Serialize};
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, Data, SocketRef, State, TryData};
use socketioxide::handler::ConnectHandler;

use crate::Shared;
use crate::refusal::Refusal;
use crate::routes::send;
use crate::views::NewMessage;

#[derive(Clone, Copy)]
struct UserOf(ObjectId);

#[derive(Deserialize)]
struct Handshake {
    token: String,
}

#[derive(Serialize)]
struct InRoom {
    room: String,
}

/// Answers the events of the main namespace.
pub fn serve(io: &SocketIo) {
    io.ns("/", connected.with(admit));
}

async fn admit(
    socket: SocketRef,
    State(shared): State<Shared>,
    TryData(handshake): TryData<Handshake>,
) -> Result<(), &'static str> {
    let Ok(Handshake { token }) = handshake else {
        return Err("Access denied. No token provided.");
    };
    let user = shared.tokens.check(&token).map_err(|Refusal(_, text)| text)?;
    socket.extensions.insert(UserOf(user));
    // Not when it is connected: it may send at once, and what nothing listens to is dropped.
    listen(&socket);
    Ok(())
}

async fn connected() {}

// An answer fails only if the socket has gone.
fn listen(socket: &SocketRef) {
    socket.on("joinRoom", async |socket: SocketRef, Data(room): Data<String>, ack: AckSender| {
        socket.join(room.clone());
        let _ = ack.send(&InRoom { room });
    });
    socket.on("leaveRoom", async |socket: SocketRef, Data(room): Data<String>, ack: AckSender| {
        socket.leave(room.clone());
        let _ = ack.send(&InRoom { room });
    });
    socket.on("sendMessage", send_message);
}

async fn send_message(
    io: SocketIo,
    socket: SocketRef,
    State(shared): State<Shared>,
    TryData(message): TryData<NewMessage>,
    ack: AckSender,
) {
    let sent = match (message, socket.extensions.get::<UserOf>()) {
        (Ok(message), Some(UserOf(user))) => send(&shared, &io, user, message).await,
        _ => Err(Refusal::SERVER_ERROR),
    };
    let _ = match sent {
        Ok(sent) => ack.send(&sent),
        Err(refusal) => ack.send(&refusal.body()),
    };
}
