//! Messages that are edited and deleted: who may, what everybody is told, and what is left.

use std::collections::HashSet;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Document, doc};
use futures::future::join_all;
use mongodb::Collection;
use mongodb::options::WriteConcern;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::helpers::mongod::{Neighbour, ReplicaSet, connect, fresh_database, standalone};
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, User, alone, client, eventually};

const SECOND: Duration = Duration::from_secs(1);

fn path(message: &Value) -> String {
    format!("/api/chat/message/{}", message["_id"].as_str().unwrap())
}

impl User<'_> {
    async fn edit(&self, message: &Value, body: Value) -> (StatusCode, Value) {
        self.change(Method::PATCH, message, Some(&body)).await
    }

    async fn delete(&self, message: &Value) -> (StatusCode, Value) {
        self.change(Method::DELETE, message, None).await
    }

    async fn change(
        &self,
        method: Method,
        message: &Value,
        body: Option<&Value>,
    ) -> (StatusCode, Value) {
        let answer = self.request(method, &path(message), body).await;
        (answer.status(), answer.json().await.unwrap())
    }
}

async fn messages(uri: &str) -> Collection<Document> {
    connect(uri).await.collection("messages")
}

fn id_of(message: &Value) -> ObjectId {
    message["_id"].as_str().unwrap().parse().unwrap()
}

