/* ahead.h: weights on their way from the disk before a step needs them. */
#ifndef ELLM_AHEAD_H
#define ELLM_AHEAD_H

#include "plan.h"

/* Reads a model's weights into the page cache on a thread of its own, in the order in which steps want them. */
typedef struct ellm_reader ellm_reader;

/* Tells the system how the weights will be read: whole and in order, so that it may keep them in large pages, or, where
 * a step picks a few rows by the tokens, on demand. */
void ellm_ahead_advise(const ellm_plan *plan);
/* Begins to read. NULL where there is no thread to be had: steps then wait for what they need. */
ellm_reader *ellm_ahead_start(const ellm_plan *plan);
/* Ends it, if need be in the middle. NULL is allowed. */
void ellm_ahead_stop(ellm_reader *reader);
/* Where weights do not stay in memory: lets the disk start on what the steps [from, to) of a function read. */
void ellm_ahead_read(const ellm_plan *plan, const ellm_plan_function *function, uint32_t from, uint32_t to);
/* Bytes of the weights that every step reads, whatever its tokens are: what decoding one token costs the memory. */
uint64_t ellm_ahead_step_bytes(const ellm_plan *plan);

#endif
