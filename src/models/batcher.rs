//! One operation for all who ask while others are under way.
//!
//! An operation costs this process and MongoDB about the same for one document as for many, above
//! all a write, which waits for a majority. So what is asked while there are operations under way
//! waits for the end of one and is then asked together: the group commit of databases. Whoever
//! comes alone does not wait.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use mongodb::error::Error;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::StoreError;

/// How many operations of one kind are under way at the same time.
const UNDER_WAY: usize = 2;

/// For how many items one operation is at most, unless a single call has more.
const MOST: usize = 64;

/// How long one may take, so that a dead connection does not hold up for ever those who wait behind
/// it. Whoever asked has given up by then.
const PATIENCE: Duration = Duration::from_secs(5);

/// From how many waiting calls on those are dropped that nobody waits for any more.
const SWEPT_FROM: usize = 64;

/// See the [module](self). Clones share what is under way.
pub(super) struct Batcher<T, R>(Arc<Shared<T, R>>);

struct Shared<T, R> {
    operation: Box<Operation<T, R>>,
    // A standard lock: nothing awaits while it is held.
    queue: Mutex<Queue<T, R>>,
}

/// Answers each item, in their order.
type Operation<T, R> = dyn Fn(Vec<T>) -> Answers<R> + Send + Sync;
type Answers<R> = BoxFuture<'static, Result<Vec<R>, StoreError>>;

struct Queue<T, R> {
    /// Bounded by twice the calls that somebody waits for.
    calls: VecDeque<Call<T, R>>,
    sweep_at: usize,
    under_way: usize,
}

struct Call<T, R> {
    items: Vec<T>,
    answer: oneshot::Sender<Result<Vec<R>, StoreError>>,
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Makes calls by this operation, which gives as many answers as it is given items.
    pub fn new<F>(operation: impl Fn(Vec<T>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Vec<R>, StoreError>> + Send + 'static,
    {
        let operation = Box::new(move |items| operation(items).boxed());
        let queue = Queue { calls: VecDeque::new(), sweep_at: SWEPT_FROM, under_way: 0 };
        Self(Arc::new(Shared { operation, queue: Mutex::new(queue) }))
    }

    /// The answers to these items, which are asked together and in this order, perhaps with others.
    /// They may be asked although the future is dropped.
    ///
    /// # Errors
    /// The operation failed, for all who were in it.
    pub async fn call(&self, items: Vec<T>) -> Result<Vec<R>, StoreError> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, answered) = oneshot::channel();
        if self.0.queue().push(Call { items, answer }) {
            // It looks for calls when it runs, and so finds all that come in this turn.
            tokio::spawn(Arc::clone(&self.0).work());
        }
        answered.await.unwrap_or_else(|_| Err(given_up("it panicked")))
    }

    /// The answer to one item.
    ///
    /// # Errors
    /// The operation failed, for all who were in it.
    pub async fn call_one(&self, item: T) -> Result<R, StoreError> {
        let answer = self.call(vec![item]).await?.pop();
        answer.ok_or_else(|| given_up("it has no answer"))
    }
}

