//! The program itself: its options, and what a dry run reports.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use bson::{Document, doc};

use crate::helpers::mongod;

fn run(arguments: &[&str], vars: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
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
    ] {
        let refused = run(&[], &vars);
        assert!(!refused.status.success());
        let error = text(&refused.stderr);
        assert!(error.contains(said), "{vars:?}: {error}");
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
    for line in [
        "JWT_SECRET has 5 bytes",
        "replica set",
        "3 users, 0 rooms, 1 messages",
        "problem  user names that exist more than once: \"ada\" (2 times)",
        "1 $2a$, 1 $argon2id$, 1 none",
        "PASSWORD_HASH=bcrypt",
        "1 documents in messages",
    ] {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
    assert!(!said.contains(vars[0].1), "the connection string is not shown");
    let indexes = users.list_index_names().await.unwrap();
    assert_eq!(indexes, ["_id_"]);
    let names = database.list_collection_names().await.unwrap();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn every_test_and_file_that_the_readme_names_for_security_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n## Security\n").expect("there is one");
    let (section, _) = section.split_once("\n## ").unwrap();
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
