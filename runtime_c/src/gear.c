#include "gear.h"

enum { longest_rest = 4096, average_of = 8 };
/* An attempt is given up beyond `hopeless`; more threads are taken below `pays`; a step that became this much dearer is
 * another kind of step. */
static const double hopeless = 1.2, pays = 0.97, drift = 1.25;

void ellm_gear_init(ellm_gear *gear, int32_t threads, int32_t n_most, uint32_t window, uint32_t rest) {
    *gear = (ellm_gear){.best = threads,
                        .now = threads,
                        .n_most = n_most,
                        .direction = -1,
                        .window = window,
                        .rest = rest,
                        .left = rest};
}

void ellm_gear_fix(ellm_gear *gear, int32_t threads) {
    *gear = (ellm_gear){.best = threads, .now = threads, .n_most = threads, .fixed = true};
}

static bool reaches(const ellm_gear *gear, int32_t direction) {
    int32_t threads = gear->best + direction;
    return threads >= 1 && threads <= gear->n_most;
}

static void begin_attempt(ellm_gear *gear) {
    if (!reaches(gear, gear->direction)) {
        gear->direction = -gear->direction;
    }
    if (reaches(gear, gear->direction)) {
        gear->now = gear->best + gear->direction;
        gear->n_taken = 0;
        gear->sum_ns = gear->worst_ns = 0;
    }
}

static void end_attempt(ellm_gear *gear, double mean) {
    double limit = gear->cost_ns * (gear->now > gear->best ? pays : 1.01);
    if (mean < limit) { /* further in this direction at once */
        gear->best = gear->now;
        gear->cost_ns = mean;
        gear->n_refused = 0;
        gear->left = reaches(gear, gear->direction) ? 1 : gear->rest;
    } else {
        gear->now = gear->best;
        gear->direction = -gear->direction;
        gear->n_refused++;
        bool other = reaches(gear, gear->direction) && reaches(gear, -gear->direction) && gear->n_refused % 2 == 1;
        if (!other) {
            gear->rest = 2 * gear->rest < longest_rest ? 2 * gear->rest : longest_rest;
        }
        gear->left = other ? gear->window : gear->rest;
    }
    gear->settled_ns = gear->cost_ns;
    gear->n_taken = average_of;
}

/* A step at rest: follows the cost, and counts down to the next attempt. */
static void rest(ellm_gear *gear, double ns) {
    gear->n_taken += gear->n_taken < average_of;
    if (gear->cost_ns > 0 && ns > 2 * gear->cost_ns) {
        ns = 2 * gear->cost_ns; /* one mishap is no trend */
    }
    gear->cost_ns += (ns - gear->cost_ns) / gear->n_taken;
    if (gear->n_taken == average_of && gear->settled_ns == 0) {
        gear->settled_ns = gear->cost_ns;
    }
    if (gear->settled_ns > 0 && gear->cost_ns > drift * gear->settled_ns) {
        gear->settled_ns = gear->cost_ns;
        gear->left = gear->left < gear->window ? gear->left : gear->window;
    }
    if (gear->left > 0) {
        gear->left--;
    } else if (gear->n_taken >= gear->window) {
        begin_attempt(gear);
    }
}

void ellm_gear_step(ellm_gear *gear, double ns) {
    if (gear->fixed || gear->n_most == 1) {
        return;
    }
    if (gear->now == gear->best) {
        rest(gear, ns);
        return;
    }
    gear->n_taken++;
    gear->sum_ns += ns;
    gear->worst_ns = ns > gear->worst_ns ? ns : gear->worst_ns;
    if (gear->n_taken >= 2) { /* the slowest step may have been disturbed */
        double mean = (gear->sum_ns - gear->worst_ns) / (gear->n_taken - 1);
        if (gear->n_taken == gear->window || mean > hopeless * gear->cost_ns) {
            end_attempt(gear, mean);
        }
    }
}
