#include "posix.h"

#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "error.h"
#include "fpu.h"
#include "load.h"
#include "watch.h"

/* The ticket is the whole hand-over: a number of the launch in the upper bits, how many threads may help, and how
 * many units of row groups nobody has claimed yet. A worker claims some by exchanging the ticket for one with fewer, so
 * one that comes late finds none of a launch that is over, and whoever holds a claim knows that `launch` and what
 * belongs to it cannot change under it. A claim takes its thread's half share of what is left: large ones first, single
 * units at the end, so that cores of different speed finish together. */
enum { unit_bits = 16, thread_bits = 8, stack_bytes = 512 * 1024, polls_per_look = 64 };
/* The next launch is mostly microseconds away: so many polls go without a pause, which may take long under a hypervisor. */
enum { eager_polls = 4096, units_per_thread = 4 };
static const uint64_t closing = (uint64_t)0xff << unit_bits | 0xffff; /* a ticket that ends the workers */
static const int64_t spin_ns = 100000, shortest_bench_ns = 200000000, longest_bench_ns = 3200000000;

typedef enum worker_state {
    READY,
    FAILED,  /* lost its core: the caller will bench it */
    BENCHED, /* sits out until the caller sees room for it */
} worker_state;

typedef struct worker {
    _Alignas(64) _Atomic uint32_t parked; /* futex; 1 while the worker sleeps or is about to */
    _Atomic uint32_t state;
    struct ellm_pool *pool;
    uint32_t index; /* 1.. ; 0 is the caller of run */
    pthread_t thread;
    _Alignas(64) int64_t until_ns, bench_ns, back_ns; /* the caller's: end of the bench, its length, last return */
    int64_t out_ns;                                   /* since when it sits out */
    ellm_load load;                                   /* at the beginning of its time on the bench */
} worker;

