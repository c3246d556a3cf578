//! Sending a message.
//!
//! Checks the request, in the order of the Node server, and stores the message. The feed delivers
//! it; on a standalone MongoDB it is passed to the feed here.

use std::time::Duration;

use futures::future::join_all;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Chat;
use crate::casts::{required_id, required_text};
use crate::error::ApiError;
use crate::feed::Phase;
use crate::feed::event::{Event, MessageKey};
use crate::js::{Fields, Js};
use crate::models::message::{SendError, Stored};
use crate::models::{IdempotencyKey, Message, RoomId, StoreError, UserId};
use crate::views;

/// How long a request waits for the change stream to bring its message. Less than the deadline of a
/// request.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(4);

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
                let verdict = self.verdict(&message);
                self.store.messages.insert(&message).await?;
                self.confirm(&message, verdict).await?;
                Stored { message, replayed: false, inserted: true }
            }
            Some(key) => {
                let user = user.unwrap_or(message.sender);
                let mut verdict = None;
                let prepare = |message: &Message<'_>| verdict = self.verdict(message);
                let stored = self.store.messages.insert_once(message, user, key, prepare).await?;
                if stored.inserted {
                    self.confirm(&stored.message, verdict).await?;
                } else {
                    self.confirm_replayed(&stored.message, user).await?;
                }
                stored
            }
        };
        Ok(Sent::of(stored, draft.echo))
    }

    /// Prepares to wait for a message to a room with members, which is about to be stored.
    fn verdict(&self, message: &Message<'_>) -> Option<oneshot::Receiver<bool>> {
        let is_ordered = message.room.may_have_members() && self.feed.phase() != Phase::Local;
        is_ordered.then(|| self.feed.verdict(message.id))
    }

    /// Publishes a stored message on a standalone MongoDB. Otherwise waits until the change stream
    /// brings a message to a room with members, and refuses it if its sender was removed before.
    async fn confirm(
        &self,
        message: &Message<'_>,
        verdict: Option<oneshot::Receiver<bool>>,
    ) -> Result<(), ApiError> {
        let is_delivered = match verdict {
            None => self.feed.publish_local(|| Some(Event::message(message, None))),
            Some(verdict) => match timeout(VERDICT_TIMEOUT, verdict).await {
                Ok(Ok(is_delivered)) => is_delivered,
                _ => return Err(late()),
            },
        };
        if is_delivered { Ok(()) } else { self.refuse(message).await }
    }

    /// Refuses a message that an earlier request with the same idempotency key has stored, if its
    /// sender was removed before, or is no member now: the answer says what became of the message.
    async fn confirm_replayed(&self, message: &Message<'_>, user: UserId) -> Result<(), ApiError> {
        if !message.room.may_have_members() {
            return Ok(());
        }
        self.check_visible(message.room, Some(user)).await?;
        if self.feed.phase() == Phase::Local {
            return Ok(());
        }
        if self.feed.was_refused(message.id) {
            return self.refuse(message).await;
        }
        if self.feed.ring().room_of(&MessageKey::Id(message.id.0)).is_some() {
            return Ok(());
        }
        // Not read yet, or delivered long ago.
        self.feed.read_until_now().await.map_err(|_elapsed| late())?;
        if self.feed.was_refused(message.id) { self.refuse(message).await } else { Ok(()) }
    }

    /// Removes a message that was stored after its sender was removed from the room.
    async fn refuse(&self, message: &Message<'_>) -> Result<(), ApiError> {
        self.store.messages.take_back(message.id).await?;
        Err(ApiError::RoomNotFound)
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
        let mut verdicts: Vec<_> = messages.iter().map(|message| self.verdict(message)).collect();
        verdicts.reverse();
        let mut stored = self.store.messages.insert_all(&messages).await.into_iter();
        let mut results = Vec::with_capacity(drafts.len());
        for (message, draft) in allowed.into_iter().zip(drafts) {
            let result = match message {
                Err(error) => Err(error),
                Ok(message) => {
                    let verdict = verdicts.pop().flatten();
                    // There is one result for each allowed message.
                    match stored.next() {
                        Some(Ok(())) => self.confirm(&message, verdict).await.map(|()| {
                            Sent::of(
                                Stored { message, replayed: false, inserted: true },
                                draft.echo,
                            )
                        }),
                        Some(Err(error)) => Err(error.into()),
                        None => Err(ApiError::Internal("no answer".to_owned())),
                    }
                }
            };
            results.push(result);
        }
        results
    }

    async fn check(&self, draft: &Draft, user: Option<UserId>) -> Result<Checked, ApiError> {
        let room = self.room_of(&draft.room, user).await?;
        let sender: UserId = required_id("sender", &draft.sender)?;
        let content = required_text("content", &draft.content)?.into_owned();
        // What a member may send is decided by the sender, so nobody sends as another one.
        let believes = self.believes_senders && !room.may_have_members();
        if user != Some(sender) && !believes {
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
}

impl Sent {
    fn of(Stored { message, replayed, .. }: Stored<'static>, echo: Option<String>) -> Self {
        Self { message, echo: echo.filter(|_| !replayed), replayed }
    }

    /// `{"message":{…}}`: the body of REST's answer and the ack on sockets.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = br#"{"message":"#.to_vec();
        views::new_message(&mut json, &self.message, self.echo.as_deref());
        json.push(b'}');
        json
    }
}

impl Chat {
    /// The Node server first looks the room up, and later casts it for the message. For the
    /// look-up, an array is a `$in`; for the cast, its elements are joined by commas. So only an
    /// array with one id passes both.
    async fn room_of(&self, value: &Js, user: Option<UserId>) -> Result<RoomId, ApiError> {
        let wanted: Vec<RoomId> = match value {
            Js::Undefined | Js::Null => Vec::new(),
            Js::Array(elements) => elements
                .iter()
                .filter(|element| !element.is_nullish())
                .map(|element| required_id("room", element))
                .collect::<Result<_, _>>()?,
            value => vec![required_id("room", value)?],
        };
        if let &[room] = wanted.as_slice() {
            self.check_sendable(room, user).await?;
        } else if wanted.is_empty() || !self.store.rooms.any_exists(&wanted).await? {
            return Err(ApiError::RoomNotFound);
        }
        required_id("room", value)
    }
}

/// Whether the message is delivered is not known.
fn late() -> ApiError {
    ApiError::Unavailable("the change stream is late".to_owned())
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
