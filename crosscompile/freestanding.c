/* The memory functions LLVM may call on its own account, so that kernels.so imports nothing. Hidden, not exported. */
#include <stddef.h>

#define HIDDEN __attribute__((visibility("hidden")))

HIDDEN void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    char *restrict d = to;
    const char *restrict s = from;
    for (size_t i = 0; i < n; i++) d[i] = s[i];
    return to;
}

HIDDEN void *memset(void *to, int value, size_t n) {
    char *d = to;
    for (size_t i = 0; i < n; i++) d[i] = (char)value;
    return to;
}

#ifdef __arm__ /* the run-time ABI's names; memset there takes (to, n, value) */
HIDDEN void __aeabi_memcpy(void *to, const void *from, size_t n) { memcpy(to, from, n); }
HIDDEN void __aeabi_memcpy4(void *to, const void *from, size_t n) { memcpy(to, from, n); }
HIDDEN void __aeabi_memcpy8(void *to, const void *from, size_t n) { memcpy(to, from, n); }
HIDDEN void __aeabi_memset(void *to, size_t n, int value) { memset(to, value, n); }
HIDDEN void __aeabi_memset4(void *to, size_t n, int value) { memset(to, value, n); }
HIDDEN void __aeabi_memset8(void *to, size_t n, int value) { memset(to, value, n); }
HIDDEN void __aeabi_memclr(void *to, size_t n) { memset(to, 0, n); }
HIDDEN void __aeabi_memclr4(void *to, size_t n) { memset(to, 0, n); }
HIDDEN void __aeabi_memclr8(void *to, size_t n) { memset(to, 0, n); }
/* LLVM's unwind tables name these; nothing ever unwinds through a kernel. */
HIDDEN void __aeabi_unwind_cpp_pr0(void) {}
HIDDEN void __aeabi_unwind_cpp_pr1(void) {}
#endif
