#include "posix.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "file.h"
#include "parts.h"
#include "watch.h"

static const uint64_t most_wait_ns = (uint64_t)300 * 1000000000; /* then it is called lost: nothing hangs */

static uint32_t needs_of(const ellm_plan *plan) {
    uint32_t needs = 0;
    for (uint32_t i = 0; i < plan->n_kernels; i++) {
        needs |= ((const ellm_shader *)plan->kernels[i].function)->needs;
    }
    return needs;
}

ellm_status ellm_vulkan_open(ellm_gpu *gpu, ellm_error *error) {
    const VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    ellm_status status = ellm_vulkan_load(&gpu->api, error);
    const uint32_t needs = needs_of(gpu->source.plan);
    ellm_vulkan_features features;
    status = status == ELLM_OK ? ellm_vulkan_pick(gpu, needs, &features, error) : status;
    status = status == ELLM_OK ? ellm_vulkan_open_device(gpu, needs, &features, error) : status;
    if (status != ELLM_OK) {
        return status;
    }
    VkResult result = gpu->api.CreateFence(gpu->device, &fence, NULL, &gpu->fence);
    if (result != VK_SUCCESS) {
        gpu->fence = VK_NULL_HANDLE;
        return ellm_vulkan_failed(result, "opening it", error);
    }
    return ELLM_OK;
}

ellm_status ellm_vulkan_prepare(ellm_gpu *gpu, ellm_error *error) {
    int64_t start = ellm_now_ns();
    ellm_status status = ellm_vulkan_allocate(gpu, error);
    if (status == ELLM_OK) {
        status = ellm_vulkan_try_imports(gpu, error);
        gpu->lacks_pages = status != ELLM_OK;
    }
    int64_t uploaded = ellm_now_ns();
    status = status == ELLM_OK ? ellm_vulkan_build_pipelines(gpu, error) : status;
    gpu->info.upload_ms = (double)(uploaded - start) / 1e6;
    gpu->info.pipelines_ms = (double)(ellm_now_ns() - uploaded) / 1e6;
    return status == ELLM_OK ? ellm_vulkan_record_all(gpu, error) : status;
}

/* copies: weights, even if they could be imported. lacks_pages: set if the device was lost over those that were. */
static ellm_status open_once(const ellm_gpu_source *source, bool copies, bool *lacks_pages, ellm_gpu **result,
                             ellm_error *error) {
    *result = NULL;
    ellm_gpu *gpu = calloc(1, sizeof *gpu);
    if (gpu == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for a GPU");
    }
    gpu->source = *source;
    gpu->copies_all = copies;
    ellm_region_init(&gpu->region, (size_t)512 << 20);
    ellm_status status = ellm_vulkan_open(gpu, error);
    status = status == ELLM_OK ? ellm_vulkan_prepare(gpu, error) : status;
    if (status != ELLM_OK) {
        *lacks_pages = gpu->lacks_pages;
        gpu->api.library = gpu->lacks_pages ? NULL : gpu->api.library; /* it stays, as below */
        ellm_gpu_close(gpu);
        return status;
    }
    *result = gpu;
    return ELLM_OK;
}

ellm_status ellm_gpu_open(const ellm_gpu_source *source, ellm_gpu **result, ellm_error *error) {
    bool lacks_pages = false;
    ellm_status status = open_once(source, false, &lacks_pages, result, error);
    return lacks_pages ? open_once(source, true, &lacks_pages, result, error) : status;
}

ellm_status ellm_gpu_find(const ellm_plan *plan, bool real, char driver[ELLM_GPU_DRIVER], ellm_error *error) {
    ellm_gpu *gpu = calloc(1, sizeof *gpu);
    if (gpu == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for a GPU");
    }
    gpu->source.real = real;
    ellm_status status = ellm_vulkan_load(&gpu->api, error);
    ellm_vulkan_features features;
    status = status == ELLM_OK
                 ? ellm_vulkan_pick(gpu, plan != NULL ? needs_of(plan) : ELLM_NEEDS_FLOOR, &features, error)
                 : status;
    memcpy(driver, gpu->info.driver, sizeof gpu->info.driver);
    gpu->api.library = NULL; /* it stays: what comes next opens it, and drivers may not like to be loaded twice */
    ellm_vulkan_unload(&gpu->api);
    free(gpu);
    return status;
}

