//! Lists of any length: an answer with an entity tag while they are short, a stream beyond.
//!
//! A list is read from its cursor in batches, each of which becomes a chunk. When its JSON outgrows
//! [`BUFFERED`], what is there is sent and the rest follows chunk by chunk, at the pace of the
//! client, in constant memory.

use std::cell::Cell;
use std::hash::Hash;
use std::rc::Rc;

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderValue};
use bson::RawDocument;
use bson::oid::ObjectId;
use bytes::Bytes;
use futures::stream;
use mongodb::raw_batch_cursor::RawBatch;

use super::shared_reads::SharedReads;
use crate::error::ApiError;
use crate::middleware::deadline::DEADLINE;
use crate::middleware::entity_tag;
use crate::models::StoreError;
use crate::mongoose::Hydrated;
use crate::views;

/// The longest list that is not streamed, in bytes of JSON.
const BUFFERED: usize = 1 << 20;

/// A list that is read chunk by chunk.
pub(super) trait Source: 'static {
    /// Appends the items of the next chunk, each with a comma behind it; false when there was
    /// nothing left.
    async fn write_chunk(&mut self, out: &mut Vec<u8>) -> Result<bool, ApiError>;
}

/// A list that was read up to [`BUFFERED`]. Several requests may share it.
pub(super) enum List<S> {
    /// All of it, with its entity tag.
    Whole(Bytes, HeaderValue),
    /// The beginning of a longer one, and where the rest comes from, for one request.
    Long(Cell<Option<(Vec<u8>, S)>>),
}

/// A list, or why it could not be read.
pub(super) type Reading<S> = Result<Rc<List<S>>, ApiError>;

/// The lists that are read at this moment.
pub(super) type SharedLists<K, S> = SharedReads<K, Reading<S>>;

impl<S: Source> List<S> {
    /// A list that is complete: its items have a comma behind them.
    pub fn whole(mut body: Vec<u8>) -> Rc<Self> {
        close(&mut body);
        let body = Bytes::from(body);
        let tag = entity_tag::tag(&body);
        Rc::new(Self::Whole(body, tag))
    }

    /// Reads a list.
    ///
    /// # Errors
    /// The database failed.
    pub async fn read(mut source: S) -> Reading<S> {
        let mut body = vec![b'['];
        while source.write_chunk(&mut body).await? {
            if body.len() > BUFFERED {
                return Ok(Rc::new(Self::Long(Cell::new(Some((body, source))))));
            }
        }
        Ok(Self::whole(body))
    }

    /// The answer with this list; `None` if it is long and another request has it.
    fn respond(&self) -> Option<HttpResponse> {
        let mut answer = HttpResponse::Ok();
        answer.content_type(views::CONTENT_TYPE);
        match self {
            Self::Whole(body, tag) => {
                answer.insert_header((header::ETAG, tag.clone()));
                Some(answer.body(body.clone()))
            }
            Self::Long(begun) => {
                let (body, source) = begun.take()?;
                Some(answer.streaming(rest(body, source)))
            }
        }
    }
}

/// Answers with a list. Requests for the same list that come while it is read share the next
/// reading; a list that is too long to be shared is read for each of them.
///
/// # Errors
/// The database failed before the answer began. When it fails later, the answer breaks off
/// without its end, which every client notices.
pub(super) async fn respond<K, S, F>(
    lists: &SharedLists<K, S>,
    key: K,
    read: impl Fn() -> F + Clone + 'static,
) -> Result<HttpResponse, ApiError>
where
    K: Copy + Eq + Hash + 'static,
    S: Source,
    F: Future<Output = Reading<S>> + 'static,
{
    if let Some(answer) = lists.get(key, read.clone()).await?.respond() {
        return Ok(answer);
    }
    let own = read().await?.respond();
    Ok(own.expect("no other request has this list"))
}

/// What was read already, and then the rest. The last comma of a chunk is held back until it is
/// known that something follows.
fn rest(
    read: Vec<u8>,
    source: impl Source,
) -> impl futures::Stream<Item = Result<Bytes, ApiError>> {
    stream::try_unfold(Some((read, source)), |state| async move {
        let Some((mut chunk, mut source)) = state else { return Ok(None) };
        let mut next = Vec::new();
        let more = tokio::time::timeout(DEADLINE, source.write_chunk(&mut next));
        let more = more.await.map_err(|_| ApiError::Unavailable("a slow batch".to_owned()))?;
        if more.inspect_err(|error| log::error!("A list broke off: {error}"))? {
            return Ok(Some((Bytes::from(chunk), Some((next, source)))));
        }
        close(&mut chunk);
        Ok(Some((Bytes::from(chunk), None)))
    })
}

/// Ends a list whose items have a comma behind them.
pub(super) fn close(out: &mut Vec<u8>) {
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(b']');
}

/// The documents of a batch, where they lie: no copy of each.
pub(super) fn documents(
    batch: &RawBatch,
) -> Result<impl Iterator<Item = &RawDocument>, StoreError> {
    let documents = batch.doc_slices()?.into_iter();
    Ok(documents.filter_map(|document| document.ok()?.as_document()))
}

/// Documents of a batch that are no BSON from somewhere on: they are shown up to there.
#[derive(Default)]
pub(super) struct Broken {
    count: usize,
    first: Option<ObjectId>,
}

impl Broken {
    pub(super) fn count(&mut self, document: &Hydrated) {
        if document.is_whole() {
            return;
        }
        if self.count == 0 {
            self.first = document.id("_id");
        }
        self.count += 1;
    }

    pub(super) fn warn(&self, collection: &str) {
        let Self { count, first } = self;
        if *count > 0 {
            log::warn!(
                "{count} documents of {collection} hold bytes that are no BSON, so fields of them \
                 are not shown. The first has {}",
                first.map_or_else(|| "no id".to_owned(), |id| format!("the id {id}")),
            );
        }
    }
}
