#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "parts.h"

enum { alignment = 256 }; /* of whatever is bound: the largest that the specification lets a device ask for */
static const VkDeviceSize most_chunk = (VkDeviceSize)1 << 30, stage_bytes = (VkDeviceSize)32 << 20;

static VkDeviceSize aligned(VkDeviceSize bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
}

/* ---- weights and states, in few large buffers ---- */

/* One thing to be placed: a weight or a state. */
struct item {
    VkDeviceSize bytes;
    ellm_vulkan_place *place;
    uint32_t chunk;
};

static ellm_status lay_out(ellm_gpu *gpu, struct item *items, size_t n, VkDeviceSize *sizes, uint32_t *n_chunks,
                           ellm_error *error) {
    VkDeviceSize most = gpu->most_allocation < most_chunk ? gpu->most_allocation : most_chunk;
    uint32_t chunk = 0;
    for (size_t i = 0; i < n; i++) {
        VkDeviceSize bytes = aligned(items[i].bytes);
        if (items[i].bytes > gpu->limits.maxStorageBufferRange || bytes > gpu->most_allocation) {
            return ellm_fail(
                error, ELLM_NO_MEMORY,
                "a tensor, or what a layer keeps, of %llu MiB is more than the GPU can use at once (%u MiB); ask "
                "for a shorter context, or compile with --device cpu",
                (unsigned long long)(items[i].bytes >> 20), gpu->limits.maxStorageBufferRange >> 20);
        }
        if (sizes[chunk] != 0 && sizes[chunk] + bytes > most) {
            chunk++;
        }
        items[i].chunk = chunk;
        items[i].place->offset = sizes[chunk];
        sizes[chunk] += bytes;
    }
    *n_chunks = chunk + 1;
    return ELLM_OK;
}

static ellm_status place_items(ellm_gpu *gpu, struct item *items, size_t n, ellm_error *error) {
    VkDeviceSize *sizes = ellm_region_alloc(&gpu->region, n + 1, sizeof *sizes);
    if (sizes == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for the list of tensors");
    }
    ellm_vulkan_buffer *chunks = gpu->chunks + gpu->n_chunks;
    uint32_t n_chunks = 0;
    ellm_status status = lay_out(gpu, items, n, sizes, &n_chunks, error);
    gpu->n_chunks += n_chunks;
    for (uint32_t i = 0; i < n_chunks && status == ELLM_OK; i++) {
        status = ellm_vulkan_new_buffer(gpu, sizes[i], ELLM_VULKAN_DEVICE, "weights and KV cache", &chunks[i], error);
    }
    for (size_t i = 0; i < n && status == ELLM_OK; i++) {
        items[i].place->buffer = &chunks[items[i].chunk];
    }
    return status;
}

static ellm_status place_all(ellm_gpu *gpu, ellm_error *error) {
    const ellm_plan *plan = gpu->source.plan;
    size_t n = (size_t)plan->n_weights + plan->n_states;
    struct item *items = ellm_region_alloc(&gpu->region, n, sizeof *items);
    gpu->weights = ellm_region_alloc(&gpu->region, plan->n_weights, sizeof *gpu->weights);
    gpu->states = ellm_region_alloc(&gpu->region, plan->n_states, sizeof *gpu->states);
    gpu->chunks = ellm_region_alloc(&gpu->region, n + 1, sizeof *gpu->chunks); /* no more are imported than weights */
    if (items == NULL || gpu->weights == NULL || gpu->states == NULL || gpu->chunks == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for the list of tensors");
    }
    ellm_vulkan_import(gpu);
    n = 0;
    for (uint32_t i = 0; i < plan->n_weights; i++) {
        gpu->info.weight_bytes += plan->weights[i].bytes;
        if (gpu->weights[i].buffer == NULL) {
            items[n++] = (struct item){.bytes = plan->weights[i].bytes, .place = &gpu->weights[i]};
        }
    }
    for (uint32_t i = 0; i < plan->n_states; i++) {
        VkDeviceSize bytes = plan->state_bytes[i] * gpu->source.symbols[ellm_plan_state_count(plan, i)]; /* checked */
        items[n++] = (struct item){.bytes = bytes, .place = &gpu->states[i]};
        gpu->info.state_bytes += bytes;
    }
    return n == 0 ? ELLM_OK : place_items(gpu, items, n, error);
}

