//! A database with a past: indexes of older schemas, collections of other programs, and one that
//! is dropped under the running server.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use futures::future::join_all;
use mongodb::options::IndexOptions;
use mongodb::{Collection, Database, IndexModel};
use realtime_chat_backend::models::indexes;
use realtime_chat_backend::models::own::{self, Holding};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::helpers::program::Program;
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, User, client, eventually, mongod};

/// A server with precise errors, and its database.
async fn precise() -> (TestServer, Database) {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    (precise_on(&uri).await, database)
}

async fn precise_on(uri: &str) -> TestServer {
    TestServer::start_with(&[("MONGO_URI", uri), ("ERRORS", "precise")]).await
}

/// The unique index that an older schema has left, and a document without its field.
async fn leave_unique(collection: &Collection<Document>, field: &str) {
    collection.insert_one(doc! { "_id": ObjectId::new() }).await.unwrap();
    let options = IndexOptions::builder().unique(true).build();
    let index = IndexModel::builder().keys(doc! { field: 1 }).options(options).build();
    collection.create_index(index).await.unwrap();
}

async fn send(
    server: &TestServer,
    user: &User<'_>,
    room: &str,
    content: &str,
    key: Option<&str>,
) -> Response {
    let mut request = client()
        .post(server.url("/api/chat/message"))
        .bearer_auth(&user.token)
        .json(&json!({ "room": room, "sender": user.id, "content": content }));
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    request.send().await.unwrap()
}

/// Leaves the record of a key, that of a socket, which is connected, a refresh token, and a login
/// that has ended.
async fn leave_records(server: &TestServer, user: &User<'_>, room: &str) -> Caller {
    let answer = send(server, user, room, "hello", Some("k")).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(refreshing_login(server).await.0, StatusCode::OK);
    let (_, token) = refreshing_login(server).await;
    let answer = server.request(Method::POST, "/api/auth/logout", Some(&token), None).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let mut caller = Caller::connect(server.addr, &user.token).await;
    caller.join(room).await;
    caller
}

/// Logs ann in with a refresh token.
async fn refreshing_login(server: &TestServer) -> (StatusCode, String) {
    let body = json!({ "username": "ann", "password": "password of ann", "refresh": true });
    let answer = server.request(Method::POST, "/api/auth/login", None, Some(&body)).await;
    let status = answer.status();
    let answer: Value = answer.json().await.unwrap();
    (status, answer["token"].as_str().unwrap_or_default().to_owned())
}

/// Makes a private room, for which its two collections must be this server's.
async fn private_room(user: &User<'_>) -> Response {
    let body = json!({ "name": "cellar", "private": true });
    user.request(Method::POST, "/api/chat/room", Some(&body)).await
}

async fn refused(answer: Response, status: u16, code: &str) {
    assert_eq!(answer.status().as_u16(), status);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["code"], code, "{body}");
}

