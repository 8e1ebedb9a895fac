#include "plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "json.h"
#include "launch.h"

enum { most_names = 65536, most_text = 512, arena_alignment = 64 };
static const int64_t most_bytes = (int64_t)1 << 48;
static const char *const input_names[ELLM_INPUTS] = {"tokens", "positions", "slots", "rows", "block_table"};
static const char *const symbol_names[ELLM_SYMBOLS] = {"", "blocks", "table_cap", "sessions", "table"};

struct reader {
    ellm_plan *plan;
    ellm_region *region;
    ellm_error *error;
    int32_t vocab_size;
};

static ellm_status bad(const struct reader *reader, const char *format, ...) ELLM_PRINTF(2, 3);
static ellm_status bad(const struct reader *reader, const char *format, ...) {
    char text[300];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return ellm_fail(reader->error, ELLM_PLAN_INVALID, "plan.json: %s; compile the bundle again", n < 0 ? "" : text);
}

/* Zeroed memory for the elements of a JSON array; NULL, and the status, if that fails. */
static void *new_array(const struct reader *reader, const ellm_json *list, const char *name, size_t element,
                       uint32_t *count, ellm_status *status) {
    if (list == NULL || list->kind != ELLM_JSON_ARRAY || list->count > most_names) {
        *status = bad(reader, "%s must be a list of at most %d", name, most_names);
        return NULL;
    }
    void *memory = ellm_region_alloc(reader->region, list->count, element);
    *count = memory != NULL ? list->count : 0;
    *status = memory != NULL ? ELLM_OK : ellm_fail(reader->error, ELLM_NO_MEMORY, "plan.json: no memory for %s", name);
    return memory;
}

static const char *new_text(const struct reader *reader, const ellm_json *value) {
    const char *text = ellm_json_text(value, most_text);
    return text != NULL ? ellm_region_text(reader->region, text, strlen(text)) : NULL;
}

static bool read_bytes(const ellm_json *value, int64_t least, uint64_t *bytes) {
    int64_t number;
    if (!ellm_json_int(value, least, most_bytes, &number)) {
        return false;
    }
    *bytes = (uint64_t)number;
    return true;
}

/* Index of a name in a list, or -1. */
static int find_name(const ellm_json *name, const char *const *names, int first, int end) {
    for (int i = first; i < end; i++) {
        if (ellm_json_equals(name, names[i])) {
            return i;
        }
    }
    return -1;
}

/* ---- tables ---- */

static ellm_status read_weights(const struct reader *reader, const ellm_json *root) {
    ellm_plan *plan = reader->plan;
    const ellm_json *list = ellm_json_get(root, "weights");
    ellm_status status;
    ellm_plan_weight *weight = new_array(reader, list, "weights", sizeof *weight, &plan->n_weights, &status);
    if (weight == NULL) {
        return status;
    }
    plan->weights = weight;
    for (const ellm_json *item = list->first; item != NULL; item = item->next, weight++) {
        weight->tensor = new_text(reader, ellm_json_get(item, "tensor"));
        if (weight->tensor == NULL || !read_bytes(ellm_json_get(item, "bytes"), 1, &weight->bytes)) {
            return bad(reader, "weights[%td] must be {\"tensor\": name, \"bytes\": size}", weight - plan->weights);
        }
    }
    return status;
}

static ellm_status read_states(const struct reader *reader, const ellm_json *root) {
    ellm_plan *plan = reader->plan;
    const ellm_json *list = ellm_json_get(root, "states");
    ellm_status status;
    uint64_t *bytes = new_array(reader, list, "states", sizeof *bytes, &plan->n_states, &status);
    if (bytes == NULL) {
        return status;
    }
    plan->state_bytes = bytes;
    for (const ellm_json *item = list->first; item != NULL; item = item->next, bytes++) {
        const ellm_json *fixed = ellm_json_get(item, "bytes_per_session");
        bool is_fixed = fixed != NULL || plan->n_fixed > 0; /* once one is, all that follow are */
        const char *name = is_fixed ? "bytes_per_session" : "bytes_per_block";
        if (!read_bytes(is_fixed ? fixed : ellm_json_get(item, name), 1, bytes) || *bytes > (uint64_t)1 << 32) {
            return bad(reader, "states[%td].%s is no size", bytes - plan->state_bytes, name);
        }
        plan->n_fixed += is_fixed;
    }
    return status;
}

