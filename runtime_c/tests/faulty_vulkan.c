/* A Vulkan loader before the real one, for tests: calls it, plays a real GPU where there is none, and fails as told.
 *
 *   FAULT=vkQueueSubmit:3:-4   the third vkQueueSubmit returns VK_ERROR_DEVICE_LOST, and so does every later one
 *   FAULT=vkQueueSubmit:3:1002 at the third one, somebody presses Ctrl-C (signal 2); it goes on
 *   FAULT=features:1:0         no device has 16-bit storage
 *   FAULT=api:1:0              all devices have Vulkan 1.0
 *   FAULT=clock:1:0            no queue has timestamps
 *   FAULT=apart:1:0            a GPU with memory of its own, which the processor does not see
 *   FAULT=pages:1:0            takes pages of files, as Intel's does, and then loses the device
 *   FAULT=vendor:1:20803       Qualcomm made the device
 *   FAULT=mixed:1:0            dot products are an instruction only if one side has no sign, as Qualcomm's are
 *   FAULT=driver:1:7           the driver's version is 7
 *   FAULT=buffers:1:10         a kernel has at most 10 storage buffers
 *   FAULT=wrong:40:0           the 40th dispatch that is recorded is left out: it computes, and wrongly
 *   FAULT=driver:1:7,wrong:40:0    both
 *   FAULT_COUNTS=FILE          how often each call was made, a line each, at the end
 *
 * Built as libvulkan.so.1 with REAL="the real one's path". */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vulkan/vulkan_core.h>

static void *real;

static PFN_vkVoidFunction function_of(void *symbol) {
    PFN_vkVoidFunction function;
    memcpy(&function, &symbol, sizeof function);
    return function;
}

/* What is told about a call; false if nothing is. */
static int is_told(const char *name, unsigned *first, int *code) {
    size_t length = strlen(name);
    for (const char *told = getenv("FAULT"); told != NULL; told = strchr(told, ',')) {
        told += *told == ',';
        if (strncmp(told, name, length) == 0 && sscanf(told + length, ":%u:%d", first, code) == 2) {
            return 1;
        }
    }
    return 0;
}

/* Whether this call is to fail, and how. */
static int is_due(const char *name, unsigned n, VkResult *result) {
    enum { signals = 1000 };
    unsigned first;
    int code;
    if (!is_told(name, &first, &code)) {
        return 0;
    }
    if (code > signals && strncmp(name, "vk", 2) == 0) { /* of a call; others are numbers of any size */
        return n == first && raise(code - signals) != 0;
    }
    *result = (VkResult)code;
    return n >= first;
}

#define WRAPPED(X)                                                                                                     \
    X(EnumeratePhysicalDevices, (VkInstance a, uint32_t *b, VkPhysicalDevice *c), (a, b, c))                           \
    X(CreateDevice, (VkPhysicalDevice a, const VkDeviceCreateInfo *b, const VkAllocationCallbacks *c, VkDevice *d),    \
      (a, b, c, d))                                                                                                    \
    X(CreateFence, (VkDevice a, const VkFenceCreateInfo *b, const VkAllocationCallbacks *c, VkFence *d), (a, b, c, d)) \
    X(CreateBuffer, (VkDevice a, const VkBufferCreateInfo *b, const VkAllocationCallbacks *c, VkBuffer *d),            \
      (a, b, c, d))                                                                                                    \
    X(AllocateMemory, (VkDevice a, const VkMemoryAllocateInfo *b, const VkAllocationCallbacks *c, VkDeviceMemory *d),  \
      (a, b, c, d))                                                                                                    \
    X(BindBufferMemory, (VkDevice a, VkBuffer b, VkDeviceMemory c, VkDeviceSize d), (a, b, c, d))                      \
    X(GetMemoryHostPointerPropertiesEXT,                                                                               \
      (VkDevice a, VkExternalMemoryHandleTypeFlagBits b, const void *c, VkMemoryHostPointerPropertiesEXT *d),          \
      (a, b, c, d))                                                                                                    \
    X(MapMemory, (VkDevice a, VkDeviceMemory b, VkDeviceSize c, VkDeviceSize d, VkMemoryMapFlags e, void **f),         \
      (a, b, c, d, e, f))                                                                                              \
    X(CreateShaderModule,                                                                                              \
      (VkDevice a, const VkShaderModuleCreateInfo *b, const VkAllocationCallbacks *c, VkShaderModule *d),              \
      (a, b, c, d))                                                                                                    \
    X(CreateComputePipelines,                                                                                          \
      (VkDevice a, VkPipelineCache b, uint32_t c, const VkComputePipelineCreateInfo *d,                                \
       const VkAllocationCallbacks *e, VkPipeline *f),                                                                 \
      (a, b, c, d, e, f))                                                                                              \
    X(CreateDescriptorPool,                                                                                            \
      (VkDevice a, const VkDescriptorPoolCreateInfo *b, const VkAllocationCallbacks *c, VkDescriptorPool *d),          \
      (a, b, c, d))                                                                                                    \
    X(AllocateDescriptorSets, (VkDevice a, const VkDescriptorSetAllocateInfo *b, VkDescriptorSet *c), (a, b, c))       \
    X(CreateCommandPool,                                                                                               \
      (VkDevice a, const VkCommandPoolCreateInfo *b, const VkAllocationCallbacks *c, VkCommandPool *d), (a, b, c, d))  \
    X(AllocateCommandBuffers, (VkDevice a, const VkCommandBufferAllocateInfo *b, VkCommandBuffer *c), (a, b, c))       \
    X(BeginCommandBuffer, (VkCommandBuffer a, const VkCommandBufferBeginInfo *b), (a, b))                              \
    X(EndCommandBuffer, (VkCommandBuffer a), (a))                                                                      \
    X(QueueSubmit, (VkQueue a, uint32_t b, const VkSubmitInfo *c, VkFence d), (a, b, c, d))                            \
    X(WaitForFences, (VkDevice a, uint32_t b, const VkFence *c, VkBool32 d, uint64_t e), (a, b, c, d, e))              \
    X(ResetFences, (VkDevice a, uint32_t b, const VkFence *c), (a, b, c))

