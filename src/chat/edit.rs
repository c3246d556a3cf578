//! Editing and deleting a message, for REST and sockets alike.
//!
//! Both read the stored message, check the user's permission, and replace the document if nobody
//! has written it in the meantime; otherwise they start again. Concurrent changes of one message in
//! this process are made one after another, so that they do not make each other fail. The feed
//! delivers the change.

use std::time::Duration;

use bson::{DateTime, RawDocument, RawDocumentBuf};
use tokio::time::sleep;

use super::Chat;
use crate::casts::{required_id, required_text};
use crate::config::ErrorMode;
use crate::error::ApiError;
use crate::feed::event::Event;
use crate::js::{Fields, Js};
use crate::metrics::{MessageChange, Outcome};
use crate::models::{IdempotencyKey, MessageId, Revision, RoomId, UserId};
use crate::views;

/// The maximum number of attempts while others write the same message.
const ATTEMPTS: usize = 200;

/// How long to wait until a majority may have a change that the primary has.
const UNCONFIRMED: Duration = Duration::from_millis(50);

/// An edit that a client requests, with uncast fields.
#[derive(Debug)]
pub struct Edit {
    message: Js,
    content: Js,
    version: Js,
}

/// A message after a change.
#[derive(Debug)]
pub struct Changed {
    document: RawDocumentBuf,
    /// Whether an earlier request has stored this change, so that nothing was stored: one with the
    /// same idempotency key, or a deletion.
    pub replayed: bool,
}

impl Edit {
    /// Takes `message`, `content` and `__v` out of a request.
    pub fn take(fields: &mut Fields) -> Self {
        Self {
            message: fields.take("message"),
            content: fields.take("content"),
            version: fields.take("__v"),
        }
    }

    /// Sets the message to the one in the path.
    pub fn of_message(mut self, message: &str) -> Self {
        self.message = Js::String(message.to_owned());
        self
    }

    /// The length of this edit as the body of a REST request, in bytes, without needless escapes.
    pub fn body_length(&self) -> usize {
        const AROUND_CONTENT: usize = r#"{"content":}"#.len();
        let mut json = Vec::new();
        if let Ok(text) = self.content.to_text() {
            views::push_string(&mut json, &text);
        }
        AROUND_CONTENT + json.len()
    }
}

impl Chat {
    /// Edits a message of `user`. `None` is an anonymous socket of `LEGACY_TRUST`, which is
    /// refused.
    ///
    /// # Errors
    /// The message does not exist, was deleted, is of another sender, or has another version than
    /// the request; a field cannot be cast; the idempotency key belongs to another request; or the
    /// rate limit is reached.
    pub async fn edit(
        &self,
        edit: Edit,
        user: Option<UserId>,
        key: Option<&IdempotencyKey>,
    ) -> Result<Changed, ApiError> {
        let edited = self.replace_content(edit, user, key).await;
        self.metrics.message_change(MessageChange::Edit, outcome(&edited));
        edited
    }

    async fn replace_content(
        &self,
        edit: Edit,
        user: Option<UserId>,
        key: Option<&IdempotencyKey>,
    ) -> Result<Changed, ApiError> {
        let user = user.ok_or(ApiError::TokenMissing)?;
        let id: MessageId = required_id("message", &edit.message)?;
        let content = required_text("content", &edit.content)?;
        let expected = version(&edit.version)?;
        self.limits.send.take(user)?;
        let messages = &self.store.messages;
        let _turn = messages.turn(id).await;
        for _ in 0..ATTEMPTS {
            let stored = self.visible(id, user).await?;
            if stored.sender != Some(user) {
                return Err(ApiError::NotTheSender);
            }
            if stored.is_deleted() {
                if key.is_some() {
                    // An earlier round may have written the text down after it was to be forgotten.
                    messages.forget(id).await?;
                }
                return Err(ApiError::MessageDeleted);
            }
            let mut edited = stored.edited(&content, DateTime::now());
            let first = match key {
                Some(key) => messages.prepared_edit(&edited, user, key).await?,
                None => None,
            };
            if let Some(first) = &first
                && is_stored(first, &stored)
            {
                return Ok(Changed { document: first.clone(), replayed: true });
            }
            if expected.is_some_and(|expected| expected != stored.version) {
                if messages.is_newest(id, Some(&stored)).await? {
                    return Err(ApiError::EditConflict);
                }
                sleep(UNCONFIRMED).await;
                continue;
            }
            match (key, first) {
                // A retry stores the same document, so that it is stored once.
                (Some(_), Some(first)) if follows(&first, &stored) => edited = first,
                (Some(key), first) => {
                    if !messages.prepare_edit(&edited, first, user, key).await? {
                        // A retry of the same request came first.
                        continue;
                    }
                }
                (None, _) => {}
            }
            if messages.replace(&stored, &edited).await? {
                self.feed.publish_local(|| Event::changed(&edited, None).ok());
                return Ok(Changed { document: edited, replayed: false });
            }
        }
        Err(contended())
    }

