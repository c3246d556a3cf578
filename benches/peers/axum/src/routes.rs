//! REST.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use bson::oid::ObjectId;
use socketioxide::SocketIo;

use crate::Shared;
use crate::auth::{self, CurrentUser};
use crate::refusal::Refusal;
use crate::store::is_duplicate;
use crate::views::{
    CreatedRoom, Credentials, Done, HistoryView, LoggedIn, MessageView, NewMessage, NewRoom,
    RoomView, Sent,
};

/// What handlers use.
#[derive(Clone)]
pub struct Context {
    pub shared: Shared,
    pub io: SocketIo,
}

type Body<T> = Result<Json<T>, JsonRejection>;
type Answer<T> = Result<(StatusCode, Json<T>), Refusal>;

/// All routes.
pub fn table(shared: Shared, io: SocketIo) -> Router {
    Router::new()
        .route("/api/auth/register", post(register))
        .route("/api/auth/login", post(login))
        .route("/api/chat/room", post(create_room))
        .route("/api/chat/rooms", get(rooms))
        .route("/api/chat/messages/{room}", get(history))
        .route("/api/chat/message", post(send_message))
        .with_state(Context { shared, io })
}

async fn register(State(context): State<Context>, body: Body<Credentials>) -> Answer<Done> {
    let Json(Credentials { username, password }) = body?;
    let hash = auth::hash(password).await?;
    // A taken name is a 500 on the original server, too.
    context.shared.store.add_user(username, hash).await?;
    Ok((StatusCode::CREATED, Json(Done { message: "User registered successfully" })))
}

async fn login(State(context): State<Context>, body: Body<Credentials>) -> Answer<LoggedIn> {
    let Json(Credentials { username, password }) = body?;
    let user = context.shared.store.user(&username).await?;
    let user = user.ok_or(Refusal(StatusCode::NOT_FOUND, "User not found"))?;
    if !auth::is_password(password, user.password).await? {
        return Err(Refusal(StatusCode::BAD_REQUEST, "Invalid credentials"));
    }
    let token = context.shared.tokens.issue(user.id)?;
    Ok((StatusCode::OK, Json(LoggedIn { token, user: user.id })))
}

async fn create_room(
    _: CurrentUser,
    State(context): State<Context>,
    body: Body<NewRoom>,
) -> Answer<CreatedRoom> {
    let Json(NewRoom { name }) = body?;
    let room = match context.shared.store.add_room(name).await {
        Ok(room) => RoomView::from(room),
        Err(error) if is_duplicate(&error) => {
            return Err(Refusal(StatusCode::BAD_REQUEST, "Room already exists"));
        }
        Err(error) => return Err(error.into()),
    };
    let message = "Room created successfully";
    Ok((StatusCode::CREATED, Json(CreatedRoom { message, room })))
}

async fn rooms(_: CurrentUser, State(context): State<Context>) -> Answer<Vec<RoomView>> {
    let rooms = context.shared.store.rooms().await?;
    Ok((StatusCode::OK, Json(rooms.into_iter().map(RoomView::from).collect())))
}

async fn history(
    _: CurrentUser,
    State(context): State<Context>,
    Path(room): Path<String>,
) -> Answer<Vec<HistoryView>> {
    let room = ObjectId::parse_str(room).map_err(|_| Refusal::SERVER_ERROR)?;
    let (messages, names) = context.shared.store.history(room).await?;
    let views = messages.into_iter().map(|message| HistoryView::new(message, &names));
    Ok((StatusCode::OK, Json(views.collect())))
}

async fn send_message(
    CurrentUser(user): CurrentUser,
    State(context): State<Context>,
    body: Body<NewMessage>,
) -> Answer<Sent> {
    let Json(message) = body?;
    let sent = send(&context.shared, &context.io, user, message).await?;
    Ok((StatusCode::CREATED, Json(sent)))
}

/// Checks a message, stores it by a majority, and tells the room.
pub async fn send(
    shared: &Shared,
    io: &SocketIo,
    user: ObjectId,
    NewMessage { room, sender, content }: NewMessage,
) -> Result<Sent, Refusal> {
    if sender != user {
        return Err(Refusal(StatusCode::FORBIDDEN, "The sender is another user"));
    }
    if content.is_empty() {
        return Err(Refusal::SERVER_ERROR);
    }
    if !shared.store.has_room(room).await? {
        return Err(Refusal(StatusCode::BAD_REQUEST, "Room not found"));
    }
    let stored = shared.store.add_message(room, sender, content).await?;
    let message = MessageView::from(stored);
    // It fails for sockets that are closing, which need no message.
    let _ = io.to(room.to_hex()).emit("receiveMessage", &message).await;
    Ok(Sent { message })
}
