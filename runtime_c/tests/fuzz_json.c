/* Fuzzes the JSON reader. */
#include <stddef.h>
#include <stdint.h>

#include "json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    ellm_region region;
    ellm_json *value;
    ellm_region_init(&region, 16 << 20);
    if (ellm_json_read((const char *)data, n_bytes, &region, ELLM_BUNDLE_FORMAT, "fuzz", &value, NULL) == ELLM_OK) {
        ellm_json_get(value, "key");
    }
    ellm_region_free(&region);
    return 0;
}
