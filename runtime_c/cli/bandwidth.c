/* bench --bandwidth: how fast this machine's memory can be read, the bound of decoding, which reads every weight once a
 * token.
 *
 * Each thread reads its own share of a buffer much larger than the caches, with every loop this CPU can run: vectors of
 * 16, 32 or 64 bytes, one to eight streams side by side, with and without prefetch, on small and on huge pages. What
 * counts is the fastest loop: the memory is at least that fast. Rates are in GB/s, 10^9 bytes per second, the median of
 * each loop's passes. */
#include "posix.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "buffer.h"
#include "cores.h"
#include "device.h"
#include "gpu.h"
#include "program.h"

enum { most_threads = 64, n_passes = 3, page = 4096, step = 256, ahead = 2048 };
static const size_t least_bytes = (size_t)32 << 20, usual_bytes = (size_t)256 << 20, huge_page = (size_t)2 << 20;

typedef uint64_t vec16 __attribute__((vector_size(16), may_alias));
#if defined(__x86_64__)
typedef uint64_t vec32 __attribute__((vector_size(32), may_alias));
typedef uint64_t vec64 __attribute__((vector_size(64), may_alias));
#endif

#define LOOP(name, vec, isa, n_streams, prefetch)                                                                      \
    isa static uint64_t name(const unsigned char *data, size_t n_bytes) {                                              \
        enum { n_vecs = step / sizeof(vec) };                                                                          \
        vec sum[n_streams] = {0};                                                                                      \
        size_t part = n_bytes / (n_streams) / (2 * page) * (2 * page) - page - step; /* not all at the same set */     \
        for (size_t at = 0; at < part; at += step) {                                                                   \
            for (int s = 0; s < (n_streams); s++) {                                                                    \
                const unsigned char *from = data + (size_t)s * part + at;                                              \
                if (prefetch) {                                                                                        \
                    for (int line = 0; line < step; line += 64) __builtin_prefetch(from + ahead + line);               \
                }                                                                                                      \
                vec mixed = {0};                                                                                       \
                for (int i = 0; i < n_vecs; i++) mixed ^= ((const vec *)(const void *)from)[i];                        \
                sum[s] ^= mixed;                                                                                       \
            }                                                                                                          \
        }                                                                                                              \
        uint64_t all = 0, words[sizeof(vec) / 8];                                                                      \
        for (int s = 0; s < (n_streams); s++) {                                                                        \
            memcpy(words, &sum[s], sizeof words);                                                                      \
            for (size_t i = 0; i < sizeof words / 8; i++) all ^= words[i];                                             \
        }                                                                                                              \
        return all;                                                                                                    \
    }
