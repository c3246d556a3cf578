//! Parts of a task that are looked at only when they were woken.
//!
//! A task that waits for many things is polled as a whole when one of them happens. For a session
//! most of these polls are for an event to deliver, while what ends it and what keeps it alive
//! hardly ever happen; looking at those each time reads memory that is in no cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use futures::task::AtomicWaker;

/// See the [module](self). Open at first, so that what is behind it begins to wait.
pub struct Gate {
    bell: Arc<Bell>,
    waker: Waker,
    /// The task that the bell wakes.
    task: Option<Waker>,
}

struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

/// An open gate.
impl Default for Gate {
    fn default() -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { waker: Waker::from(Arc::clone(&bell)), bell, task: None }
    }
}

impl Gate {
    /// What to poll with, if something was woken since the last time; `None` is a reason not to
    /// look. Whatever is behind the gate must then be polled until it waits.
    pub fn pass(&mut self, context: &Context<'_>) -> Option<Context<'_>> {
        let knows = |task: &Waker| task.will_wake(context.waker());
        let is_new = !self.task.as_ref().is_some_and(knows);
        let mut rung = self.bell.rung.swap(false, Ordering::AcqRel);
        if rung || is_new {
            // The bell forgets the task when it rings, and may have rung in between.
            self.bell.task.register(context.waker());
            rung |= self.bell.rung.swap(false, Ordering::AcqRel);
        }
        if is_new {
            self.task = Some(context.waker().clone());
        }
        rung.then(|| Context::from_waker(&self.waker))
    }

    /// Opens it for one more look: something new is behind it.
    pub fn open(&self) {
        self.bell.rung.store(true, Ordering::Release);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
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
    fn it_is_passed_once_for_each_reason() {
        let task = Arc::<Task>::default();
        let waker = Waker::from(Arc::clone(&task));
        let context = Context::from_waker(&waker);
        let mut gate = Gate::default();
        let inner = gate.pass(&context).expect("it is open at first").waker().clone();
        assert!(gate.pass(&context).is_none());
        for woken in 1..=3 {
            inner.wake_by_ref();
            assert_eq!(task.0.load(Ordering::Relaxed), woken);
            assert!(gate.pass(&context).is_some() && gate.pass(&context).is_none());
        }
        gate.open();
        assert!(gate.pass(&context).is_some() && gate.pass(&context).is_none());
    }

    #[test]
    fn the_task_that_looked_last_is_woken() {
        let tasks = [(); 2].map(|()| Arc::<Task>::default());
        let mut gate = Gate::default();
        for task in &tasks {
            let waker = Waker::from(Arc::clone(task));
            let _ = gate.pass(&Context::from_waker(&waker));
        }
        gate.waker.wake_by_ref();
        let woken = tasks.map(|task| task.0.load(Ordering::Relaxed));
        assert_eq!(woken, [0, 1]);
    }
}
