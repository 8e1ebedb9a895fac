#include "posix.h"

#include "watch.h"

#include <sys/resource.h>
#include <time.h>

/* Times are remembered for about this long, and judged once so much of it was seen. */
static const int64_t memory_ns = 100000000, enough_ns = 60000000;
enum {
    lost_share = 4
}; /* a program of equal priority takes a third to a half, one that looks in now and then far less */

int64_t ellm_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t timeval_ns(struct timeval time) {
    return (int64_t)time.tv_sec * 1000000000 + (int64_t)time.tv_usec * 1000;
}

void ellm_watch_begin(ellm_watch *watch, int64_t now_ns) {
    struct rusage usage = {0};
    (void)getrusage(RUSAGE_THREAD, &usage); /* a system that does not say loses nothing */
    watch->wall_ns = now_ns;
    watch->cpu_ns = timeval_ns(usage.ru_utime) + timeval_ns(usage.ru_stime);
    watch->n_preempted = usage.ru_nivcsw;
}

bool ellm_watch_note(ellm_watch *watch, int64_t window_ns, int64_t lost_ns) {
    double keeps = window_ns < memory_ns ? 1 - (double)window_ns / (double)memory_ns : 0;
    watch->seen_ns = (int64_t)(keeps * (double)watch->seen_ns) + window_ns;
    watch->lost_ns = (int64_t)(keeps * (double)watch->lost_ns) + lost_ns;
    if (watch->seen_ns < enough_ns || watch->lost_ns < watch->seen_ns / lost_share) {
        return false;
    }
    watch->seen_ns = watch->lost_ns = 0;
    return true;
}

bool ellm_watch_loses(ellm_watch *watch, int64_t now_ns) {
    const ellm_watch before = *watch;
    ellm_watch_begin(watch, now_ns);
    int64_t window = now_ns - before.wall_ns, lost = window - (watch->cpu_ns - before.cpu_ns);
    bool preempted = watch->n_preempted != before.n_preempted;
    return ellm_watch_note(watch, window, preempted && lost > 0 ? lost : 0);
}
