//! Combines calls that arrive while other operations are running.
//!
//! For this process and MongoDB, an operation costs about the same for one document as for many,
//! above all a write, which waits for a majority. So calls that arrive while `MAX_RUNNING`
//! operations are running wait until one of them ends, and then share one operation: databases call
//! this group commit. A single call does not wait.

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

/// How many operations of one kind run at the same time.
const MAX_RUNNING: usize = 2;

/// How many items one operation has at most, unless a single call has more.
const MAX_ITEMS: usize = 64;

/// How long an operation may take, so that a dead connection does not block the waiting calls
/// forever. The callers of the operation have given up by then.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// From this many waiting calls on, calls whose callers have given up are removed.
const MIN_SWEEP: usize = 64;

/// See the [module](self). Clones share the queue and the running operations.
pub(super) struct Batcher<T, R>(Arc<Shared<T, R>>);

struct Shared<T, R> {
    operation: Box<Operation<T, R>>,
    // A standard lock: nothing awaits while it is held.
    queue: Mutex<Queue<T, R>>,
}

/// Returns one answer for each item, in the same order.
type Operation<T, R> = dyn Fn(Vec<T>) -> Answers<R> + Send + Sync;
type Answers<R> = BoxFuture<'static, Result<Vec<R>, StoreError>>;

struct Queue<T, R> {
    /// At most twice the number of calls that somebody still waits for, or `MIN_SWEEP`.
    calls: VecDeque<Call<T, R>>,
    sweep_at: usize,
    running: usize,
}

struct Call<T, R> {
    items: Vec<T>,
    answer: oneshot::Sender<Result<Vec<R>, StoreError>>,
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Makes calls by this operation, which must return one answer for each item.
    pub fn new<F>(operation: impl Fn(Vec<T>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Vec<R>, StoreError>> + Send + 'static,
    {
        let operation = Box::new(move |items| operation(items).boxed());
        let queue = Queue { calls: VecDeque::new(), sweep_at: MIN_SWEEP, running: 0 };
        Self(Arc::new(Shared { operation, queue: Mutex::new(queue) }))
    }

    /// The answers to these items. One operation has all of them, in this order, perhaps with items
    /// of other calls. It may run even if the future is dropped.
    ///
    /// # Errors
    /// The operation failed, for all of its calls.
    pub async fn call(&self, items: Vec<T>) -> Result<Vec<R>, StoreError> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, answered) = oneshot::channel();
        if self.0.queue().push(Call { items, answer }) {
            // The task takes its calls when it first runs, so it finds all that were made until
            // then.
            tokio::spawn(Arc::clone(&self.0).work());
        }
        answered.await.unwrap_or_else(|_| Err(unavailable("the operation panicked")))
    }

    /// The answer to one item.
    ///
    /// # Errors
    /// The operation failed, for all of its calls.
    pub async fn call_one(&self, item: T) -> Result<R, StoreError> {
        let answer = self.call(vec![item]).await?.pop();
        answer.ok_or_else(|| unavailable("the operation returned no answer"))
    }
}