static ellm_status read_parameter(const struct reader *reader, const ellm_json *item, const char *kernel,
                                  ellm_plan_parameter *parameter) {
    const ellm_json *access = ellm_json_get(item, "access"), *bytes = ellm_json_get(item, "bytes");
    static const char *const accesses[] = {"r", "w", "rw"};
    int kind = find_name(access, accesses, 0, 3);
    if (kind < 0) {
        return bad(reader, "kernel %.80s: access must be \"r\", \"w\" or \"rw\"", kernel);
    }
    parameter->access = accesses[kind];
    parameter->writes = kind > 0;
    parameter->symbol = ELLM_SYMBOL_ONE;
    if (bytes != NULL && bytes->kind == ELLM_JSON_ARRAY && bytes->count == 2) {
        int symbol = find_name(bytes->first->next, symbol_names, 1, ELLM_SYMBOLS);
        if (symbol < 0) {
            return bad(reader, "kernel %.80s: an extent has an unknown symbol", kernel);
        }
        parameter->symbol = (ellm_symbol)symbol;
        bytes = bytes->first;
    }
    return read_bytes(bytes, 0, &parameter->bytes)
               ? ELLM_OK
               : bad(reader, "kernel %.80s: bytes must be a size or [size, symbol]", kernel);
}

static ellm_status read_grid(const struct reader *reader, const ellm_json *grid, ellm_plan_kernel *kernel) {
    bool good = grid->kind == ELLM_JSON_ARRAY && grid->count == 3;
    const ellm_json *extent = good ? grid->first : NULL;
    for (int i = 0; i < 3 && good; i++, extent = extent->next) {
        int64_t number = 0;
        good = ellm_json_int(extent, 1, INT32_MAX, &number);
        kernel->grid[i] = (uint32_t)number;
    }
    kernel->groups = kernel->grain = 1;
    return good ? ELLM_OK : bad(reader, "kernel %.80s: grid must be three whole numbers from 1", kernel->name);
}

static ellm_status read_kernel(const struct reader *reader, const ellm_json *item, ellm_plan_kernel *kernel) {
    const ellm_json *parameters = ellm_json_get(item, "args"), *scalars = ellm_json_get(item, "scalars");
    kernel->name = new_text(reader, ellm_json_get(item, "name"));
    if (kernel->name == NULL) {
        return bad(reader, "kernels[%td] has no name", kernel - reader->plan->kernels);
    }
    ellm_status status;
    kernel->parameters =
        new_array(reader, parameters, "a kernel's args", sizeof *kernel->parameters, &kernel->n_parameters, &status);
    if (kernel->parameters == NULL) {
        return status;
    }
    if (kernel->n_parameters < 1 || kernel->n_parameters > ELLM_KERNEL_POINTERS) {
        return bad(reader, "kernel %.80s has %u arguments; 1 to %d are allowed", kernel->name, kernel->n_parameters,
                   ELLM_KERNEL_POINTERS);
    }
    ellm_plan_parameter *parameter = kernel->parameters;
    for (const ellm_json *now = parameters->first; now != NULL; now = now->next, parameter++) {
        status = read_parameter(reader, now, kernel->name, parameter);
        if (status != ELLM_OK) {
            return status;
        }
    }
    if (scalars == NULL || scalars->kind != ELLM_JSON_ARRAY || scalars->count > ELLM_KERNEL_SCALARS) {
        return bad(reader, "kernel %.80s: scalars must be a list of at most %d symbols", kernel->name,
                   ELLM_KERNEL_SCALARS);
    }
    for (const ellm_json *now = scalars->first; now != NULL; now = now->next) {
        int symbol = find_name(now, symbol_names, 1, ELLM_SYMBOLS);
        if (symbol < 0) {
            return bad(reader, "kernel %.80s: a scalar is no known symbol", kernel->name);
        }
        kernel->scalars[kernel->n_scalars++] = (ellm_symbol)symbol;
    }
    const ellm_json *grid = ellm_json_get(item, "grid");
    if (grid != NULL) {
        return read_grid(reader, grid, kernel);
    }
    if (!ellm_json_int(ellm_json_get(item, "groups"), 1, (int64_t)1 << 31, &kernel->groups)
        || !ellm_json_int(ellm_json_get(item, "grain"), 1, (int64_t)1 << 31, &kernel->grain)) {
        return bad(reader, "kernel %.80s: groups and grain must be whole numbers from 1", kernel->name);
    }
    return ELLM_OK;
}

