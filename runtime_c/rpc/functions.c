/* The functions that clients find by name: what tvm.rpc and MetaSchedule's RPCRunner ask for, and a few of our own. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "session.h"

enum { name_bytes = 255, text_bytes = 4096, most_repeats = 1 << 16 };

/* ---- arguments ---- */

/* Argument i as a text without NULs inside; NULL if it is none. */
static const char *text_argument(const rpc_session *s, int32_t i) {
    if (i >= s->n || s->arguments[i].value.type != RPC_TEXT) {
        return NULL;
    }
    const char *text = s->arguments[i].value.v.text;
    return strlen(text) == s->arguments[i].bytes.n ? text : NULL;
}

/* Argument i as the name of a file in the session's folder. An empty one is let through: it names nothing. */
static const char *name_argument(const rpc_session *s, int32_t i) {
    const char *name = text_argument(s, i);
    bool is_name = name != NULL && strlen(name) <= name_bytes && strchr(name, '/') == NULL && name[0] != '.';
    return is_name ? name : NULL;
}

static bool int_argument(const rpc_session *s, int32_t i, int64_t least, int64_t most, int64_t *value) {
    if (i >= s->n || (s->arguments[i].value.type != RPC_INT && s->arguments[i].value.type != RPC_BOOL)) {
        return false;
    }
    *value = s->arguments[i].value.v.i;
    return *value >= least && *value <= most;
}

static rpc_module *module_argument(const rpc_session *s, int32_t i) {
    if (i >= s->n || s->arguments[i].value.type != RPC_MODULE) {
        return NULL;
    }
    const rpc_entry *entry = ellm_rpc_handle_find(&s->handles, s->arguments[i].handle);
    return entry != NULL && entry->kind == RPC_IS_MODULE ? entry->module : NULL;
}

static bool bad_name(rpc_session *s, const char *function) {
    return ellm_rpc_fail(s, "%s: a file's name is a text without / and without a dot in front", function);
}

/* ---- files ---- */

static bool upload(rpc_session *s) {
    const char *name = name_argument(s, 0);
    if (name == NULL || name[0] == '\0') {
        return bad_name(s, "upload");
    }
    if (s->n != 2 || s->arguments[1].value.type != RPC_BYTES) {
        return ellm_rpc_fail(s, "upload wants a name and bytes");
    }
    ellm_error error = {{0}};
    const rpc_bytes *bytes = s->arguments[1].value.v.bytes;
    if (s->outside.file_write(s->outside.user, name, bytes->data, bytes->n, &error) != ELLM_OK) {
        return ellm_rpc_fail(s, "upload: %s", error.text);
    }
    return ellm_rpc_return_none(s);
}

static bool download(rpc_session *s) {
    const char *name = name_argument(s, 0);
    if (name == NULL || name[0] == '\0') {
        return bad_name(s, "download");
    }
    ellm_error error = {{0}};
    char *data = NULL;
    size_t n = 0;
    if (s->outside.file_read(s->outside.user, name, &data, &n, &error) != ELLM_OK) {
        return ellm_rpc_fail(s, "download: %s", error.text);
    }
    bool goes_on = ellm_rpc_return_bytes(s, RPC_BYTES_OBJECT, data, n);
    free(data);
    return goes_on;
}

/* RPCRunner removes names that never existed, the empty one included. */
static bool remove_file(rpc_session *s) {
    const char *name = name_argument(s, 0);
    if (name == NULL) {
        return bad_name(s, "remove");
    }
    if (name[0] != '\0') {
        s->outside.file_remove(s->outside.user, name);
    }
    return ellm_rpc_return_none(s);
}

static bool list_files(rpc_session *s) {
    ellm_error error = {{0}};
    char *names = NULL;
    size_t n = 0;
    if (s->outside.file_list(s->outside.user, &names, &n, &error) != ELLM_OK) {
        return ellm_rpc_fail(s, "listdir: %s", error.text);
    }
    bool goes_on = ellm_rpc_return_bytes(s, RPC_TEXT_OBJECT, names, n);
    free(names);
    return goes_on;
}

/* ---- modules ---- */

static bool load_module(rpc_session *s) {
    const char *name = name_argument(s, 0);
    if (name == NULL || name[0] == '\0') {
        return bad_name(s, "load_module");
    }
    ellm_error error = {{0}};
    rpc_module *module = calloc(1, sizeof *module);
    void *library = module == NULL ? NULL : s->outside.library_open(s->outside.user, name, &error);
    uint64_t handle;
    rpc_entry *entry = library == NULL ? NULL : ellm_rpc_handle_add(&s->handles, RPC_IS_MODULE, &handle);
    if (entry == NULL) {
        if (library != NULL) {
            s->outside.library_close(library);
        }
        free(module);
        return ellm_rpc_fail(s, "load_module: %s", error.text[0] != '\0' ? error.text : "out of memory or handles");
    }
    *module = (rpc_module){.library = library, .n_users = 1};
    entry->module = module;
    return ellm_rpc_return_handle(s, RPC_MODULE, handle);
}

