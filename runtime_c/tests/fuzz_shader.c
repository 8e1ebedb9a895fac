/* Fuzzes the reader of kernels.spv. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    ellm_region region;
    ellm_shaders shaders;
    ellm_region_init(&region, 16 << 20);
    uint8_t *copy = malloc(n_bytes > 0 ? n_bytes : 1); /* aligned, as a mapped file is */
    if (copy != NULL && n_bytes > 0) {
        memcpy(copy, data, n_bytes);
    }
    if (copy != NULL && ellm_shaders_read(copy, n_bytes, &region, &shaders, NULL) == ELLM_OK) {
        (void)ellm_shaders_find(&shaders, "kernel");
    }
    free(copy);
    ellm_region_free(&region);
    return 0;
}
