/* trace: runs a prompt step by step and says what each step wrote, so that machines can be compared.
 *
 * Pieces of --step rows run in the smallest function that holds them, so that two machines run the same steps. On a GPU, a
 * trace may follow another one's (follow.c). */
#include "posix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "follow.h"
#include "model.h"
#include "observe.h"
#include "sha256.h"

enum { default_rows = 8, most_rows = 64 };

typedef struct tracer {
    const ellm_plan *plan;
    int64_t number, at; /* of the step, counted over all functions; the one to show whole, or -1 */
    bool data, found;
    follower followed;
    buffer line;
    ellm_error *error;
} tracer;

/* Some bytes of an argument. */
typedef struct part {
    uint64_t offset, bytes;
} part;

/* The blocks of a state that hold the rows' positions, in order of position: how many, and the i-th one. */
static uint64_t n_blocks(const ellm_observed *now) {
    const int32_t *positions = now->inputs[ELLM_INPUT_POSITIONS];
    int32_t n = ellm_observed_rows(now);
    return n == 0 ? 0 : (uint64_t)(positions[n - 1] / ELLM_BLOCK - positions[0] / ELLM_BLOCK + 1);
}

/* Whether an argument is a state per session. */
static bool is_fixed(const tracer *t, const ellm_observed *now, uint32_t step, uint32_t argument) {
    const ellm_plan_argument *given = &now->function->steps[step].arguments[argument];
    return given->bind == ELLM_BIND_STATE && ellm_plan_state_count(t->plan, given->value) == ELLM_SYMBOL_SESSIONS;
}

static part block_of(const tracer *t, const ellm_observed *now, uint32_t step, uint32_t argument, uint64_t i) {
    const int32_t *positions = now->inputs[ELLM_INPUT_POSITIONS], *table = now->inputs[ELLM_INPUT_BLOCK_TABLE];
    uint64_t state = now->function->steps[step].arguments[argument].value, bytes = t->plan->state_bytes[state];
    if (is_fixed(t, now, step, argument)) {
        return (part){0, bytes}; /* of the one session that there is */
    }
    return (part){bytes * (uint64_t)table[(uint64_t)(positions[0] / ELLM_BLOCK) + i], bytes};
}

/* Number of parts of what a step wrote to an argument, and the i-th one. On processors, rows come first and those that are
 * padding last; a GPU's buffers are laid out otherwise, and count whole. */
static uint64_t n_parts(const tracer *t, const ellm_observed *now, uint32_t step, uint32_t argument) {
    bool in_blocks = now->function->steps[step].arguments[argument].bind == ELLM_BIND_STATE;
    return in_blocks && !is_fixed(t, now, step, argument) ? n_blocks(now) : 1;
}

static part part_of(const tracer *t, const ellm_observed *now, uint32_t step, uint32_t argument, uint64_t i) {
    if (now->function->steps[step].arguments[argument].bind == ELLM_BIND_STATE) {
        return block_of(t, now, step, argument, i);
    }
    uint64_t bytes = ellm_observed_bytes(now, step, argument), n = (uint64_t)now->function->n;
    bool by_rows = bytes % n == 0;
#ifdef ELLM_VULKAN
    by_rows = by_rows && now->gpu == NULL;
#endif
    return (part){0, by_rows ? bytes / n * (uint64_t)ellm_observed_rows(now) : bytes};
}

static bool writes(const ellm_observed *now, uint32_t step, uint32_t argument) {
    return now->function->steps[step].kernel->parameters[argument].writes;
}

static ellm_status read_part(const ellm_observed *now, uint32_t step, uint32_t argument, part p, const uint8_t **data) {
    return ellm_observed_data(now, step, argument, p.offset, p.bytes, data);
}

static void put_place(tracer *t, const ellm_observed *now, uint32_t step) {
    const char *kernel = now->function->steps[step].kernel->name;
    buffer_clear(&t->line);
    buffer_print(&t->line, "{\"number\":%lld,\"function\":\"%s\",\"n\":%d,\"rows\":%d,\"step\":%u,\"kernel\":",
                 (long long)t->number, now->is_head ? "head" : "body", (int)now->function->n,
                 (int)ellm_observed_rows(now), step);
    buffer_put_json(&t->line, kernel, strlen(kernel));
}

