/* vulkan_count.c: a Vulkan layer that counts what a program has its queues run.
 *
 * Dispatches and barriers are counted where a command buffer is submitted, so that one that was recorded once and is
 * submitted for every token counts every time. At the end, VULKAN_COUNT names the file that gets
 * {"submits": n, "dispatches": n, "barriers": n, "recorded": n, "allocated": n}: recorded are dispatches, too, as they
 * were recorded; allocated are bytes of the device's memory.
 *
 *   cc -O2 -shared -fPIC -I../third_party/vulkan vulkan_count.c -o libvulkan_count.so
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vulkan/vulkan_core.h>

/* ---- the loader's side of a layer (vk_layer.h) ---- */

typedef struct link_info {
    struct link_info *next;
    PFN_vkGetInstanceProcAddr instance_proc;
    void *next_proc; /* of a device: vkGetDeviceProcAddr; of an instance: of a physical device */
} link_info;

typedef struct chain_info {
    VkStructureType type;
    const void *next;
    int function; /* 0: the link to the next layer */
    link_info *link;
} chain_info;

enum { loader_instance = 47, loader_device = 48 };

static link_info *take_link(const void *next, int type) {
    for (const chain_info *each = next; each != NULL; each = each->next) {
        if ((int)each->type == type && each->function == 0) {
            link_info *link = each->link;
            ((chain_info *)(uintptr_t)each)->link = link->next;
            return link;
        }
    }
    return NULL;
}

/* ---- what is counted ---- */

enum { most_buffers = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct buffer {
    VkCommandBuffer commands;
    unsigned long dispatches, barriers;
} buffers[most_buffers];
static unsigned long n_submits, n_dispatches, n_barriers, n_recorded, n_allocated;

static struct buffer *buffer_of(VkCommandBuffer commands) {
    for (int i = 0; i < most_buffers; i++) {
        if (buffers[i].commands == commands || buffers[i].commands == NULL) {
            buffers[i].commands = commands;
            return &buffers[i];
        }
    }
    fputs("vulkan_count: too many command buffers\n", stderr);
    exit(1);
}

static PFN_vkGetInstanceProcAddr next_instance_proc;
static PFN_vkGetDeviceProcAddr next_device_proc;

#define COUNTED(X)                                                                                                     \
    X(AllocateMemory)                                                                                                  \
    X(BeginCommandBuffer)                                                                                              \
    X(CmdDispatch)                                                                                                     \
    X(CmdPipelineBarrier)                                                                                              \
    X(QueueSubmit)
#define DECLARE(name) static PFN_vk##name next_##name;
COUNTED(DECLARE)

static VkResult AllocateMemory(VkDevice device, const VkMemoryAllocateInfo *info,
                               const VkAllocationCallbacks *allocator, VkDeviceMemory *memory) {
    VkResult result = next_AllocateMemory(device, info, allocator, memory);
    pthread_mutex_lock(&lock);
    n_allocated += result == VK_SUCCESS ? (unsigned long)info->allocationSize : 0;
    pthread_mutex_unlock(&lock);
    return result;
}

static VkResult BeginCommandBuffer(VkCommandBuffer commands, const VkCommandBufferBeginInfo *info) {
    pthread_mutex_lock(&lock);
    *buffer_of(commands) = (struct buffer){.commands = commands};
    pthread_mutex_unlock(&lock);
    return next_BeginCommandBuffer(commands, info);
}

static void CmdDispatch(VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
    pthread_mutex_lock(&lock);
    buffer_of(commands)->dispatches++;
    n_recorded++;
    pthread_mutex_unlock(&lock);
    next_CmdDispatch(commands, x, y, z);
}

static void CmdPipelineBarrier(VkCommandBuffer commands, VkPipelineStageFlags from, VkPipelineStageFlags to,
                               VkDependencyFlags flags, uint32_t n_memory, const VkMemoryBarrier *memory,
                               uint32_t n_buffer, const VkBufferMemoryBarrier *buffer, uint32_t n_image,
                               const VkImageMemoryBarrier *image) {
    pthread_mutex_lock(&lock);
    buffer_of(commands)->barriers++;
    pthread_mutex_unlock(&lock);
    next_CmdPipelineBarrier(commands, from, to, flags, n_memory, memory, n_buffer, buffer, n_image, image);
}

static VkResult QueueSubmit(VkQueue queue, uint32_t n, const VkSubmitInfo *submits, VkFence fence) {
    pthread_mutex_lock(&lock);
    n_submits++;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t c = 0; c < submits[i].commandBufferCount; c++) {
            const struct buffer *found = buffer_of(submits[i].pCommandBuffers[c]);
            n_dispatches += found->dispatches;
            n_barriers += found->barriers;
        }
    }
    pthread_mutex_unlock(&lock);
    return next_QueueSubmit(queue, n, submits, fence);
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("VULKAN_COUNT");
    FILE *file = path != NULL && n_submits > 0 ? fopen(path, "w") : NULL;
    if (file != NULL) {
        fprintf(file,
                "{\"submits\": %lu, \"dispatches\": %lu, \"barriers\": %lu, \"recorded\": %lu, \"allocated\": %lu}\n",
                n_submits, n_dispatches, n_barriers, n_recorded, n_allocated);
        fclose(file);
    }
}

/* ---- the layer ---- */

static VkResult CreateInstance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *allocator,
                               VkInstance *instance) {
    link_info *link = take_link(info->pNext, loader_instance);
    if (link == NULL) {
        return VK_ERROR_INITIALIZATION_FAILED;
    }
    next_instance_proc = link->instance_proc;
    PFN_vkCreateInstance create = (PFN_vkCreateInstance)next_instance_proc(NULL, "vkCreateInstance");
    return create(info, allocator, instance);
}

static VkResult CreateDevice(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                             const VkAllocationCallbacks *allocator, VkDevice *device) {
    link_info *link = take_link(info->pNext, loader_device);
    if (link == NULL) {
        return VK_ERROR_INITIALIZATION_FAILED;
    }
    memcpy(&next_device_proc, &link->next_proc, sizeof next_device_proc);
    PFN_vkCreateDevice create = (PFN_vkCreateDevice)link->instance_proc(NULL, "vkCreateDevice");
    VkResult result = create(physical, info, allocator, device);
#define FIND(name) next_##name = (PFN_vk##name)next_device_proc(*device, "vk" #name);
    if (result == VK_SUCCESS) {
        COUNTED(FIND)
    }
    return result;
}

#define OURS(name)                                                                                                     \
    if (strcmp(wanted, "vk" #name) == 0) {                                                                             \
        return (PFN_vkVoidFunction)name;                                                                               \
    }

__attribute__((visibility("default"))) PFN_vkVoidFunction vkGetDeviceProcAddr(VkDevice device, const char *wanted) {
    COUNTED(OURS)
    if (strcmp(wanted, "vkGetDeviceProcAddr") == 0) {
        return (PFN_vkVoidFunction)vkGetDeviceProcAddr;
    }
    return next_device_proc(device, wanted);
}

__attribute__((visibility("default"))) PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance,
                                                                                const char *wanted) {
    COUNTED(OURS)
    OURS(CreateInstance)
    OURS(CreateDevice)
    if (strcmp(wanted, "vkGetDeviceProcAddr") == 0) {
        return (PFN_vkVoidFunction)vkGetDeviceProcAddr;
    }
    if (strcmp(wanted, "vkGetInstanceProcAddr") == 0) {
        return (PFN_vkVoidFunction)vkGetInstanceProcAddr;
    }
    return instance == NULL || next_instance_proc == NULL ? NULL : next_instance_proc(instance, wanted);
}
