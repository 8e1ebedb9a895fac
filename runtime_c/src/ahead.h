/* ahead.h: weights on their way from the disk before a step needs them. */
#ifndef ELLM_AHEAD_H
#define ELLM_AHEAD_H

#include "plan.h"

/* Weights of which a step reads a few rows only, chosen by the tokens, are read on demand: says so to the system. */
void ellm_ahead_advise(const ellm_plan *plan);
/* Lets the disk start on what the steps [from, to) of a function read, in their order; at most `most_bytes`. */
void ellm_ahead_read(const ellm_plan *plan, const ellm_plan_function *function, uint32_t from, uint32_t to,
                     uint64_t most_bytes);
/* Bytes of the weights that every step reads, whatever its tokens are: what decoding one token costs the memory. */
uint64_t ellm_ahead_step_bytes(const ellm_plan *plan);

#endif
