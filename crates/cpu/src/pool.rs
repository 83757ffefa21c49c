//! A fork-join pool for regions of a few microseconds: workers spin for a while before they sleep.
//!
//! A decode step forks hundreds of times; entering a general-purpose pool costs 10 us and more each time, a spinning one
//! a fraction of a microsecond.
//!
//! A worker joins a job if it comes before the last task is taken. One that the system runs late, as it does on a busy
//! machine, is not waited for: the others do its work.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Rounds of waiting before a worker sleeps: some milliseconds, longer than the gaps between the regions of one step.
const SPINS_BEFORE_SLEEP: usize = 4_000;
/// Rounds before a waiting thread offers its core to others.
const SPINS_BEFORE_YIELD: usize = 400;

/// Of [`Shared::state`]: workers that have joined the job and are not done with it, whether more may join, and one job.
const JOINED: usize = OPEN - 1;
const OPEN: usize = 1 << 16;
const EPOCH: usize = OPEN << 1;

type Task<'a> = &'a (dyn Fn(usize) + Sync + 'a);

/// A fixed set of threads; the calling thread is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    job: Mutex<Option<Job>>,
    /// From its lowest bit on: [`JOINED`], [`OPEN`], and how many jobs there were.
    state: AtomicUsize,
    next_task: AtomicUsize,
    sleepers: Mutex<usize>,
    wake: Condvar,
    /// What the first task that panicked left; it is raised again on the calling thread.
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
    shut_down: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    task: Task<'static>,
    n_tasks: usize,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least 1, at most 65,536.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            state: AtomicUsize::new(0),
            next_task: AtomicUsize::new(0),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
            panicked: Mutex::new(None),
            shut_down: AtomicBool::new(false),
        });
        let workers = (1..threads.max(1))
            .map(|i| {
                let shared = Arc::clone(&shared);
                let work = move || shared.serve();
                std::thread::Builder::new().name(format!("cpu-{i}")).spawn(work).expect("a thread can be started")
            })
            .collect();
        Self { shared, workers }
    }

    /// Calls `task` once for every number below `n_tasks`, on all threads, and returns when all calls have.
    ///
    /// Threads claim tasks in ascending order. A panic in a task is passed on to the caller.
    pub fn run(&mut self, n_tasks: usize, task: Task<'_>) {
        if self.workers.is_empty() || n_tasks <= 1 {
            return (0..n_tasks).for_each(task);
        }
        // SAFETY: the reference is used only between here and the end of this call: workers take it from `job` after they
        // have joined, which they can while the job is open, and the loop below does not return before each that has joined
        // has reported that it is done with it.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        let shared = &*self.shared;
        *shared.job.lock().expect("no thread panics while it holds the job") = Some(Job { task, n_tasks });
        shared.next_task.store(0, Ordering::Relaxed);
        shared.state.fetch_add(EPOCH | OPEN, Ordering::SeqCst);
        if *shared.sleepers.lock().expect("no thread panics while it holds the count") > 0 {
            shared.wake.notify_all();
        }
        shared.work(Job { task, n_tasks });
        shared.state.fetch_sub(OPEN, Ordering::SeqCst);
        spin_until(|| shared.state.load(Ordering::Acquire) & JOINED == 0, usize::MAX);
        *shared.job.lock().expect("no thread panics while it holds the job") = None;
        let panicked = shared.panicked.lock().expect("no thread panics while it holds the payload").take();
        if let Some(payload) = panicked {
            resume_unwind(payload);
        }
    }

    /// Splits `out`, a row-major matrix `width` wide, into tiles of `row_groups` x `col_tiles` and calls `task` on each,
    /// with the indices of its row group and column tile. Groups and tiles must be ascending and must not overlap.
    pub fn for_tiles(
        &mut self,
        out: &mut [f32],
        width: usize,
        row_groups: &[Range<usize>],
        col_tiles: &[Range<usize>],
        task: impl Fn(usize, usize, Tile<'_>) + Sync,
    ) {
        assert_disjoint(row_groups, out.len() / width);
        assert_disjoint(col_tiles, width);
        let base = OutPtr(out.as_mut_ptr());
        self.run(row_groups.len() * col_tiles.len(), &|i| {
            let (group, col) = (i / col_tiles.len(), i % col_tiles.len());
            // SAFETY: row groups and column tiles do not overlap and lie inside `out`, as asserted above, and each pair
            // of them is one task: no two tiles share an element. `out` is borrowed until `run` returns.
            let tile = unsafe { Tile::new(base.get(), width, row_groups[group].clone(), col_tiles[col].clone()) };
            task(group, col, tile);
        });
    }

    /// Splits `out` into rows of `width` elements and calls `task` on each with its index.
    pub fn for_rows<T: Send>(&mut self, out: &mut [T], width: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let rows: Vec<Mutex<&mut [T]>> = out.chunks_mut(width).map(Mutex::new).collect();
        self.run(rows.len(), &|i| task(i, &mut rows[i].lock().expect("each row is locked once")));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shut_down.store(true, Ordering::SeqCst);
        self.shared.state.fetch_add(EPOCH, Ordering::SeqCst);
        drop(self.shared.sleepers.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut seen = 0;
        loop {
            self.wait_for_job_after(seen);
            if self.shut_down.load(Ordering::SeqCst) {
                return;
            }
            let (epoch, has_joined) = self.join();
            seen = epoch;
            if has_joined {
                let job = self.job.lock().expect("no thread panics while it holds the job").expect("it is still open");
                self.work(job);
                self.state.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// The number of the current job, and whether this thread has joined it: not if all of its tasks are taken.
    fn join(&self) -> (usize, bool) {
        let mut state = self.state.load(Ordering::SeqCst);
        while state & OPEN != 0 {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return (state / EPOCH, true),
                Err(now) => state = now,
            }
        }
        (state / EPOCH, false)
    }

    fn wait_for_job_after(&self, seen: usize) {
        let changed = || self.state.load(Ordering::SeqCst) / EPOCH != seen;
        if spin_until(changed, SPINS_BEFORE_SLEEP) {
            return;
        }
        let mut sleepers = self.sleepers.lock().expect("no thread panics while it holds the count");
        *sleepers += 1;
        while !changed() {
            sleepers = self.wake.wait(sleepers).expect("no thread panics while it holds the count");
        }
        *sleepers -= 1;
    }

    fn work(&self, job: Job) {
        loop {
            let i = self.next_task.fetch_add(1, Ordering::Relaxed);
            if i >= job.n_tasks {
                return;
            }
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| (job.task)(i))) {
                let mut first = self.panicked.lock().expect("no thread panics while it holds the payload");
                match &*first {
                    // Dropping it could panic in turn, outside of the guard.
                    Some(_) => std::mem::forget(payload),
                    None => *first = Some(payload),
                }
            }
        }
    }
}

/// Waits until `done`, at most `rounds` rounds; whether it was done.
fn spin_until(done: impl Fn() -> bool, rounds: usize) -> bool {
    for round in 0..rounds {
        if done() {
            return true;
        }
        if round < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
    done()
}

fn assert_disjoint(ranges: &[Range<usize>], limit: usize) {
    let mut end = 0;
    for r in ranges {
        assert!(end <= r.start && r.start <= r.end && r.end <= limit, "{r:?} overlaps or exceeds {limit}");
        end = r.end;
    }
}

#[derive(Clone, Copy)]
struct OutPtr(*mut f32);

impl OutPtr {
    fn get(self) -> *mut f32 {
        self.0
    }
}

// SAFETY: the pointer is only turned into tiles that share no element.
unsafe impl Sync for OutPtr {}

/// A rectangle of an output matrix, owned by one task.
pub struct Tile<'a> {
    base: *mut f32,
    width: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    marker: std::marker::PhantomData<&'a mut f32>,
}

impl Tile<'_> {
    /// # Safety
    /// `base` points to a matrix `width` wide that holds `rows` and `cols`; nothing else touches the rectangle while the
    /// tile lives.
    unsafe fn new(base: *mut f32, width: usize, rows: Range<usize>, cols: Range<usize>) -> Self {
        Self { base, width, rows, cols, marker: std::marker::PhantomData }
    }

    /// Its rows of the matrix.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Its columns of the matrix.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// The tile's part of matrix row `row`, which must be one of its rows.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row));
        // SAFETY: the rectangle is this tile's alone, and `row` is inside it.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(row * self.width + self.cols.start), self.cols.len()) }
    }
}

