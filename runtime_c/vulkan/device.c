#include <stdio.h>
#include <string.h>

#include "error.h"
#include "parts.h"

enum { most_devices = 16, most_families = 32, most_matrices = 64 };

/* What a device has, as the structures that are asked for and enabled. */
struct features {
    VkPhysicalDeviceFeatures2 all;
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDevice8BitStorageFeatures storage8;
    VkPhysicalDeviceShaderIntegerDotProductFeatures dot;
    VkPhysicalDeviceShaderFloat16Int8Features half;
    VkPhysicalDeviceVulkanMemoryModelFeatures model;
    VkPhysicalDeviceSubgroupSizeControlFeatures sizes;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix;
    const char *extensions[4];
    uint32_t n_extensions;
    bool has_import, has_matrix;
};

static const char matrix_extension[] = "VK_KHR_cooperative_matrix";

/* What products of matrices need, one behind the other. */
static VkPhysicalDeviceShaderFloat16Int8Features *link_matrix(struct features *f) {
    f->half.pNext = &f->model;
    f->model.pNext = &f->sizes;
    f->sizes.pNext = &f->matrix;
    f->matrix.pNext = NULL;
    return &f->half;
}

static bool has_extension(const VkExtensionProperties *list, uint32_t n, const char *name) {
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(list[i].extensionName, name) == 0) {
            return true;
        }
    }
    return false;
}

/* Asks for the features of a device; structures of extensions that it lacks stay out of the chain. */
static bool read_features(ellm_gpu *gpu, VkPhysicalDevice device, uint32_t version, struct features *f) {
    ellm_region scratch;
    ellm_region_init(&scratch, 1 << 22);
    uint32_t n = 0;
    VkExtensionProperties *list = NULL;
    bool good = gpu->api.EnumerateDeviceExtensionProperties(device, NULL, &n, NULL) == VK_SUCCESS;
    list = good ? ellm_region_alloc(&scratch, n, sizeof *list) : NULL;
    good = list != NULL && gpu->api.EnumerateDeviceExtensionProperties(device, NULL, &n, list) >= VK_SUCCESS;
    *f = (struct features){.all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2},
                           .storage16 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES},
                           .storage8 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES},
                           .dot = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES},
                           .half = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES},
                           .model = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES},
                           .sizes = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES},
                           .matrix = {.sType = ELLM_VULKAN_MATRIX_FEATURES}};
    void **next = &f->all.pNext;
    *next = &f->storage16;
    next = &f->storage16.pNext;
    if (good && (version >= VK_API_VERSION_1_2 || has_extension(list, n, VK_KHR_8BIT_STORAGE_EXTENSION_NAME))) {
        *next = &f->storage8;
        next = &f->storage8.pNext;
        if (version < VK_API_VERSION_1_2) {
            f->extensions[f->n_extensions++] = VK_KHR_8BIT_STORAGE_EXTENSION_NAME;
        }
    }
    if (good
        && (version >= VK_API_VERSION_1_3
            || has_extension(list, n, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME))) {
        *next = &f->dot;
        next = &f->dot.pNext;
        if (version < VK_API_VERSION_1_3) {
            f->extensions[f->n_extensions++] = VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME;
        }
    }
    f->has_matrix = good && version >= VK_API_VERSION_1_3 && has_extension(list, n, matrix_extension);
    if (f->has_matrix) {
        *next = link_matrix(f);
    }
    f->has_import = good && has_extension(list, n, VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME);
    gpu->api.GetPhysicalDeviceFeatures2(device, &f->all);
    ellm_region_free(&scratch);
    return good;
}

