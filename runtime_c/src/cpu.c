#include "posix.h"

#include "cpu.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#else
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)

enum { leaf1_ecx, leaf1_edx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf71_eax, n_words };
enum { state_none = 0, state_avx = 0x6, state_avx512 = 0xe6 }; /* XCR0 bits the feature's registers need */

typedef struct feature {
    char name[16];
    uint8_t word, bit, state;
} feature;

/* Intel SDM volume 2A, CPUID */
static const feature features[] = {
    {"pni", leaf1_ecx, 0, state_none},
    {"ssse3", leaf1_ecx, 9, state_none},
    {"fma", leaf1_ecx, 12, state_avx},
    {"sse4_1", leaf1_ecx, 19, state_none},
    {"sse4_2", leaf1_ecx, 20, state_none},
    {"popcnt", leaf1_ecx, 23, state_none},
    {"avx", leaf1_ecx, 28, state_avx},
    {"f16c", leaf1_ecx, 29, state_avx},
    {"sse2", leaf1_edx, 26, state_none},
    {"bmi1", leaf7_ebx, 3, state_none},
    {"avx2", leaf7_ebx, 5, state_avx},
    {"bmi2", leaf7_ebx, 8, state_none},
    {"avx512f", leaf7_ebx, 16, state_avx512},
    {"avx512dq", leaf7_ebx, 17, state_avx512},
    {"avx512cd", leaf7_ebx, 28, state_avx512},
    {"sha_ni", leaf7_ebx, 29, state_none},
    {"avx512bw", leaf7_ebx, 30, state_avx512},
    {"avx512vl", leaf7_ebx, 31, state_avx512},
    {"avx512_vnni", leaf7_ecx, 11, state_avx512},
    {"avx512_fp16", leaf7_edx, 23, state_avx512},
    {"avx_vnni", leaf71_eax, 4, state_avx},
    {"avx512_bf16", leaf71_eax, 5, state_avx512},
};

bool ellm_cpu_has(const char *name) {
    unsigned words[n_words] = {0}, a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) {
        words[leaf1_ecx] = c;
        words[leaf1_edx] = d;
    }
    unsigned subleaves = 0;
    if (__get_cpuid_count(7, 0, &subleaves, &b, &c, &d)) {
        words[leaf7_ebx] = b;
        words[leaf7_ecx] = c;
        words[leaf7_edx] = d;
        if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
            words[leaf71_eax] = a;
        }
    }
    unsigned enabled = 0, upper = 0;
    if (words[leaf1_ecx] >> 27 & 1) { /* OSXSAVE: XGETBV may be used */
        __asm__ volatile("xgetbv" : "=a"(enabled), "=d"(upper) : "c"(0));
    }
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        const feature *f = &features[i];
        if (strcmp(f->name, name) == 0) {
            return (words[f->word] >> f->bit & 1) != 0 && (enabled & f->state) == f->state;
        }
    }
    return false;
}

#elif defined(__aarch64__) || defined(__arm__)

typedef struct feature {
    char name[12];
    uint8_t word, bit; /* AT_HWCAP or AT_HWCAP2 */
} feature;

static const feature features[] = {
#if defined(__aarch64__) /* linux/arch/arm64/include/uapi/asm/hwcap.h */
    {"fp", 0, 0},        {"asimd", 0, 1},    {"aes", 0, 3},     {"pmull", 0, 4}, {"sha1", 0, 5},
    {"sha2", 0, 6},      {"crc32", 0, 7},    {"atomics", 0, 8}, {"fphp", 0, 9},  {"asimdhp", 0, 10},
    {"asimdrdm", 0, 12}, {"asimddp", 0, 20}, {"sha512", 0, 21}, {"sve", 0, 22},  {"asimdfhm", 0, 23},
    {"sve2", 1, 1},      {"svei8mm", 1, 9},  {"i8mm", 1, 13},   {"bf16", 1, 14},
#else                    /* linux/arch/arm/include/uapi/asm/hwcap.h */
    {"half", 0, 1},     {"thumb", 0, 2},    {"vfp", 0, 6},       {"edsp", 0, 7},    {"neon", 0, 12}, {"vfpv3", 0, 13},
    {"vfpv4", 0, 16},   {"idiva", 0, 17},   {"idivt", 0, 18},    {"vfpd32", 0, 19}, {"lpae", 0, 20}, {"fphp", 0, 22},
    {"asimdhp", 0, 23}, {"asimddp", 0, 24}, {"asimdfhm", 0, 25}, {"i8mm", 0, 27},   {"aes", 1, 0},   {"pmull", 1, 1},
    {"sha1", 1, 2},     {"sha2", 1, 3},     {"crc32", 1, 4},
#endif
};

bool ellm_cpu_has(const char *name) {
    const unsigned long words[2] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        if (strcmp(features[i].name, name) == 0) {
            return (words[features[i].word] >> features[i].bit & 1) != 0;
        }
    }
    return false;
}

#else
#error "edgellm runs on aarch64, armv7 and x86_64"
#endif

const char *ellm_cpu_arch(void) {
#if defined(__x86_64__)
    return "x86_64";
#elif defined(__aarch64__)
    return "aarch64";
#else
    return "armv7";
#endif
}
