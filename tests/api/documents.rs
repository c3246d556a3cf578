//! Documents of every kind, and what a Node server with the original's packages answers for them.
//!
//! `tests/documents/record.js` made the documents and recorded the answers. Each of them must come
//! from here byte for byte. Where the original answers 500 to the whole list, everything is shown.

use std::collections::BTreeMap;

use bson::oid::ObjectId;
use bson::{Bson, RawArrayBuf, RawDocumentBuf, rawdoc};
use mongodb::Database;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::helpers::socket::Socket;
use crate::helpers::{TestServer, User, mongod};

const MESSAGES: &str = include_str!("../documents/messages.jsonl");
const ROOMS: &str = include_str!("../documents/rooms.jsonl");
const SENDERS: &str = include_str!("../documents/senders.jsonl");
const USERS: &str = include_str!("../documents/users.jsonl");

/// The room of all recorded messages.
const ROOM: &str = "65a0b1c2d3e4f5a6b7c8d9e0";

/// A document, and what the original answers for it; `None` when that is 500.
#[derive(Deserialize)]
struct Recorded<'a> {
    #[serde(borrow)]
    document: &'a RawValue,
    #[serde(borrow, alias = "sender")]
    answer: Option<&'a RawValue>,
}

impl<'a> Recorded<'a> {
    fn all(lines: &'a str) -> Vec<Self> {
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn bson(&self) -> RawDocumentBuf {
        read(self.document)
    }
}

/// Reads extended JSON, or the bytes in base64.
fn read(document: &RawValue) -> RawDocumentBuf {
    use base64::prelude::{BASE64_STANDARD, Engine};
    match serde_json::from_str(document.get()).unwrap() {
        Bson::String(bytes) => {
            RawDocumentBuf::from_bytes(BASE64_STANDARD.decode(bytes).unwrap()).unwrap()
        }
        Bson::Document(document) => RawDocumentBuf::try_from(&document).unwrap(),
        other => panic!("{other}"),
    }
}

/// Stores documents as they are: the driver would read them first.
async fn store(
    database: &Database,
    collection: &str,
    documents: impl IntoIterator<Item = RawDocumentBuf>,
) {
    let mut array = RawArrayBuf::new();
    let mut count = 0;
    for document in documents {
        array.push(document);
        count += 1;
    }
    let command = rawdoc! { "insert": collection, "documents": array };
    let stored = database.run_raw_command(command).await.unwrap();
    assert_eq!(stored.get_i32("n").unwrap(), count, "{stored}");
}

/// The items of a list, each as it was written.
async fn items(user: &User<'_>, path: &str) -> Vec<String> {
    let answer = user.request(Method::GET, path, None).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let items: Vec<Box<RawValue>> = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    items.into_iter().map(|item| item.get().to_owned()).collect()
}

/// Compares all, so that a failure shows all that differ.
fn assert_recorded(recorded: &[Recorded<'_>], items: &[String]) {
    assert_eq!(items.len(), recorded.len(), "nothing is hidden");
    let mut differences = Vec::new();
    for (recorded, item) in recorded.iter().zip(items) {
        if let Some(answer) = recorded.answer
            && answer.get() != item
        {
            let document = recorded.document;
            differences.push(format!("{document}\n  original: {answer}\n  here:     {item}"));
        }
    }
    let count = differences.len();
    differences.truncate(30);
    assert!(count == 0, "{count} of {} differ:\n{}", items.len(), differences.join("\n"));
}

struct Setting {
    server: TestServer,
    database: Database,
}

impl Setting {
    /// A server and its database with the senders of the recorded messages.
    async fn start() -> Self {
        Self::start_with("messages", []).await
    }

    /// The same with documents that were there before.
    async fn start_with(
        collection: &str,
        documents: impl IntoIterator<Item = RawDocumentBuf>,
    ) -> Self {
        let uri = mongod::fresh_database().await;
        let database = mongod::connect(&uri).await;
        let senders = SENDERS.lines().map(|line| read(serde_json::from_str(line).unwrap()));
        store(&database, "users", senders).await;
        let mut documents = documents.into_iter().peekable();
        if documents.peek().is_some() {
            store(&database, collection, documents).await;
        }
        let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
        Self { server, database }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_show_every_document_as_mongoose_does() {
    let recorded = Recorded::all(MESSAGES);
    let documents = recorded.iter().map(Recorded::bson);
    let Setting { server, .. } = Setting::start_with("messages", documents).await;
    let reader = server.register("reader").await;
    let items = items(&reader, &format!("/api/chat/messages/{ROOM}")).await;
    assert_recorded(&recorded, &items);
}

#[tokio::test(flavor = "multi_thread")]
async fn room_lists_show_every_document_as_mongoose_does() {
    let recorded = Recorded::all(ROOMS);
    let documents = recorded.iter().map(Recorded::bson);
    let Setting { server, .. } = Setting::start_with("rooms", documents).await;
    let reader = server.register("reader").await;
    assert_recorded(&recorded, &items(&reader, "/api/chat/rooms").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_have_the_names_that_mongoose_gives_them() {
    let recorded = Recorded::all(USERS);
    let users = Vec::from_iter(recorded.iter().map(Recorded::bson));
    let room = ObjectId::new();
    let messages = Vec::from_iter(users.iter().map(|user| {
        let sender = user.iter().find_map(|field| match field {
            Ok((name, value)) if name.as_str() == "_id" => value.as_object_id(),
            _ => None,
        });
        rawdoc! { "_id": ObjectId::new(), "room": room, "sender": sender.unwrap() }
    }));
    let Setting { server, database } = Setting::start_with("users", users).await;
    store(&database, "messages", messages).await;
    let reader = server.register("reader").await;
    let items = items(&reader, &format!("/api/chat/messages/{}", room.to_hex())).await;
    let senders = Vec::from_iter(items.iter().map(|item| {
        let (_, sender) = item.split_once(r#""sender":"#).expect("every message has a sender");
        sender.strip_suffix('}').unwrap().to_owned()
    }));
    assert_recorded(&recorded, &senders);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_full_until_the_history_ends() {
    let recorded = Recorded::all(MESSAGES);
    let documents = recorded.iter().map(Recorded::bson);
    let Setting { server, .. } = Setting::start_with("messages", documents).await;
    let reader = server.register("reader").await;
    let path = format!("/api/chat/messages/{ROOM}");
    let all = items(&reader, &path).await;

    let newest = items(&reader, &format!("{path}?limit=1000")).await;
    assert_eq!(newest, all[all.len() - 1000..]);

    // Documents whose ids are of other types lie before and behind those with an `ObjectId`.
    let ids = Vec::from_iter(recorded.iter().enumerate().filter_map(|(index, recorded)| {
        let id = recorded.bson().get_object_id("_id").ok()?;
        Some((index, id.to_hex()))
    }));
    let (at, id) = &ids[40];
    assert!(*at > 100, "there are others before");
    assert_eq!(items(&reader, &format!("{path}?limit=1000&before={id}")).await, all[..*at]);
    let page = items(&reader, &format!("{path}?limit=90&before={id}")).await;
    assert_eq!(page, all[at - 90..*at]);
    let (at, id) = &ids[ids.len() - 40];
    assert!(all.len() - at > 60, "there are others behind");
    assert_eq!(items(&reader, &format!("{path}?limit=1000&after={id}")).await, all[at + 1..]);
    let page = items(&reader, &format!("{path}?limit=45&after={id}")).await;
    assert_eq!(page, all[at + 1..=at + 45]);
}

/// The fields of an object as they were written.
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Fields;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Any)
    }
}

/// What members of a room receive for a message of a history: the fields of a message first, and
/// the id of its sender.
fn live(answer: &RawValue) -> Vec<(String, Value)> {
    let order = ["room", "sender", "content", "_id", "createdAt", "updatedAt", "__v"];
    let Fields(mut fields) = serde_json::from_str(answer.get()).unwrap();
    fields.sort_by_key(|(name, _)| order.iter().position(|known| known == name).unwrap_or(7));
    let with_id = |(name, value): (String, Box<RawValue>)| {
        let value: Value = serde_json::from_str(value.get()).unwrap();
        let id = value.get("_id").filter(|_| name == "sender").cloned();
        (name, id.unwrap_or(value))
    };
    fields.into_iter().map(with_id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_receive_documents_of_other_programs_as_the_history_shows_them() {
    let Setting { server, database } = Setting::start().await;
    let recorded = Recorded::all(MESSAGES);
    // Those whose room can be known, and fewer than a queue holds.
    let known = recorded.iter().filter(|recorded| {
        recorded.answer.is_some_and(|answer| answer.get().contains(&format!(r#""room":"{ROOM}""#)))
    });
    let sent = Vec::from_iter(known.step_by(9));
    assert!(sent.len() > 150);
    store(&database, "rooms", [rawdoc! { "_id": ObjectId::parse_str(ROOM).unwrap() }]).await;
    let reader = server.register("reader").await;
    let mut socket = Socket::connect(&server, &reader.token).await;
    socket.join(ROOM).await;
    // One at a time, so that the order is that of the file.
    for recorded in sent {
        store(&database, "messages", [recorded.bson()]).await;
        let text = socket.next_text().await;
        let frame: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text).unwrap();
        let Fields(received) = serde_json::from_str(frame["data"].get()).unwrap();
        let received = received
            .into_iter()
            .map(|(name, value)| (name, serde_json::from_str::<Value>(value.get()).unwrap()));
        let (received, mut expected) = (Vec::from_iter(received), live(recorded.answer.unwrap()));
        for ((name, value), (_, received)) in expected.iter_mut().zip(&received) {
            // The history shows nothing of a user who is gone; a message shows the id.
            if name == "sender" && value.is_null() && received.is_string() {
                *value = received.clone();
            }
        }
        assert_eq!(received, expected, "{}", recorded.document);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_log_in_whatever_their_documents_hold() {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    let hash = "$2a$10$Hzb1Z0FN2muGi3gJTHpKke8r4lDYN3tlne6wfAaBdaYIAqbELPURO";
    let id = ObjectId::new();
    let users = [
        rawdoc! { "_id": id, "username": ["several", "names"], "password": hash, "extra": 1 },
        rawdoc! { "_id": id.to_hex(), "username": "id as text", "password": hash },
        rawdoc! { "_id": ObjectId::new(), "username": 5, "password": hash },
        rawdoc! { "_id": ObjectId::new(), "username": "hash in an object", "password": { "_id": hash } },
        rawdoc! { "_id": ObjectId::new(), "username": "a number", "password": 7 },
        rawdoc! { "_id": ObjectId::new(), "username": "null", "password": null },
        rawdoc! { "_id": ObjectId::new(), "username": "missing" },
        rawdoc! { "_id": ObjectId::new(), "username": "an array", "password": [hash] },
    ];
    store(&database, "users", users).await;
    let precise = [("MONGO_URI", uri.as_str()), ("ERRORS", "precise")];
    let original = [("MONGO_URI", uri.as_str()), ("PASSWORD_HASH", "bcrypt")];
    let (original, precise) =
        (TestServer::start_with(&original).await, TestServer::start_with(&precise).await);
    let missing = "Illegal arguments: string, undefined";
    for (name, status, error) in [
        ("several", 200, None),
        ("id as text", 200, None),
        ("hash in an object", 200, None),
        ("5", 404, Some("User not found")),
        ("a number", 400, Some("Invalid credentials")),
        ("null", 500, Some("Illegal arguments: string, object")),
        ("missing", 500, Some(missing)),
        ("an array", 500, Some(missing)),
    ] {
        let body = json!({ "username": name, "password": "correct horse" });
        let path = "/api/auth/login";
        let answer = original.request(Method::POST, path, None, Some(&body)).await;
        assert_eq!(answer.status(), status, "{name}");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer.get("error").and_then(Value::as_str), error, "{name}");
        if ["several", "id as text"].contains(&name) {
            assert_eq!(answer["userId"], id.to_hex(), "{name}");
        }
        if status != 200 {
            let answer = precise.request(Method::POST, path, None, Some(&body)).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{name}");
        }
    }
}
