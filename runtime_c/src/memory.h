/* memory.h: how much memory there is. */
#ifndef ELLM_MEMORY_H
#define ELLM_MEMORY_H

#include <stdint.h>

/* Bytes of memory that can still be had, UINT64_MAX if the system does not say. */
uint64_t ellm_available_bytes(void);

#endif
