/* plan.h: plan.json, checked: which kernels run in which order over which buffers (FORMAT.md). */
#ifndef ELLM_PLAN_H
#define ELLM_PLAN_H

#include "edgellm.h"
#include "region.h"

enum { ELLM_BLOCK = 64, ELLM_STEP_ROWS = 1024 }; /* positions of a KV block; most rows of a function */

typedef enum ellm_input {
    ELLM_INPUT_TOKENS,
    ELLM_INPUT_POSITIONS,
    ELLM_INPUT_SLOTS,
    ELLM_INPUT_ROWS,
    ELLM_INPUT_BLOCK_TABLE,
    ELLM_INPUTS,
} ellm_input;

typedef enum ellm_symbol {
    ELLM_SYMBOL_ONE, /* a plain number */
    ELLM_SYMBOL_BLOCKS,
    ELLM_SYMBOL_TABLE_CAP,
    ELLM_SYMBOL_SESSIONS,
    ELLM_SYMBOL_TABLE,
    ELLM_SYMBOLS,
} ellm_symbol;

typedef enum ellm_bind { ELLM_BIND_WEIGHT, ELLM_BIND_ARENA, ELLM_BIND_STATE, ELLM_BIND_INPUT } ellm_bind;

typedef struct ellm_plan_argument {
    ellm_bind bind;
    uint64_t value; /* index of the weight or state, arena offset, ellm_input */
} ellm_plan_argument;

typedef struct ellm_plan_parameter {
    uint64_t bytes; /* × symbol */
    ellm_symbol symbol;
    bool writes;
    const char *access; /* "r", "w" or "rw" */
} ellm_plan_parameter;

typedef struct ellm_plan_kernel {
    const char *name;
    const void *function; /* resolved by the model: code, or with a grid an ellm_shader */
    ellm_plan_parameter *parameters;
    uint32_t n_parameters, n_scalars;
    ellm_symbol scalars[2];
    int64_t groups, grain;
    uint32_t grid[3]; /* workgroups on a GPU; 0 of them: the processor computes groups */
} ellm_plan_kernel;

typedef struct ellm_plan_step {
    const ellm_plan_kernel *kernel;
    ellm_plan_argument *arguments; /* kernel->n_parameters of them */
} ellm_plan_step;

typedef struct ellm_plan_function {
    int32_t n; /* rows */
    uint32_t n_steps;
    ellm_plan_step *steps;
} ellm_plan_function;

typedef struct ellm_plan_ladder {
    ellm_plan_function *functions; /* ascending n, the first has n = 1 */
    uint32_t n_functions;
} ellm_plan_ladder;

typedef struct ellm_plan_weight {
    const char *tensor;
    const uint8_t *data; /* resolved by the model */
    uint64_t bytes;
} ellm_plan_weight;

typedef struct ellm_plan {
    uint64_t arena_bytes;
    ellm_plan_weight *weights;
    uint64_t *state_bytes; /* per block, or, of the last n_fixed, per session */
    ellm_plan_kernel *kernels;
    uint32_t n_weights, n_states, n_fixed, n_kernels;
    ellm_plan_ladder body, head, norm; /* norm: without functions where the plan has none */
    uint64_t hidden_offset, hidden_row_bytes, logits_offset, logits_row_bytes;
    uint64_t arriving_offset, arriving_row_bytes; /* what layers on another device leave; 0 bytes: there are none */
    bool pools_last;                              /* an embedding is made of the last token, else of the mean of all */
    bool in_memory; /* the weights are in memory of this process, not on a disk; set by the model */
} ellm_plan;

/* Reads and checks everything that does not depend on the context's size. The plan lives in `region`.
 * PLAN_INVALID with the place and reason. */
ellm_status ellm_plan_read(const char *text, size_t n_bytes, int32_t vocab_size, ellm_region *region, ellm_plan *plan,
                           ellm_error *error);

/* Checks every argument's extent for these symbols (indexed by ellm_symbol). NULL: those that need none. */
ellm_status ellm_plan_check(const ellm_plan *plan, const uint64_t *symbols, ellm_error *error);

/* An input's name in plan.json. */
const char *ellm_input_name(ellm_input input);
/* KV bytes that one position takes, and bytes that a session keeps however long it is. */
uint64_t ellm_plan_token_bytes(const ellm_plan *plan);
uint64_t ellm_plan_session_bytes(const ellm_plan *plan);
/* How many states of an index there are: blocks of the pool, or sessions. */
ellm_symbol ellm_plan_state_count(const ellm_plan *plan, uint64_t state);
/* Bytes of all weights. */
uint64_t ellm_plan_weight_bytes(const ellm_plan *plan);
/* Rows of the largest function. */
int32_t ellm_ladder_rows(const ellm_plan_ladder *ladder);

#endif