#define DEFINE(name, parameters, arguments)                                                                            \
    static PFN_vk##name real_##name;                                                                                   \
    static unsigned n_##name;                                                                                          \
    static VkResult faulty_##name parameters {                                                                         \
        VkResult result;                                                                                               \
        return is_due("vk" #name, ++n_##name, &result) ? result : real_##name arguments;                               \
    }
WRAPPED(DEFINE)
#undef DEFINE

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAULT_COUNTS");
    FILE *file = path != NULL ? fopen(path, "w") : NULL;
    if (file != NULL) {
#define PRINT(name, parameters, arguments) fprintf(file, "vk%s %u\n", #name, n_##name);
        WRAPPED(PRINT)
#undef PRINT
        fclose(file);
    }
}

static PFN_vkGetPhysicalDeviceProperties2 real_properties;
static PFN_vkGetPhysicalDeviceFeatures2 real_features;
static PFN_vkGetDeviceProcAddr real_device_function;
static PFN_vkGetInstanceProcAddr real_instance_function;

static void properties(VkPhysicalDevice device, VkPhysicalDeviceProperties2 *about) {
    VkResult told;
    real_properties(device, about);
    about->properties.deviceType =
        is_due("apart", 1, &told) ? VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU : VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU;
    if (is_due("vendor", 1, &told)) {
        about->properties.vendorID = (uint32_t)told;
    }
    if (is_due("api", 1, &told)) {
        about->properties.apiVersion = VK_API_VERSION_1_0;
    }
    if (is_due("driver", 1, &told)) {
        about->properties.driverVersion = (uint32_t)told;
    }
    for (VkBaseOutStructure *next = about->pNext; next != NULL && is_due("mixed", 1, &told); next = next->pNext) {
        if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES) {
            VkPhysicalDeviceShaderIntegerDotProductProperties *dot = (void *)next;
            dot->integerDotProduct4x8BitPackedSignedAccelerated = VK_FALSE;
            dot->integerDotProduct4x8BitPackedMixedSignednessAccelerated = VK_TRUE;
        }
    }
    if (is_due("buffers", 1, &told)) {
        about->properties.limits.maxPerStageDescriptorStorageBuffers = (uint32_t)told;
    }
}

static void features(VkPhysicalDevice device, VkPhysicalDeviceFeatures2 *about) {
    VkResult result;
    real_features(device, about);
    for (VkBaseOutStructure *next = about->pNext; next != NULL; next = next->pNext) {
        if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES && is_due("features", 1, &result)) {
            ((VkPhysicalDevice16BitStorageFeatures *)(void *)next)->storageBuffer16BitAccess = VK_FALSE;
        }
    }
}

static PFN_vkGetPhysicalDeviceQueueFamilyProperties real_families;

static void families(VkPhysicalDevice device, uint32_t *n, VkQueueFamilyProperties *about) {
    VkResult result;
    real_families(device, n, about);
    for (uint32_t i = 0; about != NULL && i < *n && is_due("clock", 1, &result); i++) {
        about[i].timestampValidBits = 0;
    }
}

/* Two kinds of memory, which are one in truth. */
static PFN_vkGetPhysicalDeviceMemoryProperties real_memories;
static PFN_vkGetBufferMemoryRequirements real_requirements;
static PFN_vkAllocateMemory truly_allocate;

static void memories(VkPhysicalDevice device, VkPhysicalDeviceMemoryProperties *about) {
    VkResult result;
    enum { small = 256 << 20 };
    real_memories(device, about);
    about->memoryHeaps[0].size = small; /* what is measured of it takes no time and little memory */
    if (is_due("apart", 1, &result)) {
        about->memoryTypeCount = 2;
        about->memoryTypes[0].propertyFlags = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
        about->memoryTypes[1] =
            (VkMemoryType){VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT, 0};
    }
}