static ellm_status read_kernels(const struct reader *reader, const ellm_json *root) {
    ellm_plan *plan = reader->plan;
    const ellm_json *list = ellm_json_get(root, "kernels");
    ellm_status status;
    ellm_plan_kernel *kernel = new_array(reader, list, "kernels", sizeof *kernel, &plan->n_kernels, &status);
    if (kernel == NULL) {
        return status;
    }
    plan->kernels = kernel;
    for (const ellm_json *item = list->first; item != NULL && status == ELLM_OK; item = item->next) {
        status = read_kernel(reader, item, kernel++);
    }
    return status;
}

/* ---- functions ---- */

/* Where an argument is, for messages. */
struct place {
    bool is_head;
    int32_t n;
    uint32_t step, argument;
    const char *kernel;
};

static ellm_status bad_argument(ellm_error *error, const struct place *place, const char *reason) {
    return ellm_fail(error, ELLM_PLAN_INVALID,
                     "plan.json: %s of %d rows, step %u (%.80s), argument %u: %s; compile the bundle again",
                     place->is_head ? "head" : "body", (int)place->n, place->step, place->kernel, place->argument,
                     reason);
}

static ellm_status read_argument(const struct reader *reader, const ellm_json *item, const struct place *place,
                                 bool writes, ellm_plan_argument *argument) {
    const ellm_plan *plan = reader->plan;
    const ellm_json *kind = item->kind == ELLM_JSON_ARRAY && item->count == 2 ? item->first : NULL;
    const ellm_json *value = kind != NULL ? kind->next : NULL;
    bool good = false, writable = false;
    int64_t number = 0;
    if (ellm_json_equals(kind, "w")) {
        argument->bind = ELLM_BIND_WEIGHT;
        good = ellm_json_int(value, 0, (int64_t)plan->n_weights - 1, &number);
    } else if (ellm_json_equals(kind, "a")) {
        argument->bind = ELLM_BIND_ARENA;
        good = ellm_json_int(value, 0, (int64_t)plan->arena_bytes, &number) && number % arena_alignment == 0;
        writable = true;
    } else if (ellm_json_equals(kind, "s")) {
        argument->bind = ELLM_BIND_STATE;
        good = ellm_json_int(value, 0, (int64_t)plan->n_states - 1, &number);
        writable = true;
    } else if (ellm_json_equals(kind, "i")) {
        argument->bind = ELLM_BIND_INPUT;
        number = find_name(value, input_names, 0, ELLM_INPUTS);
        good = number >= 0 && place->is_head == (number == ELLM_INPUT_ROWS);
    }
    if (!good) {
        return bad_argument(reader->error, place, "it names no buffer that exists there");
    }
    if (writes && !writable) {
        return bad_argument(reader->error, place, "a weight or an input would be written");
    }
    argument->value = (uint64_t)number;
    return ELLM_OK;
}

static ellm_status read_step(const struct reader *reader, const ellm_json *item, struct place *place,
                             ellm_plan_step *step) {
    const ellm_json *arguments = ellm_json_get(item, "args");
    const ellm_plan_kernel *kernel = reader->plan->kernels;
    int64_t index;
    if (kernel == NULL
        || !ellm_json_int(ellm_json_get(item, "kernel"), 0, (int64_t)reader->plan->n_kernels - 1, &index)) {
        return bad(reader, "%s of %d rows, step %u: its kernel does not exist", place->is_head ? "head" : "body",
                   (int)place->n, place->step);
    }
    kernel += index;
    step->kernel = kernel;
    place->kernel = kernel->name;
    place->argument = 0;
    uint32_t n_arguments;
    ellm_status status;
    step->arguments = new_array(reader, arguments, "a step's args", sizeof *step->arguments, &n_arguments, &status);
    if (step->arguments == NULL) {
        return status;
    }
    if (n_arguments != kernel->n_parameters) {
        return bad_argument(reader->error, place, "the step and its kernel differ in the number of arguments");
    }
    for (const ellm_json *now = arguments->first; now != NULL && status == ELLM_OK;
         now = now->next, place->argument++) {
        status = read_argument(reader, now, place, kernel->parameters[place->argument].writes,
                               &step->arguments[place->argument]);
    }
    return status;
}

