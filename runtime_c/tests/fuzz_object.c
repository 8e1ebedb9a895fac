/* Fuzzes the loader of kernels.so. */
#include <stddef.h>
#include <stdint.h>

#include "object.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    const ellm_file file = {n_bytes != 0 ? data : NULL, n_bytes, -1};
    ellm_object object;
    if (ellm_object_open(&file, "fuzz", &object, NULL) == ELLM_OK) {
        ellm_object_find(&object, "kernel");
        ellm_object_close(&object);
    }
    return 0;
}
