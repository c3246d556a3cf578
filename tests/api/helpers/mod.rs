//! Helpers of all tests: real servers on free ports, and their clients.

pub mod breaker;
pub mod endings;
pub mod engine_io;
pub mod grammar;
pub mod mongod;
pub mod program;
pub mod random;
pub mod replica_set;
pub mod socket;
pub mod socket_io;
pub mod tools;
pub mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use realtime_chat_backend::app::Application;
use realtime_chat_backend::auth::Tokens;
use realtime_chat_backend::config::Config;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard, oneshot};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite};

/// The secret of all test servers. The golden transcripts have tokens that are signed with it.
pub const SECRET: &str = "golden-secret";

/// The real application in this process, on a free port.
///
/// Dropping it stops it without waiting. [`TestServer::stop`] stops it like SIGTERM.
pub struct TestServer {
    pub addr: SocketAddr,
    uri: String,
    signal: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl TestServer {
    /// Starts with the defaults and a new database.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts with these variables, and with a new database unless they name one.
    pub async fn start_with(vars: &[(&str, &str)]) -> Self {
        let uri = match vars.iter().find(|(name, _)| *name == "MONGO_URI") {
            Some((_, uri)) => (*uri).to_owned(),
            None => mongod::fresh_database().await,
        };
        let config = config(&uri, vars);
        let application = Application::build(config).await.expect("the server starts");
        let addr = application.addr();
        let (signal, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            application.run_until(stopped).await.expect("the server stops cleanly");
        });
        running().push((uri.clone(), addr));
        Self { addr, uri, signal: Some(signal), serving }
    }

    /// Connects a user to each running instance that was started with the same URI.
    pub async fn connect_to_all(&self, token: &str) -> Vec<socket::Socket> {
        let mut instances = running().clone();
        instances.retain(|(uri, _)| *uri == self.uri);
        let mut sockets = Vec::with_capacity(instances.len());
        for (_, addr) in instances {
            sockets.push(socket::Socket::connect_at(addr, token).await);
        }
        sockets
    }

    /// Starts `N` instances on one database.
    pub async fn instances<const N: usize>(uri: &str) -> [Self; N] {
        let mut servers = Vec::with_capacity(N);
        for _ in 0..N {
            servers.push(Self::start_with(&[("MONGO_URI", uri)]).await);
        }
        servers.try_into().unwrap_or_else(|_| unreachable!("there are N"))
    }

    /// Starts two instances on a new database. The change stream of the second one can be
    /// [delayed](mongod::Neighbour::hold_slow_back).
    pub async fn quick_and_slow() -> (mongod::ReplicaSet, [Self; 2], mongod::Neighbour) {
        let testable = ["--setParameter", "enableTestCommands=1"];
        let mongo = mongod::ReplicaSet::start_with(1, &testable).await;
        let uri = mongo.uri("uneven");
        let slow = format!("{uri}&appName={}", mongod::SLOW);
        let servers = [
            Self::start_with(&[("MONGO_URI", &uri)]).await,
            Self::start_with(&[("MONGO_URI", &slow)]).await,
        ];
        let neighbour = mongod::Neighbour::connect(&uri).await;
        (mongo, servers, neighbour)
    }

    /// Stops like SIGTERM, and waits until everything has ended.
    pub async fn stop(mut self) {
        drop(self.signal.take());
        let serving = &mut self.serving;
        tokio::time::timeout(Duration::from_secs(30), serving)
            .await
            .expect("the server stops in time")
            .expect("the server does not panic");
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Sends a request with an optional token and JSON body.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Response {
        let mut request = client().request(method, self.url(path));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.expect("the server answers")
    }

    /// The OpenAPI document.
    pub async fn document(&self) -> Value {
        let answer = self.request(Method::GET, "/openapi.json", None, None).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.unwrap()
    }

    /// Registers a user and logs in.
    pub async fn register(&self, name: &str) -> User<'_> {
        let credentials = json!({ "username": name, "password": format!("password of {name}") });
        let path = "/api/auth/register";
        let answer = self.request(Method::POST, path, None, Some(&credentials)).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        self.login(name).await
    }

    /// Logs in a user that is registered already, perhaps by another instance.
    pub async fn login(&self, name: &str) -> User<'_> {
        let credentials = json!({ "username": name, "password": format!("password of {name}") });
        let answer = self.request(Method::POST, "/api/auth/login", None, Some(&credentials)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let answer: Value = answer.json().await.unwrap();
        User {
            server: self,
            id: answer["userId"].as_str().unwrap().to_owned(),
            token: answer["token"].as_str().unwrap().to_owned(),
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        running().retain(|(_, addr)| *addr != self.addr);
    }
}

/// The URI and the address of each running server of this process.
fn running() -> std::sync::MutexGuard<'static, Vec<(String, SocketAddr)>> {
    static RUNNING: std::sync::Mutex<Vec<(String, SocketAddr)>> = std::sync::Mutex::new(Vec::new());
    RUNNING.lock().unwrap()
}

impl From<&TestServer> for SocketAddr {
    fn from(server: &TestServer) -> Self {
        server.addr
    }
}

