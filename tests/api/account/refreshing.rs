//! Refresh tokens: one use each, on any instance, and what happens to one that is used twice.

use futures::future::join_all;
use serde_json::json;

use super::{
    Tokens, age, count, families, get, keys, log_in, payload, post, refresh, refreshed, refusal,
};
use crate::helpers::mongod::{ReplicaSet, connect, fresh_database, standalone};
use crate::helpers::{TestServer, alone};

#[tokio::test(flavor = "multi_thread")]
async fn a_login_without_refresh_answers_as_before() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    assert_eq!(keys(&payload(&ada.token)), ["exp", "iat", "id"]);
    for refresh in [json!(false), json!(null), json!("true"), json!(1)] {
        let body = json!({ "username": "ada", "password": "password of ada", "refresh": refresh });
        let (status, answer) = post(&server, "auth/login", "", body).await;
        assert_eq!((status, keys(&answer)), (200, vec!["token", "userId"]), "{refresh}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_exchanged_on_any_instance() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let mut tokens = log_in(&one, "ada").await;
    let family = payload(&tokens.token)["sid"].clone();
    assert!(family.is_string());
    for round in 0..6 {
        let server = if round % 2 == 0 { &other } else { &one };
        let (status, answer) = refresh(server, &tokens.refresh).await;
        assert_eq!((status, &answer["userId"]), (200, &json!(ada.id)), "{answer}");
        let next = Tokens::of(&answer);
        assert_ne!(next.refresh, tokens.refresh);
        let claims = payload(&next.token);
        assert_eq!((&claims["sid"], &claims["id"]), (&family, &json!(ada.id)));
        let (issued, expires) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
        assert_eq!(expires - issued, 3600);
        assert_eq!(answer["refreshExpires"].as_i64().unwrap() - issued, 30 * 24 * 3600);
        // Earlier access tokens stay valid: a refresh ends no session.
        for token in [&tokens.token, &next.token] {
            assert_eq!(refusal(server, token).await, "");
        }
        tokens = next;
    }
    assert_eq!(count(&one, "chat_refreshes_total{outcome=\"refreshed\"}").await, 3);
    // Nothing of a token is in the database.
    let stored = families(&uri).await.find_one(bson::doc! { "user": { "$exists": true } }).await;
    let stored = format!("{:?}", stored.unwrap().unwrap());
    for part in tokens.refresh.split('.') {
        assert!(!stored.contains(part), "{stored}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_that_refresh_at_once_get_the_same_successor() {
    let uri = fresh_database().await;
    let servers: [_; 2] = TestServer::instances(&uri).await;
    servers[0].register("ada").await;
    let mut tokens = log_in(&servers[0], "ada").await;
    for round in 0..10 {
        let racing = (0..8).map(|n| refreshed(&servers[n % 2], &tokens.refresh));
        let got = join_all(racing).await;
        assert!(got.iter().all(|next| next.refresh == got[0].refresh), "round {round}");
        for next in &got {
            assert_eq!(refusal(&servers[round % 2], &next.token).await, "");
        }
        tokens = got[0].clone();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_used_twice_ends_the_login_and_no_other() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    one.register("ada").await;
    let spared = log_in(&other, "ada").await;
    // Its successor was used already.
    let first = log_in(&one, "ada").await;
    let second = refreshed(&one, &first.refresh).await;
    let third = refreshed(&other, &second.refresh).await;
    let (status, answer) = refresh(&other, &first.refresh).await;
    assert_eq!((status, &answer["code"]), (401, &json!("refresh_reused")));
    for server in [&one, &other] {
        for tokens in [&first, &second, &third] {
            crate::helpers::eventually("the login has ended", async || {
                refusal(server, &tokens.token).await == "token_revoked"
            })
            .await;
            let (status, answer) = refresh(server, &tokens.refresh).await;
            assert_eq!((status, &answer["code"]), (401, &json!("refresh_invalid")));
        }
        assert_eq!(refusal(server, &spared.token).await, "");
    }
    refreshed(&one, &spared.refresh).await;
    assert_eq!(count(&other, "chat_refreshes_total{outcome=\"reused\"}").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_served_for_ten_seconds() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let first = log_in(&server, "ada").await;
    let second = refreshed(&server, &first.refresh).await;
    age(&uri, &ada.id, 8).await;
    assert_eq!(refreshed(&server, &first.refresh).await.refresh, second.refresh);
    age(&uri, &ada.id, 3).await;
    let (status, answer) = refresh(&server, &first.refresh).await;
    assert_eq!((status, &answer["code"]), (401, &json!("refresh_reused")));
    assert_eq!(refusal(&server, &second.token).await, "token_revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_expires_after_thirty_days() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let tokens = log_in(&server, "ada").await;
    age(&uri, &ada.id, 29 * 24 * 3600).await;
    let tokens = refreshed(&server, &tokens.refresh).await;
    age(&uri, &ada.id, 30 * 24 * 3600).await;
    let (status, answer) = refresh(&server, &tokens.refresh).await;
    assert_eq!((status, &answer["code"]), (401, &json!("refresh_invalid")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_refresh_token_ends_nothing() {
    let server = TestServer::start().await;
    server.register("ada").await;
    let tokens = log_in(&server, "ada").await;
    let (text, signature) = tokens.refresh.split_once('.').unwrap();
    // It knows the family, but was never issued.
    let mut forged = text.to_owned();
    forged.replace_range(20..24, "AAAA");
    for token in [
        json!(""),
        json!("x"),
        json!(null),
        json!(format!("{forged}.{signature}")),
        json!(tokens.token),
        json!(format!("{text}.")),
    ] {
        let (status, answer) =
            post(&server, "auth/refresh-token", "", json!({ "refreshToken": token })).await;
        assert_eq!((status, &answer["code"]), (401, &json!("refresh_invalid")), "{token}");
    }
    for token in [json!(5), json!(["x"]), json!({ "$ne": 1 })] {
        let (status, answer) =
            post(&server, "auth/refresh-token", "", json!({ "refreshToken": token })).await;
        assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")), "{token}");
    }
    // A refresh token is no access token.
    assert_eq!(get(&server, "users/me", &tokens.refresh).await.1["code"], "token_invalid");
    refreshed(&server, &tokens.refresh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_user_refreshes_nothing() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let tokens = log_in(&server, "ada").await;
    let id: bson::oid::ObjectId = ada.id.parse().unwrap();
    let users = connect(&uri).await.collection::<bson::Document>("users");
    users.delete_one(bson::doc! { "_id": id }).await.unwrap();
    let (status, answer) = refresh(&server, &tokens.refresh).await;
    assert_eq!((status, &answer["code"]), (401, &json!("refresh_invalid")));
    assert_eq!(get(&server, "users/me", &ada.token).await.1["code"], "user_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_so_many_logins_at_most() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let oldest = log_in(&server, "ada").await;
    let user: bson::oid::ObjectId = ada.id.parse().unwrap();
    let collection = families(&uri).await;
    let one = collection.find_one(bson::doc! { "user": user }).await.unwrap().unwrap();
    let others = (0..99).map(|_| {
        let mut other = one.clone();
        other.insert("_id", bson::oid::ObjectId::new());
        other
    });
    collection.insert_many(others).await.unwrap();
    age(&uri, &ada.id, 60).await;
    let newest = log_in(&server, "ada").await;
    assert_eq!(collection.count_documents(bson::doc! { "user": user }).await.unwrap(), 100);
    refreshed(&server, &newest.refresh).await;
    let _ = oldest;
}

#[tokio::test(flavor = "multi_thread")]
async fn refreshes_count_as_logins() {
    let server = TestServer::start_with(&[("RATE_LIMIT_LOGIN", "4")]).await;
    server.register("ada").await;
    let tokens = log_in(&server, "ada").await;
    refreshed(&server, &tokens.refresh).await;
    let (status, answer) = refresh(&server, &tokens.refresh).await;
    assert_eq!((status, &answer["code"]), (429, &json!("rate_limited")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_refreshes_too() {
    let mongod = standalone().await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongod.uri("chat"))]).await;
    server.register("ada").await;
    let first = log_in(&server, "ada").await;
    let second = refreshed(&server, &first.refresh).await;
    assert_eq!(refreshed(&server, &first.refresh).await.refresh, second.refresh);
    let third = refreshed(&server, &second.refresh).await;
    assert_eq!(refresh(&server, &first.refresh).await.1["code"], "refresh_reused");
    assert_eq!(refusal(&server, &third.token).await, "token_revoked");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_in_a_failover_is_given_again() {
    let _alone = alone().await;
    let mut mongo = ReplicaSet::start_patient(3).await;
    let uri = mongo.uri("failover");
    let [one, other] = TestServer::instances(&uri).await;
    one.register("ada").await;
    let (first, spared) = (log_in(&one, "ada").await, log_in(&one, "ada").await);
    let second = refreshed(&one, &first.refresh).await;
    let primary = mongo.primary().await;
    mongo.kill(primary).await;
    let mut outages = 0;
    let again = loop {
        // As a client that never had the first answer.
        let (status, answer) = refresh(&other, &first.refresh).await;
        match status {
            503 => outages += 1,
            _ => break (status, answer),
        }
    };
    assert!(outages > 0);
    assert_eq!(again.0, 200, "{}", again.1);
    assert_eq!(Tokens::of(&again.1).refresh, second.refresh);
    let third = refreshed(&other, &second.refresh).await;
    for token in [&third.token, &spared.token] {
        crate::helpers::eventually("the token is valid", async || {
            refusal(&one, token).await.is_empty()
        })
        .await;
    }
    refreshed(&one, &spared.refresh).await;
}