/// `0..n` in pieces of `size`.
pub fn pieces(n: usize, size: usize) -> Vec<Range<usize>> {
    (0..n).step_by(size).map(|at| at..(at + size).min(n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads);
            for n in [0, 1, 2, 3, 100] {
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {n} tasks");
            }
        }
    }

    /// Here one never comes: the system has not run it yet.
    #[test]
    fn a_late_worker_is_not_waited_for() {
        let mut pool = Pool::new(2);
        pool.workers.push(std::thread::spawn(|| ()));
        let sum = AtomicUsize::new(0);
        for _ in 0..100 {
            pool.run(10, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.into_inner(), 4500);
    }

    #[test]
    fn jobs_of_every_length_in_a_row() {
        let mut pool = Pool::new(4);
        for n in (0..2000).map(|i| i % 7) {
            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.run(n, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{n} tasks");
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let mut pool = Pool::new(3);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let sum = AtomicUsize::new(0);
            pool.run(10, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn tiles_cover_the_matrix() {
        let mut out = vec![0f32; 7 * 10];
        Pool::new(2).for_tiles(&mut out, 10, &[0..3, 3..7], &pieces(10, 4), |group, col, mut tile| {
            for row in tile.rows() {
                tile.row(row).iter_mut().for_each(|v| *v += (1 + group * 10 + col) as f32);
            }
        });
        assert_eq!((out[0], out[9], out[69]), (1.0, 3.0, 13.0));
        assert!(out.iter().all(|&v| v > 0.0));
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn overlapping_tiles_are_refused() {
        Pool::new(1).for_tiles(&mut [0.0; 8], 4, &[0..2, 1..2], &pieces(4, 4), |_, _, _| ());
    }

    #[test]
    #[should_panic(expected = "task 7 is broken")]
    fn a_panic_reaches_the_caller() {
        Pool::new(2).run(8, &|i| assert!(i != 7, "task 7 is broken"));
    }
}
