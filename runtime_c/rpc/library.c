#include "posix.h"

#include "library.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "pool.h"
#include "watch.h"

/* What compiled code is linked against must be visible in the program. */
#define EXPORTED __attribute__((visibility("default"), used))

static ellm_cores machine;
static ellm_pool *pool;
static int32_t n_pool_threads = 1;
static _Thread_local char raised[2048];

/* ---- errors (tvm/ffi/c_api.h) ---- */

EXPORTED void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n);
EXPORTED void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n) {
    int length = snprintf(raised, sizeof raised, "%s: ", kind);
    for (int32_t i = 0; i < n && length >= 0 && (size_t)length < sizeof raised; i++) {
        if (parts[i] != NULL) {
            length += snprintf(raised + length, sizeof raised - (size_t)length, "%s", parts[i]);
        }
    }
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
    TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

const char *ellm_rpc_library_raised(void) {
    return raised[0] != '\0' ? raised : "the function failed without saying why";
}

static int32_t call_function(void *function, const rpc_value *arguments, int32_t n, rpc_value *result) {
    (void)function, (void)arguments, (void)n, (void)result;
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", "compiled code called a function object; this agent has none");
    return -1;
}

static int32_t look_up(void *library, const char *name, void **function) {
    (void)library, (void)function;
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", name);
    TVMFFIErrorSetRaisedFromCStrParts(
        "RuntimeError", (const char *[]){"compiled code asked for the function ", name, ", which this agent lacks"}, 3);
    return -1;
}

static int32_t init_once(void **handle, int32_t (*init)(void **handle)) {
    return *handle != NULL ? 0 : init(handle);
}

/* ---- memory and threads (tvm/runtime/c_backend_api.h) ---- */

static void *allocate(int32_t device_type, int32_t device_id, uint64_t n_bytes, int32_t code, int32_t bits) {
    (void)device_type, (void)device_id, (void)code, (void)bits;
    void *memory = NULL;
    return posix_memalign(&memory, 64, n_bytes == 0 ? 64 : (size_t)n_bytes) == 0 ? memory : NULL;
}

static int32_t release(int32_t device_type, int32_t device_id, void *memory) {
    (void)device_type, (void)device_id;
    free(memory);
    return 0;
}

enum { barrier_ns = 1000000000, barrier_stride = 16 };

/* TVMParallelGroupEnv, and what belongs to one launch. */
typedef struct group {
    struct {
        _Atomic int32_t *arrived; /* per task, a cache line apart: barriers it has reached */
        int32_t n_tasks;
    } environment;
    int32_t (*task)(int32_t id, void *environment, void *data);
    void *data;
    atomic_bool stuck;
} group;

static bool open_pool(void) {
    return pool != NULL || ellm_pool_open(n_pool_threads, &machine, &pool, NULL) == ELLM_OK;
}

/* A launch of ellm_pool whose row groups are TVM's tasks. */
static int32_t run_tasks(void *context, int64_t first, int64_t end) {
    group *g = context;
    int32_t failure = 0;
    for (int64_t i = first; i < end && failure == 0; i++) {
        failure = g->task((int32_t)i, &g->environment, g->data);
    }
    return failure;
}

static int32_t launch_tasks(int32_t (*task)(int32_t, void *, void *), void *data, int32_t n_tasks) {
    _Atomic int32_t arrived[ELLM_POOL_THREADS * barrier_stride];
    n_tasks = n_tasks <= 0 || n_tasks > n_pool_threads ? n_pool_threads : n_tasks;
    memset(arrived, 0, sizeof arrived);
    group g = {.environment = {arrived, n_tasks}, .task = task, .data = data};
    void *pointers[] = {&g};
    ellm_launch launch = {
        .function = (void (*)(void))run_tasks, .pointers = pointers, .n_pointers = 1, .groups = n_tasks, .grain = 1};
    if (!open_pool()) {
        TVMFFIErrorSetRaisedFromCStr("RuntimeError", "no memory for threads");
        return -1;
    }
    ellm_status status = ellm_pool_run(pool, &launch, 1, n_tasks);
    if (g.stuck) {
        TVMFFIErrorSetRaisedFromCStr("RuntimeError",
                                     "a barrier of a parallel loop: not all of its threads ran at the same time");
    }
    return status == ELLM_OK && !g.stuck ? 0 : -1;
}

/* The pool may run two tasks on one thread, one after the other; then a barrier between them is never passed. */
static int32_t barrier(int32_t id, void *environment) {
    group *g = environment;
    if (id < 0 || id >= g->environment.n_tasks) {
        return -1;
    }
    int32_t round = atomic_fetch_add(&g->environment.arrived[id * barrier_stride], 1) + 1;
    int64_t until = ellm_now_ns() + barrier_ns;
    for (int32_t i = 0; i < g->environment.n_tasks; i++) {
        while (atomic_load(&g->environment.arrived[i * barrier_stride]) < round) {
            if (atomic_load(&g->stuck) || ellm_now_ns() > until) {
                atomic_store(&g->stuck, true);
                return -1;
            }
            sched_yield();
        }
    }
    return 0;
}

/* Our own: a kernel with the plain interface (crosscompile/codegen.py) on the pool, exactly as a step of a plan. */
static int32_t launch_kernel(const ellm_launch *launch) {
    if (launch->groups < 1 || launch->grain < 1 || launch->n_pointers > ELLM_KERNEL_POINTERS || !open_pool()
        || ellm_pool_run(pool, launch, 1, n_pool_threads) != ELLM_OK) {
        TVMFFIErrorSetRaisedFromCStr("RuntimeError", "the kernel failed");
        return -1;
    }
    return 0;
}

void ellm_rpc_library_init(const ellm_cores *cores, int32_t n_threads) {
    machine = *cores;
    n_pool_threads = n_threads;
}

bool ellm_rpc_library_set_threads(void *user, int64_t n_threads) {
    (void)user;
    if (n_threads < 1 || n_threads > ELLM_POOL_THREADS || n_threads > machine.n) {
        return false;
    }
    ellm_pool_close(pool);
    pool = NULL;
    n_pool_threads = (int32_t)n_threads;
    return true;
}

/* ---- libraries ---- */

/* What code reaches through pointers of its own, which the loader fills in (tvm-ffi's library context). */
static const struct {
    const char *name;
    void (*function)(void);
} context[] = {
    {"__TVMFFIFunctionCall", (void (*)(void))call_function},
    {"__TVMFFIErrorSetRaisedFromCStr", (void (*)(void))TVMFFIErrorSetRaisedFromCStr},
    {"__TVMFFIErrorSetRaisedFromCStrParts", (void (*)(void))TVMFFIErrorSetRaisedFromCStrParts},
    {"__TVMFFIEnvModLookupFromImports", (void (*)(void))look_up},
    {"__TVMFFIHandleInitOnce", (void (*)(void))init_once},
    {"__TVMBackendAllocWorkspace", (void (*)(void))allocate},
    {"__TVMBackendFreeWorkspace", (void (*)(void))release},
    {"__TVMBackendParallelLaunch", (void (*)(void))launch_tasks},
    {"__TVMBackendParallelBarrier", (void (*)(void))barrier},
    {"__ellm_launch_kernel", (void (*)(void))launch_kernel},
};

void *ellm_rpc_library_open(const char *path, ellm_error *error) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *text = dlerror();
        ellm_fail(error, ELLM_KERNEL_INVALID, "%s", text != NULL ? text : "the library cannot be loaded");
        return NULL;
    }
    if (dlsym(library, "__tvm_ffi__library_bin") != NULL) {
        dlclose(library);
        ellm_fail(error, ELLM_KERNEL_INVALID,
                  "the library holds modules that need TVM itself; export one that is machine code only");
        return NULL;
    }
    for (size_t i = 0; i < sizeof context / sizeof *context; i++) {
        void *place = dlsym(library, context[i].name);
        if (place != NULL) {
            memcpy(place, &context[i].function, sizeof context[i].function);
        }
    }
    void *self = dlsym(library, "__tvm_ffi__library_ctx");
    if (self != NULL) {
        memcpy(self, &library, sizeof library);
    }
    return library;
}

rpc_kernel *ellm_rpc_library_find(void *library, const char *function) {
    char symbol[300];
    int n = snprintf(symbol, sizeof symbol, "__tvm_ffi_%s", function);
    void *address = n > 0 && (size_t)n < sizeof symbol ? dlsym(library, symbol) : NULL;
    rpc_kernel *kernel = NULL;
    memcpy(&kernel, &address, sizeof kernel); /* POSIX lets dlsym return functions, ISO C has no cast for it */
    return kernel;
}

void ellm_rpc_library_close(void *library) {
    dlclose(library);
}
