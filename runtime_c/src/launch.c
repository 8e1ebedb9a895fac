#include "launch.h"

/* A call through the exact type for each number of pointers and scalars: on armv7 an int64_t takes an aligned pair
 * of registers or stack slots, so the arguments cannot be flattened. */
#define TYPES_1   void *
#define TYPES_2   TYPES_1, void *
#define TYPES_3   TYPES_2, void *
#define TYPES_4   TYPES_3, void *
#define TYPES_5   TYPES_4, void *
#define TYPES_6   TYPES_5, void *
#define TYPES_7   TYPES_6, void *
#define TYPES_8   TYPES_7, void *
#define TYPES_9   TYPES_8, void *
#define TYPES_10  TYPES_9, void *
#define TYPES_11  TYPES_10, void *
#define TYPES_12  TYPES_11, void *
#define VALUES_1  p[0]
#define VALUES_2  VALUES_1, p[1]
#define VALUES_3  VALUES_2, p[2]
#define VALUES_4  VALUES_3, p[3]
#define VALUES_5  VALUES_4, p[4]
#define VALUES_6  VALUES_5, p[5]
#define VALUES_7  VALUES_6, p[6]
#define VALUES_8  VALUES_7, p[7]
#define VALUES_9  VALUES_8, p[8]
#define VALUES_10 VALUES_9, p[9]
#define VALUES_11 VALUES_10, p[10]
#define VALUES_12 VALUES_11, p[11]

#define CASES(n)                                                                                                       \
    case n * 4: return ((int32_t (*)(TYPES_##n, int64_t, int64_t))f)(VALUES_##n, g0, g1);                              \
    case n * 4 + 1: return ((int32_t (*)(TYPES_##n, int64_t, int64_t, int64_t))f)(VALUES_##n, s[0], g0, g1);           \
    case n * 4 + 2:                                                                                                    \
        return ((int32_t (*)(TYPES_##n, int64_t, int64_t, int64_t, int64_t))f)(VALUES_##n, s[0], s[1], g0, g1);

int32_t ellm_launch_call(const ellm_launch *launch, int64_t g0, int64_t g1) {
    void (*f)(void) = launch->function;
    void **p = launch->pointers;
    const int64_t *s = launch->scalars;
    switch (launch->n_pointers * 4 + launch->n_scalars) {
        CASES(1)
        CASES(2)
        CASES(3)
        CASES(4)
        CASES(5)
        CASES(6)
        CASES(7)
        CASES(8)
        CASES(9)
        CASES(10)
        CASES(11)
        CASES(12)
    default: return -1; /* the plan reader lets no other number pass */
    }
}
