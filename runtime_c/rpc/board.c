#include "posix.h"

#include "board.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "load.h"
#include "wire.h"

enum { most_entries = 32 }; /* policies, zones and cache levels looked at */

typedef struct text_out {
    char *text;
    size_t n, cap;
} text_out;

__attribute__((format(printf, 2, 3))) static void print(text_out *out, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(out->text + out->n, out->cap - out->n, format, arguments);
    va_end(arguments);
    size_t left = out->cap - out->n - 1;
    out->n += n < 0 ? 0 : (size_t)n < left ? (size_t)n : left;
}

/* One line of a small file; false if it cannot be read. What JSON would have to escape is left out. */
__attribute__((format(printf, 2, 3))) static bool read_line(char line[64], const char *format, ...) {
    char path[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(path, sizeof path, format, arguments);
    va_end(arguments);
    int file = length < 0 || (size_t)length >= sizeof path ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? -1 : read(file, line, 63);
    if (file >= 0) {
        close(file);
    }
    size_t kept = 0;
    for (ssize_t i = 0; i < n && line[i] != '\n'; i++) {
        if (line[i] > ' ' && line[i] < 0x7f && line[i] != '"' && line[i] != '\\') {
            line[kept++] = line[i];
        }
    }
    line[kept] = '\0';
    return kept > 0;
}

/* Bytes of the largest cache that the first processor reaches: "32768K". */
static unsigned long long cache_bytes(const char *root) {
    unsigned long long most = 0;
    for (int i = 0; i < most_entries; i++) {
        char line[64], *end;
        if (!read_line(line, "%s/sys/devices/system/cpu/cpu0/cache/index%d/size", root, i)) {
            break;
        }
        unsigned long long n = strtoull(line, &end, 10);
        n *= *end == 'K' ? 1024 : *end == 'M' ? 1024 * 1024 : 1;
        most = n > most ? n : most;
    }
    return most;
}

void ellm_rpc_describe(const char *root, const ellm_cores *cores, int32_t n_threads, char *text, size_t n) {
#if defined(__x86_64__)
    const char *arch = "x86_64";
#elif defined(__aarch64__)
    const char *arch = "aarch64";
#else
    const char *arch = "armv7";
#endif
    text_out out = {text, 0, n};
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    print(&out, "{\"agent\":\"edgellm-rt\",\"protocol\":\"" RPC_PROTOCOL "\",\"arch\":\"%s\",", arch);
    print(&out, "\"cores\":%d,\"fast_cores\":%d,\"threads\":%d,", (int)cores->n, (int)cores->n_fast, (int)n_threads);
    print(&out, "\"memory_bytes\":%llu,\"cache_bytes\":%llu}", (unsigned long long)pages * (unsigned long long)page,
          cache_bytes(root));
}

/* "name":[…] of a file that each of several folders has. */
static void print_list(text_out *out, const char *root, const char *name, const char *folder, const char *file,
                       bool is_number) {
    print(out, "\"%s\":[", name);
    const char *comma = "";
    for (int i = 0; i < most_entries; i++) {
        char line[64];
        if (read_line(line, "%s%s%d/%s", root, folder, i, file)) {
            if (is_number) {
                print(out, "%s%lld", comma, strtoll(line, NULL, 10));
            } else {
                print(out, "%s\"%s\"", comma, line);
            }
            comma = ",";
        }
    }
    print(out, "],");
}

void ellm_rpc_observe(const char *root, const ellm_cores *cores, char *text, size_t n) {
    static const char policy[] = "/sys/devices/system/cpu/cpufreq/policy";
    text_out out = {text, 0, n};
    char line[64];
    ellm_load load;
    unsigned long long n_throttled = 0;
    print(&out, "{");
    print_list(&out, root, "governors", policy, "scaling_governor", false);
    print_list(&out, root, "khz", policy, "scaling_cur_freq", true);
    print_list(&out, root, "most_khz", policy, "scaling_max_freq", true);
    print_list(&out, root, "temperature_mc", "/sys/class/thermal/thermal_zone", "temp", true);
    if (read_line(line, "%s/sys/devices/platform/soc/soc:firmware/get_throttled", root)) {
        print(&out, "\"throttled\":%llu,", strtoull(line, NULL, 16));
    } else {
        print(&out, "\"throttled\":null,");
    }
    for (int i = 0; i < cores->n; i++) {
        if (read_line(line, "%s/sys/devices/system/cpu/cpu%d/thermal_throttle/core_throttle_count", root,
                      (int)cores->number[i])) {
            n_throttled += strtoull(line, NULL, 10);
        }
    }
    ellm_load_read(cores, &load);
    print(&out, "\"throttle_count\":%llu,\"wall_ns\":%lld,\"own_ns\":%lld,\"idle_ns\":%lld}", n_throttled,
          (long long)load.wall_ns, (long long)load.own_ns, (long long)load.idle_ns);
}
