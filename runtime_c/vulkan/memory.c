#include "error.h"
#include "parts.h"

enum { alignment = 256 }; /* of whatever is bound: the largest that the specification lets a device ask for */
static const VkDeviceSize most_chunk = (VkDeviceSize)1 << 30;

static VkDeviceSize aligned(VkDeviceSize bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
}

/* The first memory type among `allowed` that has all of `wanted` and nothing of `unwanted`; -1 if there is none. */
static int find_memory(const ellm_gpu *gpu, uint32_t allowed, VkMemoryPropertyFlags wanted,
                       VkMemoryPropertyFlags unwanted) {
    for (uint32_t i = 0; i < gpu->memories.memoryTypeCount; i++) {
        VkMemoryPropertyFlags flags = gpu->memories.memoryTypes[i].propertyFlags;
        if ((allowed >> i & 1) != 0 && (flags & wanted) == wanted && (flags & unwanted) == 0) {
            return (int)i;
        }
    }
    return -1;
}

enum kind { KIND_DEVICE, KIND_WRITTEN, KIND_READ }; /* by the GPU alone; by the processor; read by it */

static int choose_memory(const ellm_gpu *gpu, uint32_t allowed, enum kind kind) {
    const VkMemoryPropertyFlags device = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
                                cached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
                                host = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    int found = -1;
    switch (kind) {
    case KIND_DEVICE:
        /* of one memory for both, some drivers list a kind that the processor does not see first (Intel's, AMD's) */
        found = gpu->is_shared ? -1 : find_memory(gpu, allowed, device, VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT);
        found = found < 0 ? find_memory(gpu, allowed, device | host, 0) : found;
        found = found < 0 ? find_memory(gpu, allowed, device, 0) : found;
        break;
    case KIND_WRITTEN: found = find_memory(gpu, allowed, device | host, 0); break;
    case KIND_READ: found = find_memory(gpu, allowed, host | cached, 0); break;
    }
    return found < 0 ? find_memory(gpu, allowed, host, 0) : found;
}

static ellm_status new_buffer(ellm_gpu *gpu, VkDeviceSize bytes, enum kind kind, const char *what,
                              ellm_vulkan_buffer *made, ellm_error *error) {
    const VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                     .size = bytes,
                                     .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT
                                              | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    VkResult result = gpu->api.CreateBuffer(gpu->device, &info, NULL, &made->buffer);
    if (result != VK_SUCCESS) {
        made->buffer = VK_NULL_HANDLE;
        return ellm_vulkan_failed(result, what, error);
    }
    VkMemoryRequirements needs;
    gpu->api.GetBufferMemoryRequirements(gpu->device, made->buffer, &needs);
    int type = choose_memory(gpu, needs.memoryTypeBits, kind);
    if (type < 0) {
        return ellm_vulkan_failed(VK_ERROR_OUT_OF_DEVICE_MEMORY, what, error);
    }
    const VkMemoryAllocateInfo allocation = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                             .allocationSize = needs.size,
                                             .memoryTypeIndex = (uint32_t)type};
    result = gpu->api.AllocateMemory(gpu->device, &allocation, NULL, &made->memory);
    if (result != VK_SUCCESS) {
        made->memory = VK_NULL_HANDLE;
        return ellm_vulkan_failed(result, what, error);
    }
    result = gpu->api.BindBufferMemory(gpu->device, made->buffer, made->memory, 0);
    VkMemoryPropertyFlags flags = gpu->memories.memoryTypes[type].propertyFlags;
    const VkMemoryPropertyFlags reachable = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    if (result == VK_SUCCESS && (flags & reachable) == reachable) {
        void *mapped = NULL;
        result = gpu->api.MapMemory(gpu->device, made->memory, 0, VK_WHOLE_SIZE, 0, &mapped);
        made->mapped = mapped;
        made->cached = (flags & VK_MEMORY_PROPERTY_HOST_CACHED_BIT) != 0;
    }
    made->bytes = bytes;
    return result == VK_SUCCESS ? ELLM_OK : ellm_vulkan_failed(result, what, error);
}

ellm_status ellm_vulkan_new_stage(ellm_gpu *gpu, VkDeviceSize bytes, const char *what, ellm_vulkan_buffer *made,
                                  ellm_error *error) {
    return new_buffer(gpu, bytes, KIND_READ, what, made, error);
}

void ellm_vulkan_free_buffer(ellm_gpu *gpu, ellm_vulkan_buffer *buffer) {
    if (buffer->buffer != VK_NULL_HANDLE) {
        gpu->api.DestroyBuffer(gpu->device, buffer->buffer, NULL);
    }
    if (buffer->memory != VK_NULL_HANDLE) {
        gpu->api.FreeMemory(gpu->device, buffer->memory, NULL);
    }
    *buffer = (ellm_vulkan_buffer){0};
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
        status = new_buffer(gpu, sizes[i], KIND_DEVICE, "weights and KV cache", &chunks[i], error);
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

/* ---- the whole ---- */

ellm_status ellm_vulkan_allocate(ellm_gpu *gpu, ellm_error *error) {
    const ellm_plan *plan = gpu->source.plan;
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
    status = status == ELLM_OK ? new_buffer(gpu, arena, KIND_DEVICE, "the arena", &gpu->arena, error) : status;
    status = status == ELLM_OK ? new_buffer(gpu, inputs, KIND_WRITTEN, "inputs", &gpu->inputs, error) : status;
    if (status == ELLM_OK && !gpu->arena.cached) {
        gpu->info.other_bytes += logits;
        status = new_buffer(gpu, logits, KIND_READ, "logits", &gpu->logits, error);
    }
    if (status == ELLM_OK && (gpu->inputs.mapped == NULL || (!gpu->arena.cached && gpu->logits.mapped == NULL))) {
        status = ellm_fail(error, ELLM_GPU_MISSING, "%.80s has no memory that the processor sees", gpu->info.name);
    }
    return status == ELLM_OK ? ellm_vulkan_upload(gpu, error) : status;
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
