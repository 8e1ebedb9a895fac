/* A runtime without Vulkan: static ones cannot load a driver. */
#include "gpu.h"

#ifndef ELLM_VULKAN

#include "error.h"

ellm_status ellm_gpu_open(const ellm_gpu_source *source, ellm_gpu **gpu, ellm_error *error) {
    (void)source;
    *gpu = NULL;
    return ellm_fail(
        error, ELLM_GPU_MISSING,
        "the bundle computes on a GPU, and a static runtime cannot load a driver; compile with --device cpu");
}

void ellm_gpu_close(ellm_gpu *gpu) {
    (void)gpu;
}

void ellm_gpu_get_info(const ellm_gpu *gpu, ellm_gpu_info *info) {
    (void)gpu;
    *info = (ellm_gpu_info){0};
}

ellm_status ellm_gpu_body(ellm_gpu *gpu, uint32_t index) {
    (void)gpu, (void)index;
    return ELLM_INTERNAL;
}

ellm_status ellm_gpu_head(ellm_gpu *gpu, uint32_t index, const uint8_t **logits) {
    (void)gpu, (void)index, (void)logits;
    return ELLM_INTERNAL;
}

ellm_status ellm_gpu_finish(ellm_gpu *gpu) {
    (void)gpu;
    return ELLM_INTERNAL;
}

ellm_status ellm_gpu_timed(ellm_gpu *gpu, bool is_head, uint32_t index, int64_t *ns) {
    (void)gpu, (void)is_head, (void)index, (void)ns;
    return ELLM_INTERNAL;
}

#endif
