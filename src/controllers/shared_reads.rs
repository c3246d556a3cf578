//! Identical reads that are asked for at the same time are made once.
//!
//! Who asks while the same read is running waits for the next one, together with all others who ask
//! until that one begins. So an answer never has the state of the database from before its request
//! began, and under load one query serves many requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{LocalBoxFuture, Shared, WeakShared};
use tokio::time::timeout;

/// How long a read waits for the one before it, so that a dead connection does not hold up those
/// who come later.
const PATIENCE: Duration = Duration::from_secs(1);

/// The reads of one worker, by what they read. An entry lives as long as somebody waits for it.
pub struct SharedReads<K: Eq + Hash, T: Clone>(Rc<Running<K, T>>);

type Running<K, T> = RefCell<HashMap<K, Latest<T>>>;

/// A read that several calls wait for.
type Reading<T> = Shared<LocalBoxFuture<'static, T>>;

/// The last read that was asked for.
struct Latest<T: Clone> {
    reading: WeakShared<LocalBoxFuture<'static, T>>,
    /// Whether it has begun, so that nobody may join it any more.
    begun: Rc<Cell<bool>>,
}

/// Removes its read from the map when the read is done, or nobody waits for it any more.
struct Entry<K: Eq + Hash, T: Clone> {
    running: Rc<Running<K, T>>,
    key: K,
    begun: Rc<Cell<bool>>,
}

impl<K: Copy + Eq + Hash + 'static, T: Clone + 'static> SharedReads<K, T> {
    /// The result of a `read` of `key` that begins after this call. `read` is called unless another
    /// call for the same key, whose read has not begun yet, serves this one, too.
    pub fn get<F>(&self, key: K, read: impl FnOnce() -> F + 'static) -> Reading<T>
    where
        F: Future<Output = T> + 'static,
    {
        let previous = self.latest(key);
        if let Some((reading, begun)) = &previous
            && !begun.get()
        {
            return reading.clone();
        }
        let begun = Rc::new(Cell::new(false));
        let entry = Entry { running: Rc::clone(&self.0), key, begun: Rc::clone(&begun) };
        let reading = async move {
            if let Some((previous, _)) = previous {
                // If it takes too long, this read begins beside it.
                let _ = timeout(PATIENCE, previous).await;
            }
            entry.begun.set(true);
            read().await
        };
        let reading = reading.boxed_local().shared();
        if let Some(weak) = reading.downgrade() {
            self.0.borrow_mut().insert(key, Latest { reading: weak, begun });
        }
        reading
    }

    fn latest(&self, key: K) -> Option<(Reading<T>, Rc<Cell<bool>>)> {
        let running = self.0.borrow();
        let latest = running.get(&key)?;
        Some((latest.reading.upgrade()?, Rc::clone(&latest.begun)))
    }
}

impl<K: Eq + Hash, T: Clone> Default for SharedReads<K, T> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<K: Eq + Hash, T: Clone> Drop for Entry<K, T> {
    fn drop(&mut self) {
        let mut running = self.running.borrow_mut();
        if running.get(&self.key).is_some_and(|latest| Rc::ptr_eq(&latest.begun, &self.begun)) {
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::sync::Semaphore;
    use tokio::task::yield_now;

    use super::*;

    /// A value that reads return, and that only a permit lets them return.
    #[derive(Clone)]
    struct Source {
        value: Rc<Cell<usize>>,
        reads: Rc<Cell<usize>>,
        permits: Rc<Semaphore>,
    }

    impl Source {
        fn new(permits: usize) -> Self {
            let permits = Rc::new(Semaphore::new(permits));
            Self { value: Rc::default(), reads: Rc::default(), permits }
        }

        async fn read(self) -> usize {
            self.reads.set(self.reads.get() + 1);
            let value = self.value.get();
            self.permits.acquire().await.unwrap().forget();
            value
        }
    }

    fn get(reads: &SharedReads<u8, usize>, source: &Source) -> Reading<usize> {
        let source = source.clone();
        reads.get(0, move || source.read())
    }

    #[tokio::test]
    async fn those_who_come_during_a_read_share_the_next_one() {
        let (reads, source) = (SharedReads::default(), Source::new(0));
        let mut first = get(&reads, &source);
        assert!((&mut first).now_or_never().is_none());
        source.value.set(1);
        let mut later: Vec<_> = (0..10).map(|_| get(&reads, &source)).collect();
        assert!(join_all(later.iter_mut()).now_or_never().is_none());
        assert_eq!(source.reads.get(), 1, "the next one has not begun");
        source.value.set(2);
        source.permits.add_permits(2);
        assert_eq!(first.await, 0);
        assert_eq!(join_all(later).await, [2; 10]);
        assert_eq!(source.reads.get(), 2);
        assert!(reads.0.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_read_that_has_begun_serves_nobody_who_comes_later() {
        let (reads, source) = (SharedReads::default(), Source::new(2));
        source.value.set(1);
        assert_eq!(get(&reads, &source).await, 1);
        source.value.set(2);
        assert_eq!(get(&reads, &source).await, 2);
    }

    #[tokio::test]
    async fn a_read_goes_on_when_the_one_who_asked_first_has_gone() {
        let (reads, source) = (SharedReads::default(), Source::new(0));
        let mut running = get(&reads, &source);
        assert!((&mut running).now_or_never().is_none());
        let (first, second) = (get(&reads, &source), get(&reads, &source));
        drop((running, first));
        source.permits.add_permits(2);
        assert_eq!(second.await, 0);
        assert_eq!(source.reads.get(), 2);
    }

    #[tokio::test]
    async fn nothing_is_left_when_all_have_gone() {
        let (reads, source) = (SharedReads::default(), Source::new(0));
        let mut running = get(&reads, &source);
        assert!((&mut running).now_or_never().is_none());
        let next = get(&reads, &source);
        drop(running);
        assert_eq!(reads.0.borrow().len(), 1);
        drop(next);
        assert!(reads.0.borrow().is_empty());
        assert_eq!(source.reads.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_does_not_hold_up_the_next_one_for_ever() {
        let (reads, source) = (SharedReads::default(), Source::new(0));
        let mut hanging = get(&reads, &source);
        assert!((&mut hanging).now_or_never().is_none());
        let working = Source::new(1);
        assert_eq!(get(&reads, &working).await, 0);
        yield_now().await;
        assert!(hanging.now_or_never().is_none());
    }
}