struct ellm_pool {
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic uint32_t n_done; /* futex; units finished of this launch */
    _Atomic uint32_t n_wanted;            /* what the waiting caller wants n_done to be, 0 while it is awake */
    _Alignas(64) const ellm_launch *launch;
    uint32_t n_units;
    int64_t unit;                      /* groups of each but the last, which has what is left over */
    _Atomic int32_t failure;           /* a kernel's error, 0: none */
    uint64_t number;                   /* of the launch */
    uint32_t n_workers, n_workers_cap; /* running, and to be started */
    int32_t n_team;
    bool started, spins;
    ellm_watch watch; /* the caller's */
    ellm_cores cores;
    worker workers[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void relax(int n_polls) {
    if (n_polls < eager_polls) {
        return;
    }
#if defined(__x86_64__)
    __asm__ volatile("pause");
#else
    __asm__ volatile("yield");
#endif
}

static bool has_work(uint64_t ticket, uint32_t index) {
    return (ticket & 0xffff) != 0 && index < (ticket >> unit_bits & 0xff);
}

static bool is_ready(const worker *self) {
    return atomic_load_explicit(&self->state, memory_order_relaxed) == READY;
}

/* ---- computing ---- */

/* Computes `take` units of the current launch, the first of them the one with `left` units left. */
static void compute(ellm_pool *pool, uint32_t left, uint32_t take) {
    const ellm_launch *launch = pool->launch;
    uint32_t first = pool->n_units - left;
    int64_t g0 = first * pool->unit, g1 = take == left ? launch->groups : g0 + take * pool->unit;
    if (atomic_load_explicit(&pool->failure, memory_order_relaxed) == 0) {
        int32_t result = ellm_launch_call(launch, g0, g1);
        if (result != 0) {
            atomic_store_explicit(&pool->failure, result, memory_order_relaxed);
        }
    }
}

/* The calling thread is done with n units, and finds no more. */
static void report(ellm_pool *pool, uint32_t n) {
    uint32_t done = atomic_fetch_add(&pool->n_done, n) + n;
    if (done == atomic_load(&pool->n_wanted)) {
        futex_wake(&pool->n_done);
    }
}

/* Claims and computes parts of the current launch until none is left. self: NULL for the caller. */
static void help(ellm_pool *pool, worker *self, ellm_watch *watch) {
    uint32_t index = self == NULL ? 0 : self->index, n_done = 0;
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    while (has_work(ticket, index) && ticket != closing && (self == NULL || is_ready(self))) {
        uint32_t left = ticket & 0xffff, n_threads = ticket >> unit_bits & 0xff, take = left / (2 * n_threads);
        take = take > 0 ? take : 1;
        if (!atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket - take, memory_order_acq_rel,
                                                   memory_order_acquire)) {
            continue;
        }
        compute(pool, left, take);
        n_done += take;
        ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    }
    if (n_done == 0) {
        return;
    }
    report(pool, n_done);
    if (self != NULL) {
        int64_t now = ellm_now_ns();
        if (now - watch->wall_ns > ELLM_WATCH_NS && ellm_watch_loses(watch, now)) {
            atomic_store(&self->state, FAILED);
        }
    }
}

/* ---- workers ---- */

/* Whether the worker has something to do, or the end came. */
static bool is_called(const worker *self, uint64_t *ticket) {
    *ticket = atomic_load(&self->pool->ticket);
    return *ticket == closing || (has_work(*ticket, self->index) && is_ready(self));
}

/* Waits until the ticket has work for this worker. */
static uint64_t await_work(worker *self, ellm_watch *watch) {
    ellm_pool *pool = self->pool;
    uint64_t ticket;
    int64_t until = pool->spins ? ellm_now_ns() + spin_ns : 0;
    for (int n_polls = 0;;) {
        for (int i = 0; i < polls_per_look; i++) {
            if (is_called(self, &ticket)) {
                return ticket;
            }
            relax(n_polls);
        }
        n_polls += n_polls < eager_polls ? polls_per_look : 0;
        if (n_polls < eager_polls && pool->spins) {
            continue;
        }
        if (pool->spins && is_ready(self) && ellm_now_ns() < until) {
            continue;
        }
        /* Either this sees the call, or whoever calls sees `parked`. */
        atomic_store(&self->parked, 1);
        if (is_called(self, &ticket)) {
            atomic_store(&self->parked, 0);
            continue;
        }
        while (atomic_load(&self->parked) == 1) {
            futex_wait(&self->parked, 1);
        }
        int64_t now = ellm_now_ns();
        until = pool->spins ? now + spin_ns : 0;
        ellm_watch_begin(watch, now);
    }
}

/* Restricts the calling thread to the cores for so many threads, unless it may run on just those already. */
static void use_cores(const ellm_cores *cores, int32_t n_threads, cpu_set_t *before) {
    cpu_set_t set;
    ellm_cores_set(cores, n_threads, &set);
    if (sched_getaffinity(0, sizeof *before, before) == 0 && !CPU_EQUAL(&set, before)) {
        (void)sched_setaffinity(0, sizeof set, &set); /* elsewhere it is slower, not wrong */
    }
}

static void *work(void *argument) {
    worker *self = argument;
    ellm_watch watch = {0};
    cpu_set_t before;
    use_cores(&self->pool->cores, (int32_t)self->index + 1, &before);
    ellm_fpu_enter();
    ellm_watch_begin(&watch, ellm_now_ns());
    while (await_work(self, &watch) != closing) {
        help(self->pool, self, &watch);
    }
    return NULL;
}

static void wake_worker(worker *sleeper) {
    if (atomic_load(&sleeper->parked) == 1) {
        atomic_store(&sleeper->parked, 0);
        futex_wake(&sleeper->parked);
    }
}

static void wake(ellm_pool *pool, uint32_t n_threads) {
    for (uint32_t i = 0; i < pool->n_workers && pool->workers[i].index < n_threads; i++) {
        if (is_ready(&pool->workers[i])) {
            wake_worker(&pool->workers[i]);
        }
    }
}

/* Starts the workers; signals stay with the application's threads. */
static void start(ellm_pool *pool) {
    pool->started = true;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) {
        return;
    }
    pthread_attr_setstacksize(&attributes, stack_bytes);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool->n_workers < pool->n_workers_cap) {
        worker *next = &pool->workers[pool->n_workers];
        next->pool = pool;
        next->index = pool->n_workers + 1;
        if (pthread_create(&next->thread, &attributes, work, next) != 0) {
            break;
        }
        pool->n_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* ---- the team ---- */

static void bench(ellm_pool *pool, worker *which, int64_t now) {
    bool again = which->bench_ns != 0 && now - which->back_ns < 16 * which->bench_ns;
    int64_t longer = 4 * which->bench_ns < longest_bench_ns ? 4 * which->bench_ns : longest_bench_ns;
    which->bench_ns = again ? longer : shortest_bench_ns;
    which->until_ns = now + which->bench_ns;
    which->out_ns = now;
    ellm_load_read(&pool->cores, &which->load);
    atomic_store(&which->state, BENCHED);
}

/* Benches who lost its core, lets those back who sat long enough if there is room, and counts who is there. */
static int32_t gather(ellm_pool *pool, int32_t n_threads, int64_t now) {
    int32_t n = 1;
    for (uint32_t i = 0; i < pool->n_workers && pool->workers[i].index < (uint32_t)n_threads; i++) {
        worker *each = &pool->workers[i];
        uint32_t state = atomic_load(&each->state);
        if (state == FAILED) {
            bench(pool, each, now);
        } else if (state == BENCHED && now >= each->until_ns) {
            ellm_load before = each->load;
            ellm_load_read(&pool->cores, &each->load);
            bool long_ago = now - each->out_ns >= longest_bench_ns; /* it may be the one with priority */
            if (long_ago || ellm_load_leaves(&before, &each->load, pool->n_team + 1)) {
                atomic_store(&each->state, state = READY);
                each->back_ns = now;
            } else {
                each->until_ns = now + each->bench_ns;
            }
        }
        n += state == READY;
    }
    return n;
}

/* The caller shares its core: one thread fewer leaves a core to the other program. */
static void step_aside(ellm_pool *pool, int32_t n_threads, int64_t now) {
    for (uint32_t i = pool->n_workers; i-- > 0;) {
        if (pool->workers[i].index < (uint32_t)n_threads && is_ready(&pool->workers[i])) {
            bench(pool, &pool->workers[i], now);
            return;
        }
    }
}

/* ---- public ---- */

ellm_status ellm_pool_open(int32_t n_threads, const ellm_cores *cores, ellm_pool **pool, ellm_error *error) {
    *pool = NULL;
    if (n_threads < 1 || n_threads > ELLM_POOL_THREADS) {
        return ellm_fail(error, ELLM_USAGE, "%d threads; 1 to %d are possible", (int)n_threads, ELLM_POOL_THREADS);
    }
    size_t bytes = (sizeof **pool + (size_t)(n_threads - 1) * sizeof(worker) + 63) / 64 * 64;
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes) != 0) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for %d threads", (int)n_threads);
    }
    *pool = memory;
    __builtin_memset(memory, 0, bytes);
    (*pool)->n_workers_cap = (uint32_t)n_threads - 1;
    (*pool)->n_team = 1;
    (*pool)->spins = n_threads <= cores->n;
    (*pool)->cores = *cores;
    return ELLM_OK;
}