static void requirements(VkDevice device, VkBuffer buffer, VkMemoryRequirements *about) {
    VkResult result;
    real_requirements(device, buffer, about);
    about->memoryTypeBits = is_due("apart", 1, &result) ? 3 : about->memoryTypeBits;
}

static VkResult allocate(VkDevice device, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *callbacks,
                         VkDeviceMemory *memory) {
    VkMemoryAllocateInfo first = *info;
    first.memoryTypeIndex = 0;
    return truly_allocate(device, &first, callbacks, memory);
}

static PFN_vkQueueSubmit truly_submit;
static int has_pages; /* of the device that was opened last */

static VkResult allocate_pages(VkDevice device, const VkMemoryAllocateInfo *info,
                               const VkAllocationCallbacks *callbacks, VkDeviceMemory *memory) {
    const VkBaseInStructure *next = info->pNext;
    has_pages = has_pages || (next != NULL && next->sType == VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT);
    return truly_allocate(device, info, callbacks, memory);
}

static VkResult submit(VkQueue queue, uint32_t n, const VkSubmitInfo *list, VkFence fence) {
    return has_pages ? VK_ERROR_DEVICE_LOST : truly_submit(queue, n, list, fence);
}

static PFN_vkCmdDispatch truly_dispatch;

static void dispatch(VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
    static unsigned n;
    unsigned left_out = 0;
    int code;
    if (!is_told("wrong", &left_out, &code) || ++n != left_out) {
        truly_dispatch(commands, x, y, z);
    }
}

/* The wrapper of a function, if it has one. */
static PFN_vkVoidFunction wrapped(const char *name, PFN_vkVoidFunction function) {
#define FIND(wanted, parameters, arguments)                                                                            \
    if (function != NULL && strcmp(name, "vk" #wanted) == 0) {                                                         \
        real_##wanted = (PFN_vk##wanted)function;                                                                      \
        return (PFN_vkVoidFunction)faulty_##wanted;                                                                    \
    }
    WRAPPED(FIND)
#undef FIND
    return function;
}

static PFN_vkVoidFunction device_function(VkDevice device, const char *name) {
    VkResult result;
    PFN_vkVoidFunction function = real_device_function(device, name);
    if (strcmp(name, "vkAllocateMemory") == 0 && is_due("apart", 1, &result)) {
        truly_allocate = (PFN_vkAllocateMemory)function;
        function = (PFN_vkVoidFunction)allocate;
    }
    if (strcmp(name, "vkAllocateMemory") == 0 && is_due("pages", 1, &result)) {
        has_pages = 0;
        truly_allocate = (PFN_vkAllocateMemory)function;
        return (PFN_vkVoidFunction)allocate_pages;
    }
    if (strcmp(name, "vkQueueSubmit") == 0 && is_due("pages", 1, &result)) {
        truly_submit = (PFN_vkQueueSubmit)function;
        return (PFN_vkVoidFunction)submit;
    }
    if (strcmp(name, "vkCmdDispatch") == 0) {
        truly_dispatch = (PFN_vkCmdDispatch)function;
        return (PFN_vkVoidFunction)dispatch;
    }
    if (strcmp(name, "vkGetBufferMemoryRequirements") == 0) {
        real_requirements = (PFN_vkGetBufferMemoryRequirements)function;
        return (PFN_vkVoidFunction)requirements;
    }
    return wrapped(name, function);
}

__attribute__((visibility("default"))) PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char *name) {
    if (real == NULL) {
        real = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
        real_instance_function =
            real != NULL ? (PFN_vkGetInstanceProcAddr)function_of(dlsym(real, "vkGetInstanceProcAddr")) : NULL;
    }
    PFN_vkVoidFunction found = real_instance_function != NULL ? real_instance_function(instance, name) : NULL;
    if (strcmp(name, "vkGetDeviceProcAddr") == 0) {
        real_device_function = (PFN_vkGetDeviceProcAddr)found;
        return (PFN_vkVoidFunction)device_function;
    }
    if (strcmp(name, "vkGetPhysicalDeviceProperties2") == 0) {
        real_properties = (PFN_vkGetPhysicalDeviceProperties2)found;
        return (PFN_vkVoidFunction)properties;
    }
    if (strcmp(name, "vkGetPhysicalDeviceFeatures2") == 0) {
        real_features = (PFN_vkGetPhysicalDeviceFeatures2)found;
        return (PFN_vkVoidFunction)features;
    }
    if (strcmp(name, "vkGetPhysicalDeviceQueueFamilyProperties") == 0) {
        real_families = (PFN_vkGetPhysicalDeviceQueueFamilyProperties)found;
        return (PFN_vkVoidFunction)families;
    }
    if (strcmp(name, "vkGetPhysicalDeviceMemoryProperties") == 0) {
        real_memories = (PFN_vkGetPhysicalDeviceMemoryProperties)found;
        return (PFN_vkVoidFunction)memories;
    }
    return wrapped(name, found);
}
