/* The pool: every group exactly once, in order of launches, in the right floating-point mode, on any thread count. */
#include "posix.h"

#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "cpu.h"
#include "fpu.h"
#include "pool.h"

enum { n_groups = 1000 };
static ellm_cores cores;

static int32_t count(void *counts, int64_t g0, int64_t g1) {
    atomic_int *at = counts;
    for (int64_t g = g0; g < g1; g++) {
        atomic_fetch_add(&at[g], 1);
    }
    return 0;
}

/* Each launch reads what the one before wrote, all of it: a missing barrier shows. */
static int32_t chain(void *from, void *to, int64_t value, int64_t g0, int64_t g1) {
    const int32_t *in = from;
    int32_t *out = to;
    for (int64_t g = g0; g < g1; g++) {
        out[g] = in[n_groups - 1 - g] + (int32_t)value;
    }
    return 0;
}

static int32_t flushes(void *result, int64_t g0, int64_t g1) {
    volatile float tiny = 1e-30f;
    for (int64_t g = g0; g < g1; g++) {
        ((float *)result)[g] = tiny * 1e-10f;
    }
    return 0;
}

static int32_t fails(void *unused, int64_t g0, int64_t g1) {
    (void)unused;
    return g0 <= 500 && 500 < g1 ? 42 : 0;
}

static int32_t many(void *a, void *b, void *c, void *d, void *e, void *f, void *g, void *h, void *i, void *j, void *k,
                    void *l, int64_t s, int64_t t, int64_t g0, int64_t g1) {
    const char *base = a;
    void *const all[] = {b, c, d, e, f, g, h, i, j, k, l};
    for (int at = 0; at < 11; at++) {
        if (all[at] != base + at + 1) {
            return 1;
        }
    }
    return s == -5 && t == (int64_t)1 << 40 && g0 == 0 && g1 == 3 ? 0 : 2;
}

static void test_calls(void) {
    char base[16];
    void *pointers[12];
    for (int i = 0; i < 12; i++) {
        pointers[i] = base + i;
    }
    ellm_launch launch = {(void (*)(void))many, pointers, {-5, (int64_t)1 << 40}, 3, 1, 12, 2};
    CHECK(ellm_launch_call(&launch, 0, 3) == 0);
}

static void test_pool(int32_t n_threads) {
    static atomic_int counts[n_groups];
    static int32_t a[n_groups], b[n_groups];
    static float tiny[n_groups];
    ellm_pool *pool = NULL;
    ellm_error error = {""};
    CHECK_STATUS(ellm_pool_open(n_threads, &cores, &pool, &error), ELLM_OK, error, "");
    memset(a, 0, sizeof a);
    void *counted[] = {counts}, *forth[] = {a, b}, *back[] = {b, a}, *tinies[] = {tiny};
    for (int64_t grain = 1; grain <= n_groups; grain = grain * 3 + 1) {
        const ellm_launch launch = {(void (*)(void))count, counted, {0}, n_groups, grain, 1, 0};
        memset(counts, 0, sizeof counts);
        CHECK(ellm_pool_run(pool, &launch, 1, n_threads) == ELLM_OK);
        int wrong = 0;
        for (int i = 0; i < n_groups; i++) {
            wrong += counts[i] != 1;
        }
        CHECK(wrong == 0);
    }
    enum { n_chain = 400 };
    static ellm_launch launches[n_chain];
    int32_t sum = 0;
    for (int i = 0; i < n_chain; i++) {
        launches[i] = (ellm_launch){(void (*)(void))chain, i % 2 ? back : forth, {i}, n_groups, 1 + i % 50, 2, 1};
        sum += i;
    }
    for (int round = 0; round < 5; round++) {
        usleep(round == 3 ? 2000 : 0); /* long enough to park */
        CHECK(ellm_pool_run(pool, launches, n_chain, 1 + (n_threads - 1) * (round != 2)) == ELLM_OK);
    }
    int wrong = 0;
    for (int i = 0; i < n_groups; i++) {
        wrong += a[i] != 5 * sum;
    }
    CHECK(wrong == 0);

    const ellm_launch flush = {(void (*)(void))flushes, tinies, {0}, n_groups, 1, 1, 0};
    volatile float small = 1e-30f;
    CHECK(small * 1e-10f != 0);
    CHECK(ellm_pool_run(pool, &flush, 1, n_threads) == ELLM_OK);
    CHECK(small * 1e-10f != 0); /* the caller's mode is as it was */
    for (int i = 0; i < n_groups; i++) {
        wrong += tiny[i] != 0;
    }
    CHECK(wrong == 0);

    memset(counts, 0, sizeof counts);
    const ellm_launch failing[] = {{(void (*)(void))fails, counted, {0}, n_groups, 1, 1, 0},
                                   {(void (*)(void))count, counted, {0}, n_groups, 1, 1, 0}};
    CHECK(ellm_pool_run(pool, failing, 2, n_threads) == ELLM_KERNEL_FAILED);
    CHECK(counts[0] == 0);
    CHECK(ellm_pool_run(pool, failing + 1, 1, n_threads) == ELLM_OK);
    CHECK(counts[0] == 1);
    ellm_pool_close(pool);
}

/* A pool opened before a fork works in the child. */
static void test_fork(void) {
    static atomic_int counts[n_groups];
    void *counted[] = {counts};
    const ellm_launch launch = {(void (*)(void))count, counted, {0}, n_groups, 1, 1, 0};
    ellm_pool *pool = NULL;
    CHECK(ellm_pool_open(3, &cores, &pool, NULL) == ELLM_OK);
    pid_t child = fork();
    if (child == 0) {
        _exit(ellm_pool_run(pool, &launch, 1, 3) == ELLM_OK && counts[999] == 1 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ellm_pool_close(pool);
}

int main(void) {
    ellm_error error = {""};
    ellm_pool *pool = NULL;
    ellm_cores_read(&cores);
    test_fork();
    test_calls();
    for (int32_t n = 1; n <= 5; n += 1) {
        test_pool(n);
    }
    CHECK_STATUS(ellm_pool_open(0, &cores, &pool, &error), ELLM_USAGE, error, "1 to 64");
    CHECK_STATUS(ellm_pool_open(65, &cores, &pool, &error), ELLM_USAGE, error, "1 to 64");
    ellm_pool_close(NULL);
    CHECK(!ellm_cpu_has("no_such_feature") && !ellm_cpu_has(""));
    return check_result();
}
