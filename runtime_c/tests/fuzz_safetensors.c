/* Fuzzes the safetensors header. The input is the header; its padding to 64 KB and some data are added. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "safetensors.h"

enum { header_bytes = 65536, data_bytes = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static uint8_t shard[header_bytes + data_bytes];
    ellm_region region;
    ellm_tensor *tensors;
    size_t n_tensors;
    ellm_region_init(&region, 16 << 20);
    ellm_safetensors_read(data, data, n_bytes, "fuzz", &region, &tensors, &n_tensors, NULL); /* as a whole file */
    if (n_bytes <= header_bytes - 8) {
        const uint64_t length = header_bytes - 8;
        memset(shard, ' ', header_bytes);
        memcpy(shard, &length, 8);
        if (n_bytes != 0) {
            memcpy(shard + 8, data, n_bytes);
        }
        if (ellm_safetensors_read(shard, shard, sizeof shard, "fuzz", &region, &tensors, &n_tensors, NULL) == ELLM_OK) {
            for (size_t i = 0; i < n_tensors; i++) { /* what it promises is readable */
                volatile uint8_t byte = tensors[i].bytes != 0 ? tensors[i].data[tensors[i].bytes - 1] : 0;
                (void)byte;
            }
        }
    }
    ellm_region_free(&region);
    return 0;
}
