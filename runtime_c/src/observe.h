/* observe.h: watching the steps of functions: how long each takes, or what each reads and writes.
 *
 * Nobody watches by default, and that costs one look at a pointer per function. */
#ifndef ELLM_OBSERVE_H
#define ELLM_OBSERVE_H

#include "context.h"
#include "gpu.h"
#include "plan.h"
#include "pool.h"

/* A function under way, and what its steps are bound to. */
typedef struct ellm_observed {
    const ellm_plan_function *function;
    const ellm_launch *launches; /* function->n_steps of them */
    bool is_head;
    const uint64_t *symbols; /* by ellm_symbol */
    void *const *inputs;     /* by ellm_input */
#ifdef ELLM_VULKAN
    ellm_gpu *gpu; /* where the buffers are; NULL: in memory */
#endif
} ellm_observed;

/* One of two kinds: with `ns`, functions run as always and are told with the time of each step; without, steps run one
 * after the other and are told before and after. A status other than OK ends the evaluation with it. */
struct ellm_observer {
    void *user;
    int64_t *ns; /* room for the steps of every function, or NULL */
    ellm_status (*timed)(void *user, const ellm_observed *now);
    ellm_status (*stepped)(void *user, const ellm_observed *now, uint32_t step, bool done);
};

/* Runs the function and tells the observer. */
ellm_status ellm_observe_run(const ellm_observer *observer, const ellm_observed *now, ellm_pool *pool,
                             int32_t n_threads);

/* Rows of the function that are no padding; they come first. */
int32_t ellm_observed_rows(const ellm_observed *now);
/* Bytes that an argument of a step spans. */
uint64_t ellm_observed_bytes(const ellm_observed *now, uint32_t step, uint32_t argument);
/* Some bytes of an argument of the step under way, valid until the next call. GPU_LOST, NO_MEMORY. */
#ifdef ELLM_VULKAN
ellm_status ellm_observed_data(const ellm_observed *now, uint32_t step, uint32_t argument, uint64_t offset,
                               uint64_t bytes, const uint8_t **data);
#else
static inline ellm_status ellm_observed_data(const ellm_observed *now, uint32_t step, uint32_t argument,
                                             uint64_t offset, uint64_t bytes, const uint8_t **data) {
    (void)bytes;
    *data = (const uint8_t *)now->launches[step].pointers[argument] + offset;
    return ELLM_OK;
}
#endif
/* Most steps of any function of the plan. */
uint32_t ellm_observed_steps(const ellm_plan *plan);

#endif
