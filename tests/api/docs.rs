//! The OpenAPI document and its page.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::helpers::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_whole() {
    let server = TestServer::start().await;
    let document = server.document().await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(document["components"]["securitySchemes"]["token"]["bearerFormat"], "JWT");

    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} is referred to but not there");
    }
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id), "{method} {path}: the handler {id} has the name of another");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_documented_as_they_are_sent() {
    for (mode, answers) in [
        ("original", [(500, "Server error"), (500, "Server error"), (404, "User not found")]),
        (
            "precise",
            [(409, "username_taken"), (400, "invalid_field"), (401, "invalid_credentials")],
        ),
    ] {
        let server = TestServer::start_with(&[("ERRORS", mode)]).await;
        let document = server.document().await;
        server.register("ann").await;
        let requests = [
            ("register", json!({ "username": "ann", "password": "x" })),
            ("register", json!({ "password": "x" })),
            ("login", json!({ "username": "nobody", "password": "x" })),
        ];
        for ((route, body), (status, text)) in requests.into_iter().zip(answers) {
            let path = format!("/api/auth/{route}");
            let answer = server.request(Method::POST, &path, None, Some(&body)).await;
            assert_eq!(answer.status().as_u16(), status);
            let answer: Value = answer.json().await.unwrap();
            assert!(answer.to_string().contains(text), "{answer}");
            let responses = &document["paths"][&path]["post"]["responses"];
            let shown = &responses[status.to_string()]["content"]["application/json"]["examples"];
            let mut shown = shown.as_object().unwrap().values();
            assert!(shown.any(|example| example["value"] == answer), "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_page_can_be_tried_again_and_again() {
    let server = TestServer::start().await;
    server.register("ann").await.create_room("general").await;
    let answer = server.request(Method::GET, "/docs/swagger-initializer.js", None, None).await;
    let script = answer.text().await.unwrap();
    let path = script.split('"').find(|text| text.ends_with("openapi.json")).expect(&script);
    for round in 0..2 {
        let shown: Value =
            server.request(Method::GET, path, None, None).await.json().await.unwrap();
        let example = |name: &str| shown["components"]["schemas"][name]["example"].clone();
        let post = async |path: &str, token: Option<&str>, example: Value| {
            let answer = server.request(Method::POST, path, token, Some(&example)).await;
            assert!(answer.status().is_success(), "{round} {path} {example}: {answer:?}");
            answer.json::<Value>().await.unwrap()
        };
        post("/api/auth/register", None, example("Registration")).await;
        let session = post("/api/auth/login", None, example("Login")).await;
        post("/api/chat/room", session["token"].as_str(), example("NewRoom")).await;
    }
    let documents = [server.document().await, server.document().await];
    assert_eq!(documents[0], documents[1], "the document itself stays as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_finds_everything_here() {
    let server = TestServer::start().await;
    for path in ["/docs", "/docs/"] {
        let answer = server.request(Method::GET, path, None, None).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'self'"), "{policy}");
        let page = answer.text().await.unwrap();
        assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
        let files: Vec<&str> = page.split('"').filter(|text| text.starts_with('/')).collect();
        assert!(files.len() > 4, "{files:?}");
        for file in files {
            let answer = server.request(Method::GET, file, None, None).await;
            assert_eq!(answer.status(), StatusCode::OK, "{file}");
        }
    }
    let answer = server.request(Method::GET, "/docs/swagger-initializer.js", None, None).await;
    let script = answer.text().await.unwrap();
    assert!(script.contains("/openapi.json") && !script.contains("https://"), "{script}");
    let answer = server.request(Method::GET, "/docs/nothing", None, None).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}
