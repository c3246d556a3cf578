//! The commands of the README, run as they stand there.

use std::fs;
use std::path::Path;

use serde_json::json;
use tokio::process::Command;

use crate::helpers::{TestServer, tools};

/// The first shell commands of a section.
fn commands(heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(path).unwrap();
    let (_, section) = readme.split_once(&format!("\n{heading}\n")).expect("the heading is there");
    let (_, commands) = section.split_once("```sh\n").unwrap();
    commands.split_once("```").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_can_be_run_again_and_by_whom_the_demo_knows() {
    let server = TestServer::start().await;
    server.register("ann").await.create_room("general").await;
    let script =
        commands("### On the command line").replace("http://localhost:5000", &server.url(""));
    for _ in 0..2 {
        let mut sh = Command::new("sh");
        sh.args(["-euc", &script]);
        let output = tools::run(sh, "a POSIX shell with curl, sed and openssl").await;
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        let said = said.replace("}{", "}\n{").replace("}[", "}\n[");
        let answers: Vec<serde_json::Value> =
            said.lines().map(|line| serde_json::from_str(line).expect(&said)).collect();
        let [registered, sent, history] = &answers[..] else { panic!("{said}") };
        assert_eq!(*registered, json!({ "message": "User registered successfully" }));
        assert_eq!(sent["message"]["content"], "hello");
        assert_eq!(history[0]["_id"], sent["message"]["_id"]);
        assert_eq!(history.as_array().map(Vec::len), Some(1));
    }
}
