//! The program itself: its options, and what a dry run reports.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use bson::oid::ObjectId;
use bson::{Document, doc};
use realtime_chat_backend::config::original;
use realtime_chat_backend::models::own;
use realtime_chat_backend::mongod::{Mongod, Options};
use reqwest::StatusCode;
use serde_json::json;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::helpers::program::Program;
use crate::helpers::{SECRET, client, eventually, mongod, replica_set};

fn run(arguments: &[&str], vars: &[(&str, &str)]) -> Output {
    run_in(tempfile::tempdir().unwrap().path(), arguments, vars)
}

fn run_in(folder: &Path, arguments: &[&str], vars: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_realtime-chat-backend"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .envs(vars.iter().copied())
        .output()
        .expect("the program runs")
}

/// The same with a file `.env` beside it.
fn run_with_file(arguments: &[&str], vars: &[(&str, &str)], file: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".env"), file).unwrap();
    Command::new(env!("CARGO_BIN_EXE_realtime-chat-backend"))
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .envs(vars.iter().copied())
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn options_are_told_and_others_refused() {
    let help = run(&["--help"], &[]);
    assert!(help.status.success() && text(&help.stdout).contains("--check"));
    assert!(text(&help.stdout).contains("--health"));
    let version = run(&["--version"], &[]);
    assert_eq!(
        text(&version.stdout),
        format!("realtime-chat-backend {}\n", env!("CARGO_PKG_VERSION"))
    );
    for arguments in [&["--nonsense"][..], &["--help", "me"], &["serve"]] {
        let refused = run(arguments, &[]);
        assert!(!refused.status.success());
        assert!(text(&refused.stderr).contains("see --help"), "{arguments:?}");
    }
}

#[test]
fn what_is_missing_or_wrong_is_said_in_one_line() {
    for (vars, said) in [
        (vec![("MONGO_URI", "mongodb://127.0.0.1:1/x")], "JWT_SECRET is not set"),
        (vec![("PORT", "seventy")], "PORT=\"seventy\" is not allowed"),
        (vec![("MONGO_URI", "http://x"), ("JWT_SECRET", "x")], "MONGO_URI"),
        (vec![("MONGO_URI", "mongodb://x/?loud=1"), ("JWT_SECRET", "x")], "\"loud\""),
        (
            vec![("MONGO_URI", "mongodb://x/?tlsAllowInvalidHostnames=true"), ("JWT_SECRET", "x")],
            "tlsAllowInvalidHostnames asks to believe",
        ),
        (vec![("MONGO_URI", "mongodb://x"), ("JWT_SECRET", "")], "JWT_SECRET is set but empty in"),
    ] {
        let refused = run(&[], &vars);
        assert!(!refused.status.success());
        let error = text(&refused.stderr);
        assert!(error.contains(said), "{vars:?}: {error}");
    }
}

