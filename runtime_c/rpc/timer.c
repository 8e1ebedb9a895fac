/* TVM's time evaluator: its loop, its meaning of every parameter, its result. */
#include <stdlib.h>

#include "session.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

enum { cache_line_bytes = 64, sweep_bytes = 16 << 20 };
#if defined(__x86_64__) || defined(__aarch64__)
static const bool can_flush = true;
#else
static const bool can_flush = false; /* armv7 has no such instruction for programs: sweeping has to do */
#endif

/* Writes [data, data + n) back and takes it out of all caches. */
static void flush(const uint8_t *data, uint64_t n) {
#if defined(__x86_64__)
    for (uint64_t at = 0; at < n; at += cache_line_bytes) {
        _mm_clflush(data + at);
    }
    _mm_mfence();
#elif defined(__aarch64__)
    for (uint64_t at = 0; at < n; at += cache_line_bytes) { /* Linux lets programs do this (SCTLR_EL1.UCI) */
        __asm__ volatile("dc civac, %0" : : "r"(data + at) : "memory");
    }
    __asm__ volatile("dsb sy" : : : "memory");
#else
    (void)data;
    (void)n;
#endif
}

/* Reads and writes through so much memory that it displaces what was cached. */
static void sweep(uint8_t *memory, uint64_t n) {
    for (uint64_t at = 0; at < n; at += cache_line_bytes) {
        ((volatile uint8_t *)memory)[at]++;
    }
}

static void flush_arguments(const rpc_session *s, const rpc_value *values) {
    for (int32_t i = 1; i < s->n; i++) {
        uint64_t n_bytes;
        if (values[i].type == RPC_TENSOR && ellm_rpc_tensor_bytes(values[i].v.tensor, &n_bytes)) {
            flush((const uint8_t *)values[i].v.tensor->data + values[i].v.tensor->offset_bytes, n_bytes);
        }
    }
}

static bool run(rpc_kernel *kernel, const rpc_session *s, const rpc_value *values, int32_t number, double *ms) {
    rpc_value result;
    int32_t failed = 0;
    int64_t before = s->outside.now_ns();
    for (int32_t i = 0; i < number && failed == 0; i++) {
        result = (rpc_value){.type = RPC_NONE};
        failed = kernel(NULL, values, s->n, &result);
    }
    *ms = (double)(s->outside.now_ns() - before) / 1e6;
    return failed == 0;
}

/* One measurement: as many calls as last min_repeat_ms. *number grows, as the next measurement starts with it. */
static bool measure(rpc_kernel *kernel, const rpc_session *s, const rpc_value *values, const rpc_timing *timing,
                    int32_t *number, uint8_t *memory, double *seconds) {
    double ms = 0;
    for (int32_t n_zero = 0;;) {
        if (ms > 0) {
            double enough = timing->min_repeat_ms / (ms / *number) + 1, more = *number * 1.618;
            double next = enough > more ? enough : more;
            *number = next < INT32_MAX ? (int32_t)next : INT32_MAX;
        }
        if (timing->flush_bytes > 0) {
            sweep(memory, (uint64_t)timing->flush_bytes);
        }
        if (!run(kernel, s, values, *number, &ms)) {
            return false;
        }
        n_zero += ms <= 0;
        if (ms >= timing->min_repeat_ms || n_zero >= timing->zero_limit) {
            *seconds = ms / 1e3 / *number;
            return true;
        }
    }
}

bool ellm_rpc_time(rpc_session *s, rpc_kernel *kernel, const rpc_timing *timing) {
    rpc_value values[RPC_VALUES];
    const char *reason = "";
    if (!ellm_rpc_resolve(s, values, &reason)) {
        return ellm_rpc_fail(s, "%s", reason);
    }
    bool sweeps = timing->flush_arguments && !can_flush;
    uint64_t memory_bytes = (uint64_t)timing->flush_bytes;
    memory_bytes = sweeps && memory_bytes < sweep_bytes ? sweep_bytes : memory_bytes;
    uint8_t *memory = memory_bytes > 0 ? calloc(1, (size_t)memory_bytes) : NULL;
    double *seconds = calloc((size_t)timing->repeat, sizeof *seconds), warm_up;
    if (seconds == NULL || (memory_bytes > 0 && memory == NULL)) {
        free(memory);
        free(seconds);
        return ellm_rpc_fail(s, "out of memory for a measurement");
    }
    int32_t number = timing->number;
    bool works = run(kernel, s, values, 1, &warm_up);
    for (int32_t i = 0; works && i < timing->repeat; i++) {
        if (timing->flush_arguments) {
            flush_arguments(s, values);
        }
        if (sweeps) {
            sweep(memory, sweep_bytes);
        }
        works = measure(kernel, s, values, timing, &number, memory, &seconds[i]);
        if (timing->cooldown_ms > 0 && i % timing->repeats_to_cooldown == 0) {
            s->outside.pause_ms(timing->cooldown_ms);
        }
    }
    size_t n_bytes = (size_t)timing->repeat * sizeof *seconds;
    bool goes_on = works ? ellm_rpc_return_bytes(s, RPC_BYTES_OBJECT, seconds, n_bytes)
                         : ellm_rpc_fail(s, "%s", s->outside.raised());
    free(memory);
    free(seconds);
    return goes_on;
}