impl<T, R> Shared<T, R> {
    /// Makes operations, one after another, until nobody waits.
    async fn work(self: Arc<Self>) {
        loop {
            let calls = self.queue().next_batch();
            if calls.is_empty() {
                return;
            }
            let (mut items, mut askers) = (Vec::new(), Vec::with_capacity(calls.len()));
            for call in calls {
                askers.push((call.items.len(), call.answer));
                items.extend(call.items);
            }
            let operation = AssertUnwindSafe(async { (self.operation)(items).await });
            // After a panic the askers find their channels closed.
            let Ok(done) = timeout(PATIENCE, operation.catch_unwind())
                .await
                .unwrap_or_else(|_| Ok(Err(given_up("MongoDB has not answered in time"))))
            else {
                continue;
            };
            let mut answers = done.map(Vec::into_iter);
            for (count, asker) in askers {
                let part = match &mut answers {
                    Ok(answers) => Ok(answers.take(count).collect()),
                    Err(error) => Err(error.clone()),
                };
                // Who has gone does not want to know.
                let _ = asker.send(part);
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<T, R>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, R> Queue<T, R> {
    /// Adds a call; whether it needs one more worker.
    fn push(&mut self, call: Call<T, R>) -> bool {
        if self.calls.len() >= self.sweep_at {
            self.calls.retain(|call| !call.answer.is_closed());
            self.sweep_at = (self.calls.len() * 2).max(SWEPT_FROM);
        }
        self.calls.push_back(call);
        let needs_worker = self.under_way < UNDER_WAY;
        self.under_way += usize::from(needs_worker);
        needs_worker
    }

    /// What a worker does next; nothing, if it is to end.
    fn next_batch(&mut self) -> Vec<Call<T, R>> {
        let (mut batch, mut items) = (Vec::new(), 0);
        while let Some(call) = self.calls.front()
            && (batch.is_empty() || items + call.items.len() <= MOST)
            && let Some(call) = self.calls.pop_front()
        {
            if !call.answer.is_closed() {
                items += call.items.len();
                batch.push(call);
            }
        }
        if batch.is_empty() {
            self.under_way -= 1;
            self.sweep_at = SWEPT_FROM;
        }
        batch
    }
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

fn given_up(why: &str) -> StoreError {
    StoreError::Unavailable(Error::custom(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;
    use tokio::time::sleep;

    use super::*;

    /// Gives each item back and notes which came together, as soon as it is let.
    struct Echo {
        batcher: Batcher<usize, usize>,
        gate: Arc<Semaphore>,
        batches: Arc<Mutex<Vec<Vec<usize>>>>,
    }

    fn echo(permits: usize) -> Echo {
        let (gate, batches) = (Arc::new(Semaphore::new(permits)), Arc::<Mutex<Vec<_>>>::default());
        let (opened, noted) = (Arc::clone(&gate), Arc::clone(&batches));
        let batcher = Batcher::new(move |items: Vec<usize>| {
            noted.lock().unwrap().push(items.clone());
            let opened = Arc::clone(&opened);
            async move {
                opened.acquire().await.unwrap().forget();
                assert!(!items.contains(&13), "asked to panic");
                if items.contains(&404) { Err(StoreError::Duplicate) } else { Ok(items) }
            }
        });
        Echo { batcher, gate, batches }
    }

    impl Echo {
        /// Asks from a task of its own, which has run when this returns.
        async fn ask(
            &self,
            items: impl IntoIterator<Item = usize>,
        ) -> tokio::task::JoinHandle<Result<Vec<usize>, StoreError>> {
            let (batcher, items) = (self.batcher.clone(), items.into_iter().collect());
            let asking = tokio::spawn(async move { batcher.call(items).await });
            // The clock stands still, so this waits until all others do.
            sleep(Duration::from_millis(1)).await;
            asking
        }

        fn batches(&self) -> Vec<Vec<usize>> {
            self.batches.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_enough_is_under_way_is_asked_for_together() {
        let echo = echo(0);
        let mut asking = Vec::new();
        for items in [vec![1], vec![2], vec![3, 4], vec![5]] {
            asking.push(echo.ask(items).await);
        }
        assert_eq!(echo.batches(), [vec![1], vec![2]]);
        echo.gate.add_permits(3);
        let mut answers = Vec::new();
        for asking in asking {
            answers.push(asking.await.unwrap().unwrap());
        }
        assert_eq!(answers, [vec![1], vec![2], vec![3, 4], vec![5]]);
        assert_eq!(echo.batches(), [vec![1], vec![2], vec![3, 4, 5]]);
        assert_eq!(echo.batcher.0.queue().under_way, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_come_in_one_turn_are_asked_for_together() {
        let echo = echo(9);
        let answers = futures::future::join_all((0..5).map(|n| echo.batcher.call_one(n))).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [0, 1, 2, 3, 4]);
        assert_eq!(echo.batches(), [[0, 1, 2, 3, 4]]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_operation_is_not_for_more_than_it_may_be() {
        let echo = echo(9);
        let calls = [50, 14, 10, 80, 1].map(|count| echo.batcher.call(vec![0; count]));
        let answers = futures::future::join_all(calls).await;
        assert!(answers.iter().all(Result::is_ok));
        let sizes: Vec<_> = echo.batches().iter().map(Vec::len).collect();
        assert_eq!(sizes, [64, 10, 80, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_a_panic_and_silence_concern_only_who_was_in_it() {
        let echo = echo(9);
        assert!(matches!(echo.batcher.call_one(404).await, Err(StoreError::Duplicate)));
        assert!(matches!(echo.batcher.call_one(13).await, Err(StoreError::Unavailable(_))));
        assert_eq!(echo.batcher.call_one(1).await.unwrap(), 1);
        echo.gate.forget_permits(9);
        let stuck = [echo.ask([2]).await, echo.ask([3]).await, echo.ask([4]).await];
        sleep(PATIENCE).await;
        echo.gate.add_permits(1);
        let [first, second, waiting] = stuck;
        for silent in [first, second] {
            assert!(matches!(silent.await.unwrap(), Err(StoreError::Unavailable(_))));
        }
        assert_eq!(waiting.await.unwrap().unwrap(), [4]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_given_up_is_not_asked_for_and_takes_no_room() {
        let echo = echo(0);
        let under_way = [echo.ask([1]).await, echo.ask([2]).await];
        for item in 0..10 * SWEPT_FROM {
            echo.ask([100 + item]).await.abort();
        }
        assert!(echo.batcher.0.queue().calls.len() <= SWEPT_FROM + 1);
        let last = echo.ask([3]).await;
        echo.gate.add_permits(9);
        for asking in under_way.into_iter().chain([last]) {
            assert!(asking.await.unwrap().is_ok());
        }
        assert_eq!(echo.batches(), [[1], [2], [3]]);
    }
}