impl<T, R> Shared<T, R> {
    /// Runs operations, one after another, until no call waits.
    async fn work(self: Arc<Self>) {
        loop {
            let calls = self.queue().next_batch();
            if calls.is_empty() {
                return;
            }
            let (mut items, mut callers) = (Vec::new(), Vec::with_capacity(calls.len()));
            for call in calls {
                callers.push((call.items.len(), call.answer));
                items.extend(call.items);
            }
            let operation = AssertUnwindSafe(async { (self.operation)(items).await });
            // After a panic, the callers find their channels closed.
            let Ok(done) = timeout(OPERATION_TIMEOUT, operation.catch_unwind())
                .await
                .unwrap_or_else(|_| Ok(Err(unavailable("MongoDB has not answered in time"))))
            else {
                continue;
            };
            let mut answers = done.map(Vec::into_iter);
            for (count, caller) in callers {
                let part = match &mut answers {
                    Ok(answers) => Ok(answers.take(count).collect()),
                    Err(error) => Err(error.clone()),
                };
                // A caller that has given up needs no answer.
                let _ = caller.send(part);
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<T, R>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, R> Queue<T, R> {
    /// Adds a call. Returns whether one more worker is needed.
    fn push(&mut self, call: Call<T, R>) -> bool {
        if self.calls.len() >= self.sweep_at {
            self.calls.retain(|call| !call.answer.is_closed());
            self.sweep_at = (self.calls.len() * 2).max(MIN_SWEEP);
        }
        self.calls.push_back(call);
        let needs_worker = self.running < MAX_RUNNING;
        self.running += usize::from(needs_worker);
        needs_worker
    }

    /// The calls of a worker's next operation; empty if the worker must end.
    fn next_batch(&mut self) -> Vec<Call<T, R>> {
        let (mut batch, mut items) = (Vec::new(), 0);
        while let Some(call) = self.calls.front()
            && (batch.is_empty() || items + call.items.len() <= MAX_ITEMS)
            && let Some(call) = self.calls.pop_front()
        {
            if !call.answer.is_closed() {
                items += call.items.len();
                batch.push(call);
            }
        }
        if batch.is_empty() {
            self.running -= 1;
            self.sweep_at = MIN_SWEEP;
        }
        batch
    }
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable(Error::custom(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;
    use tokio::time::sleep;

    use super::*;

    /// An operation that returns its items and records its batches. Each run needs a permit.
    struct Echo {
        batcher: Batcher<usize, usize>,
        permits: Arc<Semaphore>,
        batches: Arc<Mutex<Vec<Vec<usize>>>>,
    }

    fn echo(permits: usize) -> Echo {
        let (permits, batches) =
            (Arc::new(Semaphore::new(permits)), Arc::<Mutex<Vec<_>>>::default());
        let (opened, noted) = (Arc::clone(&permits), Arc::clone(&batches));
        let batcher = Batcher::new(move |items: Vec<usize>| {
            noted.lock().unwrap().push(items.clone());
            let opened = Arc::clone(&opened);
            async move {
                opened.acquire().await.unwrap().forget();
                assert!(!items.contains(&13), "asked to panic");
                if items.contains(&404) { Err(StoreError::Duplicate) } else { Ok(items) }
            }
        });
        Echo { batcher, permits, batches }
    }

    impl Echo {
        /// Calls from a separate task, which has run when this returns.
        async fn ask(
            &self,
            items: impl IntoIterator<Item = usize>,
        ) -> tokio::task::JoinHandle<Result<Vec<usize>, StoreError>> {
            let (batcher, items) = (self.batcher.clone(), items.into_iter().collect());
            let asking = tokio::spawn(async move { batcher.call(items).await });
            // The clock is paused, so this ends only when all other tasks wait.
            sleep(Duration::from_millis(1)).await;
            asking
        }

        fn batches(&self) -> Vec<Vec<usize>> {
            self.batches.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_during_running_operations_share_one() {
        let echo = echo(0);
        let mut asking = Vec::new();
        for items in [vec![1], vec![2], vec![3, 4], vec![5]] {
            asking.push(echo.ask(items).await);
        }
        assert_eq!(echo.batches(), [vec![1], vec![2]]);
        echo.permits.add_permits(3);
        let mut answers = Vec::new();
        for asking in asking {
            answers.push(asking.await.unwrap().unwrap());
        }
        assert_eq!(answers, [vec![1], vec![2], vec![3, 4], vec![5]]);
        assert_eq!(echo.batches(), [vec![1], vec![2], vec![3, 4, 5]]);
        assert_eq!(echo.batcher.0.queue().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_made_before_the_worker_runs_share_one() {
        let echo = echo(9);
        let answers = futures::future::join_all((0..5).map(|n| echo.batcher.call_one(n))).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [0, 1, 2, 3, 4]);
        assert_eq!(echo.batches(), [[0, 1, 2, 3, 4]]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_has_at_most_its_limit_of_items() {
        let echo = echo(9);
        let calls = [50, 14, 10, 80, 1].map(|count| echo.batcher.call(vec![0; count]));
        let answers = futures::future::join_all(calls).await;
        assert!(answers.iter().all(Result::is_ok));
        let sizes: Vec<_> = echo.batches().iter().map(Vec::len).collect();
        assert_eq!(sizes, [64, 10, 80, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_a_panic_and_a_timeout_concern_only_their_calls() {
        let echo = echo(9);
        assert!(matches!(echo.batcher.call_one(404).await, Err(StoreError::Duplicate)));
        assert!(matches!(echo.batcher.call_one(13).await, Err(StoreError::Unavailable(_))));
        assert_eq!(echo.batcher.call_one(1).await.unwrap(), 1);
        echo.permits.forget_permits(9);
        let stuck = [echo.ask([2]).await, echo.ask([3]).await, echo.ask([4]).await];
        sleep(OPERATION_TIMEOUT).await;
        echo.permits.add_permits(1);
        let [first, second, waiting] = stuck;
        for silent in [first, second] {
            assert!(matches!(silent.await.unwrap(), Err(StoreError::Unavailable(_))));
        }
        assert_eq!(waiting.await.unwrap().unwrap(), [4]);
    }

    #[tokio::test(start_paused = true)]
    async fn abandoned_calls_are_not_run_and_take_no_room() {
        let echo = echo(0);
        let running = [echo.ask([1]).await, echo.ask([2]).await];
        for item in 0..10 * MIN_SWEEP {
            echo.ask([100 + item]).await.abort();
        }
        assert!(echo.batcher.0.queue().calls.len() <= MIN_SWEEP + 1);
        let last = echo.ask([3]).await;
        echo.permits.add_permits(9);
        for asking in running.into_iter().chain([last]) {
            assert!(asking.await.unwrap().is_ok());
        }
        assert_eq!(echo.batches(), [[1], [2], [3]]);
    }
}