async fn index_names(database: &Database, collection: &str) -> Vec<String> {
    let collection = database.collection::<Document>(collection);
    collection.list_index_names().await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_foreign_index_refuses_is_never_acknowledged() {
    let (server, database) = precise().await;
    let ann = server.register("ann").await;
    let room = ann.create_room("lounge").await;
    let messages = database.collection::<Document>("messages");
    leave_unique(&messages, "clientMsgId").await;

    for key in [None, Some("k"), Some("k")] {
        refused(send(&server, &ann, &room, "hello", key).await, 500, "refused_by_index").await;
    }
    let mut socket = Socket::connect(&server, &ann.token).await;
    for _ in 0..2 {
        let message = json!({ "room": room, "content": "hello", "clientId": "c" });
        assert_eq!(socket.ask("sendMessage", message).await["code"], "refused_by_index");
    }
    // Many are stored by one operation.
    let answers = join_all((0..40).map(|_| send(&server, &ann, &room, "many", None))).await;
    for answer in answers {
        refused(answer, 500, "refused_by_index").await;
    }
    assert_eq!(messages.count_documents(doc! { "room": { "$exists": true } }).await.unwrap(), 0);

    messages.drop_index("clientMsgId_1").await.unwrap();
    let retried = send(&server, &ann, &room, "hello", Some("k")).await;
    assert_eq!(retried.status(), StatusCode::CREATED);
    assert_eq!(ann.history(&room).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_messages_that_are_stored_together_only_the_refused_ones_are_errors() {
    let (server, database) = precise().await;
    let ann = server.register("ann").await;
    let room = ann.create_room("lounge").await;
    let messages = database.collection::<Document>("messages");
    leave_unique(&messages, "content").await;
    let sends = (0..60).map(|n| {
        let (server, ann, room) = (&server, &ann, &room);
        async move {
            let content = format!("{}", n % 30);
            let status = send(server, ann, room, &content, None).await.status();
            (content, status)
        }
    });
    let mut stored = Vec::new();
    for (content, status) in join_all(sends).await {
        match status {
            StatusCode::CREATED => stored.push(content),
            status => assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
    let history = ann.history(&room).await;
    let mut contents: Vec<_> = history.iter().map(|m| m["content"].as_str().unwrap()).collect();
    contents.sort_unstable();
    stored.sort_unstable();
    assert_eq!(stored.len(), 30);
    assert_eq!(contents, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_free_name_is_not_called_taken_because_of_a_foreign_index() {
    let (server, database) = precise().await;
    let ann = server.register("ann").await;
    ann.create_room("lounge").await;
    for (collection, field) in [("users", "email"), ("rooms", "slug")] {
        let collection = database.collection(collection);
        // What is there already has the field, but for one document.
        collection.update_many(doc! {}, doc! { "$set": { field: "first" } }).await.unwrap();
        leave_unique(&collection, field).await;
    }
    let register = async |name: &str| {
        let body = json!({ "username": name, "password": "x" });
        server.request(Method::POST, "/api/auth/register", None, Some(&body)).await
    };
    let create = async |name: &str| {
        ann.request(Method::POST, "/api/chat/room", Some(&json!({ "name": name }))).await
    };
    refused(register("bob").await, 500, "refused_by_index").await;
    refused(register("ann").await, 409, "username_taken").await;
    refused(create("attic").await, 500, "refused_by_index").await;
    refused(create("lounge").await, 409, "room_exists").await;

    let original = TestServer::start_with(&[("MONGO_URI", &uri_of(&database).await)]).await;
    let ann = original.login("ann").await;
    let body = json!({ "name": "attic" });
    let answer = ann.request(Method::POST, "/api/chat/room", Some(&body)).await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.text().await.unwrap(), r#"{"error":"Server error"}"#);
}

/// The connection string of a database of the shared server.
async fn uri_of(database: &Database) -> String {
    let fresh = mongod::fresh_database().await;
    let (server, query) = fresh.rsplit_once("/test").unwrap();
    let (_, query) = query.split_once('?').unwrap();
    format!("{server}/{}?{query}", database.name())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_id_another_document_has_is_an_error() {
    let (server, database) = precise().await;
    let ann = server.register("ann").await;
    let room = ann.create_room("lounge").await;
    let first = send(&server, &ann, &room, "hello", Some("k")).await;
    let first: Value = first.json().await.unwrap();
    let id = ObjectId::parse_str(first["message"]["_id"].as_str().unwrap()).unwrap();
    let messages = database.collection::<Document>("messages");
    let edited = doc! { "$set": { "content": "hello, everybody", "edited": true } };
    messages.update_one(doc! { "_id": id }, edited).await.unwrap();
    let retried = send(&server, &ann, &room, "hello", Some("k")).await;
    assert_eq!(retried.status(), StatusCode::CREATED, "it was edited, but is still this one");
    messages.delete_one(doc! { "_id": id }).await.unwrap();
    messages.insert_one(doc! { "_id": id, "content": "another" }).await.unwrap();
    refused(send(&server, &ann, &room, "hello", Some("k")).await, 500, "internal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_index_is_said_once_a_minute_without_what_was_sent() {
    let uri = mongod::fresh_database().await;
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ann = beside.register("ann").await;
    let room = ann.create_room("lounge").await;
    let messages = mongod::connect(&uri).await.collection::<Document>("messages");
    leave_unique(&messages, "content").await;
    let server = Program::start_on(&uri, &[]);
    let post = async |content: &str| {
        let message = json!({ "room": room, "sender": ann.id, "content": content });
        let url = format!("http://{}/api/chat/message", server.addr);
        let answer = client().post(url).bearer_auth(&ann.token).json(&message).send().await;
        answer.unwrap().status()
    };
    assert_eq!(post("a private text").await, StatusCode::CREATED);
    for _ in 0..30 {
        assert_eq!(post("a private text").await, StatusCode::INTERNAL_SERVER_ERROR);
    }
    let said = || server.log().into_iter().filter(|line| line.contains("content_1"));
    eventually("it is said", async || said().next().is_some()).await;
    let lines: Vec<_> = said().collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("ERROR") && lines[0].contains("messages"), "{lines:?}");
    assert!(server.log().iter().all(|line| !line.contains("a private text")));
    beside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_ours_under_another_name_holds_names_unique() {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    let options = IndexOptions::builder().unique(true).name("by_name".to_owned()).build();
    let index = IndexModel::builder().keys(doc! { "name": 1 }).options(options).build();
    database.collection::<Document>("rooms").create_index(index).await.unwrap();
    let plain = IndexModel::builder().keys(doc! { "username": 1 }).build();
    database.collection::<Document>("users").create_index(plain).await.unwrap();

    let server = precise_on(&uri).await;
    eventually("the other indexes are built", async || {
        index_names(&database, "messages").await.contains(&"room_1__id_1".to_owned())
    })
    .await;
    assert_eq!(index_names(&database, "rooms").await, ["_id_", "by_name"]);
    let ann = server.register("ann").await;
    let body = json!({ "name": "lounge" });
    let create = (0..30).map(|_| ann.request(Method::POST, "/api/chat/room", Some(&body)));
    let mut created = 0;
    for answer in join_all(create).await {
        match answer.status() {
            StatusCode::CREATED => created += 1,
            _ => refused(answer, 409, "room_exists").await,
        }
    }
    assert_eq!(created, 1);
    // The other one is not unique, so names are looked up.
    let body = json!({ "username": "ann", "password": "x" });
    let again = server.request(Method::POST, "/api/auth/register", None, Some(&body)).await;
    refused(again, 409, "username_taken").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_of_other_programs_are_not_touched() {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    let old = DateTime::from_millis(0);
    for name in ["sockets", "idempotency"] {
        let document = doc! { "_id": "theirs", "expires": old, "createdAt": old };
        database.collection(name).insert_one(document).await.unwrap();
    }
    let server = precise_on(&uri).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("lounge").await;
    let _caller = leave_records(&server, &ann, &room).await;
    assert_eq!(private_room(&ann).await.status(), StatusCode::CREATED);
    for name in ["sockets", "idempotency"] {
        assert_eq!(index_names(&database, name).await, ["_id_"]);
        let documents = database.collection::<Document>(name);
        assert_eq!(documents.count_documents(doc! {}).await.unwrap(), 1);
    }
    own_collections_are_there(&database).await;
    let mut names = database.list_collection_names().await.unwrap();
    names.sort_unstable();
    let own = own::ALL.map(|purpose| purpose.collection);
    let beside: Vec<_> = names.iter().filter(|name| name.starts_with(own::PREFIX)).collect();
    assert_eq!(beside.len(), own.len(), "{names:?}");
    assert_eq!(names.len(), 5 + own.len(), "{names:?}");
}

/// Waits until all own collections are claimed.
async fn own_collections_are_there(database: &Database) {
    eventually("all own collections are there", async || {
        let mut are_ours = true;
        for purpose in own::ALL {
            are_ours &= purpose.look(database).await.unwrap() == Holding::Ours;
        }
        are_ours
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_name_that_others_use_turns_its_feature_off_until_there_is_room() {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    let theirs = doc! { "_id": "theirs", "expires": DateTime::from_millis(0) };
    database.collection::<Document>(own::KEYS.collection).insert_one(&theirs).await.unwrap();
    database.create_collection("elsewhere").await.unwrap();
    let view = doc! {
        "create": own::SOCKETS.collection, "viewOn": "elsewhere", "pipeline": [],
    };
    database.run_command(view).await.unwrap();
    let others = own::ALL.map(|purpose| purpose.collection).into_iter();
    let taken = [own::KEYS.collection, own::SOCKETS.collection];
    for name in others.filter(|name| !taken.contains(name)) {
        database.collection::<Document>(name).insert_one(&theirs).await.unwrap();
    }

    let server = precise_on(&uri).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("lounge").await;
    refused(private_room(&ann).await, 503, "unavailable").await;
    assert_eq!(refreshing_login(&server).await.0, StatusCode::SERVICE_UNAVAILABLE);
    refused(ann.request(Method::POST, "/api/auth/logout-all", None).await, 503, "unavailable")
        .await;
    let answer = send(&server, &ann, &room, "hello", Some("k")).await;
    assert!(answer.headers().contains_key("retry-after"));
    refused(answer, 503, "idempotency_unavailable").await;
    let mut socket = Socket::connect(&server, &ann.token).await;
    let message = json!({ "room": room, "content": "hello", "clientId": "c" });
    assert_eq!(socket.ask("sendMessage", message).await["code"], "idempotency_unavailable");
    assert_eq!(ann.history(&room).await.len(), 0);
    ann.send(&room, "without a key").await;

    let mut caller = Caller::connect(server.addr, &ann.token).await;
    caller.join(&room).await;
    assert_eq!(caller.cut().pid, None, "it is not offered");
    for purpose in
        own::ALL.into_iter().filter(|purpose| purpose.collection != own::SOCKETS.collection)
    {
        assert_eq!(index_names(&database, purpose.collection).await, ["_id_"]);
        let collection = database.collection::<Document>(purpose.collection);
        assert_eq!(collection.count_documents(doc! {}).await.unwrap(), 1, "{purpose:?}");
        assert_eq!(collection.find_one(doc! {}).await.unwrap().as_ref(), Some(&theirs));
    }
    for purpose in own::ALL {
        assert!(matches!(purpose.look(&database).await, Ok(Holding::Others(_))), "{purpose:?}");
    }

    for purpose in own::ALL {
        database.collection::<Document>(purpose.collection).drop().await.unwrap();
    }
    eventually("keys are taken again", async || {
        send(&server, &ann, &room, "hello", Some("k")).await.status() == StatusCode::CREATED
    })
    .await;
    eventually("private rooms can be made again", async || {
        private_room(&ann).await.status() == StatusCode::CREATED
    })
    .await;
    eventually("logins can be refreshed again", async || {
        refreshing_login(&server).await.0 == StatusCode::OK
    })
    .await;
    eventually("sockets can come back again", async || {
        let mut caller = Caller::connect(server.addr, &ann.token).await;
        caller.join(&room).await;
        caller.cut().pid.is_some()
    })
    .await;
    own_collections_are_there(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_index_on_an_own_collection_turns_its_feature_off() {
    let (server, database) = precise().await;
    let ann = server.register("ann").await;
    let room = ann.create_room("lounge").await;
    let mut caller = leave_records(&server, &ann, &room).await;
    for purpose in own::ALL {
        let options = IndexOptions::builder().unique(true).sparse(true).build();
        let index = IndexModel::builder().keys(doc! { "socketId": 1 }).options(options).build();
        database.collection::<Document>(purpose.collection).create_index(index).await.unwrap();
    }
    eventually("both are off", async || {
        let answer = send(&server, &ann, &room, "hello", Some("k")).await;
        let caller = Caller::connect(server.addr, &ann.token).await;
        answer.status() == StatusCode::SERVICE_UNAVAILABLE && caller.cut().pid.is_none()
    })
    .await;
    assert_eq!(ann.history(&room).await.len(), 1);
    // Who was there before cannot leave a record of another room, and is told.
    let attic = ann.create_room("attic").await;
    assert_eq!(caller.ask("joinRoom", json!(attic)).await["code"], "unavailable");
    // Everybody else is served.
    Caller::connect(server.addr, &ann.token).await.join(&attic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_documents_of_ours_expire_and_the_marker_does_not() {
    let (server, database) = precise().await;
    let ann = server.register("ann").await;
    let room = ann.create_room("lounge").await;
    let _caller = leave_records(&server, &ann, &room).await;
    assert_eq!(private_room(&ann).await.status(), StatusCode::CREATED);
    own_collections_are_there(&database).await;
    for purpose in own::ALL {
        let collection = database.collection::<Document>(purpose.collection);
        let (mut indexes, mut expiring) = (collection.list_indexes().await.unwrap(), 0);
        while indexes.advance().await.unwrap() {
            let index = indexes.deserialize_current().unwrap();
            let options = index.options.unwrap();
            if options.expire_after.is_none() {
                continue;
            }
            expiring += 1;
            let ours = doc! { own::FIELD: own::MARK };
            assert_eq!(options.partial_filter_expression, Some(ours));
            let (date, _) = index.keys.iter().next().unwrap();
            let dated = doc! { own::FIELD: own::MARK, date: { "$type": "date" } };
            assert_eq!(collection.count_documents(dated).await.unwrap(), 1, "the record");
            let marker = collection.find_one(doc! { "_id": own::MARK }).await.unwrap().unwrap();
            assert!(!marker.contains_key(date), "{marker}");
        }
        let expires = [&own::SOCKETS, &own::KEYS, &own::REFRESH, &own::REVOCATIONS];
        let expires = expires.iter().any(|other| other.collection == purpose.collection);
        assert_eq!(expiring, i32::from(expires), "{purpose:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_start_at_once_share_the_own_collections() {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    let servers = join_all((0..4).map(|_| precise_on(&uri))).await;
    let ann = servers[0].register("ann").await;
    let room = ann.create_room("lounge").await;
    assert_eq!(private_room(&ann).await.status(), StatusCode::CREATED);
    for (n, server) in servers.iter().enumerate() {
        let answer = send(server, &ann, &room, "hello", Some(&n.to_string())).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let mut caller = Caller::connect(server.addr, &ann.token).await;
        caller.join(&room).await;
        assert!(caller.cut().pid.is_some());
        assert_eq!(refreshing_login(server).await.0, StatusCode::OK);
    }
    own_collections_are_there(&database).await;
    for purpose in own::ALL {
        let collection = database.collection::<Document>(purpose.collection);
        let marked = collection.count_documents(doc! { "_id": own::MARK }).await.unwrap();
        assert_eq!(marked, 1);
        let mut indexes = index_names(&database, purpose.collection).await;
        indexes.sort_unstable();
        let expected: &[&str] = match purpose.collection {
            name if name == own::SOCKETS.collection => &["_id_", "expires_1"],
            name if name == own::KEYS.collection => &["_id_", "createdAt_1", "message._id_1"],
            name if name == own::ROOMS.collection => &["_id_", "ended_1"],
            name if name == own::REFRESH.collection => &["_id_", "rotatedAt_1", "user_1"],
            name if name == own::REVOCATIONS.collection => &["_id_", "at_1", "expires_1"],
            name if name == own::MEMBERS.collection => &["_id.room_1", "_id.user_1", "_id_"],
            name if name == own::MARKS.collection => &["_id.user_1", "_id_"],
            _ => &["_id_"],
        };
        assert_eq!(indexes, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_dropped_under_the_server_is_whole_again_within_seconds() {
    let (server, database) = precise().await;
    let whole = async || {
        let expected = [
            ("users", "username_1"),
            ("rooms", "name_1"),
            ("messages", "room_1__id_1"),
            (own::KEYS.collection, "createdAt_1"),
            (own::SOCKETS.collection, "expires_1"),
            (own::ROOMS.collection, "ended_1"),
            (own::MEMBERS.collection, "_id.user_1"),
            (own::REFRESH.collection, "rotatedAt_1"),
            (own::REVOCATIONS.collection, "expires_1"),
            (own::MARKS.collection, "_id.user_1"),
        ];
        let mut has_all = true;
        for (collection, index) in expected {
            has_all &= index_names(&database, collection).await.contains(&index.to_owned());
        }
        for purpose in own::ALL {
            has_all &= purpose.look(&database).await.unwrap() == Holding::Ours;
        }
        has_all
    };
    eventually("all indexes are there", whole).await;
    let ann = server.register("ann").await;
    ann.create_room("lounge").await;

    for _ in 0..2 {
        database.drop().await.unwrap();
        let ann = server.register("ann").await;
        let room = ann.create_room("lounge").await;
        // A record of a key and of a socket, in collections without a marker.
        let _caller = leave_records(&server, &ann, &room).await;
        for _ in 0..3 {
            let body = json!({ "name": "lounge" });
            let again = ann.request(Method::POST, "/api/chat/room", Some(&body)).await;
            refused(again, 409, "room_exists").await;
            let body = json!({ "username": "ann", "password": "x" });
            let again = server.request(Method::POST, "/api/auth/register", None, Some(&body)).await;
            refused(again, 409, "username_taken").await;
        }
        eventually("all indexes are there again", whole).await;
        assert_eq!(
            database.collection::<Document>("rooms").count_documents(doc! {}).await.unwrap(),
            1
        );
    }
    // One that was dropped alone, and an index.
    database.collection::<Document>(own::SOCKETS.collection).drop().await.unwrap();
    database.collection::<Document>("rooms").drop_index("name_1").await.unwrap();
    eventually("they are there again", whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_duplicates_forbid_is_said_and_does_not_stop_the_others() {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    let users = database.collection::<Document>("users");
    users.insert_many([doc! { "username": "ann" }, doc! { "username": "ann" }]).await.unwrap();
    let server = Program::start_on(&uri, &[]);
    eventually("the others are built", async || {
        index_names(&database, "messages").await.contains(&"room_1__id_1".to_owned())
            && index_names(&database, "rooms").await.contains(&"name_1".to_owned())
    })
    .await;
    assert!(!index_names(&database, "users").await.contains(&"username_1".to_owned()));
    tokio::time::sleep(Duration::from_secs(6)).await;
    let log = server.log();
    let said = log.iter().filter(|line| line.contains("\"ann\" (2 times)")).count();
    assert_eq!(said, 1, "{log:?}");
}

#[test]
fn the_page_about_migrating_names_everything_that_is_added_to_a_database() {
    let page = include_str!("../../docs/migrating.md");
    let (_, section) = page.split_once("\n## What is added to the database\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    for purpose in own::ALL {
        assert!(section.contains(&format!("| `{}` |", purpose.collection)), "{purpose:?}");
        assert!(section.contains(&format!("db.{}.drop()", purpose.collection)), "{purpose:?}");
    }
    for wanted in indexes::WANTED {
        assert!(section.contains(&format!("`{}`", wanted.name)), "{wanted:?}");
    }
    assert!(section.contains(own::PREFIX) && section.contains(own::MARK));
}
