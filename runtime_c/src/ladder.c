#include "ladder.h"

/* Before anything is measured, reading the weights once counts as much as computing this many rows. */
enum { weight_pass_rows = 8 };
static const double news = 0.1;         /* a change of this share is worth choosing anew */
static const double forgetting = 0.995; /* of a cost, each time that its function is passed over */

/* ---- launches ---- */

static void *bind(const ellm_buffers *buffers, const ellm_plan_argument *argument) {
    if (buffers->states == NULL) {
        return NULL; /* a GPU has its own */
    }
    switch (argument->bind) {
    case ELLM_BIND_WEIGHT: return (void *)(uintptr_t)buffers->plan->weights[argument->value].data;
    case ELLM_BIND_ARENA: return buffers->arena + argument->value;
    case ELLM_BIND_STATE: return buffers->states[argument->value];
    case ELLM_BIND_INPUT: return buffers->inputs[argument->value];
    }
    return NULL;
}

static bool bind_step(const ellm_plan_step *step, const ellm_buffers *buffers, ellm_region *region,
                      ellm_launch *launch) {
    const ellm_plan_kernel *kernel = step->kernel;
    void **pointers = ellm_region_alloc(region, kernel->n_parameters, sizeof *pointers);
    if (pointers == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < kernel->n_parameters; i++) {
        pointers[i] = bind(buffers, &step->arguments[i]);
    }
    *launch = (ellm_launch){.function = (void (*)(void))(uintptr_t)kernel->function,
                            .pointers = pointers,
                            .groups = kernel->groups,
                            .grain = kernel->grain,
                            .n_pointers = (uint8_t)kernel->n_parameters,
                            .n_scalars = (uint8_t)kernel->n_scalars};
    for (uint32_t i = 0; i < kernel->n_scalars; i++) {
        launch->scalars[i] = (int64_t)buffers->symbols[kernel->scalars[i]];
    }
    return true;
}

bool ellm_ladder_bind(const ellm_plan_ladder *from, const ellm_buffers *buffers, ellm_region *region,
                      ellm_step_ladder *ladder) {
    ladder->rows = ellm_ladder_rows(from);
    ladder->n_functions = from->n_functions;
    ladder->functions = ellm_region_alloc(region, from->n_functions, sizeof *ladder->functions);
    if (ladder->functions == NULL) {
        return false;
    }
    for (uint32_t f = 0; f < from->n_functions; f++) {
        const ellm_plan_function *source = &from->functions[f];
        ellm_step_function *function = &ladder->functions[f];
        function->n = source->n;
        function->source = source;
        function->n_launches = source->n_steps;
        function->launches = ellm_region_alloc(region, source->n_steps, sizeof *function->launches);
        if (function->launches == NULL) {
            return false;
        }
        for (uint32_t s = 0; s < source->n_steps; s++) {
            if (!bind_step(&source->steps[s], buffers, region, &function->launches[s])) {
                return false;
            }
        }
    }
    ellm_ladder_choose(ladder);
    return true;
}

/* ---- covers ---- */

static double guess(int32_t n) {
    return weight_pass_rows + n;
}

/* What function i takes: measured, else between its measured neighbours, else in proportion to one of them. */
static double estimate(const ellm_step_ladder *ladder, uint32_t i) {
    const ellm_step_function *f = ladder->functions, *below = NULL, *above = NULL;
    if (f[i].cost_ns > 0) {
        return f[i].cost_ns;
    }
    for (uint32_t at = 0; at < ladder->n_functions; at++) {
        if (f[at].cost_ns > 0 && at < i) {
            below = &f[at];
        } else if (f[at].cost_ns > 0 && above == NULL) {
            above = &f[at];
        }
    }
    if (below != NULL && above != NULL) {
        double part = (double)(f[i].n - below->n) / (double)(above->n - below->n);
        return below->cost_ns + part * (above->cost_ns - below->cost_ns);
    }
    const ellm_step_function *known = below != NULL ? below : above;
    return known == NULL ? guess(f[i].n) : known->cost_ns * guess(f[i].n) / guess(known->n);
}

void ellm_ladder_choose(ellm_step_ladder *ladder) {
    double costs[ELLM_STEP_ROWS]; /* there are no more functions than rows */
    ladder->measured = false;
    for (uint32_t i = 0; i < ladder->n_functions; i++) {
        costs[i] = estimate(ladder, i);
        ladder->functions[i].chosen_ns = ladder->functions[i].cost_ns;
        ladder->measured = ladder->measured || ladder->functions[i].cost_ns > 0;
    }
    for (int32_t rows = 1; rows <= ladder->rows; rows++) {
        double least = 0;
        for (uint32_t i = 0; i < ladder->n_functions; i++) {
            int32_t n = ladder->functions[i].n;
            double now = costs[i] + (n < rows ? ladder->cover_cost[rows - n] : 0);
            if (least == 0 || now <= least) {
                least = now;
                ladder->choice[rows] = (uint16_t)i;
            }
        }
        ladder->cover_cost[rows] = least;
    }
}

/* A new cost of a function; covers are chosen anew when it moved the picture. */
static void set_cost(ellm_step_ladder *ladder, ellm_step_function *function, double ns) {
    double chosen = function->chosen_ns, change = ns - chosen;
    function->cost_ns = ns;
    if (change > news * chosen || change < -news * chosen) {
        ellm_ladder_choose(ladder);
    }
}

void ellm_ladder_settle(ellm_step_ladder *ladder, bool fit) {
    ladder->settled = true;
    for (int32_t rows = 1, i = 0; fit && rows <= ladder->rows; rows++) {
        i += ladder->functions[i].n < rows;
        ladder->choice[rows] = (uint16_t)i;
    }
}

ellm_step_function *ellm_ladder_pick(ellm_step_ladder *ladder, size_t n_rows) {
    size_t rows = n_rows < (size_t)ladder->rows ? n_rows : (size_t)ladder->rows;
    ellm_step_function *chosen = &ladder->functions[ladder->choice[rows]], *fitting = ladder->functions;
    while ((size_t)fitting->n < rows) {
        fitting++;
    }
    if (fitting != chosen && fitting->cost_ns > 0 && !ladder->settled) {
        set_cost(ladder, fitting, fitting->cost_ns * forgetting);
    }
    return chosen;
}

void ellm_ladder_measured(ellm_step_ladder *ladder, ellm_step_function *function, double ns) {
    double before = function->cost_ns;
    if (ladder->settled) {
        return;
    }
    if (function->n_measured++ == 0 || !(ns > 0)) {
        return; /* the first run reads code and weights from disk */
    }
    if (before > 0) { /* down fast, up slowly: what disturbs a run makes it slower */
        ns = ns < before ? (ns + before) / 2 : before + ((ns < 2 * before ? ns : 2 * before) - before) / 4;
    }
    set_cost(ladder, function, ns);
}

double ellm_ladder_cost_ns(const ellm_step_ladder *ladder, int32_t n_rows) {
    return ladder->measured && n_rows >= 1 && n_rows <= ladder->rows ? ladder->cover_cost[n_rows] : 0;
}