    /// Deletes a message of `user`, or one in a room that `user` owns: replaces it by a tombstone
    /// without its text, which has the time and the user of the deletion. A second deletion changes
    /// nothing and gets the same answer.
    ///
    /// # Errors
    /// The message does not exist or is of another sender, the id cannot be cast, or the rate limit
    /// is reached.
    pub async fn delete(&self, message: &Js, user: Option<UserId>) -> Result<Changed, ApiError> {
        let deleted = self.replace_by_tombstone(message, user).await;
        self.metrics.message_change(MessageChange::Deletion, outcome(&deleted));
        deleted
    }

    async fn replace_by_tombstone(
        &self,
        message: &Js,
        user: Option<UserId>,
    ) -> Result<Changed, ApiError> {
        let user = user.ok_or(ApiError::TokenMissing)?;
        let id: MessageId = required_id("message", message)?;
        self.limits.send.take(user)?;
        let messages = &self.store.messages;
        let _turn = messages.turn(id).await;
        for _ in 0..ATTEMPTS {
            let stored = self.visible(id, user).await?;
            if stored.sender != Some(user) && self.owner_of(stored.room).await? != Some(user) {
                return Err(ApiError::NotTheSender);
            }
            let replayed = stored.is_deleted();
            let document = if replayed {
                stored.document().to_owned()
            } else {
                let tombstone = stored.tombstone(user, DateTime::now());
                if !messages.replace(&stored, &tombstone).await? {
                    continue;
                }
                self.feed.publish_local(|| Event::changed(&tombstone, None).ok());
                tombstone
            };
            // Even if the message was deleted already: the first request may have failed here.
            messages.forget(id).await?;
            return Ok(Changed { document, replayed });
        }
        Err(contended())
    }

    /// The owner of a room that has one.
    async fn owner_of(&self, room: RoomId) -> Result<Option<UserId>, ApiError> {
        if !room.may_have_members() {
            return Ok(None);
        }
        let room = self.store.members_rooms.room(room).await?;
        Ok(room.and_then(|room| room.owner()))
    }

    /// Reads the message, if its room exists for this user. Waits for a majority to have it, until
    /// the deadline of the request.
    async fn visible(&self, id: MessageId, user: UserId) -> Result<Revision, ApiError> {
        let messages = &self.store.messages;
        let stored = loop {
            match messages.revision(id).await? {
                Some(stored) => break stored,
                None if messages.is_newest(id, None).await? => {
                    // So that the time of the answer does not tell a message of a room that this
                    // user cannot see from no message.
                    self.store.rooms.exists(RoomId(id.0)).await?;
                    return Err(ApiError::MessageNotFound);
                }
                None => sleep(UNCONFIRMED).await,
            }
        };
        if stored.room.may_have_members() {
            let visible = self.check_visible(stored.room, Some(user)).await;
            visible.map_err(|error| match error {
                ApiError::RoomNotFound => ApiError::MessageNotFound,
                error => error,
            })?;
        }
        Ok(stored)
    }
}

impl Changed {
    /// `{"message":{…}}`: the body of REST's answer and the ack on sockets.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = br#"{"message":"#.to_vec();
        views::changed_message(&mut json, &self.document);
        json.push(b'}');
        json
    }
}

/// Whether a prepared document was stored: the message is this document, or has a later version. A
/// later version may also have been stored instead of it; then the result is the same as if this
/// edit had been stored just before.
fn is_stored(prepared: &RawDocument, stored: &Revision) -> bool {
    version_of(prepared) < stored.version || stored.document() == prepared
}

/// Whether the document was prepared for the stored version of the message.
fn follows(prepared: &RawDocument, stored: &Revision) -> bool {
    version_of(prepared) == stored.version.saturating_add(1)
}

fn version_of(document: &RawDocument) -> i32 {
    Revision::of(document).map_or(0, |revision| revision.version)
}

/// The version in the request, if there is one.
fn version(value: &Js) -> Result<Option<i32>, ApiError> {
    match value {
        Js::Undefined | Js::Null => Ok(None),
        Js::Number(number)
            if number.fract() == 0.0 && (0.0..=f64::from(i32::MAX)).contains(number) =>
        {
            Ok(Some(*number as i32))
        }
        _ => Err(ApiError::InvalidField {
            field: "__v",
            problem: "must be a whole number from 0 on",
        }),
    }
}

fn outcome(changed: &Result<Changed, ApiError>) -> Outcome {
    match changed {
        Ok(Changed { replayed: false, .. }) => Outcome::Stored,
        Ok(Changed { replayed: true, .. }) => Outcome::Repeated,
        Err(error) if error.status(ErrorMode::Precise).is_server_error() => Outcome::Failed,
        Err(_) => Outcome::Refused,
    }
}

fn contended() -> ApiError {
    ApiError::Unavailable("too many concurrent changes of the same message".to_owned())
}
