//! The requests about signals: who types, and who comes and goes.

use std::collections::HashMap;
use std::sync::Arc;

use bson::DateTime;

use super::Session;
use super::requests::{Outcome, RequestFuture, failed, field_or_value, immediate, single};
use crate::casts::required_id;
use crate::error::ApiError;
use crate::hub::watching::MAX_WATCHED;
use crate::js::Js;
use crate::models::user::Username;
use crate::models::{RoomId, UserId};
use crate::views;

impl<T> Session<T> {
    pub(super) fn typing(&self, data: &str) -> RequestFuture {
        let (user, room) = match self.user_in(data) {
            Ok(found) => found,
            Err(error) => return failed(error),
        };
        let worker = self.worker.clone();
        single(async move {
            let mut names = worker.store.users.names_of([user]).await?;
            let name = match names.remove(&user).flatten() {
                Some(Username::Text(name)) => Some(Arc::from(name.as_ref())),
                Some(Username::Null | Username::Missing) | None => None,
            };
            Ok(Outcome::Typing(room, name))
        })
    }

    pub(super) fn stop_typing(&self, data: &str) -> RequestFuture {
        immediate(self.user_in(data).map(|(_, room)| Outcome::StopTyping(room)))
    }

    /// The user, and the room that the session has joined.
    fn user_in(&self, data: &str) -> Result<(UserId, RoomId), ApiError> {
        let user = self.user.ok_or(ApiError::TokenMissing)?;
        let room = required_id("room", &field_or_value(data, "room"))?;
        if self.member.is_in(room) { Ok((user, room)) } else { Err(ApiError::NotJoined) }
    }

    /// Watches users at once, so that nothing is missed between the answer and the first event.
    pub(super) fn watch_users(&self, data: &str) -> RequestFuture {
        let users = match self.users(data) {
            Ok(Some(users)) => users,
            Ok(None) => return failed(invalid("is required")),
            Err(error) => return failed(error),
        };
        if !self.member.watch(&users) {
            return failed(invalid(TOO_MANY));
        }
        let worker = self.worker.clone();
        single(async move {
            let seen = worker.presence.last_seen(&users).await?;
            Ok(Outcome::Watching(users, seen))
        })
    }

    pub(super) fn unwatch_users(&self, data: &str) -> RequestFuture {
        immediate(self.users(data).map(Outcome::Unwatching))
    }

    /// The users in a request; `None` if it names none.
    fn users(&self, data: &str) -> Result<Option<Vec<UserId>>, ApiError> {
        self.user.ok_or(ApiError::TokenMissing)?;
        if !self.worker.presence.is_on() {
            return Err(ApiError::NoPresence);
        }
        match field_or_value(data, "users") {
            Js::Undefined | Js::Null => Ok(None),
            Js::Array(users) if users.len() > MAX_WATCHED => Err(invalid(TOO_MANY)),
            Js::Array(users) => {
                let users = users.iter().map(|user| required_id("users", user));
                users.collect::<Result<_, _>>().map(Some)
            }
            _ => Err(invalid("must be a list of ids")),
        }
    }

    /// The answer to a session that watches users: who is online at this moment.
    pub(super) fn watching(&self, users: &[UserId], seen: &HashMap<UserId, DateTime>) -> String {
        let online = self.worker.presence.online(users);
        let offline = seen.iter().filter(|(user, _)| !online.contains(user));
        let mut json = Vec::new();
        views::presence(&mut json, &online, offline);
        String::from_utf8(json).expect("views write UTF-8")
    }

    /// Watches users no more; all of them if none is named.
    pub(super) fn unwatching(&self, users: Option<&[UserId]>) -> String {
        self.member.unwatch(users);
        "{}".to_owned()
    }
}

const TOO_MANY: &str = "must be at most 1000 ids, together with those watched already";

fn invalid(problem: &'static str) -> ApiError {
    ApiError::InvalidField { field: "users", problem }
}
