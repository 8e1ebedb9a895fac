/* ladder.h: functions for some numbers of rows, bound to their buffers, and which of them cover a number of rows in the
 * least time. What they take is measured as they run. */
#ifndef ELLM_LADDER_H
#define ELLM_LADDER_H

#include "launch.h"
#include "plan.h"

typedef struct ellm_step_function {
    ellm_launch *launches;
    uint32_t n_launches;
    const ellm_plan_function *source;
    int32_t n; /* rows */
    uint32_t n_measured;
    double cost_ns;   /* measured, 0: not yet */
    double chosen_ns; /* the same when covers were last chosen */
} ellm_step_function;

typedef struct ellm_step_ladder {
    ellm_step_function *functions; /* ascending n */
    uint32_t n_functions;
    int32_t rows;                          /* of the largest */
    uint16_t choice[ELLM_STEP_ROWS + 1];   /* which function starts the cheapest cover of so many rows */
    double cover_cost[ELLM_STEP_ROWS + 1]; /* and what it costs; ns where anything was measured */
    bool measured, settled;                /* settled: covers stay as they are */
    bool was_read;                         /* a function ran: the weights came from the disk */
} ellm_step_ladder;

/* What the arguments of a plan's steps mean in a context. */
typedef struct ellm_buffers {
    const ellm_plan *plan;
    uint8_t *arena, **states;
    void **inputs;           /* by ellm_input */
    const uint64_t *symbols; /* by ellm_symbol */
} ellm_buffers;

/* Binds every function of a plan's ladder. Launches live in `region`; false if it is full. */
bool ellm_ladder_bind(const ellm_plan_ladder *from, const ellm_buffers *buffers, ellm_region *region,
                      ellm_step_ladder *ladder);
/* Chooses covers with what is known. */
void ellm_ladder_choose(ellm_step_ladder *ladder);
/* Covers stay as they are from now on. fit: first, each number of rows gets the smallest function that holds it. */
void ellm_ladder_settle(ellm_step_ladder *ladder, bool fit);
/* The function to run next when n_rows are left. One that would fit and is passed over again and again gets another
 * chance: its cost may have been measured at a bad moment. */
ellm_step_function *ellm_ladder_pick(ellm_step_ladder *ladder, size_t n_rows);
/* A run took so long; covers are chosen anew when that changes the picture. */
void ellm_ladder_measured(ellm_step_ladder *ladder, ellm_step_function *function, double ns);
/* Time that n_rows take, in ns; 0: not known. At most ladder->rows rows. */
double ellm_ladder_cost_ns(const ellm_step_ladder *ladder, int32_t n_rows);

#endif
