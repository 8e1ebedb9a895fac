/* Fuzzes the plan reader and the check of extents. */
#include <stddef.h>
#include <stdint.h>

#include "plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const uint64_t symbols[ELLM_SYMBOLS] = {1, 128, 64, 2, 128};
    ellm_region region;
    ellm_plan plan;
    ellm_region_init(&region, 16 << 20);
    if (ellm_plan_read((const char *)data, n_bytes, 32, &region, &plan, NULL) == ELLM_OK) {
        ellm_plan_check(&plan, symbols, NULL);
        ellm_plan_token_bytes(&plan);
    }
    ellm_region_free(&region);
    return 0;
}
