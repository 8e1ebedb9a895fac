#include "posix.h"

#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cpu.h"
#include "error.h"
#include "fpu.h"

/* The ticket is the whole hand-over: a number of the launch in the upper bits, how many threads may help, and how
 * many chunks nobody has claimed yet. A worker claims a chunk by exchanging the ticket for one less, so one that
 * comes late finds no chunk of a launch that is over, and whoever holds a chunk knows that `launch` and `n_chunks`
 * cannot change under it. */
enum { chunk_bits = 16, thread_bits = 8, chunks_per_thread = 4, stack_bytes = 512 * 1024, polls_per_look = 64 };
static const uint64_t closing = (uint64_t)0xff << chunk_bits | 0xffff; /* a ticket that ends the workers */
static const int64_t spin_ns = 100000;

typedef struct worker {
    _Alignas(64) _Atomic uint32_t parked; /* futex; 1 while the worker sleeps or is about to */
    struct ellm_pool *pool;
    uint32_t index; /* 1.. ; 0 is the caller of run */
    pthread_t thread;
} worker;

struct ellm_pool {
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic uint32_t n_done; /* futex; chunks finished of this launch */
    _Atomic uint32_t n_wanted;            /* what the waiting caller wants n_done to be, 0 while it is awake */
    _Alignas(64) const ellm_launch *launch;
    uint32_t n_chunks;
    _Atomic int32_t failure;           /* a kernel's error, 0: none */
    uint64_t number;                   /* of the launch */
    uint32_t n_workers, n_workers_cap; /* running, and to be started */
    bool started, spins;
    worker workers[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void relax(void) {
#if defined(__x86_64__)
    __asm__ volatile("pause");
#else
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool has_work(uint64_t ticket, uint32_t index) {
    return (ticket & 0xffff) != 0 && index < (ticket >> chunk_bits & 0xff);
}

/* Claims and computes chunks of the current launch until none is left. */
static void help(ellm_pool *pool, uint32_t index) {
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    while (has_work(ticket, index) && ticket != closing) {
        if (!atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket - 1, memory_order_acq_rel,
                                                   memory_order_acquire)) {
            continue;
        }
        const ellm_launch *launch = pool->launch;
        int64_t n_chunks = pool->n_chunks, chunk = n_chunks - (int64_t)(ticket & 0xffff);
        int64_t each = launch->groups / n_chunks, more = launch->groups % n_chunks;
        int64_t g0 = chunk * each + (chunk < more ? chunk : more);
        if (atomic_load_explicit(&pool->failure, memory_order_relaxed) == 0) {
            int32_t result = ellm_launch_call(launch, g0, g0 + each + (chunk < more));
            if (result != 0) {
                atomic_store_explicit(&pool->failure, result, memory_order_relaxed);
            }
        }
        uint32_t done = atomic_fetch_add(&pool->n_done, 1) + 1;
        if (done == atomic_load(&pool->n_wanted)) {
            futex_wake(&pool->n_done);
        }
        ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    }
}

/* Waits until the ticket has work for this worker. */
static uint64_t await_work(worker *self) {
    ellm_pool *pool = self->pool;
    int64_t until = pool->spins ? now_ns() + spin_ns : 0;
    for (;;) {
        for (int i = 0; i < polls_per_look; i++) {
            uint64_t ticket = atomic_load(&pool->ticket);
            if (has_work(ticket, self->index)) {
                return ticket;
            }
            relax();
        }
        if (pool->spins && now_ns() < until) {
            continue;
        }
        /* Either this sees the new ticket, or whoever set it sees `parked`. */
        atomic_store(&self->parked, 1);
        if (has_work(atomic_load(&pool->ticket), self->index)) {
            atomic_store(&self->parked, 0);
            continue;
        }
        while (atomic_load(&self->parked) == 1) {
            futex_wait(&self->parked, 1);
        }
        until = pool->spins ? now_ns() + spin_ns : 0;
    }
}

static void *work(void *argument) {
    worker *self = argument;
    ellm_fpu_enter();
    while (await_work(self) != closing) {
        help(self->pool, self->index);
    }
    return NULL;
}

static void wake(ellm_pool *pool, uint32_t n_threads) {
    for (uint32_t i = 0; i < pool->n_workers && pool->workers[i].index < n_threads; i++) {
        _Atomic uint32_t *parked = &pool->workers[i].parked;
        if (atomic_load(parked) == 1) {
            atomic_store(parked, 0);
            futex_wake(parked);
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

ellm_status ellm_pool_open(int32_t n_threads, ellm_pool **pool, ellm_error *error) {
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
    (*pool)->spins = n_threads <= ellm_cpu_count();
    return ELLM_OK;
}

void ellm_pool_close(ellm_pool *pool) {
    if (pool == NULL) {
        return;
    }
    atomic_store(&pool->ticket, closing);
    wake(pool, UINT32_MAX);
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        pthread_join(pool->workers[i].thread, NULL);
    }
    free(pool);
}

static void await_done(ellm_pool *pool) {
    int64_t until = pool->spins ? now_ns() + spin_ns : 0;
    uint32_t wanted = pool->n_chunks;
    for (int i = 1; atomic_load(&pool->n_done) != wanted; i++) {
        relax();
        if (i % polls_per_look != 0 || (pool->spins && now_ns() < until)) {
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

static void share(ellm_pool *pool, const ellm_launch *launch, uint32_t n_chunks, uint32_t n_threads) {
    pool->launch = launch;
    pool->n_chunks = n_chunks;
    atomic_store_explicit(&pool->n_done, 0, memory_order_relaxed);
    pool->number++;
    atomic_store(&pool->ticket,
                 pool->number << (chunk_bits + thread_bits) | (uint64_t)n_threads << chunk_bits | n_chunks);
    wake(pool, n_threads);
    help(pool, 0);
    await_done(pool);
}

ellm_status ellm_pool_run(ellm_pool *pool, const ellm_launch *launches, size_t n_launches, int32_t n_threads) {
    uint64_t before = ellm_fpu_enter();
    int32_t failure = 0;
    atomic_store(&pool->failure, 0);
    for (size_t i = 0; i < n_launches && failure == 0; i++) {
        const ellm_launch *launch = &launches[i];
        int64_t most = launch->groups / launch->grain;
        int64_t n_chunks = n_threads * (int64_t)chunks_per_thread;
        n_chunks = n_chunks < most ? n_chunks : most;
        if (n_threads > 1 && n_chunks > 1 && !pool->started) {
            start(pool);
        }
        if (n_threads > 1 && n_chunks > 1 && pool->n_workers > 0) {
            share(pool, launch, (uint32_t)n_chunks, (uint32_t)n_threads);
            failure = atomic_load(&pool->failure);
        } else {
            failure = ellm_launch_call(launch, 0, launch->groups);
        }
    }
    ellm_fpu_leave(before);
    return failure == 0 ? ELLM_OK : ELLM_KERNEL_FAILED;
}
