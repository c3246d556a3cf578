//! What users may know of each other.

use bson::{DateTime, Document, doc};
use serde_json::{Value, json};

use super::{get, keys};
use crate::helpers::mongod::{connect, fresh_database};
use crate::helpers::{TestServer, eventually};

fn names(found: &Value) -> Vec<&str> {
    let found = found.as_array().unwrap_or_else(|| panic!("{found}")).iter();
    found.map(|user| user["username"].as_str().unwrap()).collect()
}

fn escaped(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_shown_with_name_and_date_and_nothing_more() {
    let server = TestServer::start().await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let (status, me) = get(&server, "users/me", &ada.token).await;
    assert_eq!((status, &me["_id"], &me["username"]), (200, &json!(ada.id), &json!("ada")));
    assert_eq!(keys(&me), ["_id", "createdAt", "username"]);
    let path = format!("users/{}", bob.id.to_uppercase());
    let (status, other) = get(&server, &path, &ada.token).await;
    assert_eq!((status, &other["username"]), (200, &json!("bob")));
    for (path, status, code) in [
        ("users/676d2c41b1e8a27d9c0f4a15", 404, "user_not_found"),
        ("users/bob", 400, "invalid_field"),
        ("users", 400, "invalid_field"),
        ("users?search=", 400, "invalid_field"),
        (&*format!("users?search={}", "x".repeat(101)), 400, "invalid_field"),
    ] {
        let answer = get(&server, path, &ada.token).await;
        assert_eq!((answer.0, &answer.1["code"]), (status, &json!(code)), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_any_script_are_found_by_their_beginning() {
    let uri = fresh_database().await;
    let users = connect(&uri).await.collection::<Document>("users");
    let all = [
        "anna",
        "Anna Karenina",
        "ANNE",
        "annø",
        "an",
        "Ángela",
        "banana",
        "Zoë",
        "zoe",
        "Zoé 2",
        "Ольга",
        "ольга2",
        "ОЛЕГ",
        "Ωμέγα",
        "ωμεγα 2",
        "李小龙",
        "李雷",
        "さくら",
        "サクラ子",
        "김철수",
        "김영희",
        "משה",
        "محمد",
        "ประเสริฐ",
        "ประยุทธ์",
        "देवी",
        "देव",
        "Straße",
        "strasse 2",
        "😀 smile",
        "😀😀",
        "a.b*c",
        "a.b",
        "$where",
        "50%",
        "_x",
        "İzmir",
        "izmir 2",
        "o'neil",
    ];
    let documents = all.iter().map(|name| {
        doc! { "username": *name, "password": "secret", "createdAt": DateTime::now(), "__v": 0 }
    });
    users.insert_many(documents).await.unwrap();
    // Names that are no text are no name of a search.
    users.insert_one(doc! { "username": 5 }).await.unwrap();
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("@").await;
    for (search, expected) in [
        ("ann", vec!["anna", "Anna Karenina", "ANNE", "annø"]),
        ("ANN", vec!["anna", "Anna Karenina", "ANNE", "annø"]),
        ("anna", vec!["anna", "Anna Karenina"]),
        ("áng", vec!["Ángela"]),
        ("ang", vec!["Ángela"]),
        ("zo", vec!["zoe", "Zoë", "Zoé 2"]),
        ("ol", vec![]),
        ("ол", vec!["ОЛЕГ", "Ольга", "ольга2"]),
        ("ОЛЬ", vec!["Ольга", "ольга2"]),
        ("ωμ", vec!["Ωμέγα", "ωμεγα 2"]),
        ("李", vec!["李小龙", "李雷"]),
        ("李雷", vec!["李雷"]),
        ("さくら", vec!["さくら", "サクラ子"]),
        ("김", vec!["김영희", "김철수"]),
        ("김철", vec!["김철수"]),
        ("מ", vec!["משה"]),
        ("مح", vec!["محمد"]),
        ("ประ", vec!["ประยุทธ์", "ประเสริฐ"]),
        ("देव", vec!["देव", "देवी"]),
        ("stras", vec!["Straße", "strasse 2"]),
        ("😀", vec!["😀😀", "😀 smile"]),
        ("a.b", vec!["a.b", "a.b*c"]),
        (".", vec![]),
        ("$", vec!["$where"]),
        ("50%", vec!["50%"]),
        ("_", vec!["_x"]),
        ("i", vec!["İzmir", "izmir 2"]),
        ("o'n", vec!["o'neil"]),
        ("x", vec![]),
    ] {
        let (status, found) =
            get(&server, &format!("users?search={}", escaped(search)), &ada.token).await;
        let (mut found, mut expected) = (names(&found), expected);
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!((status, found), (200, expected), "{search}");
    }
    // Sorted, 20 at a time.
    let many = (0..30).map(|n| doc! { "username": format!("Many{n:02}"), "password": "x" });
    users.insert_many(many).await.unwrap();
    let (_, found) = get(&server, "users?search=mAnY", &ada.token).await;
    let expected: Vec<_> = (0..20).map(|n| format!("Many{n:02}")).collect();
    assert_eq!(names(&found), expected);
    // A name that came since, and nothing of a password.
    let body = found.to_string();
    assert!(!body.contains("password") && !body.contains("\"x\""), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_by_an_index() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    server.register("ada").await;
    let database = connect(&uri).await;
    let search = doc! {
        "explain": {
            "find": "users",
            "filter": { "username": { "$gte": "ad", "$lt": "ad\u{ffff}" } },
            "sort": { "username": 1, "_id": 1 },
            "collation": { "locale": "en", "strength": 1 },
            "limit": 20,
        },
        "verbosity": "queryPlanner",
    };
    eventually("the index is used", async || {
        let explained = database.run_command(search.clone()).await.unwrap();
        let plan = explained.get_document("queryPlanner").unwrap().get("winningPlan").unwrap();
        let plan = plan.to_string();
        plan.contains("username_1__id_1") && !plan.contains("\"SORT\"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_cannot_be_harvested() {
    let server = TestServer::start_with(&[("RATE_LIMIT_USERS", "3")]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    assert_eq!(get(&server, "users/me", &ada.token).await.0, 200);
    assert_eq!(get(&server, &format!("users/{}", bob.id), &ada.token).await.0, 200);
    assert_eq!(get(&server, "users?search=b", &ada.token).await.0, 200);
    for path in ["users?search=b", "users/me"] {
        let (status, answer) = get(&server, path, &ada.token).await;
        assert_eq!((status, &answer["code"]), (429, &json!("rate_limited")));
    }
    assert_eq!(get(&server, "users/me", &bob.token).await.0, 200);
    assert_eq!(super::count(&server, "chat_limits_reached_total{limit=\"users\"}").await, 2);
}
