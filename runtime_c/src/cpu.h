/* cpu.h: what this processor is and can do. */
#ifndef ELLM_CPU_H
#define ELLM_CPU_H

#include <stdbool.h>
#include <stdint.h>

/* "aarch64", "armv7" or "x86_64": what this library was compiled for. */
const char *ellm_cpu_arch(void);

/* Whether the processor, and the operating system with it, supports a feature named as Linux prints it in
 * /proc/cpuinfo. False for names this runtime does not know. */
bool ellm_cpu_has(const char *feature);

#endif