static ellm_status read_function(const struct reader *reader, const ellm_json *item, bool is_head,
                                 ellm_plan_ladder *ladder) {
    ellm_plan_function *function = &ladder->functions[ladder->n_functions];
    const ellm_json *steps = ellm_json_get(item, "steps");
    int64_t n, least = ladder->n_functions == 0 ? 1 : (int64_t)function[-1].n + 1;
    int64_t most = ladder->n_functions == 0 ? 1 : ELLM_STEP_ROWS;
    if (!ellm_json_int(ellm_json_get(item, "n"), least, most, &n)) {
        return bad(reader, "the row counts of %s must ascend from 1 to at most %d", is_head ? "head" : "body",
                   ELLM_STEP_ROWS);
    }
    function->n = (int32_t)n;
    ladder->n_functions++;
    struct place place = {.is_head = is_head, .n = function->n};
    ellm_status status;
    function->steps =
        new_array(reader, steps, "a function's steps", sizeof *function->steps, &function->n_steps, &status);
    if (function->steps == NULL) {
        return status;
    }
    for (const ellm_json *now = steps->first; now != NULL && status == ELLM_OK; now = now->next, place.step++) {
        status = read_step(reader, now, &place, &function->steps[place.step]);
    }
    return status;
}

static ellm_status read_functions(const struct reader *reader, const ellm_json *root) {
    ellm_plan *plan = reader->plan;
    const ellm_json *list = ellm_json_get(root, "functions");
    uint32_t count;
    ellm_status status;
    plan->body.functions = new_array(reader, list, "functions", sizeof *plan->body.functions, &count, &status);
    if (plan->body.functions == NULL) {
        return status;
    }
    plan->head.functions = new_array(reader, list, "functions", sizeof *plan->head.functions, &count, &status);
    if (plan->head.functions == NULL) {
        return status;
    }
    for (const ellm_json *item = list->first; item != NULL && status == ELLM_OK; item = item->next) {
        bool is_head = ellm_json_equals(ellm_json_get(item, "name"), "head");
        if (!is_head && !ellm_json_equals(ellm_json_get(item, "name"), "body")) {
            return bad(reader, "a function is called neither \"body\" nor \"head\"");
        }
        status = read_function(reader, item, is_head, is_head ? &plan->head : &plan->body);
    }
    if (status == ELLM_OK && (plan->body.n_functions == 0 || plan->head.n_functions == 0)) {
        return bad(reader, "it lacks a body or a head function");
    }
    return status;
}

/* What embeddings are made of; a plan may lack it. Its rows go where logits go, and are as wide as hidden ones. */
static ellm_status read_embedding(const struct reader *reader, const ellm_json *root) {
    ellm_plan *plan = reader->plan;
    const ellm_json *object = ellm_json_get(root, "embedding"), *pooling = ellm_json_get(object, "pooling");
    const ellm_json *list = ellm_json_get(object, "functions");
    uint32_t count;
    ellm_status status;
    if (object == NULL) {
        return ELLM_OK;
    }
    plan->pools_last = ellm_json_equals(pooling, "last");
    if (!plan->pools_last && !ellm_json_equals(pooling, "mean")) {
        return bad(reader, "embedding.pooling must be \"mean\" or \"last\"");
    }
    plan->norm.functions =
        new_array(reader, list, "embedding.functions", sizeof *plan->norm.functions, &count, &status);
    if (plan->norm.functions == NULL) {
        return status;
    }
    for (const ellm_json *item = list->first; item != NULL && status == ELLM_OK; item = item->next) {
        status = read_function(reader, item, true, &plan->norm);
    }
    if (status != ELLM_OK) {
        return status;
    }
    uint64_t offset = plan->logits_offset,
             rows = plan->norm.n_functions > 0 ? (uint64_t)ellm_ladder_rows(&plan->norm) : 0;
    return rows > 0 && plan->hidden_row_bytes <= (plan->arena_bytes - offset) / rows
               ? ELLM_OK
               : bad(reader, "embedding has no functions, or more rows than fit behind the logits' offset");
}