/* The line of a step that ran, and with --data what it wrote. */
static ellm_status show_outputs(tracer *t, const ellm_observed *now, uint32_t step) {
    uint32_t n = now->function->steps[step].kernel->n_parameters;
    ellm_status status = ELLM_OK;
    const uint8_t *data;
    put_place(t, now, step);
    const char *comma = "";
    buffer_print(&t->line, ",\"outputs\":[");
    for (uint32_t a = 0; a < n; a++) {
        if (!writes(now, step, a)) {
            continue;
        }
        ellm_sha256 sha;
        char hex[65];
        uint64_t bytes = 0;
        ellm_sha256_init(&sha);
        for (uint64_t i = 0; status == ELLM_OK && i < n_parts(t, now, step, a); i++) {
            part p = part_of(t, now, step, a, i);
            status = read_part(now, step, a, p, &data);
            if (status == ELLM_OK) {
                ellm_sha256_update(&sha, data, (size_t)p.bytes);
            }
            bytes += p.bytes;
        }
        ellm_sha256_hex(&sha, hex);
        buffer_print(&t->line, "%s{\"argument\":%u,\"bytes\":%llu,\"sha256\":\"%s\"}", comma, a,
                     (unsigned long long)bytes, hex);
        comma = ",";
    }
    buffer_print(&t->line, "]}\n");
    status = status == ELLM_OK ? output_write(t->line.data, t->line.n, t->error) : status;
    for (uint32_t a = 0; t->data && a < n; a++) {
        for (uint64_t i = 0; writes(now, step, a) && status == ELLM_OK && i < n_parts(t, now, step, a); i++) {
            part p = part_of(t, now, step, a, i);
            status = read_part(now, step, a, p, &data);
            status = status == ELLM_OK ? output_write((const char *)data, (size_t)p.bytes, t->error) : status;
        }
    }
    return status;
}

static void put_argument(tracer *t, const ellm_observed *now, uint32_t step, uint32_t a) {
    static const char *const binds[] = {[ELLM_BIND_WEIGHT] = "weight",
                                        [ELLM_BIND_ARENA] = "arena",
                                        [ELLM_BIND_STATE] = "state",
                                        [ELLM_BIND_INPUT] = "input"};
    const ellm_plan_step *s = &now->function->steps[step];
    const ellm_plan_argument *argument = &s->arguments[a];
    uint64_t bytes = ellm_observed_bytes(now, step, a);
    const char *name = argument->bind == ELLM_BIND_WEIGHT  ? t->plan->weights[argument->value].tensor
                       : argument->bind == ELLM_BIND_INPUT ? ellm_input_name((ellm_input)argument->value)
                                                           : "";
    buffer_print(&t->line, "%s{\"access\":\"%s\",\"bind\":\"%s\",\"bytes\":%llu,\"name\":", a > 0 ? "," : "",
                 s->kernel->parameters[a].access, binds[argument->bind], (unsigned long long)bytes);
    buffer_put_json(&t->line, name, strlen(name));
    buffer_put(&t->line, "}", 1);
}

/* The bytes of all arguments that are read, or written. */
static ellm_status show_bytes(tracer *t, const ellm_observed *now, uint32_t step, char access) {
    ellm_status status = ELLM_OK;
    const ellm_plan_kernel *kernel = now->function->steps[step].kernel;
    for (uint32_t a = 0; a < kernel->n_parameters && status == ELLM_OK; a++) {
        if (strchr(kernel->parameters[a].access, access) != NULL) {
            const uint8_t *data;
            uint64_t bytes = ellm_observed_bytes(now, step, a);
            status = read_part(now, step, a, (part){0, bytes}, &data);
            status = status == ELLM_OK ? output_write((const char *)data, (size_t)bytes, t->error) : status;
        }
    }
    return status;
}

/* The one step that is wanted: its arguments, what it reads, and once it ran what it wrote. */
static ellm_status show_whole(tracer *t, const ellm_observed *now, uint32_t step, bool done) {
    if (done) {
        t->found = true;
        ellm_status status = show_bytes(t, now, step, 'w');
        return status == ELLM_OK ? ELLM_CANCELLED : status; /* nothing more is wanted */
    }
    const ellm_launch *launch = &now->launches[step];
    put_place(t, now, step);
    buffer_print(&t->line, ",\"groups\":%lld,\"grain\":%lld,\"scalars\":[", (long long)launch->groups,
                 (long long)launch->grain);
    for (uint8_t i = 0; i < launch->n_scalars; i++) {
        buffer_print(&t->line, "%s%lld", i > 0 ? "," : "", (long long)launch->scalars[i]);
    }
    buffer_print(&t->line, "],\"arguments\":[");
    for (uint32_t a = 0; a < now->function->steps[step].kernel->n_parameters; a++) {
        put_argument(t, now, step, a);
    }
    buffer_print(&t->line, "]}\n");
    ellm_status status = output_write(t->line.data, t->line.n, t->error);
    return status == ELLM_OK ? show_bytes(t, now, step, 'r') : status;
}

