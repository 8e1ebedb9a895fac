/* look.c: a function's steps one by one, and what lies in the GPU's buffers, for whoever looks for a kernel that is wrong.
 *
 * Everything is copied through the buffer that both see, whether the processor sees the others or not: one way on all
 * devices. */
#include <stdlib.h>
#include <string.h>

#include "parts.h"

ellm_status ellm_gpu_step(ellm_gpu *gpu, bool is_head, uint32_t index, uint32_t step) {
    const ellm_vulkan_function *function = is_head ? &gpu->head[index] : &gpu->body[index];
    ellm_status status = step == 0 ? ellm_vulkan_start_alone(gpu, is_head, index) : gpu->lost;
    status = status == ELLM_OK ? ellm_vulkan_begin(gpu, gpu->copying, true, NULL) : status;
    if (status != ELLM_OK) {
        return status;
    }
    ellm_vulkan_barrier(gpu, gpu->copying, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                        VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                        VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT);
    ellm_vulkan_record_step(gpu, function, step, gpu->copying);
    return ellm_vulkan_run_once(gpu, gpu->copying, NULL);
}

/* One piece, as long as the buffer at most: from the device, or to it. */
static ellm_status copy_piece(ellm_gpu *gpu, const ellm_plan_argument *where, VkDeviceSize offset, VkDeviceSize bytes,
                              bool to_gpu) {
    const VkDescriptorBufferInfo place = ellm_vulkan_bound(gpu, where, bytes);
    ellm_status status = ellm_vulkan_begin_copying(gpu);
    if (status != ELLM_OK) {
        return status;
    }
    offset += place.offset;
    const VkBufferCopy region = {.srcOffset = to_gpu ? 0 : offset, .dstOffset = to_gpu ? offset : 0, .size = bytes};
    gpu->api.CmdCopyBuffer(gpu->copying, to_gpu ? gpu->stage.buffer : place.buffer,
                           to_gpu ? place.buffer : gpu->stage.buffer, 1, &region);
    return to_gpu ? ellm_vulkan_run_once(gpu, gpu->copying, NULL) : ellm_vulkan_fetch(gpu);
}

ellm_status ellm_gpu_look(ellm_gpu *gpu, const ellm_plan_argument *where, uint64_t offset, uint64_t bytes,
                          const uint8_t **data) {
    ellm_status status = ellm_vulkan_open_stage(gpu);
    if (bytes > gpu->looked_cap) {
        free(gpu->looked);
        gpu->looked = bytes < SIZE_MAX ? malloc((size_t)bytes) : NULL;
        gpu->looked_cap = gpu->looked != NULL ? bytes : 0;
        status = gpu->looked != NULL ? status : ELLM_NO_MEMORY;
    }
    for (uint64_t done = 0, now; done < bytes && status == ELLM_OK; done += now) {
        now = bytes - done < gpu->stage.bytes ? bytes - done : gpu->stage.bytes;
        status = copy_piece(gpu, where, offset + done, now, false);
        if (status == ELLM_OK) {
            memcpy(gpu->looked + done, gpu->stage.mapped, (size_t)now);
        }
    }
    *data = gpu->looked;
    return status;
}

ellm_status ellm_gpu_put(ellm_gpu *gpu, const ellm_plan_argument *where, uint64_t offset, uint64_t bytes,
                         const uint8_t *data) {
    ellm_status status = ellm_vulkan_open_stage(gpu);
    for (uint64_t done = 0, now; done < bytes && status == ELLM_OK; done += now) {
        now = bytes - done < gpu->stage.bytes ? bytes - done : gpu->stage.bytes;
        if (data != NULL) { /* nothing reads the buffer: each piece was waited for */
            memcpy(gpu->stage.mapped, data + done, (size_t)now);
        } else {
            memset(gpu->stage.mapped, 0, (size_t)now);
        }
        status = copy_piece(gpu, where, offset + done, now, true);
    }
    return status;
}

ellm_status ellm_gpu_clear(ellm_gpu *gpu) {
    const ellm_plan *plan = gpu->source.plan;
    ellm_plan_argument where = {.bind = ELLM_BIND_ARENA};
    ellm_status status = ellm_gpu_put(gpu, &where, 0, plan->arena_bytes, NULL);
    for (uint32_t i = 0; i < plan->n_states && status == ELLM_OK; i++) {
        where = (ellm_plan_argument){.bind = ELLM_BIND_STATE, .value = i};
        status = ellm_gpu_put(gpu, &where, 0,
                              plan->state_bytes[i] * gpu->source.symbols[ellm_plan_state_count(plan, i)], NULL);
    }
    return status;
}
