#include "posix.h"

#include "watch.h"

#include <sys/resource.h>
#include <time.h>

/* A scheduler's slice is 3 ms or more; what interrupts and kernel threads take is far less. */
static const int64_t lost_ns = 500000, lately_ns = 40000000;
enum { lost_share = 8 }; /* and at least an eighth of the window */

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

bool ellm_watch_loses(ellm_watch *watch, int64_t now_ns) {
    const ellm_watch before = *watch;
    ellm_watch_begin(watch, now_ns);
    int64_t window = now_ns - before.wall_ns, lost = window - (watch->cpu_ns - before.cpu_ns);
    if (watch->n_preempted == before.n_preempted || lost < lost_ns || lost < window / lost_share) {
        return false;
    }
    watch->lost_at_ns = now_ns;
    return before.lost_at_ns != 0 && now_ns - before.lost_at_ns < lately_ns + 2 * window;
}
