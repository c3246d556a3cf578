//! The owner of the private rooms: adds and removes members at random. Some members leave by
//! themselves.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Database;
use mongodb::options::ReadConcern;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::account::Account;
use crate::random::Random;
use crate::stored::MEMBERS;

/// How long an earlier change may still take effect after its request has ended without an answer.
/// The server gives up after 5 s, and MongoDB may have the write by then.
const SETTLE: Duration = Duration::from_secs(8);

/// The owner of the private rooms.
pub struct Moderator {
    pub owner: Account,
    pub users: Vec<Account>,
    pub rooms: Vec<String>,
    pub instances: Vec<SocketAddr>,
    pub http: reqwest::Client,
    pub random: Random,
    /// The members, by room and user.
    pub members: HashSet<(String, String)>,
    /// How many changes there were.
    pub changes: usize,
}

impl Moderator {
    /// Makes the private rooms. Each user is a member of about half of them.
    pub async fn make_rooms(&mut self, count: usize) {
        for number in 0..count {
            let users: Vec<_> = self.users.iter().map(|account| account.user.clone()).collect();
            let users: Vec<_> = users.into_iter().filter(|_| self.random.once_in(2)).collect();
            let name = format!("private {number}");
            let body = json!({ "name": name, "private": true, "members": users });
            let url = format!("http://{}/api/chat/room", self.instances[0]);
            let request = self.http.post(url).bearer_auth(self.owner.token()).json(&body);
            let answer: Value = request.send().await.unwrap().json().await.unwrap();
            let room = answer["room"]["_id"].as_str().expect("a room is made").to_owned();
            self.members.extend(users.into_iter().map(|user| (room.clone(), user)));
            self.rooms.push(room);
        }
    }

    /// Changes members until `end`.
    pub async fn change_until(&mut self, end: Instant) {
        while Instant::now() < end && !self.rooms.is_empty() {
            let pause = self.random.millis(50..500);
            sleep(pause).await;
            let room = self.random.of(&self.rooms).clone();
            let user = self.random.of(&self.users).clone();
            self.change(room, user, end).await;
        }
    }

    /// Decides for each user and room whether the user is a member in the end, and returns the
    /// members by room and user. Call it when everything works again.
    ///
    /// The database decides who is a member, because an attempt without an answer may have taken
    /// effect after the next one.
    pub async fn settle(
        &mut self,
        database: &Database,
        until: Instant,
    ) -> Arc<HashSet<(String, String)>> {
        sleep(SETTLE).await;
        for room in self.rooms.clone() {
            for user in self.users.clone() {
                if self.random.once_in(2) {
                    self.change(room.clone(), user, until).await;
                }
            }
        }
        sleep(SETTLE).await;
        let mut stored = HashSet::new();
        let members = database.collection::<Document>(MEMBERS);
        let mut found = members
            .find(doc! { "_id": { "$type": "object" } })
            .read_concern(ReadConcern::majority())
            .await
            .unwrap();
        while found.advance().await.unwrap() {
            let member = found.deserialize_current().unwrap();
            let id = member.get_document("_id").unwrap();
            let of = |field| id.get_object_id(field).unwrap().to_hex();
            stored.insert((of("room"), of("user")));
        }
        let users: HashSet<_> = self.users.iter().map(|account| &account.user).collect();
        stored.retain(|(_, user)| users.contains(user));
        Arc::new(stored)
    }

    /// Adds the user, or removes the user who is a member.
    async fn change(&mut self, room: String, user: Account, until: Instant) {
        self.changes += 1;
        let id = user.user.clone();
        let key = (room.clone(), id.clone());
        let is_member = self.members.contains(&key);
        let mut leaves = self.random.once_in(3);
        let owner = self.owner.token();
        let path = format!("/api/chat/room/{room}/members");
        while Instant::now() < until {
            let addr = *self.random.of(&self.instances);
            let request = if is_member {
                let token = if leaves { user.token() } else { owner.clone() };
                let url = format!("http://{addr}{path}/{id}");
                self.http.delete(url).bearer_auth(token)
            } else {
                let url = format!("http://{addr}{path}");
                self.http.post(url).bearer_auth(&owner).json(&json!({ "user": id }))
            };
            let status = request.send().await.ok().map(|answer| answer.status().as_u16());
            // An attempt without an answer may have succeeded: then the user is not a member.
            if status == Some(200) || (status == Some(404) && is_member && leaves) {
                if is_member {
                    self.members.remove(&key);
                } else {
                    self.members.insert(key);
                }
                return;
            }
            // The user was logged out, so the owner does it.
            leaves &= status != Some(401);
            let pause = self.random.millis(50..300);
            sleep(pause).await;
        }
    }
}