/* The handle of a function of an uploaded library; NULL if there are too many. */
static rpc_entry *add_function(rpc_session *s, rpc_kind kind, rpc_module *module, rpc_kernel *kernel,
                               uint64_t *handle) {
    rpc_entry *entry = ellm_rpc_handle_add(&s->handles, kind, handle);
    if (entry != NULL) {
        entry->module = module;
        entry->kernel = kernel;
        module->n_users++;
    }
    return entry;
}

static bool get_function(rpc_session *s) {
    rpc_module *module = module_argument(s, 0);
    const char *name = text_argument(s, 1);
    if (module == NULL || name == NULL) {
        return ellm_rpc_fail(s, "ModuleGetFunction wants a module and a name");
    }
    rpc_kernel *kernel = s->outside.library_find(module->library, name);
    uint64_t handle;
    if (kernel == NULL) {
        return ellm_rpc_return_none(s);
    }
    if (add_function(s, RPC_IS_KERNEL, module, kernel, &handle) == NULL) {
        return ellm_rpc_fail(s, "too many handles: free some");
    }
    return ellm_rpc_return_handle(s, RPC_FUNCTION, handle);
}

/* (module, name, device type, device id, number, repeat, min_repeat_ms, limit_zero_time_iterations, cooldown_ms,
 * repeats_to_cooldown, cache_flush_bytes, preprocessing's name) */
static bool time_evaluator(rpc_session *s) {
    rpc_module *module = module_argument(s, 0);
    const char *name = text_argument(s, 1), *before = text_argument(s, 11);
    if (s->n != 12 || module == NULL || name == NULL || before == NULL) {
        return ellm_rpc_fail(s, "RPCTimeEvaluator wants a module, a name, nine numbers and a name");
    }
    int64_t v[11];
    for (int32_t i = 2; i < 11; i++) {
        if (!int_argument(s, i, i == 4 || i == 5 || i == 9 ? 1 : 0, i == 10 ? INT64_MAX : INT_MAX, &v[i])) {
            return ellm_rpc_fail(s, "RPCTimeEvaluator: argument %d is out of range", (int)i);
        }
    }
    bool flush = strcmp(before, "cache_flush_cpu_non_first_arg") == 0;
    if (v[5] > most_repeats || (uint64_t)v[10] > s->outside.memory_bytes) {
        return ellm_rpc_fail(s, "RPCTimeEvaluator: at most %d repeats, and no more to flush than memory",
                             (int)most_repeats);
    }
    if (before[0] != '\0' && !flush) {
        return ellm_rpc_fail(s, "RPCTimeEvaluator: there is no function %.200s to run before", before);
    }
    rpc_kernel *kernel = s->outside.library_find(module->library, name);
    if (kernel == NULL) {
        return ellm_rpc_fail(s, "RPCTimeEvaluator: the module has no function %.200s", name);
    }
    uint64_t handle;
    rpc_entry *entry = add_function(s, RPC_IS_TIMER, module, kernel, &handle);
    if (entry == NULL) {
        return ellm_rpc_fail(s, "too many handles: free some");
    }
    entry->timing = (rpc_timing){
        .number = (int32_t)v[4],
        .repeat = (int32_t)v[5],
        .min_repeat_ms = (int32_t)v[6],
        .zero_limit = (int32_t)v[7],
        .cooldown_ms = (int32_t)v[8],
        .repeats_to_cooldown = (int32_t)v[9],
        .flush_bytes = v[10],
        .flush_arguments = flush,
    };
    return ellm_rpc_return_handle(s, RPC_FUNCTION, handle);
}

/* ---- numbers ---- */

static uint32_t next_random(uint64_t *state) {
    *state ^= *state << 13; /* Marsaglia, Xorshift RNGs (2003) */
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 32);
}

/* Numbers that no kernel stumbles over: floats from 1 to 10, whole numbers from 0 to 7. */
static bool random_fill(rpc_session *s) {
    rpc_value values[RPC_VALUES];
    const char *reason = "random_fill wants a tensor";
    if (s->n != 1 || s->arguments[0].value.type != RPC_TENSOR || !ellm_rpc_resolve(s, values, &reason)) {
        return ellm_rpc_fail(s, "%s", reason);
    }
    const rpc_tensor *tensor = values[0].v.tensor;
    uint64_t n_bytes = 0, state = 88172645463325252u;
    ellm_rpc_tensor_bytes(tensor, &n_bytes); /* resolving has checked it */
    uint8_t *data = (uint8_t *)tensor->data + tensor->offset_bytes;
    size_t width = tensor->dtype.bits >= 8 ? tensor->dtype.bits / 8 : 1;
    bool is_float = tensor->dtype.code == 2;
    for (uint64_t at = 0; at + width <= n_bytes; at += width) {
        uint32_t number = next_random(&state);
        float single = 1.0f + 9.0f * (float)(number >> 8) / 16777216.0f;
        double twice = 1.0 + 9.0 * (double)number / 4294967296.0;
        uint16_t half = (uint16_t)(0x3c00 | (number & 0x3ff)); /* 1 to 2 */
        uint64_t whole = number % 8;
        const void *from = &whole;
        if (is_float && width == 4) {
            from = &single;
        } else if (is_float && width == 8) {
            from = &twice;
        } else if (is_float && width == 2) {
            from = &half;
        }
        memcpy(data + at, from, width);
    }
    return ellm_rpc_return_none(s);
}

