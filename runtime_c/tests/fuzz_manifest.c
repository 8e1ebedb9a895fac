/* Fuzzes the manifest reader. */
#include <stddef.h>
#include <stdint.h>

#include "manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    ellm_region region;
    ellm_manifest manifest;
    ellm_region_init(&region, 16 << 20);
    ellm_manifest_read((const char *)data, n_bytes, &region, &manifest, NULL);
    ellm_region_free(&region);
    return 0;
}
