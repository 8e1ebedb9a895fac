#pragma once
#include <sys/types.h>

#define CPU_SETSIZE 1024
typedef struct {
    unsigned long bits[CPU_SETSIZE / 64];
} cpu_set_t;

#define CPU_ZERO(set)       __builtin_memset(set, 0, sizeof *(set))
#define CPU_SET(cpu, set)   ((set)->bits[(size_t)(cpu) / 64] |= 1UL << (size_t)(cpu) % 64)
#define CPU_ISSET(cpu, set) ((set)->bits[(size_t)(cpu) / 64] >> (size_t)(cpu) % 64 & 1)
#define CPU_EQUAL(a, b)     (__builtin_memcmp(a, b, sizeof *(a)) == 0)

int sched_getaffinity(pid_t thread, size_t n_bytes, cpu_set_t *set);
int sched_setaffinity(pid_t thread, size_t n_bytes, const cpu_set_t *set);
