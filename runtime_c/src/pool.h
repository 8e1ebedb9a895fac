/* pool.h: threads that share out the row groups of kernels.
 *
 * Between two launches the workers spin for a moment, then park. They start with the first launch that needs them,
 * so that a process may fork before; a thread that cannot be started is done without, which changes speed, not
 * results. They run on the fastest cores, and so does the caller while it is in ellm_pool_run.
 *
 * A worker that shares its core with another program would hold every step up for a slice of the scheduler. One that
 * notices sits out for a while, then tries its core without work before it comes back.
 * One thread at a time may call ellm_pool_run. */
#ifndef ELLM_POOL_H
#define ELLM_POOL_H

#include <stddef.h>

#include "cores.h"
#include "edgellm.h"
#include "launch.h"

enum { ELLM_POOL_THREADS = 64 };

typedef struct ellm_pool ellm_pool;

/* n_threads: 1 to ELLM_POOL_THREADS, the caller of ellm_pool_run included. */
ellm_status ellm_pool_open(int32_t n_threads, const ellm_cores *cores, ellm_pool **pool, ellm_error *error);
void ellm_pool_close(ellm_pool *pool);

/* Runs the launches one after the other, each on at most n_threads threads, in the kernels' floating-point mode.
 * KERNEL_FAILED, at the first launch of which a chunk failed. */
ellm_status ellm_pool_run(ellm_pool *pool, const ellm_launch *launches, size_t n_launches, int32_t n_threads);

/* As ellm_pool_run, and notes what each launch took: together, the time from the first one's start to the last one's
 * end. ns: n_launches entries; those behind a failed launch stay as they were. */
ellm_status ellm_pool_run_timed(ellm_pool *pool, const ellm_launch *launches, size_t n_launches, int32_t n_threads,
                                int64_t *ns);

/* Threads that took part in the last run; fewer than asked for while some sit out. */
int32_t ellm_pool_team(const ellm_pool *pool);

#endif