/* ---- our own ---- */

static bool return_text(rpc_session *s, void (*write)(void *user, char *text, size_t n)) {
    char text[text_bytes] = "";
    write(s->outside.user, text, sizeof text);
    return ellm_rpc_return_bytes(s, RPC_TEXT_OBJECT, text, strlen(text));
}

static bool agent_info(rpc_session *s) {
    return return_text(s, s->outside.describe);
}

static bool board_state(rpc_session *s) {
    return return_text(s, s->outside.observe);
}

static bool set_threads(rpc_session *s) {
    int64_t n;
    if (!int_argument(s, 0, 1, INT_MAX, &n) || !s->outside.set_threads(s->outside.user, n)) {
        return ellm_rpc_fail(s, "edgellm.set_threads wants a number of threads that this board can have");
    }
    return ellm_rpc_return_none(s);
}

#ifdef ELLM_VULKAN
/* (plan's name, modules' name, position) -> JSON: what the GPU is */
static bool gpu_open(rpc_session *s) {
    const char *plan = name_argument(s, 0), *modules = name_argument(s, 1);
    int64_t position;
    if (plan == NULL || modules == NULL || !int_argument(s, 2, 0, INT_MAX, &position)) {
        return ellm_rpc_fail(s, "edgellm.gpu_open wants two names of files and a position");
    }
    char text[text_bytes] = "";
    ellm_error error = {{0}};
    ellm_status status =
        s->outside.gpu_open(s->outside.user, plan, modules, (int32_t)position, text, sizeof text, &error);
    return status == ELLM_OK ? ellm_rpc_return_bytes(s, RPC_TEXT_OBJECT, text, strlen(text))
                             : ellm_rpc_fail(s, "%s: %s", ellm_status_name(status), error.text);
}

/* (index, repeat, min_repeat_ms) -> as the time evaluator: raw doubles, seconds */
static bool gpu_time(rpc_session *s) {
    int64_t index, repeat, least;
    if (!int_argument(s, 0, 0, INT_MAX, &index) || !int_argument(s, 1, 1, most_repeats, &repeat)
        || !int_argument(s, 2, 0, INT_MAX, &least)) {
        return ellm_rpc_fail(s, "edgellm.gpu_time wants an index, a number of repeats and milliseconds");
    }
    double *seconds = calloc((size_t)repeat, sizeof *seconds);
    ellm_error error = {{0}};
    ellm_status status =
        seconds == NULL ? ELLM_NO_MEMORY
                        : s->outside.gpu_time(s->outside.user, index, (int32_t)repeat, (int32_t)least, seconds, &error);
    bool goes_on = status == ELLM_OK
                       ? ellm_rpc_return_bytes(s, RPC_BYTES_OBJECT, seconds, (size_t)repeat * sizeof *seconds)
                       : ellm_rpc_fail(s, "%s: %s", ellm_status_name(status), error.text);
    free(seconds);
    return goes_on;
}
#endif

rpc_builtin *ellm_rpc_builtin_find(const char *name) {
    static const struct {
        const char *name;
        rpc_builtin *function;
    } builtins[] = {
        {"tvm.rpc.server.upload", upload},
        {"tvm.rpc.server.download", download},
        {"tvm.rpc.server.remove", remove_file},
        {"tvm.rpc.server.listdir", list_files},
        {"tvm.rpc.server.load_module", load_module},
        {"tvm.rpc.server.ModuleGetFunction", get_function},
        {"runtime.RPCTimeEvaluator", time_evaluator},
        {"tvm.contrib.random.random_fill", random_fill},
        {"tvm.contrib.random.random_fill_for_measure", random_fill},
        {"edgellm.agent_info", agent_info},
        {"edgellm.board_state", board_state},
        {"edgellm.set_threads", set_threads},
#ifdef ELLM_VULKAN
        {"edgellm.gpu_open", gpu_open},
        {"edgellm.gpu_time", gpu_time},
#endif
    };
    for (size_t i = 0; i < sizeof builtins / sizeof *builtins; i++) {
        if (strcmp(builtins[i].name, name) == 0) {
            return builtins[i].function;
        }
    }
    return NULL;
}
