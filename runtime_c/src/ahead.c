#include "posix.h"

#include "ahead.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* since Linux 5.14 */
#endif

enum {
    request_bytes = 512 * 1024, /* Linux cuts a MADV_WILLNEED to the device's largest (mm/readahead.c); SD cards' */
    piece_bytes = 2 << 20,      /* read before looking whether to stop: 20 ms of an SD card, one large page */
};

struct ellm_reader {
    const ellm_plan *plan;
    pthread_t thread;
    atomic_bool stop;
};

/* Whether a step picks rows of its weights by the tokens. */
static bool gathers(const ellm_plan_step *step) {
    for (uint32_t i = 0; i < step->kernel->n_parameters; i++) {
        if (step->arguments[i].bind == ELLM_BIND_INPUT && step->arguments[i].value == ELLM_INPUT_TOKENS) {
            return true;
        }
    }
    return false;
}

static bool reads(const ellm_plan_step *step, uint64_t weight) {
    for (uint32_t i = 0; i < step->kernel->n_parameters; i++) {
        if (step->arguments[i].bind == ELLM_BIND_WEIGHT && step->arguments[i].value == weight) {
            return true;
        }
    }
    return false;
}

/* Whether some step reads all of a weight. */
static bool is_read_whole(const ellm_plan *plan, uint64_t weight) {
    const ellm_plan_function *first[] = {plan->body.functions, plan->head.functions};
    for (int f = 0; f < 2; f++) { /* larger functions read the same weights */
        for (uint32_t s = 0; s < first[f]->n_steps; s++) {
            if (reads(&first[f]->steps[s], weight) && !gathers(&first[f]->steps[s])) {
                return true;
            }
        }
    }
    return false;
}

uint64_t ellm_ahead_step_bytes(const ellm_plan *plan) {
    uint64_t n_bytes = 0;
    for (uint32_t weight = 0; weight < plan->n_weights; weight++) {
        n_bytes += is_read_whole(plan, weight) ? plan->weights[weight].bytes : 0;
    }
    return n_bytes;
}

/* madvise for the pages that lie in a weight, those it shares with its neighbours left out. */
static int advise(const ellm_plan_weight *weight, uint64_t offset, uint64_t n_bytes, int advice) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)weight->data + (uintptr_t)offset;
    uintptr_t end = (start + (uintptr_t)n_bytes) / page * page;
    start = (start + page - 1) / page * page;
    return start < end ? madvise((void *)start, end - start, advice) : 0;
}

void ellm_ahead_advise(const ellm_plan *plan) {
    for (uint32_t i = 0; i < plan->n_weights; i++) {
        const ellm_plan_weight *weight = &plan->weights[i];
        if (is_read_whole(plan, i)) {
            (void)advise(weight, 0, weight->bytes, MADV_HUGEPAGE);
        } else {
            (void)advise(weight, 0, weight->bytes, MADV_RANDOM);
        }
    }
}

/* ---- weights that stay in memory ---- */

/* Pages come through faults, not through MADV_WILLNEED, which puts every 4 KB of a file into a page of its own. Before
 * Linux 5.14, which has no such request, it is MADV_WILLNEED after all. */
static bool read_weight(const ellm_reader *reader, const ellm_plan_weight *weight) {
    (void)advise(weight, 0, weight->bytes, MADV_SEQUENTIAL); /* where there are no large pages: reads far ahead */
    for (uint64_t at = 0; at < weight->bytes; at += piece_bytes) {
        if (atomic_load_explicit(&reader->stop, memory_order_relaxed)) {
            return false;
        }
        uint64_t piece = weight->bytes - at < piece_bytes ? weight->bytes - at : piece_bytes;
        if (advise(weight, at, piece, MADV_POPULATE_READ) != 0 && errno == EINVAL) {
            for (uint64_t done = 0; done < piece; done += request_bytes) {
                uint64_t rest = piece - done;
                (void)advise(weight, at + done, rest < request_bytes ? rest : request_bytes, MADV_WILLNEED);
            }
        }
    }
    (void)advise(weight, 0, weight->bytes, MADV_NORMAL); /* or its pages would be the first to go */
    return true;
}

static void *read_all(void *argument) {
    const ellm_reader *reader = argument;
    const ellm_plan_function *functions[] = {reader->plan->body.functions, reader->plan->head.functions};
    for (int f = 0; f < 2; f++) {
        for (uint32_t s = 0; s < functions[f]->n_steps; s++) {
            const ellm_plan_step *step = &functions[f]->steps[s];
            for (uint32_t i = 0; i < step->kernel->n_parameters && !gathers(step); i++) {
                if (step->arguments[i].bind == ELLM_BIND_WEIGHT
                    && !read_weight(reader, &reader->plan->weights[step->arguments[i].value])) {
                    return NULL;
                }
            }
        }
    }
    return NULL;
}

ellm_reader *ellm_ahead_start(const ellm_plan *plan) {
    ellm_reader *reader = calloc(1, sizeof *reader);
    if (reader == NULL) {
        return NULL;
    }
    reader->plan = plan;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals stay with the application's threads */
    bool started = pthread_create(&reader->thread, NULL, read_all, reader) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!started) {
        free(reader);
        return NULL;
    }
    return reader;
}

void ellm_ahead_stop(ellm_reader *reader) {
    if (reader != NULL) {
        atomic_store(&reader->stop, true);
        pthread_join(reader->thread, NULL);
        free(reader);
    }
}

/* ---- weights that do not ---- */

void ellm_ahead_read(const ellm_plan *plan, const ellm_plan_function *function, uint32_t from, uint32_t to) {
    for (uint32_t s = from; s < to && s < function->n_steps; s++) {
        const ellm_plan_step *step = &function->steps[s];
        for (uint32_t i = 0; i < step->kernel->n_parameters && !gathers(step); i++) {
            if (step->arguments[i].bind != ELLM_BIND_WEIGHT) {
                continue;
            }
            const ellm_plan_weight *weight = &plan->weights[step->arguments[i].value];
            for (uint64_t at = 0; at < weight->bytes; at += request_bytes) {
                uint64_t rest = weight->bytes - at;
                (void)advise(weight, at, rest < request_bytes ? rest : request_bytes, MADV_WILLNEED);
            }
        }
    }
}