/* `rows` rows of hidden or logits, in the arena. */
static ellm_status read_rows(const struct reader *reader, const ellm_json *root, const char *name, int32_t rows,
                             uint64_t *offset, uint64_t *row_bytes) {
    const ellm_json *object = ellm_json_get(root, name);
    if (!read_bytes(ellm_json_get(object, "arena"), 0, offset) || *offset % arena_alignment != 0
        || !read_bytes(ellm_json_get(object, "bytes_per_row"), 1, row_bytes) || *row_bytes % 4 != 0
        || *offset > reader->plan->arena_bytes || *row_bytes > (reader->plan->arena_bytes - *offset) / (uint64_t)rows) {
        return bad(reader, "%s must be {\"arena\": offset, \"bytes_per_row\": size} of %d rows inside the arena", name,
                   (int)rows);
    }
    return ELLM_OK;
}

static ellm_status read_root(const struct reader *reader, const ellm_json *root) {
    ellm_plan *plan = reader->plan;
    int64_t number;
    if (!ellm_json_int(ellm_json_get(root, "format"), 1, 1, &number)) {
        return bad(reader, "format must be 1");
    }
    if (!ellm_json_int(ellm_json_get(root, "kv_block"), ELLM_BLOCK, ELLM_BLOCK, &number)) {
        return bad(reader, "kv_block must be %d", ELLM_BLOCK);
    }
    if (!read_bytes(ellm_json_get(root, "arena_bytes"), 0, &plan->arena_bytes)) {
        return bad(reader, "arena_bytes must be a size");
    }
    ellm_status status = read_weights(reader, root);
    status = status != ELLM_OK ? status : read_states(reader, root);
    status = status != ELLM_OK ? status : read_kernels(reader, root);
    status = status != ELLM_OK ? status : read_functions(reader, root);
    if (status == ELLM_OK) {
        status = read_rows(reader, root, "hidden", ellm_ladder_rows(&plan->body), &plan->hidden_offset,
                           &plan->hidden_row_bytes);
    }
    if (status == ELLM_OK) {
        status = read_rows(reader, root, "logits", ellm_ladder_rows(&plan->head), &plan->logits_offset,
                           &plan->logits_row_bytes);
    }
    if (status == ELLM_OK && ellm_json_get(root, "arriving") != NULL) {
        status = read_rows(reader, root, "arriving", ellm_ladder_rows(&plan->body), &plan->arriving_offset,
                           &plan->arriving_row_bytes);
    }
    if (status == ELLM_OK) {
        status = read_embedding(reader, root);
    }
    if (status == ELLM_OK && plan->logits_row_bytes / 4 < (uint64_t)reader->vocab_size) {
        return bad(reader, "a row of logits is shorter than the vocabulary");
    }
    return status != ELLM_OK ? status : ellm_plan_check(plan, NULL, reader->error);
}

ellm_status ellm_plan_read(const char *text, size_t n_bytes, int32_t vocab_size, ellm_region *region, ellm_plan *plan,
                           ellm_error *error) {
    *plan = (ellm_plan){0};
    struct reader reader = {.plan = plan, .region = region, .error = error, .vocab_size = vocab_size};
    ellm_region tree;
    ellm_region_init(&tree, (size_t)512 << 20);
    ellm_json *root;
    ellm_status status = ellm_json_read(text, n_bytes, &tree, ELLM_PLAN_INVALID, "plan.json", &root, error);
    if (status == ELLM_OK) {
        status = read_root(&reader, root);
    }
    ellm_region_free(&tree);
    return status;
}

/* ---- extents ---- */

