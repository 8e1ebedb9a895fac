#include "region.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { alignment = 16, smallest_chunk = 16 * 1024 };

struct ellm_region_chunk {
    struct ellm_region_chunk *next;
    size_t bytes; /* of data[] */
    _Alignas(16) unsigned char data[];
};

void ellm_region_init(ellm_region *region, size_t limit) {
    *region = (ellm_region){.limit = limit};
}

void *ellm_region_alloc(ellm_region *region, size_t n, size_t bytes) {
    if (bytes != 0 && n > (SIZE_MAX / 2) / bytes) {
        return NULL;
    }
    size_t want = (n * bytes + alignment - 1) & ~(size_t)(alignment - 1);
    struct ellm_region_chunk *chunk = region->chunks;
    if (chunk == NULL || chunk->bytes - region->used < want) {
        /* Doubling: the number of chunks stays small whatever a file asks for. */
        size_t size = region->total < smallest_chunk ? smallest_chunk : region->total;
        size = size < want ? want : size;
        if (size > region->limit - region->total) {
            size = region->limit - region->total;
            if (size < want) {
                return NULL;
            }
        }
        chunk = calloc(1, sizeof *chunk + size);
        if (chunk == NULL) {
            return NULL;
        }
        chunk->next = region->chunks;
        chunk->bytes = size;
        region->chunks = chunk;
        region->used = 0;
        region->total += size;
    }
    void *result = chunk->data + region->used;
    region->used += want;
    return result;
}

char *ellm_region_text(ellm_region *region, const char *text, size_t n_bytes) {
    if (n_bytes == SIZE_MAX) {
        return NULL;
    }
    char *copy = ellm_region_alloc(region, n_bytes + 1, 1);
    if (copy != NULL && n_bytes != 0) {
        memcpy(copy, text, n_bytes);
    }
    return copy;
}

void ellm_region_free(ellm_region *region) {
    struct ellm_region_chunk *chunk = region->chunks;
    while (chunk != NULL) {
        struct ellm_region_chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
    ellm_region_init(region, region->limit);
}