/* ---- copying the weights ---- */

/* Two halves of a buffer that take turns: one is filled while the other is copied. */
struct stage {
    ellm_vulkan_buffer buffer;
    VkCommandBuffer commands[2];
    VkFence fences[2];
    bool busy[2];
    int turn;
    VkDeviceSize used; /* of the half whose turn it is */
    bool recording;
};

static ellm_status wait_half(ellm_gpu *gpu, struct stage *stage, int half, ellm_error *error) {
    if (!stage->busy[half]) {
        return ELLM_OK;
    }
    stage->busy[half] = false;
    VkResult result = gpu->api.WaitForFences(gpu->device, 1, &stage->fences[half], VK_TRUE, (uint64_t)120 * 1000000000);
    result = result == VK_SUCCESS ? gpu->api.ResetFences(gpu->device, 1, &stage->fences[half]) : result;
    return result == VK_SUCCESS ? ELLM_OK : ellm_vulkan_failed(result, "copying weights", error);
}

/* Sends off the half whose turn it is, and turns. */
static ellm_status send_half(ellm_gpu *gpu, struct stage *stage, ellm_error *error) {
    if (!stage->recording) {
        return ELLM_OK;
    }
    VkCommandBuffer commands = stage->commands[stage->turn];
    VkResult result = gpu->api.EndCommandBuffer(commands);
    const VkSubmitInfo submit = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
    result = result == VK_SUCCESS ? gpu->api.QueueSubmit(gpu->queue, 1, &submit, stage->fences[stage->turn]) : result;
    if (result != VK_SUCCESS) {
        return ellm_vulkan_failed(result, "copying weights", error);
    }
    stage->busy[stage->turn] = true;
    stage->recording = false;
    stage->used = 0;
    stage->turn ^= 1;
    return ELLM_OK;
}

static ellm_status copy_staged(ellm_gpu *gpu, struct stage *stage, const uint8_t *data, VkDeviceSize bytes,
                               const ellm_vulkan_place *to, ellm_error *error) {
    for (VkDeviceSize done = 0; done < bytes;) {
        if (stage->used == stage_bytes) {
            ellm_status status = send_half(gpu, stage, error);
            if (status != ELLM_OK) {
                return status;
            }
        }
        if (!stage->recording) {
            ellm_status status = wait_half(gpu, stage, stage->turn, error);
            status = status == ELLM_OK ? ellm_vulkan_begin(gpu, stage->commands[stage->turn], true, error) : status;
            if (status != ELLM_OK) {
                return status;
            }
            stage->recording = true;
        }
        VkDeviceSize room = stage_bytes - stage->used, now = bytes - done < room ? bytes - done : room;
        VkDeviceSize at = (VkDeviceSize)stage->turn * stage_bytes + stage->used;
        memcpy(stage->buffer.mapped + at, data + done, (size_t)now);
        const VkBufferCopy copy = {.srcOffset = at, .dstOffset = to->offset + done, .size = now};
        gpu->api.CmdCopyBuffer(stage->commands[stage->turn], stage->buffer.buffer, to->buffer->buffer, 1, &copy);
        stage->used += (now + 3) / 4 * 4;
        done += now;
    }
    return ELLM_OK;
}

static ellm_status open_stage(ellm_gpu *gpu, struct stage *stage, ellm_error *error) {
    const VkFenceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    ellm_status status =
        ellm_vulkan_new_buffer(gpu, 2 * stage_bytes, ELLM_VULKAN_READ, "copying weights", &stage->buffer, error);
    for (int i = 0; i < 2 && status == ELLM_OK; i++) {
        status = ellm_vulkan_commands(gpu, &stage->commands[i], error);
        VkResult result =
            status == ELLM_OK ? gpu->api.CreateFence(gpu->device, &info, NULL, &stage->fences[i]) : VK_SUCCESS;
        status = result == VK_SUCCESS ? status : ellm_vulkan_failed(result, "copying weights", error);
    }
    return status;
}

static void close_stage(ellm_gpu *gpu, struct stage *stage) {
    for (int i = 0; i < 2; i++) {
        (void)wait_half(gpu, stage, i, NULL);
        if (stage->fences[i] != VK_NULL_HANDLE) {
            gpu->api.DestroyFence(gpu->device, stage->fences[i], NULL);
        }
    }
    ellm_vulkan_free_buffer(gpu, &stage->buffer);
}

