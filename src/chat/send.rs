//! Sending a message.
//!
//! Checks the request, in the order of the Node server, and stores the message. The feed delivers
//! it; on a standalone MongoDB it is passed to the feed here.

use futures::future::join_all;

use super::Chat;
use crate::casts::{required_id, required_text};
use crate::error::ApiError;
use crate::feed::event::Event;
use crate::js::{Fields, Js};
use crate::models::message::{SendError, Stored};
use crate::models::{IdempotencyKey, Message, RoomId, Rooms, StoreError, UserId};
use crate::views;

/// A message that a client wants to send, with uncast fields.
#[derive(Debug)]
pub struct Draft {
    room: Js,
    sender: Js,
    content: Js,
    /// The JSON of the content, if it differs from the stored one.
    echo: Option<String>,
}

/// The checked fields of a draft.
struct Checked {
    room: RoomId,
    sender: UserId,
    content: String,
}

/// A stored message, and the JSON for its sender.
#[derive(Debug)]
pub struct Sent {
    message: Message<'static>,
    echo: Option<String>,
    /// Whether the idempotency key was used before, so that this is the message of the first
    /// request.
    pub replayed: bool,
}

impl Draft {
    /// Takes `room`, `sender` and `content` out of a request.
    pub fn take(fields: &mut Fields) -> Self {
        Self {
            room: fields.take("room"),
            sender: fields.take("sender"),
            content: fields.take("content"),
            echo: fields.take_echo("content"),
        }
    }

    /// Sets the sender to `user`, if the request has none.
    pub fn or_from(mut self, user: Option<UserId>) -> Self {
        if let (true, Some(user)) = (self.sender.is_nullish(), user) {
            self.sender = Js::String(user.to_string());
        }
        self
    }

    /// The length of this message as the body of a REST request, in bytes, without needless
    /// escapes.
    pub fn body_length(&self) -> usize {
        const AROUND_CONTENT: usize = r#"{"room":"","sender":"","content":}"#.len() + 2 * 24;
        let mut json = Vec::new();
        if let Ok(text) = self.content.to_text() {
            views::push_string(&mut json, &text);
        }
        AROUND_CONTENT + json.len()
    }
}

impl Chat {
    /// Stores a message of `user`. `None` is an anonymous socket of `LEGACY_TRUST`.
    ///
    /// # Errors
    /// The room does not exist, a field is missing or cannot be cast, the sender is another user,
    /// the idempotency key belongs to another message, or the rate limit is reached.
    pub async fn send(
        &self,
        draft: Draft,
        user: Option<UserId>,
        key: Option<&IdempotencyKey>,
    ) -> Result<Sent, ApiError> {
        let checked = self.check(&draft, user).await?;
        let message = self.allow(checked, user)?;
        let stored = match key {
            None => {
                self.store.messages.insert(&message).await?;
                Stored { message, replayed: false }
            }
            Some(key) => {
                let user = user.unwrap_or(message.sender);
                self.store.messages.insert_once(message, user, key).await?
            }
        };
        Ok(self.sent(stored, draft.echo))
    }

    /// Stores messages of one user together, in this order. Returns the result of
    /// [`send`](Self::send) for each.
    pub async fn send_all(
        &self,
        drafts: Vec<Draft>,
        user: Option<UserId>,
    ) -> Vec<Result<Sent, ApiError>> {
        let checked = join_all(drafts.iter().map(|draft| self.check(draft, user))).await;
        let allow = |checked: Result<Checked, _>| self.allow(checked?, user);
        let allowed: Vec<_> = checked.into_iter().map(allow).collect();
        let messages: Vec<_> = allowed.iter().flatten().collect();
        let mut stored = self.store.messages.insert_all(&messages).await.into_iter();
        let finish = |(message, draft): (Result<_, ApiError>, Draft)| {
            let message = message?;
            // There is one result for each allowed message.
            stored.next().ok_or_else(|| ApiError::Internal("no answer".to_owned()))??;
            Ok(self.sent(Stored { message, replayed: false }, draft.echo))
        };
        allowed.into_iter().zip(drafts).map(finish).collect()
    }

    async fn check(&self, draft: &Draft, user: Option<UserId>) -> Result<Checked, ApiError> {
        let room = existing_room(&draft.room, &self.store.rooms).await?;
        let sender: UserId = required_id("sender", &draft.sender)?;
        let content = required_text("content", &draft.content)?.into_owned();
        if user != Some(sender) && !self.believes_senders {
            return Err(ApiError::SenderMismatch);
        }
        Ok(Checked { room, sender, content })
    }

    /// Creates the message, unless the rate limit is reached. Never waits, so that ids are in the
    /// order in which messages are stored.
    fn allow(
        &self,
        Checked { room, sender, content }: Checked,
        user: Option<UserId>,
    ) -> Result<Message<'static>, ApiError> {
        self.limits.send.take(user.unwrap_or(sender))?;
        Ok(Message::new(room, sender, content))
    }

    /// Makes the result of a stored message. Publishes the message on a standalone MongoDB.
    fn sent(&self, stored: Stored<'static>, echo: Option<String>) -> Sent {
        let Stored { message, replayed } = stored;
        if !replayed {
            self.feed.publish_local(|| Some(Event::message(&message, None)));
        }
        Sent { message, echo: echo.filter(|_| !replayed), replayed }
    }
}

impl Sent {
    /// `{"message":{…}}`: the body of REST's answer and the ack on sockets.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = br#"{"message":"#.to_vec();
        views::new_message(&mut json, &self.message, self.echo.as_deref());
        json.push(b'}');
        json
    }
}

/// The Node server first looks the room up, and later casts it for the message. For the look-up, an
/// array is a `$in`; for the cast, its elements are joined by commas. So only an array with one id
/// passes both.
async fn existing_room(value: &Js, rooms: &Rooms) -> Result<RoomId, ApiError> {
    let wanted: Vec<RoomId> = match value {
        Js::Undefined | Js::Null => Vec::new(),
        Js::Array(elements) => elements
            .iter()
            .filter(|element| !element.is_nullish())
            .map(|element| required_id("room", element))
            .collect::<Result<_, _>>()?,
        value => vec![required_id("room", value)?],
    };
    if wanted.is_empty() || !rooms.any_exists(&wanted).await? {
        return Err(ApiError::RoomNotFound);
    }
    required_id("room", value)
}

impl From<SendError> for ApiError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Conflict => Self::IdempotencyConflict,
            SendError::Store(error @ StoreError::Off(_)) => Self::NoIdempotency(error.to_string()),
            SendError::Store(error) => error.into(),
        }
    }
}
