/* launch.h: one kernel with everything it is called with. */
#ifndef ELLM_LAUNCH_H
#define ELLM_LAUNCH_H

#include <stdint.h>

enum { ELLM_KERNEL_POINTERS = 12, ELLM_KERNEL_SCALARS = 2 };

typedef struct ellm_launch {
    void (*function)(void); /* int32_t (*)(n_pointers × void *, n_scalars × int64_t, int64_t g0, int64_t g1) */
    void **pointers;        /* n_pointers of them, 1 to 12 */
    int64_t scalars[ELLM_KERNEL_SCALARS];
    int64_t groups, grain; /* row groups, and the fewest that are worth a call of their own */
    uint8_t n_pointers, n_scalars;
} ellm_launch;

/* Computes the row groups [g0, g1). Returns what the kernel returns: 0, or its error. */
int32_t ellm_launch_call(const ellm_launch *launch, int64_t g0, int64_t g1);

#endif
