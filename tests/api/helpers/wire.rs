//! Sends bytes on one connection and reads HTTP/1 answers.
//!
//! A client library would correct the tested details: paths, duplicate headers, lengths, malformed
//! requests. Reading starts before everything is written, because an early answer (413, 431) may
//! close the connection.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpStream, tcp::ReadHalf},
};

/// The timeout of all answers together.
const DEADLINE: Duration = Duration::from_secs(20);

/// An answer. Header names are in lower case.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the server closes the connection after this answer.
    pub closes: bool,
}

impl Response {
    /// The values of a header, in the order of its lines.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let named = |(known, _): &&(String, String)| known == name;
        self.headers.iter().filter(named).map(|(_, value)| value.as_str()).collect()
    }
}

/// Sends bytes on a new connection and reads `answers` answers. If the first request is HEAD, the
/// first answer has no body.
pub async fn exchange(
    address: SocketAddr,
    head: bool,
    bytes: &[u8],
    answers: usize,
) -> io::Result<Vec<Response>> {
    tokio::time::timeout(DEADLINE, async {
        let mut stream = TcpStream::connect(address).await?;
        let (reader, mut writer) = stream.split();
        let mut reader = BufReader::new(reader);
        let write = async {
            // After an early answer, writing fails; the reader gets the answer.
            drop(writer.write_all(bytes).await);
        };
        let read = async {
            let mut found = Vec::new();
            while found.len() < answers {
                let head = head && found.is_empty();
                found.push(read_response(&mut reader, head).await?);
            }
            Ok(found)
        };
        let ((), found) = tokio::join!(write, read);
        found
    })
    .await?
}

async fn read_response(reader: &mut BufReader<ReadHalf<'_>>, head: bool) -> io::Result<Response> {
    let (version, status, headers) = loop {
        let (version, status, headers) = read_head(reader).await?;
        if status >= 200 {
            break (version, status, headers);
        }
    };
    let mut response = Response { status, headers, body: Vec::new(), closes: false };
    let says = |name: &str, word: &str| {
        response.header(name).iter().any(|value| value.eq_ignore_ascii_case(word))
    };
    let chunked = says("transfer-encoding", "chunked");
    let length = response.header("content-length").first().and_then(|text| text.parse().ok());
    let mut closes =
        says("connection", "close") || (version == "HTTP/1.0" && !says("connection", "keep-alive"));
    if head || status == 204 || status == 304 {
        // No body, even if there is a length.
    } else if chunked {
        response.body = read_chunks(reader).await?;
    } else if let Some(length) = length {
        response.body = vec![0; length];
        reader.read_exact(&mut response.body).await?;
    } else {
        reader.read_to_end(&mut response.body).await?;
        closes = true;
    }
    response.closes = closes;
    Ok(response)
}

type Head = (String, u16, Vec<(String, String)>);

async fn read_head(reader: &mut BufReader<ReadHalf<'_>>) -> io::Result<Head> {
    let line = read_line(reader).await?;
    let mut parts = line.splitn(3, ' ');
    let (version, status) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let status = status.parse().map_err(|_| invalid(format!("status line {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader).await?;
        if line.is_empty() {
            return Ok((version.to_owned(), status, headers));
        }
        let (name, value) =
            line.split_once(':').ok_or_else(|| invalid(format!("header line {line:?}")))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

async fn read_chunks(reader: &mut BufReader<ReadHalf<'_>>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(reader).await?;
        let length = usize::from_str_radix(line.trim(), 16)
            .map_err(|_| invalid(format!("chunk size {line:?}")))?;
        let mut chunk = vec![0; length];
        reader.read_exact(&mut chunk).await?;
        body.extend(chunk);
        read_line(reader).await?;
        if length == 0 {
            return Ok(body);
        }
    }
}

async fn read_line(reader: &mut BufReader<ReadHalf<'_>>) -> io::Result<String> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