static ellm_status copy_weights(ellm_gpu *gpu, ellm_error *error) {
    const ellm_plan *plan = gpu->source.plan;
    struct stage stage = {.recording = false};
    bool staged = false;
    ellm_status status = ELLM_OK;
    for (uint32_t i = 0; i < plan->n_weights && status == ELLM_OK; i++) {
        const ellm_vulkan_place *to = &gpu->weights[i];
        const ellm_plan_weight *weight = &plan->weights[i];
        if (to->buffer->imported) {
            continue;
        }
        if (to->buffer->mapped != NULL) {
            memcpy(to->buffer->mapped + to->offset, weight->data, (size_t)weight->bytes);
            continue;
        }
        if (!staged) {
            staged = true;
            status = open_stage(gpu, &stage, error);
        }
        status = status == ELLM_OK ? copy_staged(gpu, &stage, weight->data, weight->bytes, to, error) : status;
    }
    if (staged) {
        status = status == ELLM_OK ? send_half(gpu, &stage, error) : status;
        for (int i = 0; i < 2 && status == ELLM_OK; i++) {
            status = wait_half(gpu, &stage, i, error);
        }
        close_stage(gpu, &stage);
    }
    return status;
}

/* ---- the whole ---- */

ellm_status ellm_vulkan_allocate(ellm_gpu *gpu, ellm_error *error) {
    const ellm_plan *plan = gpu->source.plan;
    if (gpu->limits.minStorageBufferOffsetAlignment > 64) {
        return ellm_fail(error, ELLM_GPU_MISSING,
                         "%.80s aligns buffers to %llu bytes, plans to 64; compile with --device cpu", gpu->info.name,
                         (unsigned long long)gpu->limits.minStorageBufferOffsetAlignment);
    }
    VkDeviceSize inputs = 0;
    for (int i = 0; i < ELLM_INPUTS; i++) {
        uint64_t entries = i == ELLM_INPUT_BLOCK_TABLE ? gpu->source.symbols[ELLM_SYMBOL_TABLE] : ELLM_STEP_ROWS;
        gpu->input_offsets[i] = inputs;
        gpu->input_bytes[i] = entries * 4;
        inputs += aligned(entries * 4);
    }
    VkDeviceSize logits = plan->logits_row_bytes * (VkDeviceSize)ellm_ladder_rows(&plan->head);
    VkDeviceSize arena = plan->arena_bytes > 0 ? plan->arena_bytes : 4;
    gpu->info.other_bytes = arena + inputs;
    ellm_status status = place_all(gpu, error);
    status = status == ELLM_OK ? ellm_vulkan_new_buffer(gpu, arena, ELLM_VULKAN_DEVICE, "the arena", &gpu->arena, error)
                               : status;
    status = status == ELLM_OK ? ellm_vulkan_new_buffer(gpu, inputs, ELLM_VULKAN_WRITTEN, "inputs", &gpu->inputs, error)
                               : status;
    if (status == ELLM_OK && !gpu->arena.cached) {
        gpu->info.other_bytes += logits;
        status = ellm_vulkan_new_buffer(gpu, logits, ELLM_VULKAN_READ, "logits", &gpu->logits, error);
    }
    if (status == ELLM_OK && (gpu->inputs.mapped == NULL || (!gpu->arena.cached && gpu->logits.mapped == NULL))) {
        status = ellm_fail(error, ELLM_GPU_MISSING, "%.80s has no memory that the processor sees", gpu->info.name);
    }
    return status == ELLM_OK ? copy_weights(gpu, error) : status;
}

void ellm_vulkan_free(ellm_gpu *gpu) {
    for (uint32_t i = 0; i < gpu->n_chunks && gpu->chunks != NULL; i++) {
        ellm_vulkan_free_buffer(gpu, &gpu->chunks[i]);
    }
    ellm_vulkan_free_buffer(gpu, &gpu->arena);
    ellm_vulkan_free_buffer(gpu, &gpu->inputs);
    ellm_vulkan_free_buffer(gpu, &gpu->logits);
    ellm_vulkan_free_buffer(gpu, &gpu->stage);
}
