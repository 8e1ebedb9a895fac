/* How many threads, and where: cores from a made-up /sys, load from a made-up /proc/stat, gears with made-up steps. */
#include "posix.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "cores.h"
#include "gear.h"
#include "load.h"
#include "watch.h"

/* ---- cores ---- */

static char root[64];

static void put(const char *path, const char *text) {
    char full[256];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = strchr(full + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0755);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void begin(void) {
    snprintf(root, sizeof root, "/tmp/edgellm-cores-XXXXXX");
    CHECK(mkdtemp(root) != NULL);
}

static void end(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", root);
    CHECK(system(command) == 0);
}

static ellm_cores read_cores(uint64_t allowed) {
    cpu_set_t set;
    ellm_cores cores;
    CPU_ZERO(&set);
    for (size_t i = 0; i < 64; i++) {
        if (allowed >> i & 1) {
            CPU_SET(i, &set);
        }
    }
    ellm_cores_read_at(root, &set, &cores);
    return cores;
}

static uint64_t set_of(const ellm_cores *cores, int32_t n_threads) {
    cpu_set_t set;
    uint64_t bits = 0;
    ellm_cores_set(cores, n_threads, &set);
    for (size_t i = 0; i < 64; i++) {
        bits |= (uint64_t)(CPU_ISSET(i, &set) != 0) << i;
    }
    return bits;
}

/* Four small cores, then four big ones (RK3588). */
static void test_big_little(void) {
    begin();
    for (int i = 0; i < 8; i++) {
        char path[96], text[16];
        snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/cpu_capacity", i);
        put(path, i < 4 ? "530\n" : "1024\n");
        snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", i);
        snprintf(text, sizeof text, "%d\n", i);
        put(path, text);
    }
    ellm_cores cores = read_cores(0xff);
    CHECK(cores.n == 8 && cores.n_fast == 4 && cores.n_useful == 8 && cores.number[0] == 4 && cores.number[7] == 3);
    CHECK(set_of(&cores, 1) == 0xf0 && set_of(&cores, 4) == 0xf0 && set_of(&cores, 5) == 0xff);
    cores = read_cores(0x1f); /* all but one of the big ones are for somebody else */
    CHECK(cores.n == 5 && cores.n_fast == 1 && set_of(&cores, 1) == 0x10 && set_of(&cores, 2) == 0x1f);
    cores = read_cores(0x0f);
    CHECK(cores.n == 4 && cores.n_fast == 4 && set_of(&cores, 2) == 0x0f);
    end();
}

/* Two cores of two threads each; speeds as frequencies. */
static void test_siblings(void) {
    begin();
    for (int i = 0; i < 4; i++) {
        char path[96];
        snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", i);
        put(path, i % 2 == 0 ? "0,2\n" : "1,3\n");
        snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/cpufreq/cpuinfo_max_freq", i);
        put(path, i % 2 == 0 ? "2400000\n" : "2300000\n");
    }
    ellm_cores cores = read_cores(0xf);
    CHECK(cores.n == 2 && cores.n_fast == 2 && set_of(&cores, 1) == 0x3);
    cores = read_cores(0xc); /* only the second threads */
    CHECK(cores.n == 2 && set_of(&cores, 2) == 0xc);
    end();
}

static void test_quota(void) {
    begin();
    put("proc/self/cgroup", "1:cpu:/x\n0::/slice/service\n");
    put("sys/fs/cgroup/slice/service/cpu.max", "max 100000\n");
    CHECK(read_cores(0xff).n_useful == 8);
    put("sys/fs/cgroup/slice/cpu.max", "250000 100000\n");
    ellm_cores cores = read_cores(0xff);
    CHECK(cores.n == 8 && cores.n_useful == 3);
    put("sys/fs/cgroup/slice/service/cpu.max", "10000 100000\n");
    CHECK(read_cores(0xff).n_useful == 1);
    put("proc/self/cgroup", "0::/\n");
    CHECK(read_cores(0xff).n_useful == 8);
    end();
}

static void test_nothing_known(void) {
    begin();
    ellm_cores cores = read_cores(0x6);
    CHECK(cores.n == 2 && cores.n_fast == 2 && cores.n_useful == 2 && set_of(&cores, 1) == 0x6);
    CHECK(read_cores(0).n == 1);
    end();
    ellm_cores_read(&cores);
    CHECK(cores.n >= 1 && cores.n_fast >= 1 && cores.n_fast <= cores.n && cores.n_useful <= cores.n);
}

/* ---- load ---- */

static void test_load(void) {
    static const ellm_cores cores = {.n = 2, .n_fast = 2, .n_useful = 2, .number = {1, 0}};
    static const char stat[] = "cpu  9 9 9 9 9 9 9\ncpu0 10 20 30 40 5 6 7 0\ncpu1 1 2 3 4 5 6 7 0\ncpu2 9 9 9 9 9 9\n"
                               "intr 5 4 3\nctxt 1\n";
    CHECK(ellm_load_parse_idle(&cores, stat) == (20 + 40 + 5 + 2 + 4 + 5) * (int64_t)10000000);
    CHECK(ellm_load_parse_idle(&cores, "") < 0 && ellm_load_parse_idle(&cores, "cpu  1 2 3\nintr 1\n") < 0);
    const int64_t ms = 1000000;
    const ellm_load before = {0, 0, 0}, unknown = {0, 0, -1};
    /* One thread of ours ran all the time, the other core idled, or half of it. */
    CHECK(ellm_load_leaves(&before, &(ellm_load){200 * ms, 200 * ms, 200 * ms}, 2));
    CHECK(!ellm_load_leaves(&before, &(ellm_load){200 * ms, 200 * ms, 100 * ms}, 2));
    /* Ours slept, the other core was busy. */
    CHECK(!ellm_load_leaves(&before, &(ellm_load){200 * ms, 0, 200 * ms}, 2));
    CHECK(ellm_load_leaves(&unknown, &before, 2) && ellm_load_leaves(&before, &unknown, 2));
    ellm_load now;
    ellm_load_read(&cores, &now);
    CHECK(now.wall_ns > 0 && now.own_ns >= 0);
}

/* ---- gears ---- */

/* Runs steps whose time depends on the threads; returns how many of them ran with other than the fastest number. */
static int run(ellm_gear *gear, const double *ns, int32_t fastest, int n_steps) {
    int other = 0;
    for (int i = 0; i < n_steps; i++) {
        int32_t threads = gear->now;
        CHECK(threads >= 1 && threads <= gear->n_most);
        other += threads != fastest;
        ellm_gear_step(gear, ns[threads] * (i % 13 == 5 ? 3 : 1)); /* some steps are disturbed */
    }
    return other;
}

static void test_gears(void) {
    static const double memory_bound[] = {0, 10, 6, 7, 8}, compute_bound[] = {0, 40, 20, 14, 10.5};
    static const double equal[] = {0, 5, 5, 5, 5}, alone[] = {0, 5, 9, 9, 9};
    ellm_gear gear;
    ellm_gear_init(&gear, 4, 4, 6, 8);
    run(&gear, memory_bound, 2, 60);
    CHECK(gear.best == 2);
    CHECK(run(&gear, memory_bound, 2, 2000) < 100);
    ellm_gear_init(&gear, 1, 4, 6, 8);
    run(&gear, compute_bound, 4, 60);
    CHECK(gear.best == 4);
    CHECK(run(&gear, compute_bound, 4, 2000) < 60);
    ellm_gear_init(&gear, 3, 4, 2, 6);
    run(&gear, equal, 1, 100);
    CHECK(gear.best == 1);
    ellm_gear_init(&gear, 4, 4, 2, 6);
    run(&gear, alone, 1, 100);
    CHECK(gear.best == 1);
    ellm_gear_init(&gear, 4, 4, 6, 8); /* what is fastest changes */
    run(&gear, compute_bound, 4, 300);
    CHECK(gear.best == 4);
    static const double changed[] = {0, 20, 21, 25, 30};
    run(&gear, changed, 1, 1000);
    CHECK(gear.best == 1);
    ellm_gear_fix(&gear, 3);
    CHECK(run(&gear, alone, 3, 500) == 0);
    ellm_gear_init(&gear, 1, 1, 6, 8);
    CHECK(run(&gear, alone, 1, 500) == 0);
}

/* ---- a core that others use ---- */

/* Windows of 5 ms of which others take a part, every `every`-th; true once the core counts as lost. */
static bool loses(int n_windows, int every, int64_t lost_ns) {
    ellm_watch watch = {0};
    for (int i = 0; i < n_windows; i++) {
        if (ellm_watch_note(&watch, 5000000, i % every == 0 ? lost_ns : 0)) {
            return true;
        }
    }
    return false;
}

static void test_watch(void) {
    CHECK(loses(20, 1, 2500000));     /* half of the core, for a tenth of a second */
    CHECK(!loses(10, 1, 2500000));    /* a single slice or two prove nothing yet */
    CHECK(!loses(2000, 16, 5000000)); /* a program that looks in now and then, however long */
    CHECK(!loses(2000, 1, 500000));   /* a tenth is cheaper than doing without the core */
    ellm_watch watch = {0};
    CHECK(!ellm_watch_note(&watch, 5000000000, 100000000)); /* a long window forgets what was before */
}

int main(void) {
    test_watch();
    test_big_little();
    test_siblings();
    test_quota();
    test_nothing_known();
    test_load();
    test_gears();
    return check_result();
}
