/* gear.h: how many threads a kind of step takes best, found out while steps run.
 *
 * Every now and then a few steps run with one thread more or fewer. What is faster stays; the longer nothing better
 * turns up, the rarer the attempts. More threads must pay, fewer only have to be as good. */
#ifndef ELLM_GEAR_H
#define ELLM_GEAR_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ellm_gear {
    int32_t best, now, n_most; /* threads; now != best during an attempt */
    int32_t direction;         /* of the next attempt: 1 or -1 */
    uint32_t window;           /* steps of an attempt, at least 2 */
    uint32_t rest, left;       /* steps between attempts, and to the next one */
    uint32_t n_refused;        /* directions in a row that were no better */
    uint32_t n_taken;          /* steps measured: of the attempt, or with `best` up to a bound */
    double cost_ns;            /* of a step with `best` threads, 0: unknown */
    double settled_ns;         /* the same when `best` was last decided */
    double sum_ns, worst_ns;   /* of the attempt */
    bool fixed;
} ellm_gear;

/* threads: to begin with, 1 to n_most. rest: steps before the first attempt. */
void ellm_gear_init(ellm_gear *gear, int32_t threads, int32_t n_most, uint32_t window, uint32_t rest);
/* A gear that stays at `threads`. */
void ellm_gear_fix(ellm_gear *gear, int32_t threads);
/* A step with gear->now threads took so long. Steps that are not comparable with the others are not told. */
void ellm_gear_step(ellm_gear *gear, double ns);

#endif