void ellm_pool_close(ellm_pool *pool) {
    if (pool == NULL) {
        return;
    }
    atomic_store(&pool->ticket, closing);
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        wake_worker(&pool->workers[i]);
    }
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        pthread_join(pool->workers[i].thread, NULL);
    }
    free(pool);
}

static void await_done(ellm_pool *pool) {
    int64_t until = 0;
    uint32_t wanted = pool->n_units;
    for (int i = 1; atomic_load(&pool->n_done) != wanted; i++) {
        relax(i);
        if (i % polls_per_look != 0 || (i < eager_polls && pool->spins)) {
            continue;
        }
        int64_t now = pool->spins ? ellm_now_ns() : 0;
        until = until == 0 ? now + spin_ns : until;
        if (pool->spins && now < until) {
            continue;
        }
        atomic_store(&pool->n_wanted, wanted);
        for (uint32_t done = atomic_load(&pool->n_done); done != wanted; done = atomic_load(&pool->n_done)) {
            futex_wait(&pool->n_done, done);
        }
        atomic_store(&pool->n_wanted, 0);
        return;
    }
}

static void share(ellm_pool *pool, const ellm_launch *launch, uint32_t n_units, uint32_t n_threads) {
    pool->launch = launch;
    pool->n_units = n_units;
    pool->unit = launch->groups / n_units;
    atomic_store_explicit(&pool->n_done, 0, memory_order_relaxed);
    pool->number++;
    atomic_store(&pool->ticket, pool->number << (unit_bits + thread_bits) | (uint64_t)n_threads << unit_bits | n_units);
    wake(pool, n_threads);
    help(pool, NULL, NULL);
    await_done(pool);
}

