/* region.h: memory that is handed out piece by piece and freed at once. Used while a bundle is opened. */
#ifndef ELLM_REGION_H
#define ELLM_REGION_H

#include <stddef.h>

typedef struct ellm_region {
    struct ellm_region_chunk *chunks; /* newest first */
    size_t used, total, limit;        /* bytes used of the newest chunk, of all chunks, and the most ever allowed */
} ellm_region;

/* An empty region that grows to at most `limit` bytes. */
void ellm_region_init(ellm_region *region, size_t limit);
/* Zeroed memory for n elements, aligned to 16 bytes; NULL if the system or the limit says no. Never NULL for
 * n * bytes == 0 otherwise. */
void *ellm_region_alloc(ellm_region *region, size_t n, size_t bytes);
/* A NUL-terminated copy of n_bytes bytes. */
char *ellm_region_text(ellm_region *region, const char *text, size_t n_bytes);
void ellm_region_free(ellm_region *region);

#endif
