/* pool.h: threads that share out the row groups of kernels.
 *
 * Between two launches the workers spin for a moment, then park. They start with the first launch that needs them,
 * so that a process may fork before; a thread that cannot be started is done without, which changes speed, not
 * results. One thread at a time may call ellm_pool_run. */
#ifndef ELLM_POOL_H
#define ELLM_POOL_H

#include <stddef.h>

#include "edgellm.h"
#include "launch.h"

enum { ELLM_POOL_THREADS = 64 };

typedef struct ellm_pool ellm_pool;

/* n_threads: 1 to ELLM_POOL_THREADS, the caller of ellm_pool_run included. */
ellm_status ellm_pool_open(int32_t n_threads, ellm_pool **pool, ellm_error *error);
void ellm_pool_close(ellm_pool *pool);

/* Runs the launches one after the other, each on at most n_threads threads, in the kernels' floating-point mode.
 * KERNEL_FAILED, at the first launch of which a chunk failed. */
ellm_status ellm_pool_run(ellm_pool *pool, const ellm_launch *launches, size_t n_launches, int32_t n_threads);

#endif