static inline int32_t run_one(ellm_pool *pool, const ellm_launch *launch, int32_t n_threads) {
    int64_t n_units = launch->groups / launch->grain;
    if (pool->n_team > 1 && n_units > 1) {
        int64_t most = (int64_t)n_threads * units_per_thread;
        share(pool, launch, (uint32_t)(n_units < most ? n_units : most), (uint32_t)n_threads);
        return atomic_load(&pool->failure);
    }
    return ellm_launch_call(launch, 0, launch->groups);
}

static int32_t run_all(ellm_pool *pool, const ellm_launch *launches, size_t n_launches, int32_t n_threads) {
    int32_t failure = 0;
    for (size_t i = 0; i < n_launches && failure == 0; i++) {
        failure = run_one(pool, &launches[i], n_threads);
    }
    return failure;
}

static int32_t time_all(ellm_pool *pool, const ellm_launch *launches, size_t n_launches, int32_t n_threads,
                        int64_t *ns) {
    int32_t failure = 0;
    int64_t before = ellm_now_ns();
    for (size_t i = 0; i < n_launches && failure == 0; i++) {
        failure = run_one(pool, &launches[i], n_threads);
        int64_t now = ellm_now_ns();
        ns[i] = now - before;
        before = now;
    }
    return failure;
}

/* ns: NULL where nobody wants to know. */
static ellm_status run_team(ellm_pool *pool, const ellm_launch *launches, size_t n_launches, int32_t n_threads,
                            int64_t *ns) {
    uint64_t before = ellm_fpu_enter();
    cpu_set_t cores_before;
    bool restricts = pool->cores.n_fast < pool->cores.n;
    if (restricts) {
        use_cores(&pool->cores, 1, &cores_before);
    }
    atomic_store(&pool->failure, 0);
    if (n_threads > 1 && !pool->started) {
        start(pool);
    }
    int64_t now = ellm_now_ns();
    pool->n_team = gather(pool, n_threads, now);
    ellm_watch_begin(&pool->watch, now);
    int32_t failure = ns == NULL ? run_all(pool, launches, n_launches, n_threads)
                                 : time_all(pool, launches, n_launches, n_threads, ns);
    if (pool->n_team > 1) {
        now = ellm_now_ns();
        if (ellm_watch_loses(&pool->watch, now)) {
            step_aside(pool, n_threads, now);
        }
    }
    if (restricts) {
        (void)sched_setaffinity(0, sizeof cores_before, &cores_before);
    }
    ellm_fpu_leave(before);
    return failure == 0 ? ELLM_OK : ELLM_KERNEL_FAILED;
}

ellm_status ellm_pool_run(ellm_pool *pool, const ellm_launch *launches, size_t n_launches, int32_t n_threads) {
    return run_team(pool, launches, n_launches, n_threads, NULL);
}

ellm_status ellm_pool_run_timed(ellm_pool *pool, const ellm_launch *launches, size_t n_launches, int32_t n_threads,
                                int64_t *ns) {
    return run_team(pool, launches, n_launches, n_threads, ns);
}

int32_t ellm_pool_team(const ellm_pool *pool) {
    return pool->n_team;
}
