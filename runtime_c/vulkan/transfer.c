/* transfer.c: what a GPU keeps of sessions: copied on the device, and written and read by the processor, through a buffer
 * that both see. */
#include <string.h>

#include "parts.h"

static const VkDeviceSize usual_stage = (VkDeviceSize)4 << 20;

ellm_status ellm_vulkan_begin_copying(ellm_gpu *gpu) {
    ellm_status status = ellm_vulkan_settle(gpu, NULL);
    status = status == ELLM_OK ? ellm_vulkan_begin(gpu, gpu->copying, true, NULL) : status;
    if (status == ELLM_OK) {
        ellm_vulkan_barrier(gpu, gpu->copying, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                            VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT,
                            VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT);
    }
    return status;
}

static void copy(ellm_gpu *gpu, const ellm_vulkan_buffer *from, VkDeviceSize source, const ellm_vulkan_buffer *to,
                 VkDeviceSize target, VkDeviceSize bytes) {
    const VkBufferCopy region = {.srcOffset = source, .dstOffset = target, .size = bytes};
    gpu->api.CmdCopyBuffer(gpu->copying, from->buffer, to->buffer, 1, &region);
}

static VkDeviceSize offset_of(const ellm_gpu *gpu, uint32_t state, int32_t place) {
    return gpu->states[state].offset + gpu->source.plan->state_bytes[state] * (VkDeviceSize)place;
}

ellm_status ellm_gpu_copy(ellm_gpu *gpu, ellm_symbol what, int32_t from, int32_t to) {
    const ellm_plan *plan = gpu->source.plan;
    ellm_status status = ellm_vulkan_begin_copying(gpu);
    for (uint32_t i = 0; i < plan->n_states && status == ELLM_OK; i++) {
        const ellm_vulkan_buffer *buffer = gpu->states[i].buffer;
        if (ellm_plan_state_count(plan, i) == what) {
            copy(gpu, buffer, offset_of(gpu, i, from), buffer, offset_of(gpu, i, to), plan->state_bytes[i]);
        }
    }
    return status == ELLM_OK ? ellm_vulkan_run_once(gpu, gpu->copying, NULL) : status;
}

/* ---- between the processor and states ---- */

/* It has room for one of whatever there is. */
ellm_status ellm_vulkan_open_stage(ellm_gpu *gpu) {
    const ellm_plan *plan = gpu->source.plan;
    VkDeviceSize bytes = usual_stage;
    if (gpu->stage.mapped != NULL) {
        return ELLM_OK;
    }
    for (uint32_t i = 0; i < plan->n_states; i++) {
        bytes = plan->state_bytes[i] > bytes ? plan->state_bytes[i] : bytes;
    }
    ellm_status status = ellm_vulkan_new_stage(gpu, bytes, "reading and writing states", &gpu->stage, NULL);
    if (status != ELLM_OK || gpu->stage.mapped == NULL) {
        ellm_vulkan_free_buffer(gpu, &gpu->stage);
        return status != ELLM_OK ? status : ELLM_GPU_MISSING;
    }
    return ELLM_OK;
}

/* How many of a state's there is room for. */
static ellm_status open_stage(ellm_gpu *gpu, uint32_t state, size_t *room) {
    ellm_status status = ellm_vulkan_open_stage(gpu);
    *room = (size_t)(gpu->stage.bytes / gpu->source.plan->state_bytes[state]);
    return status;
}

ellm_status ellm_vulkan_fetch(ellm_gpu *gpu) {
    ellm_vulkan_barrier(gpu, gpu->copying, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_ACCESS_TRANSFER_WRITE_BIT,
                        VK_PIPELINE_STAGE_HOST_BIT, VK_ACCESS_HOST_READ_BIT);
    return ellm_vulkan_run_once(gpu, gpu->copying, NULL);
}

ellm_status ellm_gpu_write(ellm_gpu *gpu, uint32_t state, const int32_t *places, size_t n, const uint8_t *data) {
    const VkDeviceSize bytes = gpu->source.plan->state_bytes[state];
    size_t room = 0;
    ellm_status status = open_stage(gpu, state, &room);
    for (size_t done = 0, now; done < n && status == ELLM_OK; done += now) {
        now = n - done < room ? n - done : room;
        status = ellm_vulkan_begin_copying(gpu); /* the submission makes what is written before it visible */
        memcpy(gpu->stage.mapped, data + done * (size_t)bytes, now * (size_t)bytes);
        for (size_t i = 0; i < now && status == ELLM_OK; i++) {
            copy(gpu, &gpu->stage, bytes * i, gpu->states[state].buffer, offset_of(gpu, state, places[done + i]),
                 bytes);
        }
        status = status == ELLM_OK ? ellm_vulkan_run_once(gpu, gpu->copying, NULL) : status;
    }
    return status;
}

ellm_status ellm_gpu_read(ellm_gpu *gpu, uint32_t state, const int32_t *places, size_t *n, const uint8_t **data) {
    const VkDeviceSize bytes = gpu->source.plan->state_bytes[state];
    size_t room = 0;
    ellm_status status = open_stage(gpu, state, &room);
    status = status == ELLM_OK ? ellm_vulkan_begin_copying(gpu) : status;
    if (status != ELLM_OK) {
        return status;
    }
    *n = *n < room ? *n : room;
    *data = gpu->stage.mapped;
    for (size_t i = 0; i < *n; i++) {
        copy(gpu, gpu->states[state].buffer, offset_of(gpu, state, places[i]), &gpu->stage, bytes * i, bytes);
    }
    return ellm_vulkan_fetch(gpu);
}