#[test]
fn a_start_that_was_told_nothing_says_what_it_found_and_both_ways_out() {
    // Unless something listens there already, which is as good.
    let _original = TcpListener::bind(original::ADDRESS);
    let refused = run(&[], &[]);
    assert!(!refused.status.success());
    let error = text(&refused.stderr);
    for said in ["listens on", "127.0.0.1:27017", "MONGO_URI=embedded cargo run", "JWT_SECRET"] {
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn what_is_set_in_vain_is_said() {
    let file = "JWT_SECRET=a secret of the Node server\nhalf a line\nERRORS=precise\n";
    let vars = [("MONGO_URI", "embedded"), ("ERRORS", ""), ("HOST", "build-host")];
    let checked = run_with_file(&["--check"], &vars, file);
    let log = text(&checked.stderr);
    for said in [
        ".env: line 2 is ignored",
        "ERRORS is set but empty in the environment; .env is not read for it",
        "HOST=build-host is a name",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
    assert!(checked.status.success(), "{log}");
    for (filter, said) in [("", "RUST_LOG is set but empty"), ("verbose", "is not understood")] {
        let vars = [("MONGO_URI", "embedded"), ("RUST_LOG", filter)];
        let log = text(&run(&["--check"], &vars).stderr);
        assert!(log.contains(said), "{filter}: {log}");
    }
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    for option in ["--help", "--check"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = Command::new(env!("CARGO_BIN_EXE_realtime-chat-backend"))
            .arg(option)
            .current_dir(folder.path())
            .env_clear()
            .env("MONGO_URI", "embedded")
            .stdout(writer)
            .output()
            .unwrap();
        assert!(ended.status.success(), "{option}: {ended:?}");
        assert_eq!(text(&ended.stderr), "", "{option}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uri_without_a_name_means_the_database_of_mongoose_and_the_log_says_so() {
    // A whole mongod, since nobody else may use this name there.
    let mongod = mongod::standalone().await;
    let uri = format!("mongodb://127.0.0.1:{}/?useNewUrlParser=true&FAMILY=4", mongod.port());
    let database = mongod::connect(&mongod.uri("test")).await;
    let room = doc! { "name": "of the Node server" };
    database.collection::<Document>("rooms").insert_one(room).await.unwrap();
    let server = Program::start_on(&uri, &[]);
    let ann = json!({ "username": "ann", "password": "secret" });
    let register = client().post(format!("http://{}/api/auth/register", server.addr)).json(&ann);
    assert_eq!(register.send().await.unwrap().status(), StatusCode::CREATED);
    let users = database.collection::<Document>("users");
    assert_eq!(users.count_documents(doc! {}).await.unwrap(), 1);
    for said in [
        "MONGO_URI names no database, so it is \"test\"",
        "These options of MONGO_URI have no effect here: useNewUrlParser, family",
        "The database \"test\" has about 0 users, 1 rooms, 0 messages",
    ] {
        eventually(said, async || server.log().iter().any(|line| line.contains(said))).await;
    }
    assert_eq!(server.terminate().code(), Some(0));
    mongod.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_at_once_wherever_the_database_is() {
    for uri in ["mongodb://127.0.0.1:1/chat", "mongodb+srv://nowhere.chat.invalid/chat"] {
        let server = Program::start_on(uri, &[]);
        let get = async |path: &str| {
            let url = format!("http://{}{path}", server.addr);
            client().get(url).send().await.unwrap()
        };
        assert_eq!(get("/healthz").await.status(), StatusCode::OK, "{uri}");
        let unready = get("/readyz").await;
        assert_eq!(unready.status(), StatusCode::SERVICE_UNAVAILABLE, "{uri}");
        let ann = json!({ "username": "ann", "password": "secret" });
        let login = client().post(format!("http://{}/api/auth/login", server.addr)).json(&ann);
        let refused = login.send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "{uri}");
        assert!(refused.headers().contains_key("retry-after"), "{uri}");
        assert_eq!(refused.text().await.unwrap(), r#"{"error":"Server error"}"#);
        let asked = Instant::now();
        assert_eq!(server.terminate().code(), Some(0), "{uri}");
        assert!(asked.elapsed() < Duration::from_secs(3), "{uri}: {:?}", asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_only_openssl_takes_is_said_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=authority
        for name in v1 cn; do
            openssl req -newkey rsa:2048 -nodes -keyout $name.key -out $name.csr -subj /CN=localhost
        done
        echo basicConstraints=CA:FALSE > cn.ext
        openssl x509 -req -in v1.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out v1.crt
        openssl x509 -req -in cn.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out cn.crt -extfile cn.ext
        cat v1.crt v1.key > v1.pem; cat cn.crt cn.key > cn.pem
    "#;
    let made = Command::new("sh").args(["-ec", script]).current_dir(folder.path()).output();
    assert!(made.unwrap().status.success());
    for (name, said) in [("v1", "of X.509 version 1"), ("cn", "subjectAltName")] {
        let path = |name: String| folder.path().join(name).to_str().unwrap().to_owned();
        let arguments = ["--tlsMode", "allowTLS", "--tlsCertificateKeyFile"].map(str::to_owned);
        let mut arguments = arguments.to_vec();
        arguments.push(path(format!("{name}.pem")));
        let options = Options { replica_set: None, arguments, ..replica_set::options() };
        let mongod = Mongod::start(options).await.unwrap();
        let ca = path("ca.pem".to_owned()).replace('/', "%2F");
        let uri = format!("mongodb://localhost:{}/chat?tls=true&tlsCAFile={ca}", mongod.port());
        let server = Program::start_on(&uri, &[]);
        eventually(said, async || server.log().iter().any(|line| line.contains(said))).await;
        mongod.stop().await;
    }
}

/// What `--health` says in a folder with this `.env`: its exit code, and a line.
fn health(vars: &[(&str, &str)], dotenv: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".env"), dotenv).unwrap();
    let output = run_in(folder.path(), &["--health"], vars);
    let said = [text(&output.stdout), text(&output.stderr)].concat();
    assert_eq!(said.lines().count(), 1, "{said}");
    (output.status.code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_check_follows_port_and_host() {
    // Up without a database: a restart would not bring that back.
    let away = [("MONGO_URI", "mongodb://127.0.0.1:1/away"), ("JWT_SECRET", SECRET)];
    let start = |host: &str| {
        let vars = [&away[..], &[("HOST", host)]].concat();
        tokio::task::block_in_place(|| Program::start(&vars))
    };
    for (host, answers_at) in [
        ("", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
    ] {
        let server = start(host);
        let port = server.addr.port().to_string();
        let up = format!("The server at {answers_at}:{port} is up\n");
        let vars = [&away[..], &[("HOST", host), ("PORT", &port)]].concat();
        assert_eq!(health(&vars, ""), (Some(0), up.clone()), "{host}");
        let dotenv = format!("PORT={port}\nHOST={host}\n");
        assert_eq!(health(&away, &dotenv), (Some(0), up), "{host}");
    }

    let server = start("127.0.0.1");
    let port = server.addr.port().to_string();
    let vars = [&away[..], &[("PORT", &port)]].concat();
    server.pause();
    let (code, said) = health(&vars, "");
    assert_eq!(code, Some(1));
    assert!(said.contains("does not answer within 2 s"), "{said}");
    server.resume();
    assert_eq!(health(&vars, "").0, Some(0));
    drop(server);
    let (code, said) = health(&vars, "");
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("127.0.0.1:{port} cannot be asked")), "{said}");

    let (code, said) = health(&[&away[..], &[("PORT", "0")]].concat(), "");
    assert_eq!(code, Some(1));
    assert!(said.contains("set PORT"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_200_is_not_healthy() {
    for (answer, reason) in [
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "answers 503"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "cannot be asked"),
        ("", "closed the connection"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let asked = tokio::task::spawn_blocking(move || {
            health(&[("MONGO_URI", "embedded"), ("PORT", &port)], "")
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 1024];
        let length = stream.read(&mut request).await.unwrap();
        assert!(request[..length].starts_with(b"GET /healthz HTTP/1.1\r\n"));
        stream.write_all(answer.as_bytes()).await.unwrap();
        drop(stream);
        let (code, said) = asked.await.unwrap();
        assert_eq!(code, Some(1));
        assert!(said.contains(reason), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_reports_and_changes_nothing() {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    let bcrypt = "$2a$10$Hzb1Z0FN2muGi3gJTHpKke8r4lDYN3tlne6wfAaBdaYIAqbELPURO";
    let users = database.collection::<Document>("users");
    users
        .insert_many([
            doc! { "username": "ada", "password": bcrypt },
            doc! { "username": "ada", "password": "$argon2id$v=19$x" },
            doc! { "username": "bob", "password": 5 },
        ])
        .await
        .unwrap();
    database.collection::<Document>("messages").insert_one(doc! { "content": 5 }).await.unwrap();

    let vars = [("MONGO_URI", uri.as_str()), ("JWT_SECRET", "short")];
    let report = tokio::task::spawn_blocking({
        let uri = uri.clone();
        move || run(&["--check"], &[("MONGO_URI", &uri), ("JWT_SECRET", "short")])
    })
    .await
    .unwrap();
    let said = text(&report.stdout);
    assert!(!report.status.success(), "{said}");
    let database_name = database.name();
    for line in [
        "JWT_SECRET has 5 bytes",
        "replica set",
        &format!("the database is {database_name}: 3 users, 0 rooms, 1 messages"),
        "problem  users has more than one document with the same username: \"ada\" (2 times)",
        "1 $2a$, 1 $argon2id$, 1 none",
        "PASSWORD_HASH=bcrypt",
        "1 documents in users have fields of other types",
        "1 documents in messages have fields of other types",
        "messages gets the index room_1__id_1",
        "the collection realtime_chat_backend_sockets is added",
    ] {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
    assert!(!said.contains(vars[0].1), "the connection string is not shown");
    let indexes = users.list_index_names().await.unwrap();
    assert_eq!(indexes, ["_id_"]);
    let names = database.list_collection_names().await.unwrap();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// What a dry run says of a database, and whether it finds nothing in the way.
async fn checked(uri: &str) -> (String, bool) {
    let uri = uri.to_owned();
    let secret = "a secret that is long enough for this";
    let run = move || run(&["--check"], &[("MONGO_URI", &uri), ("JWT_SECRET", secret)]);
    let report = tokio::task::spawn_blocking(run).await.unwrap();
    (text(&report.stdout), report.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_finds_what_would_lose_something_and_what_is_only_worth_knowing() {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    let (said, is_good) = checked(&uri).await;
    assert!(is_good, "an empty database: {said}");
    assert!(!said.contains("problem"), "{said}");

    let messages = database.collection::<Document>("messages");
    let unique = |keys: Document, options: Document| {
        let mut index = doc! { "key": keys, "unique": true };
        index.extend(options);
        doc! { "createIndexes": "messages", "indexes": [index] }
    };
    let partial = doc! { "name": "x_1", "partialFilterExpression": { "x": { "$exists": true } } };
    database.run_command(unique(doc! { "x": 1 }, partial)).await.unwrap();
    messages.insert_one(doc! { "_id": "text", "room": "general", "likes": 5 }).await.unwrap();
    database.collection::<Document>("agenda").insert_one(doc! { "a": 1 }).await.unwrap();
    let (said, is_good) = checked(&uri).await;
    assert!(is_good, "{said}");
    for line in [
        "note     messages has the unique index x_1 on x, which leaves out some documents",
        "such as the one with _id \"text\"",
        "the database also has the collections agenda",
    ] {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
    let marker = doc! { "_id": own::MARK, own::FIELD: own::MARK };
    let private_room = doc! { "_id": ObjectId::new(), own::FIELD: own::MARK };
    let rooms = database.collection::<Document>(own::ROOMS.collection);
    rooms.insert_one(marker).await.unwrap();
    let (said, _) = checked(&uri).await;
    assert!(!said.contains("private rooms are in use"), "{said}");
    rooms.insert_one(private_room).await.unwrap();
    let (said, is_good) = checked(&uri).await;
    let line = "note     private rooms are in use: 1 in realtime_chat_backend_rooms. A Node server";
    assert!(is_good && said.contains(line), "{said}");

    let old = doc! { "name": "clientMsgId_1" };
    database.run_command(unique(doc! { "clientMsgId": 1 }, old)).await.unwrap();
    let with_email = doc! { "$jsonSchema": { "required": ["email"] } };
    let takes_all = doc! { "$jsonSchema": { "required": ["name"] } };
    let create = doc! { "create": "users", "validator": with_email };
    database.run_command(create).await.unwrap();
    database.run_command(doc! { "create": "rooms", "validator": takes_all }).await.unwrap();
    let foreign = database.collection::<Document>("realtime_chat_backend_keys");
    foreign.insert_one(doc! { "theirs": true }).await.unwrap();
    let (said, is_good) = checked(&uri).await;
    assert!(!is_good, "{said}");
    for line in [
        "problem  messages has the unique index clientMsgId_1 on clientMsgId, fields that",
        "problem  the validator of users refuses",
        "ok       the validator of rooms takes",
        "problem  realtime_chat_backend_keys holds documents of another program",
    ] {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
    foreign.drop().await.unwrap();
    database.collection::<Document>("users").drop().await.unwrap();
    database.run_command(doc! { "create": "users", "viewOn": "rooms" }).await.unwrap();
    let (said, is_good) = checked(&uri).await;
    assert!(!is_good && said.contains("problem  users is a view, which takes no writes"), "{said}");
}

#[test]
fn every_test_and_file_that_the_page_about_security_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let (_, section) = page.split_once("\n## What holds\n").expect("there is one");
    let sources = [root.join("src"), root.join("tests")].map(|folder| text_of(&folder)).concat();
    let mut tests = 0;
    for row in section.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, _, _, files, named, _] = cells[..] else { panic!("{row}") };
        for file in quoted(files) {
            assert!(root.join(file).exists(), "{file}");
        }
        for name in quoted(named).filter(|name| name.starts_with(|c: char| c.is_alphabetic())) {
            tests += 1;
            assert!(sources.contains(&format!("fn {name}(")), "{name}");
        }
    }
    assert!(tests > 30, "{tests}");
}

/// What stands in backticks, but for what stands in brackets.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    let outside = cell.split('(').map(|part| part.split_once(')').map_or(part, |(_, rest)| rest));
    outside.flat_map(|part| part.split('`').skip(1).step_by(2))
}

/// All Rust below a folder.
fn text_of(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &text_of(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(&path).unwrap();
        }
    }
    text
}
