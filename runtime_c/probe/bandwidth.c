/* Read bandwidth of this machine's memory: the bound of decoding, which reads every weight once a token.
 *
 *   bandwidth THREADS [MiB] [PASSES]
 *
 * Each thread reads its own share of a buffer much larger than the caches, with every loop this CPU can run: vectors of
 * 16, 32 or 64 bytes, one to eight streams side by side, with and without prefetch, on small and on huge pages. What
 * counts is the fastest loop: the memory is at least that fast. One JSON object goes to standard output, in GB/s (10^9
 * bytes): the median of each loop's passes, and the largest of these medians. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

enum { most_threads = 64, most_passes = 100, page = 4096, step = 256, ahead = 2048 };

typedef uint64_t vec16 __attribute__((vector_size(16)));
typedef uint64_t vec32 __attribute__((vector_size(32)));
typedef uint64_t vec64 __attribute__((vector_size(64)));

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
#endif
#if defined(__x86_64__)
/* Loops with vectors that CPU and operating system both have. (Zig's __builtin_cpu_supports always says no.) */
static void widest_vectors(const loop **sets) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0) return;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    if ((b & bit_AVX2) != 0 && (low & 6) == 6) sets[0] = avx2_loops;
    if ((b & bit_AVX512F) != 0 && (low & 0xe6) == 0xe6) sets[1] = avx512_loops;
}
#endif

enum { n_loops = sizeof plain_loops / sizeof *plain_loops };

static pthread_barrier_t gate;
static const loop *current; /* NULL: the threads end */
static volatile uint64_t sink;

typedef struct share {
    const unsigned char *data;
    size_t n_bytes;
} share;

static void *worker(void *argument) {
    const share *own = argument;
    for (;;) {
        pthread_barrier_wait(&gate);
        if (current == NULL) return NULL;
        sink ^= current->read(own->data, own->n_bytes);
        pthread_barrier_wait(&gate);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Bytes per second, the median of the passes. The calling thread is the first of the threads. */
static double measure(const loop *l, const share *own, size_t total, int n_passes) {
    double rate[most_passes];
    current = l;
    for (int pass = 0; pass < n_passes; pass++) {
        pthread_barrier_wait(&gate);
        double start = now();
        sink ^= l->read(own->data, own->n_bytes);
        pthread_barrier_wait(&gate);
        rate[pass] = (double)total / (now() - start);
    }
    qsort(rate, (size_t)n_passes, sizeof *rate, ascending);
    return rate[n_passes / 2];
}

/* Measures each loop on one kind of pages; prints ", name: rate" for each. */
static void measure_all(const loop *const *sets, int n_threads, size_t n_bytes, int huge, int n_passes, double *best,
                        char *name, size_t name_cap) {
    size_t huge_page = (size_t)2 << 20;
    unsigned char *data = mmap(NULL, n_bytes + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        fprintf(stderr, "bandwidth: no memory for %zu bytes\n", n_bytes);
        exit(1);
    }
    unsigned char *start = data + (huge_page - (uintptr_t)data % huge_page) % huge_page;
    madvise(start, n_bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE); /* advice; where it is ignored both are alike */
    for (size_t at = 0; at < n_bytes; at += page) start[at] = (unsigned char)(at >> 12 | 1);
    pthread_t threads[most_threads];
    share shares[most_threads];
    size_t part = n_bytes / (size_t)n_threads / page * page;
    pthread_barrier_init(&gate, NULL, (unsigned)n_threads);
    for (int i = 0; i < n_threads; i++) {
        shares[i] = (share){start + (size_t)i * part, part};
        if (i > 0 && pthread_create(&threads[i], NULL, worker, &shares[i]) != 0) {
            fprintf(stderr, "bandwidth: no thread\n");
            exit(1);
        }
    }
    for (int set = 0; sets[set] != NULL; set++) {
        for (int i = 0; i < n_loops; i++) {
            const loop *l = &sets[set][i];
            double rate = measure(l, &shares[0], part * (size_t)n_threads, n_passes) / 1e9;
            printf("%s\"%s%s\": %.3f", *best > 0 ? ", " : "", l->name, huge ? " huge" : "", rate);
            if (rate > *best) {
                *best = rate;
                snprintf(name, name_cap, "%s%s", l->name, huge ? " huge" : "");
            }
        }
    }
    current = NULL;
    pthread_barrier_wait(&gate);
    for (int i = 1; i < n_threads; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&gate);
    munmap(data, n_bytes + huge_page);
}

int main(int argc, char **argv) {
    int n_threads = argc > 1 ? atoi(argv[1]) : 0, n_passes = argc > 3 ? atoi(argv[3]) : 3;
    size_t n_mib = argc > 2 ? strtoul(argv[2], NULL, 10) : 256;
    if (n_threads < 1 || n_threads > most_threads || n_mib < 16 || n_passes < 1 || n_passes > most_passes) {
        fprintf(stderr, "usage: bandwidth THREADS [MiB] [PASSES]\n");
        return 2;
    }
    const loop *sets[3] = {plain_loops, NULL, NULL};
#if defined(__x86_64__)
    widest_vectors(sets);
#endif
    double best = 0;
    char name[64] = "";
    printf("{\"threads\": %d, \"buffer_bytes\": %zu, \"passes\": %d, \"loops_gb_s\": {", n_threads, n_mib << 20,
           n_passes);
    for (int huge = 0; huge < 2; huge++) {
        measure_all(sets, n_threads, n_mib << 20, huge, n_passes, &best, name, sizeof name);
    }
    printf("}, \"fastest\": \"%s\", \"gb_s\": %.3f}\n", name, best);
    return 0;
}