/* Whether an argument stays inside what it is bound to; true where that depends on symbols and there are none. */
static bool fits(const ellm_plan *plan, int32_t n, const ellm_plan_parameter *parameter,
                 const ellm_plan_argument *argument, const uint64_t *symbols) {
    uint64_t bytes = parameter->bytes, extent = 0;
    bool known = symbols != NULL || parameter->symbol == ELLM_SYMBOL_ONE;
    if (symbols != NULL && __builtin_mul_overflow(bytes, symbols[parameter->symbol], &bytes)) {
        return false;
    }
    switch (argument->bind) {
    case ELLM_BIND_WEIGHT: extent = plan->weights[argument->value].bytes; break;
    case ELLM_BIND_ARENA: extent = plan->arena_bytes - argument->value; break;
    case ELLM_BIND_STATE:
        known = known && symbols != NULL;
        extent = known ? plan->state_bytes[argument->value] * symbols[ellm_plan_state_count(plan, argument->value)] : 0;
        break;
    case ELLM_BIND_INPUT:
        extent = (uint64_t)n * 4;
        if (argument->value == ELLM_INPUT_BLOCK_TABLE) {
            known = known && symbols != NULL;
            extent = known ? symbols[ELLM_SYMBOL_TABLE] * 4 : 0;
        }
        break;
    }
    return !known || bytes <= extent;
}

/* Whether a head's argument would overwrite the hidden rows that the next head still reads. */
static bool overwrites_hidden(const ellm_plan *plan, const ellm_plan_parameter *parameter,
                              const ellm_plan_argument *argument) {
    uint64_t end = plan->hidden_offset + plan->hidden_row_bytes * (uint64_t)ellm_ladder_rows(&plan->body);
    return parameter->writes && argument->bind == ELLM_BIND_ARENA && argument->value < end
           && argument->value + parameter->bytes > plan->hidden_offset;
}

static ellm_status check_ladder(const ellm_plan *plan, const ellm_plan_ladder *ladder, bool is_head,
                                const uint64_t *symbols, ellm_error *error) {
    for (uint32_t f = 0; f < ladder->n_functions; f++) {
        const ellm_plan_function *function = &ladder->functions[f];
        for (uint32_t s = 0; s < function->n_steps; s++) {
            const ellm_plan_step *step = &function->steps[s];
            for (uint32_t a = 0; a < step->kernel->n_parameters; a++) {
                const ellm_plan_parameter *parameter = &step->kernel->parameters[a];
                struct place place = {is_head, function->n, s, a, step->kernel->name};
                if (!fits(plan, function->n, parameter, &step->arguments[a], symbols)) {
                    return bad_argument(error, &place, "it is larger than what it is bound to");
                }
                if (is_head && overwrites_hidden(plan, parameter, &step->arguments[a])) {
                    return bad_argument(error, &place, "it would overwrite the hidden rows");
                }
            }
        }
    }
    return ELLM_OK;
}

ellm_status ellm_plan_check(const ellm_plan *plan, const uint64_t *symbols, ellm_error *error) {
    ellm_status status = check_ladder(plan, &plan->body, false, symbols, error);
    status = status != ELLM_OK ? status : check_ladder(plan, &plan->head, true, symbols, error);
    return status != ELLM_OK ? status : check_ladder(plan, &plan->norm, true, symbols, error);
}

const char *ellm_input_name(ellm_input input) {
    return input_names[input];
}

ellm_symbol ellm_plan_state_count(const ellm_plan *plan, uint64_t state) {
    return state < plan->n_states - plan->n_fixed ? ELLM_SYMBOL_BLOCKS : ELLM_SYMBOL_SESSIONS;
}

static uint64_t sum_states(const ellm_plan *plan, uint32_t first, uint32_t end) {
    uint64_t sum = 0;
    for (uint32_t i = first; i < end; i++) {
        sum += plan->state_bytes[i];
    }
    return sum;
}

uint64_t ellm_plan_token_bytes(const ellm_plan *plan) {
    return sum_states(plan, 0, plan->n_states - plan->n_fixed) / ELLM_BLOCK;
}

uint64_t ellm_plan_session_bytes(const ellm_plan *plan) {
    return sum_states(plan, plan->n_states - plan->n_fixed, plan->n_states);
}

int32_t ellm_ladder_rows(const ellm_plan_ladder *ladder) {
    return ladder->functions[ladder->n_functions - 1].n;
}

uint64_t ellm_plan_weight_bytes(const ellm_plan *plan) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < plan->n_weights; i++) {
        sum += plan->weights[i].bytes;
    }
    return sum;
}
