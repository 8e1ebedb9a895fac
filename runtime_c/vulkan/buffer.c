/* Buffers, each with memory of its own, of the kind that suits who uses it. */
#include "parts.h"

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

static int choose_memory(const ellm_gpu *gpu, uint32_t allowed, ellm_vulkan_kind kind) {
    const VkMemoryPropertyFlags device = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
                                cached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
                                host = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    int found = -1;
    switch (kind) {
    case ELLM_VULKAN_DEVICE:
        found = find_memory(gpu, allowed, device, VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT);
        found = found < 0 ? find_memory(gpu, allowed, device | host, 0) : found;
        found = found < 0 ? find_memory(gpu, allowed, device, 0) : found;
        break;
    case ELLM_VULKAN_WRITTEN: found = find_memory(gpu, allowed, device | host, 0); break;
    case ELLM_VULKAN_READ: found = find_memory(gpu, allowed, host | cached, 0); break;
    }
    return found < 0 ? find_memory(gpu, allowed, host, 0) : found;
}

ellm_status ellm_vulkan_new_buffer(ellm_gpu *gpu, VkDeviceSize bytes, ellm_vulkan_kind kind, const char *what,
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

void ellm_vulkan_free_buffer(ellm_gpu *gpu, ellm_vulkan_buffer *buffer) {
    if (buffer->buffer != VK_NULL_HANDLE) {
        gpu->api.DestroyBuffer(gpu->device, buffer->buffer, NULL);
    }
    if (buffer->memory != VK_NULL_HANDLE) {
        gpu->api.FreeMemory(gpu->device, buffer->memory, NULL);
    }
    *buffer = (ellm_vulkan_buffer){0};
}