static bool can_size(const VkPhysicalDeviceSubgroupSizeControlProperties *sizes) {
    return (sizes->requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0;
}

/* Whether subgroups of the size in `needs` multiply matrices of its rows and columns, of f16 to sums of f32. */
static bool multiplies(const ellm_gpu *gpu, VkPhysicalDevice device, const struct features *f,
                       const VkPhysicalDeviceSubgroupSizeControlProperties *sizes, uint32_t needs) {
    const uint32_t edge = needs >> 24, size = needs >> 16 & 255;
    VkCooperativeMatrixPropertiesKHR list[most_matrices];
    uint32_t n = most_matrices;
    if (!f->has_matrix || f->half.shaderFloat16 == VK_FALSE || f->model.vulkanMemoryModel == VK_FALSE
        || f->sizes.computeFullSubgroups == VK_FALSE || f->matrix.cooperativeMatrix == VK_FALSE
        || sizes->minSubgroupSize > size || sizes->maxSubgroupSize < size
        || (!can_size(sizes) && sizes->minSubgroupSize < sizes->maxSubgroupSize) || gpu->api.GetMatrices == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        list[i] = (VkCooperativeMatrixPropertiesKHR){.sType = ELLM_VULKAN_MATRIX_PROPERTIES};
    }
    bool found = false;
    n = gpu->api.GetMatrices(device, &n, list) >= VK_SUCCESS ? n : 0;
    for (uint32_t i = 0; i < n; i++) {
        const VkCooperativeMatrixPropertiesKHR *m = &list[i];
        found = found
                || (m->MSize == edge && m->NSize == edge && m->KSize == edge && m->AType == 0 && m->BType == 0
                    && m->CType == 1 && m->ResultType == 1 && m->scope == 3 && m->saturatingAccumulation == VK_FALSE);
    }
    return found;
}

/* What of `needs` a device lacks, in words; NULL if nothing. */
static const char *lacking(const struct features *f, const VkPhysicalDeviceSubgroupProperties *subgroup,
                           uint32_t needs) {
    if ((needs & ELLM_NEEDS_16BIT) != 0 && f->storage16.storageBuffer16BitAccess == VK_FALSE) {
        return "16-bit storage";
    }
    if ((needs & ELLM_NEEDS_8BIT) != 0 && f->storage8.storageBuffer8BitAccess == VK_FALSE) {
        return "8-bit storage";
    }
    if ((needs & ELLM_NEEDS_DOT) != 0 && f->dot.shaderIntegerDotProduct == VK_FALSE) {
        return "integer dot products";
    }
    bool computes = (subgroup->supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0;
    if ((needs & ELLM_NEEDS_GROUP) != 0 && !computes) {
        return "subgroups";
    }
    if ((needs & ELLM_NEEDS_SUMS) != 0
        && (!computes || (subgroup->supportedOperations & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT) == 0)) {
        return "sums over subgroups";
    }
    return NULL;
}

static bool find_family(ellm_gpu *gpu, VkPhysicalDevice device, uint32_t *family, uint32_t *timestamp_bits) {
    VkQueueFamilyProperties families[most_families];
    uint32_t n = most_families;
    gpu->api.GetPhysicalDeviceQueueFamilyProperties(device, &n, families);
    for (uint32_t i = 0; i < n; i++) {
        if ((families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) != 0 && families[i].queueCount > 0) {
            *family = i;
            *timestamp_bits = families[i].timestampValidBits;
            return true;
        }
    }
    return false;
}

static int rank(VkPhysicalDeviceType type) {
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return 4;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return 3;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return 2;
    case VK_PHYSICAL_DEVICE_TYPE_OTHER: return 1;
    default: return 0;
    }
}

/* Where processor and GPU share one memory, weights can stay where they are. */
static void enable_import(ellm_gpu *gpu, struct features *f) {
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT};
    VkPhysicalDeviceProperties2 about = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &host};
    if (f->has_import) {
        gpu->api.GetPhysicalDeviceProperties2(gpu->physical, &about);
        const VkPhysicalDeviceType type = about.properties.deviceType;
        f->has_import = type == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU || type == VK_PHYSICAL_DEVICE_TYPE_CPU;
        gpu->import_alignment = host.minImportedHostPointerAlignment;
    }
    if (f->has_import) {
        f->extensions[f->n_extensions++] = VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME;
    }
}

static ellm_status create(ellm_gpu *gpu, struct features *f, uint32_t needs, ellm_error *error) {
    /* only what kernels need is turned on */
    f->all.features = (VkPhysicalDeviceFeatures){0};
    f->storage16 = (VkPhysicalDevice16BitStorageFeatures){.sType = f->storage16.sType,
                                                          .pNext = f->storage16.pNext,
                                                          .storageBuffer16BitAccess = (needs & ELLM_NEEDS_16BIT) != 0};
    f->storage8 = (VkPhysicalDevice8BitStorageFeatures){.sType = f->storage8.sType,
                                                        .pNext = f->storage8.pNext,
                                                        .storageBuffer8BitAccess = (needs & ELLM_NEEDS_8BIT) != 0};
    f->dot.shaderIntegerDotProduct = (needs & ELLM_NEEDS_DOT) != 0;
    if ((needs & ELLM_NEEDS_MATRIX) != 0) {
        f->half.shaderInt8 = f->model.vulkanMemoryModelDeviceScope = VK_FALSE;
        f->model.vulkanMemoryModelAvailabilityVisibilityChains = VK_FALSE;
        f->matrix.cooperativeMatrixRobustBufferAccess = VK_FALSE;
        f->extensions[f->n_extensions++] = matrix_extension;
    }
    const float priority = 1;
    const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                           .queueFamilyIndex = gpu->family,
                                           .queueCount = 1,
                                           .pQueuePriorities = &priority};
    const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                     .pNext = &f->all,
                                     .queueCreateInfoCount = 1,
                                     .pQueueCreateInfos = &queue,
                                     .enabledExtensionCount = f->n_extensions,
                                     .ppEnabledExtensionNames = f->extensions};
    VkResult result = gpu->api.CreateDevice(gpu->physical, &info, NULL, &gpu->device);
    if (result != VK_SUCCESS) {
        gpu->device = NULL;
        return ellm_vulkan_failed(result, "opening it", error);
    }
    ellm_status status = ellm_vulkan_load_device(&gpu->api, gpu->device, error);
    if (status == ELLM_OK) {
        gpu->api.GetDeviceQueue(gpu->device, gpu->family, 0, &gpu->queue);
    }
    if (status == ELLM_OK && f->has_import) {
        gpu->get_host_pointer = (PFN_vkGetMemoryHostPointerPropertiesEXT)gpu->api.GetDeviceProcAddr(
            gpu->device, "vkGetMemoryHostPointerPropertiesEXT");
    }
    return status;
}

