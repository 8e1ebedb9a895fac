/* load.h: what other programs leave of the processors. */
#ifndef ELLM_LOAD_H
#define ELLM_LOAD_H

#include <stdbool.h>

#include "cores.h"

typedef struct ellm_load {
    int64_t wall_ns, own_ns; /* the clock, and the processor time of this process */
    int64_t idle_ns;         /* time in which the cores idled, or ran programs of low priority; negative: unknown */
} ellm_load;

/* Counters as they are now. */
void ellm_load_read(const ellm_cores *cores, ellm_load *load);
/* Reads the "cpu" lines of a /proc/stat with 100 ticks a second; negative if there are none. For tests. */
int64_t ellm_load_parse_idle(const ellm_cores *cores, const char *text);

/* Whether n_threads of this process could have run all the time between two readings. True if nobody knows. */
bool ellm_load_leaves(const ellm_load *before, const ellm_load *after, int32_t n_threads);

#endif
