/* What the compiler calls and the NDK's own library would bring. Zig's brings memcpy and its kin, too, which then come
 * before the phone's. Sources: Arm ARM, B2.4.4 (caches) and B2.9 (exclusive access). */
#include <stdint.h>

/* Instructions in [start, end) were written as data. */
void __clear_cache(void *start, void *end) {
    uint64_t sizes;
    __asm__ volatile("mrs %0, ctr_el0" : "=r"(sizes));
    const uintptr_t data_line = (uintptr_t)4 << (sizes >> 16 & 15), code_line = (uintptr_t)4 << (sizes & 15);
    for (uintptr_t at = (uintptr_t)start & -data_line; at < (uintptr_t)end; at += data_line) {
        __asm__ volatile("dc cvau, %0" ::"r"(at) : "memory");
    }
    __asm__ volatile("dsb ish" ::: "memory");
    for (uintptr_t at = (uintptr_t)start & -code_line; at < (uintptr_t)end; at += code_line) {
        __asm__ volatile("ic ivau, %0" ::"r"(at) : "memory");
    }
    __asm__ volatile("dsb ish\n\tisb" ::: "memory");
}

/* Clang leaves to these whether the processor has instructions that do it in one go; all processors have this way. */
uint32_t __aarch64_ldadd4_acq_rel(uint32_t value, uint32_t *at) {
    uint32_t before, sum, failed;
    __asm__ volatile("1:\tldaxr %w0, %3\n\tadd %w1, %w0, %w4\n\tstlxr %w2, %w1, %3\n\tcbnz %w2, 1b"
                     : "=&r"(before), "=&r"(sum), "=&r"(failed), "+Q"(*at)
                     : "r"(value)
                     : "memory");
    return before;
}

uint64_t __aarch64_cas8_acq_rel(uint64_t expected, uint64_t wanted, uint64_t *at) {
    uint64_t before;
    uint32_t failed;
    __asm__ volatile("1:\tldaxr %0, %2\n\tcmp %0, %3\n\tb.ne 2f\n\tstlxr %w1, %4, %2\n\tcbnz %w1, 1b\n2:"
                     : "=&r"(before), "=&r"(failed), "+Q"(*at)
                     : "r"(expected), "r"(wanted)
                     : "cc", "memory");
    return before;
}
