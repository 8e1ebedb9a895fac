/* watch.h: whether a thread loses its core to other programs. */
#ifndef ELLM_WATCH_H
#define ELLM_WATCH_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ellm_watch {
    int64_t wall_ns, cpu_ns; /* at the beginning of the window */
    long n_preempted;
    int64_t seen_ns, lost_ns; /* of about the last tenth of a second: time watched, and time that others took */
} ellm_watch;

enum { ELLM_WATCH_NS = 1000000 }; /* a window worth looking at */

/* Of the monotonic clock. */
int64_t ellm_now_ns(void);
/* Begins a window of the calling thread. */
void ellm_watch_begin(ellm_watch *watch, int64_t now_ns);
/* Ends the window and begins the next. True if other programs took a good part of the last tenth of a second: then one
 * of equal priority stays on the core. One that looks in now and then costs less than doing without the core. Waiting
 * for the disk or for a wake-up is something else. */
bool ellm_watch_loses(ellm_watch *watch, int64_t now_ns);
/* The judgement alone: adds a window of which others took lost_ns. */
bool ellm_watch_note(ellm_watch *watch, int64_t window_ns, int64_t lost_ns);

#endif