ellm_status ellm_vulkan_pick(ellm_gpu *gpu, uint32_t needs, ellm_error *error) {
    VkPhysicalDevice devices[most_devices];
    uint32_t n = most_devices;
    VkResult result = gpu->api.EnumeratePhysicalDevices(gpu->api.instance, &n, devices);
    if (result < VK_SUCCESS) {
        return ellm_vulkan_failed(result, "looking for GPUs", error);
    }
    char lacks[300] = "no device";
    size_t written = 0;
    int best = -1;
    struct features chosen = {.n_extensions = 0};
    for (uint32_t i = 0; i < n; i++) {
        VkPhysicalDeviceSubgroupSizeControlProperties subgroups = {
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES};
        VkPhysicalDeviceMaintenance3Properties sizes = {
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES, .pNext = &subgroups};
        VkPhysicalDeviceSubgroupProperties subgroup = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES,
                                                       .pNext = &sizes};
        VkPhysicalDeviceProperties2 about = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                             .pNext = &subgroup};
        gpu->api.GetPhysicalDeviceProperties2(devices[i], &about);
        const VkPhysicalDeviceProperties *p = &about.properties;
        uint32_t family = 0, timestamp_bits = 0;
        struct features f;
        const char *lack = p->apiVersion < VK_API_VERSION_1_1 ? "Vulkan 1.1" : NULL;
        lack = lack == NULL && !find_family(gpu, devices[i], &family, &timestamp_bits) ? "a queue for computing" : lack;
        lack = lack == NULL && !read_features(gpu, devices[i], p->apiVersion, &f) ? "a list of extensions" : lack;
        lack = lack == NULL ? lacking(&f, &subgroup, needs) : lack;
        if (lack == NULL && (needs & ELLM_NEEDS_MATRIX) != 0 && !multiplies(gpu, devices[i], &f, &subgroups, needs)) {
            lack = "the matrix units that the bundle is compiled for";
        }
        if (lack != NULL) {
            int more = snprintf(lacks + written, sizeof lacks - written, "%s%.80s lacks %s", written > 0 ? ", " : "",
                                p->deviceName, lack);
            written = more < 0 || (size_t)more >= sizeof lacks - written ? written : written + (size_t)more;
        } else if (rank(p->deviceType) > best) {
            best = rank(p->deviceType);
            gpu->physical = devices[i];
            gpu->family = family;
            gpu->timestamp_bits = timestamp_bits;
            gpu->limits = p->limits;
            gpu->vendor = p->vendorID;
            gpu->kind = p->deviceID;
            memcpy(gpu->cache_uuid, p->pipelineCacheUUID, sizeof gpu->cache_uuid);
            gpu->most_allocation = sizes.maxMemoryAllocationSize;
            gpu->sizes_subgroups = can_size(&subgroups);
            gpu->info.is_processor = p->deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
            memcpy(gpu->info.name, p->deviceName, sizeof gpu->info.name);
            chosen = f;
        }
    }
    if (best < 0) {
        return ellm_fail(error, ELLM_GPU_MISSING,
                         "no GPU here can run the bundle: %s; update its driver, or compile with --device cpu", lacks);
    }
    if (gpu->source.real && gpu->info.is_processor) {
        return ellm_fail(error, ELLM_GPU_MISSING, "the only GPU that Vulkan finds is %.200s, which is this processor",
                         gpu->info.name);
    }
    /* the chain points into a structure that was copied */
    chosen.all.pNext = &chosen.storage16;
    chosen.storage16.pNext = NULL;
    void **next = &chosen.storage16.pNext;
    if ((needs & ELLM_NEEDS_8BIT) != 0) {
        *next = &chosen.storage8;
        next = &chosen.storage8.pNext;
    }
    chosen.storage8.pNext = NULL;
    if ((needs & ELLM_NEEDS_DOT) != 0) {
        *next = &chosen.dot;
        next = &chosen.dot.pNext;
    }
    chosen.dot.pNext = NULL;
    if ((needs & ELLM_NEEDS_MATRIX) != 0) {
        *next = link_matrix(&chosen);
    }
    gpu->api.GetPhysicalDeviceMemoryProperties(gpu->physical, &gpu->memories);
    enable_import(gpu, &chosen);
    return create(gpu, &chosen, needs, error);
}
