#include "posix.h"

#include "ahead.h"

#include <sys/mman.h>
#include <unistd.h>

/* Linux cuts a MADV_WILLNEED to the largest request of the device (mm/readahead.c); SD cards take 512 KB. */
enum { piece_bytes = 512 * 1024 };

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
static void advise(const ellm_plan_weight *weight, uint64_t offset, uint64_t n_bytes, int advice) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)weight->data + (uintptr_t)offset;
    uintptr_t end = (start + (uintptr_t)n_bytes) / page * page;
    start = (start + page - 1) / page * page;
    if (start < end) {
        (void)madvise((void *)start, end - start, advice);
    }
}

void ellm_ahead_advise(const ellm_plan *plan) {
    const ellm_plan_function *body = plan->body.functions;
    for (uint32_t s = 0; s < body->n_steps; s++) {
        const ellm_plan_step *step = &body->steps[s];
        for (uint32_t i = 0; i < step->kernel->n_parameters && gathers(step); i++) {
            uint64_t weight = step->arguments[i].value;
            if (step->arguments[i].bind == ELLM_BIND_WEIGHT && !is_read_whole(plan, weight)) {
                advise(&plan->weights[weight], 0, plan->weights[weight].bytes, MADV_RANDOM);
            }
        }
    }
}

void ellm_ahead_read(const ellm_plan *plan, const ellm_plan_function *function, uint32_t from, uint32_t to,
                     uint64_t most_bytes) {
    for (uint32_t s = from; s < to && s < function->n_steps; s++) {
        const ellm_plan_step *step = &function->steps[s];
        for (uint32_t i = 0; i < step->kernel->n_parameters && !gathers(step); i++) {
            if (step->arguments[i].bind != ELLM_BIND_WEIGHT) {
                continue;
            }
            const ellm_plan_weight *weight = &plan->weights[step->arguments[i].value];
            for (uint64_t at = 0; at < weight->bytes; at += piece_bytes) {
                uint64_t piece = weight->bytes - at < piece_bytes ? weight->bytes - at : piece_bytes;
                if (piece > most_bytes) {
                    return;
                }
                most_bytes -= piece;
                advise(weight, at, piece, MADV_WILLNEED);
            }
        }
    }
}