/// A configuration for tests: a free port on the loopback, the given database, no rate limits.
pub fn config(uri: &str, vars: &[(&str, &str)]) -> Config {
    let defaults = [
        ("PORT", "0"),
        ("HOST", "127.0.0.1"),
        ("JWT_SECRET", SECRET),
        ("MONGO_URI", uri),
        ("RATE_LIMIT_LOGIN", "0"),
        ("RATE_LIMIT_LOGIN_NAME", "0"),
        ("RATE_LIMIT_SEND", "0"),
        ("RATE_LIMIT_CONNECT", "0"),
        ("RATE_LIMIT_EVENTS", "0"),
        ("RATE_LIMIT_ROOM", "0"),
        ("RATE_LIMIT_USERS", "0"),
        ("RATE_LIMIT_SIGNALS", "0"),
    ];
    Config::from_vars(|name| {
        let set = vars.iter().chain(&defaults).find(|(key, _)| *key == name);
        set.map(|(_, value)| (*value).to_owned())
    })
    .expect("the configuration is valid")
}

/// Polls `holds` until it is true, for 20 s at most.
pub async fn eventually(claim: &str, holds: impl AsyncFnMut() -> bool) {
    eventually_within(Duration::from_secs(20), claim, holds).await;
}

/// Polls `holds` until it is true.
pub async fn eventually_within(most: Duration, claim: &str, mut holds: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(most, asking).await;
    assert!(in_time.is_ok(), "not in time: {claim}");
}

/// A lock for tests that load the machine, so that they run one at a time.
pub async fn alone() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::const_new(());
    HEAVY.lock().await
}

/// A token of a user that need not be registered. It expires in `seconds`.
pub fn token_for(user: &str, seconds: u64) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{Algorithm, EncodingKey};

    let now = jsonwebtoken::get_current_timestamp();
    let payload = json!({ "id": user, "iat": now, "exp": now + seconds }).to_string();
    let header = r#"{"alg":"HS256","typ":"JWT"}"#;
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    let token = format!("{message}.{signature}");
    assert!(Tokens::new(&SECRET.into()).verify(&token).is_ok());
    token
}

/// The value of a metric.
pub async fn metric(addr: SocketAddr, name: &str) -> u64 {
    let text = client().get(format!("http://{addr}/metrics")).send().await.unwrap().text().await;
    let text = text.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// The value of a metric for one value of a label; 0 if there is none.
pub async fn labelled(addr: SocketAddr, name: &str, label: &str, value: &str) -> u64 {
    metric(addr, &format!("{name}{{{label}=\"{value}\"}}")).await
}

/// Opens a WebSocket with these headers. Returns it with the accepted subprotocol, or the status of
/// the refusal.
pub async fn open_websocket(
    server: impl Into<SocketAddr>,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<(WebSocketStream<MaybeTlsStream<TcpStream>>, Option<String>), u16> {
    let mut request = format!("ws://{}{path}", server.into()).into_client_request().unwrap();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    }
    match connect_async(request).await {
        Ok((stream, answer)) => {
            let agreed = answer.headers().get("sec-websocket-protocol");
            Ok((stream, agreed.map(|value| value.to_str().unwrap().to_owned())))
        }
        Err(tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("neither accepted nor refused: {error}"),
    }
}

/// An HTTP client with a long timeout and without retries.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap()
}

/// A logged-in user of one server.
pub struct User<'a> {
    pub server: &'a TestServer,
    pub id: String,
    pub token: String,
}

impl User<'_> {
    /// Sends a request with this user's token.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Response {
        self.server.request(method, path, Some(&self.token), body).await
    }

    /// The JSON of a GET request, which must be answered 200.
    pub async fn get(&self, path: &str) -> Value {
        let answer = self.request(Method::GET, path, None).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    /// Creates a room. Returns its id.
    pub async fn create_room(&self, name: &str) -> String {
        let body = json!({ "name": name });
        let answer = self.request(Method::POST, "/api/chat/room", Some(&body)).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let answer: Value = answer.json().await.unwrap();
        answer["room"]["_id"].as_str().unwrap().to_owned()
    }

    /// Sends a message, and waits until every instance has delivered it: a session that joins now
    /// does not get it.
    pub async fn deliver(&self, room: &str, content: &str) -> Value {
        let mut sockets = self.server.connect_to_all(&self.token).await;
        for socket in &mut sockets {
            socket.join(room).await;
        }
        let sent = self.send(room, content).await;
        for socket in &mut sockets {
            while socket.heard().await.content != content {}
        }
        sent
    }

    /// Sends a message by REST. Returns the message in the answer.
    pub async fn send(&self, room: &str, content: &str) -> Value {
        let body = json!({ "room": room, "sender": self.id, "content": content });
        let answer = self.request(Method::POST, "/api/chat/message", Some(&body)).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let mut answer: Value = answer.json().await.unwrap();
        answer["message"].take()
    }

    /// The whole history of a room.
    pub async fn history(&self, room: &str) -> Vec<Value> {
        match self.get(&format!("/api/chat/messages/{room}")).await {
            Value::Array(messages) => messages,
            other => panic!("not a list: {other}"),
        }
    }
}
