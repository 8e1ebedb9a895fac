/* import.c: weights that stay where they are, in the page cache, where a GPU and the processor share one memory.
 *
 * VK_EXT_external_memory_host makes memory of the GPU's of pages that the process has mapped already. Drivers may refuse
 * pages of a file, or pages that cannot be written; what they refuse is copied instead. Intel's takes them, and its kernel,
 * which wants pages that it may write (i915), refuses the first submission with them: the device is lost then. So that is
 * tried, and a device opened anew that copies all (gpu.c). */
#include "posix.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "parts.h"

static const VkExternalMemoryHandleTypeFlagBits handle_type = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT;
static const VkBufferUsageFlags usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT;

/* A weight, to be sorted by where it is. */
struct found {
    uintptr_t start, end;
    ellm_vulkan_place *place;
};

static int by_start(const void *a, const void *b) {
    const struct found *x = a, *y = b;
    return (x->start > y->start) - (x->start < y->start);
}

static bool may_import(const ellm_gpu *gpu) {
    const VkPhysicalDeviceExternalBufferInfo asked = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_BUFFER_INFO, .usage = usage, .handleType = handle_type};
    VkExternalBufferProperties answer = {.sType = VK_STRUCTURE_TYPE_EXTERNAL_BUFFER_PROPERTIES};
    gpu->api.GetPhysicalDeviceExternalBufferProperties(gpu->physical, &asked, &answer);
    const VkExternalMemoryFeatureFlags features = answer.externalMemoryProperties.externalMemoryFeatures;
    return (features & VK_EXTERNAL_MEMORY_FEATURE_IMPORTABLE_BIT) != 0
           && (features & VK_EXTERNAL_MEMORY_FEATURE_DEDICATED_ONLY_BIT) == 0;
}

/* Makes a buffer of the pages [start, end). */
static bool import_pages(ellm_gpu *gpu, uintptr_t start, uintptr_t end, ellm_vulkan_buffer *made) {
    const VkExternalMemoryBufferCreateInfo external = {.sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO,
                                                       .handleTypes = handle_type};
    const VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO, .pNext = &external, .size = end - start, .usage = usage};
    VkMemoryHostPointerPropertiesEXT pages = {.sType = VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT};
    void *pointer = (void *)start;
    if (gpu->get_host_pointer(gpu->device, handle_type, pointer, &pages) != VK_SUCCESS) {
        return false;
    }
    if (gpu->api.CreateBuffer(gpu->device, &info, NULL, &made->buffer) != VK_SUCCESS) {
        made->buffer = VK_NULL_HANDLE;
        return false;
    }
    VkMemoryRequirements needs;
    gpu->api.GetBufferMemoryRequirements(gpu->device, made->buffer, &needs);
    uint32_t allowed = pages.memoryTypeBits & needs.memoryTypeBits, type = 0;
    if (allowed == 0 || needs.size > end - start) {
        return false;
    }
    while ((allowed >> type & 1) == 0) {
        type++;
    }
    const VkImportMemoryHostPointerInfoEXT from = {.sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT,
                                                   .handleType = handle_type,
                                                   .pHostPointer = pointer};
    const VkMemoryAllocateInfo allocation = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                             .pNext = &from,
                                             .allocationSize = end - start,
                                             .memoryTypeIndex = type};
    if (gpu->api.AllocateMemory(gpu->device, &allocation, NULL, &made->memory) != VK_SUCCESS) {
        made->memory = VK_NULL_HANDLE;
        return false;
    }
    made->bytes = end - start;
    made->imported = true;
    return gpu->api.BindBufferMemory(gpu->device, made->buffer, made->memory, 0) == VK_SUCCESS;
}

/* Imports what lies in [first, last): weights whose pages follow each other. */
static void import_run(ellm_gpu *gpu, const struct found *first, const struct found *last, uintptr_t page) {
    uintptr_t start = first->start / page * page, end = (last[-1].end + page - 1) / page * page;
    ellm_vulkan_buffer *made = &gpu->chunks[gpu->n_chunks];
    if (!import_pages(gpu, start, end, made)) {
        ellm_vulkan_free_buffer(gpu, made);
        return;
    }
    (void)madvise((void *)start, end - start, MADV_WILLNEED);
    gpu->n_chunks++;
    gpu->info.imported_bytes += end - start;
    for (; first < last; first++) {
        *first->place = (ellm_vulkan_place){.buffer = made, .offset = first->start - start};
    }
}

void ellm_vulkan_import(ellm_gpu *gpu) {
    const ellm_plan *plan = gpu->source.plan;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), most = (uintptr_t)1 << 30;
    if (gpu->get_host_pointer == NULL || gpu->import_alignment > page || !may_import(gpu)) {
        return;
    }
    struct found *list = ellm_region_alloc(&gpu->region, plan->n_weights, sizeof *list);
    size_t n = 0;
    for (uint32_t i = 0; i < plan->n_weights && list != NULL; i++) {
        const uintptr_t start = (uintptr_t)plan->weights[i].data, bytes = (uintptr_t)plan->weights[i].bytes;
        if (bytes > 0 && bytes <= gpu->limits.maxStorageBufferRange && bytes <= most - 2 * page
            && start % gpu->limits.minStorageBufferOffsetAlignment == 0) {
            list[n++] = (struct found){.start = start, .end = start + bytes, .place = &gpu->weights[i]};
        }
    }
    if (n > 0) {
        qsort(list, n, sizeof *list, by_start);
    }
    for (size_t first = 0, last = 1; first < n; first = last++) {
        const uintptr_t start = list[first].start / page * page;
        /* what lies between two weights is mapped, too, if they share a page or their pages touch */
        while (last < n && list[last].start / page * page <= list[last - 1].end + page - 1
               && list[last].end - start <= most - page && list[last].end - start <= gpu->most_allocation - page) {
            last++;
        }
        import_run(gpu, &list[first], &list[last], page);
    }
}

ellm_status ellm_vulkan_try_imports(ellm_gpu *gpu, ellm_error *error) {
    if (gpu->info.imported_bytes == 0) {
        return ELLM_OK;
    }
    ellm_vulkan_buffer words = {0};
    ellm_status status =
        ellm_vulkan_new_stage(gpu, (VkDeviceSize)gpu->n_chunks * 4, "trying imported weights", &words, error);
    status = status == ELLM_OK ? ellm_vulkan_commands(gpu, &gpu->copying, error) : status;
    status = status == ELLM_OK ? ellm_vulkan_begin(gpu, gpu->copying, true, error) : status;
    for (uint32_t i = 0; i < gpu->n_chunks && status == ELLM_OK; i++) {
        const VkBufferCopy region = {.dstOffset = (VkDeviceSize)i * 4, .size = 4};
        if (gpu->chunks[i].imported) {
            gpu->api.CmdCopyBuffer(gpu->copying, gpu->chunks[i].buffer, words.buffer, 1, &region);
        }
    }
    status = status == ELLM_OK ? ellm_vulkan_run_once(gpu, gpu->copying, error) : status;
    if (!gpu->is_stuck) {
        ellm_vulkan_free_buffer(gpu, &words);
    }
    return status;
}
