//! The pages that the server shows: `/docs`, and what belongs to it.

use std::collections::BTreeSet;

use realtime_chat_backend::sessions::RequestKind;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{markdown, page};
use crate::helpers::TestServer;

async fn text(server: &TestServer, path: &str) -> String {
    let answer = server.request(Method::GET, path, None, None).await;
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operations_come_first_and_the_prose_has_pages_of_its_own() {
    let server = TestServer::start().await;
    let shown: Value = serde_json::from_str(&text(&server, "/docs/openapi.json").await).unwrap();
    let description = shown["info"]["description"].as_str().unwrap();
    assert!(description.lines().count() < 4, "{description}");
    for link in markdown::links(description) {
        let prose = text(&server, &link).await;
        assert!(prose.starts_with("<!DOCTYPE html>") && prose.contains("<h2"), "{prose}");
    }
    let whole: Value = serde_json::from_str(&text(&server, "/openapi.json").await).unwrap();
    assert!(whole["info"]["description"].as_str().unwrap().contains("## Conventions"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_about_realtime_is_that_of_the_repository() {
    let server = TestServer::start().await;
    let shown = text(&server, "/docs/realtime").await;
    let ids: BTreeSet<&str> =
        shown.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    for anchor in markdown::anchors(&page("docs/realtime.md")) {
        assert!(ids.contains(&*anchor), "{anchor}");
    }
    let told = [
        "receiveMessage",
        "messageEdited",
        "messageDeleted",
        "memberAdded",
        "memberRemoved",
        "roomChanged",
        "roomAdded",
        "roomRemoved",
        "messageRead",
        "userOnline",
        "userOffline",
        "resync",
        "position",
        "error",
    ];
    for event in RequestKind::ALL.map(RequestKind::name).into_iter().chain(told) {
        assert!(
            shown.contains(&format!("<td data-column=\"Event\"><code>{event}</code>")),
            "{event}"
        );
    }
    for foreign in ["https://", "<script", "<img", "@import"] {
        assert!(!shown.contains(foreign), "{foreign}: it needs nothing from elsewhere");
    }
}