#define LOOPS(name, vec, isa)                                                                                          \
    LOOP(name##_x1, vec, isa, 1, 0)                                                                                    \
    LOOP(name##_x2, vec, isa, 2, 0)                                                                                    \
    LOOP(name##_x4, vec, isa, 4, 0)                                                                                    \
    LOOP(name##_x8, vec, isa, 8, 0)                                                                                    \
    LOOP(name##_x1_prefetch, vec, isa, 1, 1)                                                                           \
    LOOP(name##_x4_prefetch, vec, isa, 4, 1)

LOOPS(plain, vec16, )
#if defined(__x86_64__)
LOOPS(avx2, vec32, __attribute__((target("avx2"))))
LOOPS(avx512, vec64, __attribute__((target("avx512f"))))
#endif

typedef struct loop {
    const char *name;
    uint64_t (*read)(const unsigned char *data, size_t n_bytes);
} loop;

#define ENTRIES(name)                                                                                                  \
    {#name " x1", name##_x1}, {#name " x2", name##_x2}, {#name " x4", name##_x4}, {#name " x8", name##_x8},            \
        {#name " x1 prefetch", name##_x1_prefetch}, {                                                                  \
        #name " x4 prefetch", name##_x4_prefetch                                                                       \
    }

static const loop plain_loops[] = {ENTRIES(plain)};
#if defined(__x86_64__)
static const loop avx2_loops[] = {ENTRIES(avx2)};
static const loop avx512_loops[] = {ENTRIES(avx512)};

/* Loops with vectors that CPU and operating system both have. (Zig's __builtin_cpu_supports always says no.) */
static void widest_vectors(const loop **sets) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0) {
        return;
    }
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        return;
    }
    if ((b & bit_AVX2) != 0 && (low & 6) == 6) {
        sets[0] = avx2_loops;
    }
    if ((b & bit_AVX512F) != 0 && (low & 0xe6) == 0xe6) {
        sets[1] = avx512_loops;
    }
}
#endif

enum { n_loops = sizeof plain_loops / sizeof *plain_loops };

/* What the threads share. */
typedef struct readers {
    int n;
    size_t n_bytes; /* of one share */
    const unsigned char *data;
    cpu_set_t cores;
    pthread_barrier_t gate;
    const loop *current;          /* NULL: the threads end */
    uint64_t sinks[most_threads]; /* so that nothing is optimised away */
} readers;

typedef struct reader {
    readers *all;
    int index;
} reader;

typedef struct result {
    char loop[64];
    double gb_s, low_gb_s, high_gb_s;
} result;

static void read_share(readers *all, int index) {
    all->sinks[index] ^= all->current->read(all->data + (size_t)index * all->n_bytes, all->n_bytes);
}

static void *work(void *argument) {
    const reader *own = argument;
    (void)sched_setaffinity(0, sizeof own->all->cores, &own->all->cores); /* as the runtime's own threads */
    for (;;) {
        pthread_barrier_wait(&own->all->gate);
        if (own->all->current == NULL) {
            return NULL;
        }
        read_share(own->all, own->index);
        pthread_barrier_wait(&own->all->gate);
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Rates of the passes of one loop, ascending. The calling thread is the first of the threads. */
static void measure(readers *all, const loop *l, double *gb_s) {
    all->current = l;
    for (int pass = 0; pass < n_passes; pass++) {
        pthread_barrier_wait(&all->gate);
        double start = clock_ms();
        read_share(all, 0);
        pthread_barrier_wait(&all->gate);
        gb_s[pass] = (double)all->n_bytes * all->n / (clock_ms() - start) / 1e6;
    }
    qsort(gb_s, n_passes, sizeof *gb_s, ascending);
}

/* Measures each loop on one kind of pages; appends ,"name":rate for each. */
static ellm_status measure_all(readers *all, const loop *const *sets, bool huge, result *best, buffer *json,
                               ellm_error *error) {
    size_t total = all->n_bytes * (size_t)all->n;
    unsigned char *data = mmap(NULL, total + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for a buffer of %zu bytes to read", total);
    }
    unsigned char *start = data + (huge_page - (uintptr_t)data % huge_page) % huge_page;
    /* Advice; where it is ignored both kinds are alike. */
    (void)madvise(start, total, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    for (size_t at = 0; at < total; at += page) {
        start[at] = (unsigned char)(at >> 12 | 1);
    }
    all->data = start;
    pthread_t threads[most_threads];
    reader each[most_threads];
    ellm_status status = ELLM_OK;
    int n_started = 1, wanted = all->n;
    pthread_barrier_init(&all->gate, NULL, (unsigned)wanted);
    for (; n_started < wanted; n_started++) {
        each[n_started] = (reader){all, n_started};
        if (pthread_create(&threads[n_started], NULL, work, &each[n_started]) != 0) {
            /* Those that wait at the gate would wait for ever: the process ends with the error. */
            return ellm_fail(error, ELLM_NO_MEMORY, "thread %d of %d cannot be started", n_started + 1, wanted);
        }
    }
    for (int set = 0; sets[set] != NULL; set++) {
        for (int i = 0; i < n_loops; i++) {
            const loop *l = &sets[set][i];
            double gb_s[n_passes];
            measure(all, l, gb_s);
            buffer_print(json, "%s\"%s%s\":%.3f", best->gb_s > 0 ? "," : "", l->name, huge ? " huge" : "",
                         gb_s[n_passes / 2]);
            if (gb_s[n_passes / 2] > best->gb_s) {
                *best = (result){.gb_s = gb_s[n_passes / 2], .low_gb_s = gb_s[0], .high_gb_s = gb_s[n_passes - 1]};
                snprintf(best->loop, sizeof best->loop, "%s%s", l->name, huge ? " huge" : "");
            }
        }
    }
    all->current = NULL;
    pthread_barrier_wait(&all->gate);
    for (int i = 1; i < n_started; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_barrier_destroy(&all->gate);
    munmap(data, total + huge_page);
    return status;
}

/* Bytes per second of one thread's plain loop, roughly. 0: no memory. */
static double trial_bytes_per_s(void) {
    unsigned char *data = malloc(least_bytes);
    if (data == NULL) {
        return 0;
    }
    memset(data, 1, least_bytes);
    double start = clock_ms();
    volatile uint64_t sink = plain_loops[0].read(data, least_bytes);
    (void)sink;
    double ms = clock_ms() - start;
    free(data);
    return (double)least_bytes * 1e3 / (ms > 0.1 ? ms : 0.1);
}

/* 256 MiB, or less where that would take n threads longer than a tenth of a second to read, or be more than a quarter
 * of the memory that is available. */
static size_t buffer_bytes(int n_threads) {
    FILE *file = fopen("/proc/meminfo", "r");
    char line[256];
    unsigned long long kb = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "MemAvailable:", 13) == 0) {
            kb = strtoull(line + 13, NULL, 10);
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    double wanted = trial_bytes_per_s() * n_threads / 10, most = kb == 0 ? wanted : (double)kb * 256;
    wanted = wanted < most ? wanted : most;
    wanted = wanted < (double)usual_bytes ? wanted : (double)usual_bytes;
    return wanted > (double)least_bytes ? (size_t)wanted : least_bytes;
}

ellm_status bandwidth_main(const settings *s, ellm_error *error) {
    ellm_device device;
    ellm_status status = device_wanted(s, ELLM_DEVICE_CPU, &device, error);
    if (status != ELLM_OK) {
        return status;
    }
    if (device == ELLM_DEVICE_GPU) {
#ifdef ELLM_VULKAN
        return gpu_bandwidth_main(s, error);
#else
        return ellm_gpu_open(NULL, &(ellm_gpu *){NULL}, error); /* says what is missing */
#endif
    }
    ellm_cores cores;
    ellm_cores_read(&cores);
    if (s->threads > most_threads) {
        return ellm_fail(error, ELLM_USAGE, "--bandwidth is measured with at most %d threads", (int)most_threads);
    }
    readers all = {.n = s->threads > 0 ? (int)s->threads : (int)cores.n_useful};
    all.n_bytes = buffer_bytes(all.n) / (size_t)all.n / page * page;
    ellm_cores_set(&cores, all.n, &all.cores);
    (void)sched_setaffinity(0, sizeof all.cores, &all.cores);
    const loop *sets[3] = {plain_loops, NULL, NULL};
#if defined(__x86_64__)
    widest_vectors(sets);
#endif
    result best = {.gb_s = 0};
    buffer json = {0};
    buffer_print(&json, "%s", "");
    status = measure_all(&all, sets, false, &best, &json, error);
    if (status == ELLM_OK) {
        status = measure_all(&all, sets, true, &best, &json, error);
    }
    if (status == ELLM_OK && s->json) {
        printf("{\"threads\":%d,\"buffer_bytes\":%zu,\"passes\":%d,\"gb_s\":%.3f,\"low_gb_s\":%.3f,\"high_gb_s\":%.3f,"
               "\"fastest\":\"%s\",\"loops_gb_s\":{%s}}\n",
               all.n, all.n_bytes * (size_t)all.n, (int)n_passes, best.gb_s, best.low_gb_s, best.high_gb_s, best.loop,
               json.data);
    } else if (status == ELLM_OK) {
        printf("%d threads read %.1f GB/s (%.1f to %.1f), the fastest loop: %s\n", all.n, best.gb_s, best.low_gb_s,
               best.high_gb_s, best.loop);
    }
    buffer_free(&json);
    return status;
}