static ellm_status note(void *user, const ellm_observed *now, uint32_t step, bool done) {
    tracer *t = user;
    ellm_status status = ELLM_OK;
    if (t->at < 0 && done) {
        status = show_outputs(t, now, step);
    } else if (t->at == t->number) {
        status = show_whole(t, now, step, done);
    }
#ifdef EDGELLM_FOLLOWS
    if (done && status == ELLM_OK && t->followed.file != NULL) {
        put_place(t, now, step);
        status = follow_line(&t->followed, &t->line, t->error);
        for (uint32_t a = 0; a < now->function->steps[step].kernel->n_parameters; a++) {
            for (uint64_t i = 0; writes(now, step, a) && status == ELLM_OK && i < n_parts(t, now, step, a); i++) {
                part p = part_of(t, now, step, a, i);
                status = follow_bytes(&t->followed, now, step, a, p.offset, p.bytes, t->error);
            }
        }
    }
#endif
    t->number += done;
    return status;
}

static ellm_status trace(engine *e, tracer *t, const int32_t *ids, size_t n, size_t rows) {
    ellm_status status = ELLM_OK;
    for (size_t done = 0; done < n && status == ELLM_OK; done += rows) {
        size_t now = n - done < rows ? n - done : rows;
        status = ellm_session_eval(e->context, 0, ids + done, now, e->logits);
    }
    if (t->found) {
        return ELLM_OK;
    }
    if (status == ELLM_OK && t->at >= 0) {
        return ellm_fail(t->error, ELLM_USAGE, "--at %lld: there are only %lld steps", (long long)t->at,
                         (long long)t->number);
    }
    if (status != ELLM_OK && t->error->text[0] == '\0') {
        ellm_fail(t->error, status, "step %lld: %s", (long long)t->number, ellm_status_text(status));
    }
    return status;
}

#ifdef ELLM_VULKAN
#define TRACE_END "" /* the GPU's name follows */
#else
#define TRACE_END "}\n"
#endif

static ellm_status print_head(const engine *e, size_t n, size_t rows, ellm_error *error) {
    buffer head = {0};
    buffer_put(&head, "{\"trace\":1,\"name\":", 18);
    buffer_put_json(&head, e->info.name, strlen(e->info.name));
    buffer_print(
        &head,
        ",\"scheme\":\"%s\",\"tier\":\"%s\",\"manifest\":\"%s\",\"tokens\":%zu,\"rows\":%zu,\"threads\":%d" TRACE_END,
        e->info.scheme, e->info.tier, ellm_model_sha256(e->model), n, rows, (int)engine_threads_prefill(e));
#ifdef ELLM_VULKAN
    ellm_device_info device;
    if (ellm_context_get_device(e->context, &device)) {
        buffer_put(&head, ",\"gpu\":", 7);
        buffer_put_json(&head, device.name, strlen(device.name));
    }
    buffer_put(&head, "}\n", 2);
#endif
    ellm_status status = output_write(head.data, head.n, error);
    buffer_free(&head);
    return status;
}

ellm_status trace_main(const settings *s, ellm_error *error) {
    if (s->tokens == NULL) {
        return ellm_fail(error, ELLM_USAGE, "say what to compute with --tokens 1,2,3");
    }
    engine e;
    int32_t *ids = NULL;
    size_t n = 0, rows = s->step > 0 ? (size_t)s->step : default_rows;
    interrupts_catch();
    ellm_status status = engine_open(&e, s, ELLM_LOOKUP_OFF, error);
    if (status == ELLM_OK) {
        status = options_ids("--tokens", s->tokens, &ids, &n, error);
    }
    if (status == ELLM_OK && n > (size_t)e.context_length) {
        status = ellm_fail(error, ELLM_CONTEXT_FULL, "%zu tokens do not fit the context of %d; raise --context", n,
                           (int)e.context_length);
    }
    if (status == ELLM_OK && s->at < 0) {
        status = print_head(&e, n, rows, error);
    }
    if (status == ELLM_OK) {
        tracer t = {.plan = ellm_model_plan(e.model), .at = s->at, .data = s->data, .error = error};
        const ellm_observer observer = {.user = &t, .stepped = note};
#ifdef EDGELLM_FOLLOWS
        status = follow_open(&t.followed, s, &e, error);
#endif
        ellm_context_settle(e.context, true);
        ellm_context_observe(e.context, &observer);
        status = status == ELLM_OK ? trace(&e, &t, ids, n, rows) : status;
        ellm_context_observe(e.context, NULL);
#ifdef EDGELLM_FOLLOWS
        follow_close(&t.followed);
#endif
        buffer_free(&t.line);
    }
    free(ids);
    engine_close(&e);
    return status;
}
