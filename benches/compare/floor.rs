//! The floor: the minimum cost of sending a message to every subscriber. One thread makes one
//! `write` of the same encoded frame for each, on blocking sockets.
//!
//! It implements just enough of `/ws` for the load: it has one room, stores nothing, and a
//! connection that sends a message is not a subscriber.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;
use crate::websocket::{Frame, parse, push_text};
use crate::wire::number;

type Subscribers = Arc<Mutex<Vec<TcpStream>>>;

/// Serves until the process is killed.
pub fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let subscribers = Subscribers::default();
    for stream in listener.incoming() {
        let (stream, subscribers) = (stream?, Arc::clone(&subscribers));
        // The thread of a subscriber ends after the join.
        std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            // Ignore a broken connection.
            let _ = connection(stream, &subscribers);
        })?;
    }
    Ok(())
}

fn connection(mut stream: TcpStream, subscribers: &Subscribers) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        receive(&mut stream, &mut bytes)?;
    }
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )?;
    bytes.clear();
    loop {
        let Some((frame, length)) = parse(&bytes) else {
            receive(&mut stream, &mut bytes)?;
            continue;
        };
        let Frame::Text(text) = frame else { return Ok(()) };
        let (text, id) = (std::str::from_utf8(text)?, after(text, "\"id\":"));
        let mut ack = Vec::new();
        push_text(&mut ack, format!(r#"{{"ack":{},"data":{{}}}}"#, number(id)).as_bytes(), false);
        if text.contains("joinRoom") {
            stream.write_all(&ack)?;
            let mut subscribers = subscribers.lock().unwrap_or_else(PoisonError::into_inner);
            subscribers.push(stream);
            return Ok(());
        }
        let frame = message(text);
        let mut subscribers = subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain_mut(|subscriber| subscriber.write_all(&frame).is_ok());
        drop(subscribers);
        stream.write_all(&ack)?;
        bytes.drain(..length);
    }
}

/// The frame of a message with all fields of the contract.
fn message(request: &str) -> Vec<u8> {
    let text = |name| {
        let value = after(request.as_bytes(), name);
        String::from_utf8_lossy(value.split(|byte| *byte == b'"').next().unwrap_or_default())
    };
    let (room, sender) = (text("\"room\":\""), text("\"sender\":\""));
    let content = text("\"content\":\"");
    let at = "2026-01-02T03:04:05.678Z";
    let mut frame = Vec::new();
    push_text(
        &mut frame,
        format!(
            r#"{{"event":"receiveMessage","data":{{"room":"{room}","sender":"{sender}","content":"{content}","_id":"{room}","createdAt":"{at}","updatedAt":"{at}","__v":0}},"position":"1767322980.1"}}"#
        )
        .as_bytes(),
        false,
    );
    frame
}

/// The bytes after the first occurrence of a text.
fn after<'a>(bytes: &'a [u8], wanted: &str) -> &'a [u8] {
    let at = bytes.windows(wanted.len()).position(|window| window == wanted.as_bytes());
    at.and_then(|at| bytes.get(at + wanted.len()..)).unwrap_or_default()
}

fn receive(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<()> {
    let mut buffer = [0; 16 * 1024];
    match stream.read(&mut buffer)? {
        0 => Err("closed".into()),
        length => {
            bytes.extend_from_slice(buffer.get(..length).unwrap_or_default());
            Ok(())
        }
    }
}
