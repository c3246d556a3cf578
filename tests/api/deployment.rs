//! The files of `deploy/` and `compose.yaml`, as far as they can be tried without Docker.

use std::fs;
use std::path::Path;
use std::process::Command;

use realtime_chat_backend::config::VARIABLES;
use serde_json::{Value, json};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn compose() -> Value {
    serde_saphyr::from_str(&read("compose.yaml")).unwrap()
}

#[test]
fn compose_hands_every_variable_on() {
    let compose = compose();
    let environment = compose["services"]["chat"]["environment"].as_object().unwrap();
    for name in VARIABLES {
        let Some(value) = environment.get(*name) else {
            // They have no use in a container.
            assert!(["HOST", "DATA_DIR", "MONGOD"].contains(name), "{name}");
            continue;
        };
        match *name {
            "PORT" => assert_eq!(value, "5000"),
            "MONGODB_URI" => {
                assert!(value.as_str().unwrap().starts_with("${MONGODB_URI:-mongodb://mongo:"));
            }
            // Null is what Compose takes from the shell or `.env`, or leaves out.
            name => assert_eq!(*value, Value::Null, "{name}"),
        }
    }
    assert!(environment.keys().all(|name| VARIABLES.contains(&name.as_str())));
    assert_eq!(compose["services"]["chat"]["ports"], json!(["${PORT:-5000}:5000"]));
}

#[test]
fn no_command_of_compose_needs_a_variable() {
    // `:?` would end `down` and `logs`, too.
    let compose = compose().to_string();
    assert!(!compose.contains(":?") && !compose.contains("?}"), "{compose}");
}

#[test]
fn compose_makes_a_secret_once_and_keeps_it() {
    let compose = compose();
    let secret = &compose["services"]["secret"];
    let script = secret["command"][0].as_str().unwrap().replace("$$", "$");
    assert_eq!(secret["entrypoint"], json!(["sh", "-euc"]));
    let start = |folder: &Path| {
        let status = Command::new("sh").args(["-euc", &script]).current_dir(folder).status();
        assert!(status.unwrap().success());
        fs::read_to_string(folder.join(".env")).unwrap()
    };
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let made = start(one.path());
    let digits = made.trim_end().strip_prefix("JWT_SECRET=").unwrap();
    assert_eq!(digits.len(), 64, "{made}");
    assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{made}");
    assert_eq!(start(one.path()), made, "kept");
    assert_ne!(start(other.path()), made, "random");
    assert_eq!(fs::read_dir(one.path()).unwrap().count(), 1, "nothing else is left");

    // The server finds it where it looks for `.env`: in the working folder of its image.
    let volume = format!("secret:{}", secret["working_dir"].as_str().unwrap());
    assert_eq!(secret["volumes"], json!([&volume]));
    assert_eq!(compose["services"]["chat"]["volumes"], json!([format!("{volume}:ro")]));
    let folder = volume.trim_start_matches("secret:");
    assert!(read("deploy/Dockerfile").contains(&format!("\nWORKDIR {folder}\n")));
}

#[test]
fn docker_is_given_what_the_image_is_built_from_and_nothing_else() {
    let ignored = read(".dockerignore");
    let lines = ignored.lines().filter(|line| !line.starts_with('#'));
    let (all, mut given): (Vec<_>, Vec<_>) = lines.partition(|line| !line.starts_with('!'));
    assert_eq!(all, ["*"]);
    let dockerfile = read("deploy/Dockerfile");
    let copies = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY "));
    let mut copied: Vec<String> = copies
        .filter(|copy| !copy.starts_with("--from"))
        .flat_map(|copy| {
            let mut paths: Vec<&str> = copy.split(' ').collect();
            paths.pop();
            paths.into_iter().map(|path| format!("!{path}"))
        })
        .collect();
    given.sort_unstable();
    copied.sort_unstable();
    assert_eq!(given, copied);
    for path in &copied {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path.trim_start_matches('!'));
        assert!(path.exists(), "{}", path.display());
    }
}