void ellm_gpu_close(ellm_gpu *gpu) {
    if (gpu == NULL) {
        return;
    }
    if (gpu->is_stuck) { /* what it may still work with stays until the program ends */
        ellm_file_keep_mapped();
        ellm_region_free(&gpu->region);
        free(gpu);
        return;
    }
    if (gpu->device != NULL) {
        if (gpu->api.DeviceWaitIdle != NULL && gpu->lost == ELLM_OK) {
            (void)gpu->api.DeviceWaitIdle(gpu->device);
        }
        if (gpu->api.DestroyDevice != NULL) { /* then all its functions are there */
            ellm_vulkan_free_records(gpu);
            ellm_vulkan_free_pipelines(gpu);
            ellm_vulkan_free(gpu);
            if (gpu->fence != VK_NULL_HANDLE) {
                gpu->api.DestroyFence(gpu->device, gpu->fence, NULL);
            }
            gpu->api.DestroyDevice(gpu->device, NULL);
        }
    }
    ellm_vulkan_unload(&gpu->api);
    ellm_region_free(&gpu->region);
    free(gpu->looked);
    free(gpu);
}

void ellm_gpu_get_info(const ellm_gpu *gpu, ellm_gpu_info *info) {
    *info = gpu->info;
}

/* ---- running ---- */

/* Notes a failure: a device that is lost stays lost. */
static ellm_status checked(ellm_gpu *gpu, VkResult result, ellm_error *error) {
    if (result == VK_SUCCESS) {
        return ELLM_OK;
    }
    gpu->lost = ellm_vulkan_failed(result, "computing", error);
    return gpu->lost;
}

/* Waits for what was submitted. */
static ellm_status wait(ellm_gpu *gpu, ellm_error *error) {
    if (gpu->lost != ELLM_OK || !gpu->in_flight) {
        return gpu->lost;
    }
    gpu->in_flight = false;
    VkResult result = gpu->api.WaitForFences(gpu->device, 1, &gpu->fence, VK_TRUE, most_wait_ns);
    gpu->is_stuck = result != VK_SUCCESS;
    result = result == VK_SUCCESS ? gpu->api.ResetFences(gpu->device, 1, &gpu->fence) : result;
    return checked(gpu, result, error);
}

/* Submits what is pending and, if not NULL, `last`. */
static ellm_status submit(ellm_gpu *gpu, VkCommandBuffer last, ellm_error *error) {
    VkCommandBuffer list[2];
    uint32_t n = 0;
    if (gpu->pending != NULL) {
        list[n++] = gpu->pending;
        gpu->pending = NULL;
    }
    if (last != NULL) {
        list[n++] = last;
    }
    if (gpu->lost != ELLM_OK || n == 0) {
        return gpu->lost;
    }
    const VkSubmitInfo info = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = n, .pCommandBuffers = list};
    ellm_status status = checked(gpu, gpu->api.QueueSubmit(gpu->queue, 1, &info, gpu->fence), error);
    gpu->in_flight = status == ELLM_OK;
    return status;
}

ellm_status ellm_vulkan_settle(ellm_gpu *gpu, ellm_error *error) {
    ellm_status status = wait(gpu, error);
    status = status == ELLM_OK ? submit(gpu, NULL, error) : status;
    return status == ELLM_OK ? wait(gpu, error) : status;
}

ellm_status ellm_vulkan_run_once(ellm_gpu *gpu, VkCommandBuffer commands, ellm_error *error) {
    ellm_status status = checked(gpu, gpu->api.EndCommandBuffer(commands), error);
    status = status == ELLM_OK ? submit(gpu, commands, error) : status;
    return status == ELLM_OK ? wait(gpu, error) : status;
}

