/* fpu.h: the floating-point mode kernels run in: round to nearest, subnormals flushed, no traps. */
#ifndef ELLM_FPU_H
#define ELLM_FPU_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* Sets the mode for this thread and returns the one before. */
static inline uint64_t ellm_fpu_enter(void) {
#if defined(__x86_64__)
    uint32_t before = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* MXCSR: FTZ, all exceptions masked, DAZ */
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)1 << 24) : "memory"); /* FPCR.FZ */
    return before;
#elif defined(__arm__)
    uint32_t before;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(before));
    __asm__ volatile("vmsr fpscr, %0" : : "r"((uint32_t)1 << 24) : "memory"); /* FPSCR.FZ */
    return before;
#endif
}

static inline void ellm_fpu_leave(uint64_t before) {
#if defined(__x86_64__)
    _mm_setcsr((uint32_t)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory");
#elif defined(__arm__)
    __asm__ volatile("vmsr fpscr, %0" : : "r"((uint32_t)before) : "memory");
#endif
}

#endif
