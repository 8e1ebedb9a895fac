/* safetensors.h: the weight shards. Format: github.com/huggingface/safetensors, with the promises of FORMAT.md. */
#ifndef ELLM_SAFETENSORS_H
#define ELLM_SAFETENSORS_H

#include "edgellm.h"
#include "region.h"

typedef struct ellm_tensor {
    const char *name;
    const uint8_t *data; /* 64-byte aligned, inside the mapped shard */
    uint64_t bytes;
} ellm_tensor;

/* Bytes that the header of a shard of n_bytes takes, from its first 8 bytes; 0 if it does not fit the file. */
size_t ellm_safetensors_head_bytes(const uint8_t *head, size_t n_bytes);
/* Checks the header of the shard in data[0..n_bytes) and lists its tensors in file order, padding left out.
 * head: the header's bytes, there or copied. Names and list live in `region`. BUNDLE_FORMAT for anything FORMAT.md does
 * not promise. */
ellm_status ellm_safetensors_read(const uint8_t *head, const uint8_t *data, size_t n_bytes, const char *path,
                                  ellm_region *region, ellm_tensor **tensors, size_t *n_tensors, ellm_error *error);

#endif
