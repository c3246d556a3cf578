//! Polls a part of a task only after that part was woken.
//!
//! When any part of a task is woken, the whole task is polled. Most polls of a session's task
//! deliver an event; its end and its heartbeat are rarely due. Polling those parts each time would
//! read memory that is not in the CPU cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use futures::task::AtomicWaker;

/// A waker that records that it was woken, and wakes the task. The flag is set at first, so that
/// the part is polled once.
pub struct WakeFlag {
    shared: Arc<Shared>,
    waker: Waker,
    /// The task that the waker wakes.
    task: Option<Waker>,
}

struct Shared {
    is_set: AtomicBool,
    task: AtomicWaker,
}

impl Default for WakeFlag {
    fn default() -> Self {
        let shared = Arc::new(Shared { is_set: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { waker: Waker::from(Arc::clone(&shared)), shared, task: None }
    }
}

impl WakeFlag {
    /// Clears the flag. Returns the context for polling the part if the flag was set, else `None`.
    /// The caller must then poll the part until it is pending.
    pub fn take(&mut self, context: &Context<'_>) -> Option<Context<'_>> {
        let knows = |task: &Waker| task.will_wake(context.waker());
        let is_new = !self.task.as_ref().is_some_and(knows);
        let mut was_set = self.shared.is_set.swap(false, Ordering::AcqRel);
        if was_set || is_new {
            // A wake removes the task from the `AtomicWaker`, so register it again. Then check the
            // flag once more: a wake may have come in between.
            self.shared.task.register(context.waker());
            was_set |= self.shared.is_set.swap(false, Ordering::AcqRel);
        }
        if is_new {
            self.task = Some(context.waker().clone());
        }
        was_set.then(|| Context::from_waker(&self.waker))
    }

    /// Sets the flag: the part has changed and must be polled again.
    pub fn set(&self) {
        self.shared.is_set.store(true, Ordering::Release);
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_set.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A task that counts how often it is woken.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn it_is_taken_once_for_each_wake() {
        let task = Arc::<Task>::default();
        let waker = Waker::from(Arc::clone(&task));
        let context = Context::from_waker(&waker);
        let mut flag = WakeFlag::default();
        let inner = flag.take(&context).expect("it is set at first").waker().clone();
        assert!(flag.take(&context).is_none());
        for woken in 1..=3 {
            inner.wake_by_ref();
            assert_eq!(task.0.load(Ordering::Relaxed), woken);
            assert!(flag.take(&context).is_some() && flag.take(&context).is_none());
        }
        flag.set();
        assert!(flag.take(&context).is_some() && flag.take(&context).is_none());
    }

    #[test]
    fn the_task_that_polled_last_is_woken() {
        let tasks = [(); 2].map(|()| Arc::<Task>::default());
        let mut flag = WakeFlag::default();
        for task in &tasks {
            let waker = Waker::from(Arc::clone(task));
            let _ = flag.take(&Context::from_waker(&waker));
        }
        flag.waker.wake_by_ref();
        let woken = tasks.map(|task| task.0.load(Ordering::Relaxed));
        assert_eq!(woken, [0, 1]);
    }
}
