#include "observe.h"

ellm_status ellm_observe_run(const ellm_observer *observer, const ellm_observed *now, ellm_pool *pool,
                             int32_t n_threads) {
    uint32_t n_steps = now->function->n_steps;
    if (observer->ns != NULL) {
        ellm_status status = ellm_pool_run_timed(pool, now->launches, n_steps, n_threads, observer->ns);
        return status != ELLM_OK ? status : observer->timed(observer->user, now);
    }
    ellm_status status = ELLM_OK;
    for (uint32_t step = 0; step < n_steps && status == ELLM_OK; step++) {
        status = observer->stepped(observer->user, now, step, false);
        status = status != ELLM_OK ? status : ellm_pool_run(pool, now->launches + step, 1, n_threads);
        status = status != ELLM_OK ? status : observer->stepped(observer->user, now, step, true);
    }
    return status;
}

int32_t ellm_observed_rows(const ellm_observed *now) {
    const int32_t *input = now->inputs[now->is_head ? ELLM_INPUT_ROWS : ELLM_INPUT_POSITIONS];
    int32_t n = 0;
    while (n < now->function->n && input[n] >= 0) {
        n++;
    }
    return n;
}

uint64_t ellm_observed_bytes(const ellm_observed *now, uint32_t step, uint32_t argument) {
    const ellm_plan_parameter *parameter = &now->function->steps[step].kernel->parameters[argument];
    return parameter->bytes * now->symbols[parameter->symbol]; /* checked at open: it fits what it is bound to */
}

#ifdef ELLM_VULKAN
ellm_status ellm_observed_data(const ellm_observed *now, uint32_t step, uint32_t argument, uint64_t offset,
                               uint64_t bytes, const uint8_t **data) {
    if (now->gpu != NULL) {
        return ellm_gpu_look(now->gpu, &now->function->steps[step].arguments[argument], offset, bytes, data);
    }
    *data = (const uint8_t *)now->launches[step].pointers[argument] + offset;
    return ELLM_OK;
}
#endif

static uint32_t longest(const ellm_plan_ladder *ladder, uint32_t most) {
    for (uint32_t i = 0; i < ladder->n_functions; i++) {
        most = ladder->functions[i].n_steps > most ? ladder->functions[i].n_steps : most;
    }
    return most;
}

uint32_t ellm_observed_steps(const ellm_plan *plan) {
    return longest(&plan->head, longest(&plan->body, 0));
}