static void copy_input(ellm_gpu *gpu, ellm_input input, uint64_t bytes) {
    memcpy(gpu->inputs.mapped + gpu->input_offsets[input], gpu->source.inputs[input], (size_t)bytes);
}

ellm_status ellm_gpu_body(ellm_gpu *gpu, uint32_t index) {
    ellm_status status = ellm_vulkan_settle(gpu, NULL);
    if (status != ELLM_OK) {
        return status;
    }
    const ellm_vulkan_function *function = &gpu->body[index];
    uint64_t bytes = (uint64_t)function->source->n * 4;
    copy_input(gpu, ELLM_INPUT_TOKENS, bytes);
    copy_input(gpu, ELLM_INPUT_POSITIONS, bytes);
    copy_input(gpu, ELLM_INPUT_SLOTS, bytes);
    copy_input(gpu, ELLM_INPUT_BLOCK_TABLE, gpu->input_bytes[ELLM_INPUT_BLOCK_TABLE]);
    gpu->pending = function->commands;
    return ELLM_OK;
}

ellm_status ellm_gpu_head(ellm_gpu *gpu, uint32_t index, const uint8_t **logits) {
    const ellm_vulkan_function *function = &gpu->head[index];
    ellm_status status = wait(gpu, NULL); /* the inputs of an earlier head may still be read */
    if (status == ELLM_OK) {
        copy_input(gpu, ELLM_INPUT_ROWS, (uint64_t)function->source->n * 4);
        status = submit(gpu, function->commands, NULL);
    }
    status = status == ELLM_OK ? wait(gpu, NULL) : status;
    *logits = gpu->arena.cached ? gpu->arena.mapped + gpu->source.plan->logits_offset : gpu->logits.mapped;
    return status;
}

ellm_status ellm_gpu_finish(ellm_gpu *gpu) {
    ellm_status status = gpu->pending != NULL ? wait(gpu, NULL) : gpu->lost;
    return status == ELLM_OK ? submit(gpu, NULL, NULL) : status;
}

ellm_status ellm_vulkan_start_alone(ellm_gpu *gpu, bool is_head, uint32_t index) {
    ellm_status status;
    if (is_head) {
        status = ellm_vulkan_settle(gpu, NULL);
        copy_input(gpu, ELLM_INPUT_ROWS, (uint64_t)gpu->head[index].source->n * 4);
    } else {
        status = ellm_gpu_body(gpu, index);
        gpu->pending = NULL;
    }
    return status;
}

ellm_status ellm_gpu_timed(ellm_gpu *gpu, bool is_head, uint32_t index, int64_t *ns) {
    ellm_vulkan_function *function = is_head ? &gpu->head[index] : &gpu->body[index];
    uint32_t n = function->source->n_steps;
    ellm_status status = ellm_vulkan_start_alone(gpu, is_head, index);
    status = status == ELLM_OK ? ellm_vulkan_record_timed(gpu, function, is_head, NULL) : status;
    status = status == ELLM_OK ? submit(gpu, function->timed, NULL) : status;
    status = status == ELLM_OK ? wait(gpu, NULL) : status;
    if (status != ELLM_OK) {
        return status;
    }
    uint64_t *ticks = calloc((size_t)n + 1, sizeof *ticks);
    if (ticks == NULL) {
        return ELLM_NO_MEMORY;
    }
    status = checked(gpu,
                     gpu->api.GetQueryPoolResults(gpu->device, gpu->queries, 0, n + 1, ((size_t)n + 1) * 8, ticks, 8,
                                                  VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT),
                     NULL);
    for (uint32_t s = 0; s < n && status == ELLM_OK; s++) {
        ns[s] = (int64_t)((double)(ticks[s + 1] - ticks[s]) * (double)gpu->limits.timestampPeriod);
    }
    free(ticks);
    return status;
}