/// Asserts that a refusal has this status and code, and says an error.
fn assert_refused((status, answer): (StatusCode, Value), expected: (u16, &str)) {
    assert_eq!((status.as_u16(), answer["code"].as_str().unwrap()), expected, "{answer}");
    assert_eq!(answer.as_object().unwrap().len(), 2, "{answer}");
    assert!(answer["error"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_is_told_to_everybody_on_every_instance_and_wire() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let room = ada.create_room("lounge").await;
    let sent = ada.deliver(&room, "helo").await;
    let mut plain = Socket::connect(&other, &ada.token).await;
    plain.join(&room).await;
    let mut caller = Caller::connect(other.addr, &ada.token).await;
    caller.join(&room).await;

    let (status, answer) = ada.edit(&sent, json!({ "content": "hello" })).await;
    assert_eq!(status, StatusCode::OK);
    let edited = &answer["message"];
    let keys: Vec<_> = edited.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        ["__v", "_id", "content", "createdAt", "editedAt", "room", "sender", "updatedAt"]
    );
    assert_eq!((&edited["content"], &edited["__v"]), (&json!("hello"), &json!(1)));
    assert_eq!(edited["createdAt"], sent["createdAt"]);
    assert_eq!(edited["editedAt"], edited["updatedAt"]);

    let told = plain.next().await;
    assert_eq!((&told["event"], &told["data"]), (&json!("messageEdited"), edited));
    assert!(told["position"].is_string());
    let event = caller.event().await;
    assert_eq!(event[..2], [json!("messageEdited"), edited.clone()]);
    assert_eq!(event[2], told["position"]);

    let history = ada.history(&room).await;
    assert_eq!(history.len(), 1);
    assert_eq!((&history[0]["content"], &history[0]["__v"]), (&json!("hello"), &json!(1)));
    assert_eq!(history[0]["editedAt"], edited["editedAt"]);
    assert_eq!(history[0]["sender"]["username"], "ada");

    // By an event, on both wires.
    let asked = json!({ "message": sent["_id"], "content": "hello!", "__v": 1 });
    let ack = plain.ask("editMessage", asked.clone()).await;
    assert_eq!(ack["message"]["content"], "hello!");
    assert_eq!(plain.next().await["data"], ack["message"]);
    assert_eq!(caller.event().await[1], ack["message"]);
    assert_eq!(caller.ask("editMessage", asked).await["code"], "edit_conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_told_and_leaves_no_text() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let room = ada.create_room("lounge").await;
    let kept = ada.deliver(&room, "kept").await;
    let sent = ada.deliver(&room, "secret").await;
    let mut plain = Socket::connect(&other, &ada.token).await;
    plain.join(&room).await;

    let (status, answer) = ada.delete(&sent).await;
    assert_eq!(status, StatusCode::OK);
    let deleted = &answer["message"];
    let keys: Vec<_> = deleted.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["_id", "content", "createdAt", "deletedAt", "room", "sender", "updatedAt"]);
    assert_eq!((&deleted["content"], &deleted["sender"]), (&json!(""), &json!(ada.id)));
    let told = plain.next().await;
    assert_eq!(told["event"], "messageDeleted");
    assert_eq!(
        told["data"],
        json!({ "room": room, "message": sent["_id"], "deletedAt": deleted["deletedAt"] })
    );

    // Again, by an event: the same answer, and nothing is told.
    let again = plain.ask("deleteMessage", json!({ "message": sent["_id"] })).await;
    assert_eq!(again, answer);
    assert_eq!(plain.kept(), 0);

    assert_refused(ada.edit(&sent, json!({ "content": "back" })).await, (410, "message_deleted"));
    assert_eq!(ada.history(&room).await, [ada.history(&room).await[0].clone()]);
    assert_eq!(ada.history(&room).await[0]["_id"], kept["_id"]);
    let shown = ada.get(&format!("/api/chat/messages/{room}?deleted=true")).await;
    let mut expected = deleted.clone();
    expected["sender"] = json!({ "_id": ada.id, "username": "ada" });
    assert_eq!(shown[1], expected);
    let stored = messages(&uri).await.find_one(doc! { "_id": id_of(&sent) }).await.unwrap();
    assert!(!stored.unwrap().to_string().contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_sender_changes_a_message_and_every_refusal_is_precise() {
    let server = TestServer::start().await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = ada.create_room("lounge").await;
    let sent = ada.send(&room, "hello").await;
    let unknown = json!({ "_id": ObjectId::new().to_hex() });
    let edit = json!({ "content": "other" });
    assert_refused(bob.edit(&sent, edit.clone()).await, (403, "not_the_sender"));
    assert_refused(bob.delete(&sent).await, (403, "not_the_sender"));
    assert_refused(ada.edit(&unknown, edit.clone()).await, (404, "message_not_found"));
    assert_refused(ada.delete(&unknown).await, (404, "message_not_found"));
    for (body, field) in [
        (json!({}), "content"),
        (json!({ "content": "" }), "content"),
        (json!({ "content": ["x"] }), "content"),
        (json!({ "content": "x", "__v": "new" }), "__v"),
    ] {
        let (status, answer) = ada.edit(&sent, body).await;
        assert!(answer["error"].as_str().unwrap().starts_with(field), "{answer}");
        assert_refused((status, answer), (400, "invalid_field"));
    }
    let (status, answer) = ada.edit(&json!({ "_id": "first" }), edit.clone()).await;
    assert!(answer["error"].as_str().unwrap().starts_with("message"), "{answer}");
    assert_refused((status, answer), (400, "invalid_field"));
    let conflict = json!({ "content": "x", "__v": 5 });
    assert_refused(ada.edit(&sent, conflict).await, (409, "edit_conflict"));

    let nobody = server.request(Method::PATCH, &path(&sent), None, Some(&edit)).await;
    assert_refused((nobody.status(), nobody.json().await.unwrap()), (401, "token_missing"));

    let mut socket = Socket::connect(&server, &bob.token).await;
    let asked = json!({ "message": sent["_id"], "content": "x" });
    assert_eq!(socket.ask("editMessage", asked).await["code"], "not_the_sender");
    assert_eq!(socket.ask("deleteMessage", json!({})).await["code"], "invalid_field");
    assert_eq!(ada.history(&room).await[0]["content"], "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_recovered_in_order_and_no_deleted_text_with_them() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let room = ada.create_room("lounge").await;
    let edited = ada.deliver(&room, "first").await;
    let mut plain = Socket::connect(&one, &ada.token).await;
    let since = plain.join(&room).await;
    let mut caller = Caller::connect(one.addr, &ada.token).await;
    caller.join(&room).await;
    ada.send(&room, "an offset").await;
    assert_eq!(caller.heard().await.1, "an offset");
    let memory = caller.cut();

    let deleted = ada.send(&room, "secret").await;
    ada.edit(&edited, json!({ "content": "second" })).await;
    ada.edit(&deleted, json!({ "content": "more secret" })).await;
    ada.delete(&deleted).await;
    ada.send(&room, "last").await;
    // Once the other instance has all of it.
    eventually("the deletion is everywhere", async || {
        let mut watcher = Socket::connect(&other, &ada.token).await;
        watcher.recover(&room, &since).await;
        let mut frames = Vec::new();
        while frames.last().is_none_or(|frame: &Value| frame["data"]["content"] != "last") {
            frames.push(watcher.next().await);
        }
        let told: Vec<_> = frames.iter().map(|frame| frame["event"].as_str().unwrap()).collect();
        let text = json!(frames).to_string();
        told == ["receiveMessage", "messageEdited", "messageDeleted", "receiveMessage"]
            && !text.contains("secret")
    })
    .await;

    let mut caller = Caller::recover(other.addr, &ada.token, &memory).await;
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(caller.event().await);
    }
    let names: Vec<_> = told.iter().map(|event| event[0].as_str().unwrap()).collect();
    assert_eq!(names, ["messageEdited", "messageDeleted", "receiveMessage"]);
    assert!(!json!(told).to_string().contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_before_the_start_is_known_when_the_past_is_filled_in() {
    let uri = fresh_database().await;
    let first = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = first.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&first, &ada.token).await;
    let since = socket.join(&room).await;
    let deleted = ada.send(&room, "secret").await;
    let removed = ada.send(&room, "secret too").await;
    ada.delete(&deleted).await;
    messages(&uri).await.delete_one(doc! { "_id": id_of(&removed) }).await.unwrap();
    ada.send(&room, "last").await;

    let second = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let mut socket = Socket::connect(&second, &ada.token).await;
    socket.recover(&room, &since).await;
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(socket.next().await);
    }
    assert_eq!(told[0]["data"]["message"], deleted["_id"], "{told:?}");
    assert_eq!(
        (&told[1]["event"], &told[1]["data"]["message"]),
        (&json!("messageDeleted"), &removed["_id"])
    );
    assert_eq!(told[2]["data"]["content"], "last");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_before_the_start_is_known_without_the_first_text() {
    let uri = fresh_database().await;
    let first = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = first.register("ada").await;
    let (room, other) = (ada.create_room("lounge").await, ada.create_room("other").await);
    let mut socket = Socket::connect(&first, &ada.token).await;
    socket.join(&room).await;
    let neighbour = Neighbour::connect(&uri).await;
    neighbour.insert(&room, &"x".repeat(200_000)).await;
    let told = socket.next().await;
    let (removed, since) = (id_of(&told["data"]), told["position"].as_str().unwrap().to_owned());
    let by_id = doc! { "_id": removed };
    let mut secret = neighbour.document(&room, "secret");
    secret.remove("_id");
    neighbour.messages.replace_one(by_id.clone(), secret).await.unwrap();
    // More than MongoDB gives at once, and too much to keep the first text, too.
    neighbour.insert_all(&other, (0..1_000).map(|n| n.to_string())).await;
    neighbour.messages.delete_one(by_id).await.unwrap();
    ada.send(&room, "last").await;

    let vars = [("MONGO_URI", uri.as_str()), ("RECOVERY_BYTES", "700kB")];
    let second = TestServer::start_with(&vars).await;
    let mut socket = Socket::connect(&second, &ada.token).await;
    socket.recover(&room, &since).await;
    let told = socket.next().await;
    assert_eq!(told["event"], "messageDeleted", "{told}");
    assert_eq!(told["data"]["message"], removed.to_hex());
    assert_eq!(socket.heard().await.content, "last");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_program_changes_is_told_too() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let edited = ada.deliver(&room, "one").await;
    let removed = ada.deliver(&room, "two").await;
    let messages = messages(&uri).await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let since = socket.join(&room).await;

    let one = doc! { "_id": id_of(&edited) };
    messages.update_one(one.clone(), doc! { "$set": { "content": "1" } }).await.unwrap();
    let told = socket.next().await;
    assert_eq!((&told["event"], &told["data"]["content"]), (&json!("messageEdited"), &json!("1")));
    messages
        .replace_one(one, doc! { "room": room.parse::<ObjectId>().unwrap(), "content": 5 })
        .await
        .unwrap();
    assert_eq!(socket.next().await["data"]["content"], "5");
    messages.delete_one(doc! { "_id": id_of(&removed) }).await.unwrap();
    let told = socket.next().await;
    assert_eq!(told["event"], "messageDeleted");
    assert_eq!(told["data"]["message"], removed["_id"]);
    // One that nobody knows here is nobody's.
    let unknown = messages.insert_one(doc! { "content": "no room" }).await.unwrap().inserted_id;
    messages.delete_one(doc! { "_id": unknown }).await.unwrap();
    ada.send(&room, "on").await;
    assert_eq!(socket.heard().await.content, "on");

    let mut again = Socket::connect(&server, &ada.token).await;
    again.recover(&room, &since).await;
    let told = [again.next().await, again.next().await, again.next().await, again.next().await];
    let names = told.map(|told| told["event"].clone());
    assert_eq!(names, ["messageEdited", "messageEdited", "messageDeleted", "receiveMessage"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_edit_changes_nothing_more() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let room = ada.create_room("lounge").await;
    let sent = ada.send(&room, "0").await;
    let edit = async |server: &TestServer, content: &str, key: &str| {
        let request = client().patch(server.url(&path(&sent))).bearer_auth(&ada.token);
        let request = request.header("Idempotency-Key", key).json(&json!({ "content": content }));
        let answer = request.send().await.unwrap();
        let replayed = answer.headers().contains_key("idempotency-replayed");
        let status = answer.status().as_u16();
        (status, replayed, answer.json::<Value>().await.unwrap())
    };
    let (status, replayed, first) = edit(&one, "1", "a").await;
    assert_eq!((status, replayed), (200, false));
    let (status, replayed, again) = edit(&other, "1", "a").await;
    assert_eq!((status, replayed, &again), (200, true, &first));
    ada.edit(&sent, json!({ "content": "2" })).await;
    let (status, replayed, again) = edit(&other, "1", "a").await;
    assert_eq!((status, replayed, &again), (200, true, &first));
    assert_eq!(ada.history(&room).await[0]["content"], "2");
    let (status, _, answer) = edit(&one, "3", "a").await;
    assert_eq!((status, &answer["code"]), (422, &json!("idempotency_conflict")));

    // Many at once, on both instances: one of them changes it.
    let before = ada.history(&room).await[0]["__v"].as_i64().unwrap();
    let retries = (0..20).map(|n| edit(if n % 2 == 0 { &one } else { &other }, "4", "b"));
    let answers = join_all(retries).await;
    assert!(answers.iter().all(|(status, ..)| *status == 200), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, replayed, _)| !replayed).count(), 1);
    assert_eq!(ada.history(&room).await[0]["__v"], before + 1);

    // The record forgets the text with the message.
    ada.delete(&sent).await;
    let keys = connect(&uri).await.collection::<Document>("realtime_chat_backend_keys");
    let record = keys.find_one(doc! { "_id.key": "b" }).await.unwrap().unwrap();
    assert_eq!(record.get_document("message").unwrap().get_str("content").unwrap(), "");
    assert_eq!(edit(&one, "4", "b").await.0, 410);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_written_after_the_deletion_forgets_the_text_too() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let sent = ada.send(&room, "hello").await;
    let edit = json!({ "message": sent["_id"], "content": "secret", "clientId": "k" });
    socket.ask("editMessage", edit.clone()).await;
    let keys = connect(&uri).await.collection::<Document>("realtime_chat_backend_keys");
    let by_key = doc! { "_id.key": "k" };
    let record = keys.find_one(by_key.clone()).await.unwrap().unwrap();
    ada.delete(&sent).await;
    // As another instance does it that has read the message before.
    keys.replace_one(by_key.clone(), record).await.unwrap();
    assert_eq!(socket.ask("editMessage", edit).await["code"], "message_deleted");
    let record = keys.find_one(by_key).await.unwrap().unwrap();
    assert_eq!(record.get_document("message").unwrap().get_str("content").unwrap(), "");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_majority_has_is_not_acknowledged_to_a_retry_either() {
    let _alone = alone().await;
    let mongo = ReplicaSet::start_patient(3).await;
    let uri = mongo.uri("minority");
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let (edited, deleted) = (ada.send(&room, "0").await, ada.send(&room, "gone").await);
    let url = server.url("/api/chat/message");
    let body = json!({ "room": room, "sender": ada.id, "content": "new" });
    let (client, edit) = (client(), json!({ "content": "1" }));
    let requests = [
        client.post(&url).json(&body).header("Idempotency-Key", "send"),
        client.patch(server.url(&path(&edited))).json(&edit).header("Idempotency-Key", "edit"),
        client.delete(server.url(&path(&deleted))),
    ];
    let requests = requests.map(|request| request.bearer_auth(&ada.token));
    let ask = async |request: &RequestBuilder| {
        let answer = request.try_clone().unwrap().send().await;
        answer.map_or(0, |answer| answer.status().as_u16())
    };

    // The record of the edit is there, and what it prepared is not stored.
    let (messages, by_id) = (messages(&uri).await, doc! { "_id": id_of(&edited) });
    let before = messages.find_one(by_id.clone()).await.unwrap().unwrap();
    assert_eq!(ask(&requests[1]).await, 200);
    messages.replace_one(by_id, before).await.unwrap();

    let primary = mongo.primary().await;
    let others: Vec<_> = (0..3).filter(|node| *node != primary).collect();
    others.iter().for_each(|node| mongo.pause(*node));
    let first = requests.iter().map(|request| tokio::time::timeout(SECOND, ask(request)));
    assert!(join_all(first).await.iter().all(Result::is_err), "no answer in a second");
    let retries = join_all(requests.iter().map(ask)).await;
    others.iter().for_each(|node| mongo.resume(*node));
    assert_eq!(retries, [503; 3]);

    for request in &requests {
        eventually("there is a majority again", async || ask(request).await < 300).await;
    }
    let history = ada.history(&room).await;
    let contents: Vec<_> = history.iter().map(|message| message["content"].clone()).collect();
    assert_eq!(contents, ["1", "new"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_majority_has_yet_is_neither_unknown_nor_in_conflict() {
    let _alone = alone().await;
    let mongo = ReplicaSet::start_patient(3).await;
    let uri = mongo.uri("unconfirmed");
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let old = ada.send(&room, "0").await;
    let messages = messages(&uri).await;
    let by_id = doc! { "_id": id_of(&old) };
    let mut document = messages.find_one(by_id.clone()).await.unwrap().unwrap();
    let primary = mongo.primary().await;
    let others: Vec<_> = (0..3).filter(|node| *node != primary).collect();
    others.iter().for_each(|node| mongo.pause(*node));

    // As after a failover: the new primary has everything that was acknowledged, and does not know
    // yet that a majority has it.
    let alone = WriteConcern::nodes(1);
    document.extend(doc! { "content": "1", "__v": 1 });
    let replaced = messages.replace_one(by_id, document.clone()).write_concern(alone.clone());
    assert_eq!(replaced.await.unwrap().modified_count, 1);
    let new = ObjectId::new();
    document.insert("_id", new);
    messages.insert_one(document).write_concern(alone).await.unwrap();
    let new = json!({ "_id": new.to_hex() });
    let changes = [
        (Method::PATCH, &old, Some(json!({ "content": "2", "__v": 1 }))),
        (Method::PATCH, &new, Some(json!({ "content": "2" }))),
        (Method::DELETE, &new, None),
    ];
    let ask = async |(method, message, body): &(Method, &Value, Option<Value>)| {
        ada.change(method.clone(), message, body.as_ref()).await.0.as_u16()
    };
    assert_eq!(join_all(changes.iter().map(ask)).await, [503; 3]);
    others.iter().for_each(|node| mongo.resume(*node));
    for change in &changes {
        eventually("there is a majority again", async || ask(change).await == 200).await;
    }
    let unknown = json!({ "_id": ObjectId::new().to_hex() });
    assert_eq!(ada.delete(&unknown).await.0, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_deleted_does_not_come_back_by_a_retry() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let message = json!({ "room": room, "content": "secret", "clientId": "k" });
    let sent = socket.ask("sendMessage", message.clone()).await;
    ada.delete(&sent["message"]).await;
    let again = socket.ask("sendMessage", message).await;
    assert_eq!(again["message"]["_id"], sent["message"]["_id"]);
    assert_eq!(again["message"]["content"], "");
    assert!(ada.history(&room).await.is_empty());
    let stored = messages(&uri).await.count_documents(doc! {}).await.unwrap();
    assert_eq!(stored, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_edits_of_one_message_end_with_one_text_for_everybody() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut sockets = Vec::new();
    for server in [&one, &other] {
        let mut socket = Socket::connect(server, &ada.token).await;
        socket.join(&room).await;
        sockets.push(socket);
    }
    let sent = ada.send(&room, "0").await;
    const EDITS: u64 = 1_000;
    let (client, begun) = (client(), tokio::time::Instant::now());
    let edits = (1..=EDITS).map(async |n| {
        tokio::time::sleep_until(begun + Duration::from_millis(n)).await;
        let server = if n % 2 == 0 { &one } else { &other };
        let edit = client.patch(server.url(&path(&sent))).bearer_auth(&ada.token);
        let answer = edit.json(&json!({ "content": n.to_string() })).send().await.unwrap();
        // On a busy machine the last ones may have to wait for longer than a request may.
        assert!(matches!(answer.status().as_u16(), 200 | 503), "{answer:?}");
        answer.status() == StatusCode::OK
    });
    let edited = join_all(edits).await.into_iter().filter(|edited| *edited).count();
    assert!(edited > 0);
    let messages = messages(&uri).await;
    for mut socket in sockets {
        // Everybody is told of every version. Also of some that nobody was told to be stored: what
        // an instance was storing when it answered 503.
        for version in 0.. {
            let told = socket.next().await;
            assert_eq!(told["data"]["__v"], version);
            if version < edited {
                continue;
            }
            let stored = messages.find_one(doc! { "_id": id_of(&sent) }).await.unwrap().unwrap();
            if told["data"]["__v"] == stored.get_i32("__v").unwrap() {
                assert_eq!(told["data"]["content"], stored.get_str("content").unwrap());
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_that_are_stored_together_are_stored_although_another_program_writes_there_too() {
    const MESSAGES: usize = 60;
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut sent = Vec::new();
    for number in 0..MESSAGES {
        sent.push(ada.send(&room, &number.to_string()).await);
    }
    let mut witness = Socket::connect(&server, &ada.token).await;
    witness.join(&room).await;
    let messages = messages(&uri).await;
    let (edited, deleted) = sent.split_at(MESSAGES - 10);
    let ids: Vec<_> = edited.iter().map(id_of).collect();
    let edited_ids: Vec<_> = ids.iter().copied().step_by(2).collect();
    let disturbing = async {
        for _ in 0..30 {
            let some = doc! { "_id": { "$in": &edited_ids } };
            messages.update_many(some, doc! { "$inc": { "__v": 1 } }).await.unwrap();
        }
        // Gone while others are changed.
        let gone = doc! { "_id": { "$in": deleted.iter().map(id_of).collect::<Vec<_>>() } };
        messages.delete_many(gone).await.unwrap();
    };
    let (ada, all) = (&ada, &sent);
    let edits = async |round: usize| {
        let edit = async |message: &Value| {
            let content = format!("{round} {}", message["content"].as_str().unwrap());
            let (status, _) = ada.edit(message, json!({ "content": content })).await;
            (status, content)
        };
        join_all(all.iter().map(edit)).await
    };
    let editing = async {
        let mut stored = Vec::new();
        for round in 0..6 {
            // Of those that are removed meanwhile the text is not told any more.
            let answers = edits(round).await.into_iter().take(ids.len());
            stored.extend(answers.filter(|(status, _)| *status == StatusCode::OK));
        }
        ada.send(&room, "the end").await;
        stored
    };
    let hearing = async {
        let mut told = HashSet::new();
        loop {
            let content = witness.next().await["data"]["content"].as_str().map(str::to_owned);
            if content.as_deref() == Some("the end") {
                return told;
            }
            told.extend(content);
        }
    };
    let (stored, told, ()) = tokio::join!(editing, hearing, disturbing);
    assert!(stored.len() > ids.len() * 4, "{}", stored.len());
    for (_, content) in stored {
        assert!(told.contains(&content), "{content} was acknowledged, not stored");
    }
    for ((status, content), id) in edits(6).await.into_iter().zip(&ids) {
        assert_eq!(status, StatusCode::OK);
        let stored = messages.find_one(doc! { "_id": id }).await.unwrap().unwrap();
        assert_eq!(stored.get_str("content").unwrap(), content);
    }
    for (status, _) in edits(7).await.into_iter().skip(ids.len()) {
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    // With the end: what another program has removed does not come back.
    assert_eq!(messages.count_documents(doc! {}).await.unwrap(), ids.len() as u64 + 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_full_without_what_was_deleted() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut sent = Vec::new();
    for n in 0..12 {
        sent.push(ada.send(&room, &n.to_string()).await);
    }
    for message in sent.iter().skip(4).step_by(2) {
        assert_eq!(ada.delete(message).await.0, StatusCode::OK);
    }
    let page = async |query: &str| {
        let page = ada.get(&format!("/api/chat/messages/{room}?{query}")).await;
        let contents = page.as_array().unwrap().iter();
        contents.map(|message| message["content"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(page("limit=4").await, ["5", "7", "9", "11"]);
    let before = sent[7]["_id"].as_str().unwrap();
    assert_eq!(page(&format!("limit=3&before={before}")).await, ["2", "3", "5"]);
    assert_eq!(page(&format!("limit=2&after={before}")).await, ["9", "11"]);
    assert_eq!(page("limit=4&deleted=true").await, ["", "9", "", "11"]);
    assert_eq!(page("").await, ["0", "1", "2", "3", "5", "7", "9", "11"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_standalone_changes_are_told_without_positions() {
    let mongod = standalone().await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongod.uri("chat"))]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let sent = ada.send(&room, "hello").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let ack = socket.ask("joinRoom", json!(room)).await;
    assert_eq!(ack["position"], Value::Null);
    let (_, edited) = ada.edit(&sent, json!({ "content": "hello!" })).await;
    assert_eq!(socket.next().await, json!({ "event": "messageEdited", "data": edited["message"] }));
    ada.delete(&sent).await;
    assert_eq!(socket.next().await["event"], "messageDeleted");
    socket.assert_silent(Duration::from_millis(100)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_before_the_memory_is_a_resync() {
    let uri = fresh_database().await;
    let vars = [("MONGO_URI", uri.as_str()), ("RECOVERY_WINDOW", "1s")];
    let server = TestServer::start_with(&vars).await;
    let ada = server.register("ada").await;
    let (room, quiet) = (ada.create_room("lounge").await, ada.create_room("quiet").await);
    let sent = ada.send(&room, "hello").await;
    ada.send(&quiet, "hello").await;
    // So that the messages are older than what clocks may differ by, on a slow machine too.
    tokio::time::sleep(Duration::from_secs(18)).await;
    // And the position is one of now, which nothing else moves on.
    let scratch = ada.create_room("scratch").await;
    ada.send(&scratch, "now").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let since = socket.join(&room).await;
    ada.edit(&sent, json!({ "content": "hello!" })).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    ada.send(&scratch, "later").await;
    let token = ada.token.clone();
    server.stop().await;
    let server = TestServer::start_with(&vars).await;
    let mut socket = Socket::connect(&server, &token).await;
    // `since` is older than the edit, and the instance remembers nothing of it.
    assert_eq!(socket.join_since(&room, &since).await["recovered"], false);
    socket.resync(&room).await;
    assert_eq!(socket.join_since(&quiet, &since).await["recovered"], true);
    server.stop().await;
}
