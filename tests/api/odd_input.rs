//! Whatever a client sends: a clear refusal, soon, and no panic.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::helpers::{TestServer, User, client};

/// The operations with a body: method, path and the fields of the body.
fn bodies(document: &Value) -> Vec<(Method, String, Vec<String>)> {
    let mut bodies = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let Some(reference) = schema["$ref"].as_str() else { continue };
            let schema = document.pointer(reference.trim_start_matches('#')).unwrap();
            let fields = schema["properties"].as_object().unwrap().keys().cloned().collect();
            bodies.push((method.to_uppercase().parse().unwrap(), path.clone(), fields));
        }
    }
    assert!(!bodies.is_empty());
    bodies
}

/// Values of every type, size and depth, as JSON.
fn values() -> Vec<String> {
    let mut values: Vec<String> = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "1.50",
        "1e21",
        "1e999",
        "-1e999",
        "0.1e-400",
        "123456789012345678901234567890",
        "\"\"",
        "\" \"",
        "\"x\"",
        r#""\u0000""#,
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\ud83d\ude00""#,
        "\"$where\"",
        "[]",
        "[null]",
        "[[]]",
        "{}",
        "[1,2,3]",
        r#"["x","y"]"#,
        r#"{"_id":"x"}"#,
        r#"{"_id":null}"#,
        r#"{"_id":{"_id":"x"}}"#,
        r#"{"$ne":null}"#,
        r#"{"$gt":""}"#,
        r#"{"$oid":"0123456789abcdef01234567"}"#,
        r#"{"_bsontype":"ObjectId"}"#,
        r#"{"toString":1}"#,
        r#"{"__proto__":{"a":1}}"#,
        r#"{"a":1,"a":2}"#,
        r#""0123456789abcdef01234567""#,
        r#"["0123456789abcdef01234567"]"#,
    ]
    .map(str::to_owned)
    .into();
    values.push(format!("\"{}\"", "x".repeat(90_000)));
    values.push(format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)));
    values.push(format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000)));
    values.push(format!("[{}1]", "1,".repeat(20_000)));
    values
}

async fn send(
    server: &TestServer,
    user: &User<'_>,
    method: Method,
    path: &str,
    body: String,
) -> (StatusCode, String) {
    let answer = client()
        .request(method, server.url(path))
        .bearer_auth(&user.token)
        .header("content-type", "application/json")
        .body(body)
        .timeout(Duration::from_secs(10))
        .send()
        .await
        .expect("an answer in time");
    (answer.status(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_any_field_makes_a_server_error_in_precise_mode() {
    let server = TestServer::start_with(&[("ERRORS", "precise")]).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("odd").await;
    let valid = |field: &str| match field {
        "room" => format!("\"{room}\""),
        "sender" => format!("\"{}\"", ann.id),
        _ => "\"valid\"".to_owned(),
    };
    for (method, path, fields) in bodies(&server.document().await) {
        let path = path.replace("{room}", &room).replace("{user}", &ann.id);
        for field in &fields {
            for value in values() {
                let others = fields.iter().filter(|other| other != &field);
                let others = others.map(|other| format!("\"{other}\":{},", valid(other)));
                let body = format!("{{{}\"{field}\":{value}}}", others.collect::<String>());
                let (status, text) = send(&server, &ann, method.clone(), &path, body).await;
                let shown = &value[..value.len().min(80)];
                assert!(!status.is_server_error(), "{path} {field}={shown}: {status} {text}");
                if status.is_client_error() {
                    let refusal: Value = serde_json::from_str(&text).unwrap();
                    assert!(refusal["error"].is_string() && refusal["code"].is_string(), "{text}");
                }
            }
        }
    }
    assert_eq!(server.request(Method::GET, "/healthz", None, None).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_that_is_cut_off_anywhere_makes_a_server_error() {
    let server = TestServer::start_with(&[("ERRORS", "precise")]).await;
    let ann = server.register("ann").await;
    let body = r#"{"username":"nobody","password":"p\u00e4ss","n":[1.5e3,{"a":null}]}"#;
    for end in 0..body.len() {
        let (status, text) =
            send(&server, &ann, Method::POST, "/api/auth/login", body[..end].to_owned()).await;
        let expected = if end == 0 { StatusCode::UNAUTHORIZED } else { StatusCode::BAD_REQUEST };
        assert_eq!(status, expected, "{}: {text}", &body[..end]);
    }
}

/// Sends bytes as they are and reads what comes back until the connection ends or the time is up.
async fn raw(server: &TestServer, bytes: &[u8], patience: Duration) -> String {
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(patience, socket.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_arrive_is_answered_408() {
    let server = TestServer::start().await;
    let head = "POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                Content-Length: 50\r\n\r\n{\"username\":";
    let answer = raw(&server, head.as_bytes(), Duration::from_secs(30)).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_survives_a_body_that_nobody_read() {
    let server = TestServer::start().await;
    let request = |content_type: &str, body: &str| {
        format!(
            "POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let both = format!(
        "{}{}",
        request("text/plain", "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
        request("application/json", r#"{"username":"nobody","password":"x"}"#),
    );
    let answer = raw(&server, both.as_bytes(), Duration::from_secs(2)).await;
    assert_eq!(answer.matches("HTTP/1.1 404").count(), 2, "{answer}");
    assert!(!answer.contains("smuggled"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_behind_a_body_that_is_too_large_is_answered_too() {
    let server = TestServer::start().await;
    let head = "POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let rest = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let half = "x".repeat(60_000);
    let chunk = format!("{:x}\r\n{half}\r\n", half.len());
    let bodies = [
        (format!("Content-Length: {}\r\n\r\n{half}", 2 * half.len()), half.clone()),
        (format!("Transfer-Encoding: chunked\r\n\r\n{chunk}{chunk}"), format!("{chunk}0\r\n\r\n")),
    ];
    for (first, second) in bodies {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(format!("{head}{first}").as_bytes()).await.unwrap();
        // It could have been answered already.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(format!("{second}{rest}").as_bytes()).await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        assert!(answers.starts_with("HTTP/1.1 413 "), "{answers}");
        assert!(answers.contains("HTTP/1.1 200 OK"), "{answers}");
    }
}
