#include "driver.h"

#include <string.h>

#include "region.h"
#include "shader.h"

enum { most_families = 32, most_matrices = 64 };

static const char matrix_extension[] = "VK_KHR_cooperative_matrix";

/* What products of matrices need, one behind the other. */
static VkPhysicalDeviceShaderFloat16Int8Features *link_matrix(ellm_vulkan_features *f) {
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
static bool read_features(const ellm_vulkan_api *api, VkPhysicalDevice device, uint32_t version,
                          ellm_vulkan_features *f) {
    ellm_region scratch;
    ellm_region_init(&scratch, 1 << 22);
    uint32_t n = 0;
    VkExtensionProperties *list = NULL;
    bool good = api->EnumerateDeviceExtensionProperties(device, NULL, &n, NULL) == VK_SUCCESS;
    list = good ? ellm_region_alloc(&scratch, n, sizeof *list) : NULL;
    good = list != NULL && api->EnumerateDeviceExtensionProperties(device, NULL, &n, list) >= VK_SUCCESS;
    *f = (ellm_vulkan_features){.all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2},
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
    api->GetPhysicalDeviceFeatures2(device, &f->all);
    ellm_region_free(&scratch);
    return good;
}

static void read_properties(const ellm_vulkan_api *api, ellm_vulkan_device *device) {
    VkPhysicalDeviceMaintenance3Properties sizes = {.sType =
                                                        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
    device->driver.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES;
    device->driver.pNext = &sizes;
    device->sizes = (VkPhysicalDeviceSubgroupSizeControlProperties){
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES, .pNext = &device->driver};
    device->subgroup = (VkPhysicalDeviceSubgroupProperties){
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES, .pNext = &device->sizes};
    VkPhysicalDeviceProperties2 about = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                         .pNext = &device->subgroup};
    api->GetPhysicalDeviceProperties2(device->physical, &about);
    device->properties = about.properties;
    device->most_allocation = sizes.maxMemoryAllocationSize;
    device->driver.pNext = NULL; /* it led to what ends here */
}

bool ellm_vulkan_can_size(const ellm_vulkan_device *device) {
    return (device->sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0;
}

bool ellm_vulkan_multiplies(const ellm_vulkan_api *api, const ellm_vulkan_device *device, uint32_t size,
                            uint32_t edge) {
    const ellm_vulkan_features *f = &device->features;
    const VkPhysicalDeviceSubgroupSizeControlProperties *sizes = &device->sizes;
    VkCooperativeMatrixPropertiesKHR list[most_matrices];
    uint32_t n = most_matrices;
    if (!f->has_matrix || f->half.shaderFloat16 == VK_FALSE || f->model.vulkanMemoryModel == VK_FALSE
        || f->sizes.computeFullSubgroups == VK_FALSE || f->matrix.cooperativeMatrix == VK_FALSE
        || sizes->minSubgroupSize > size || sizes->maxSubgroupSize < size
        || (!ellm_vulkan_can_size(device) && sizes->minSubgroupSize < sizes->maxSubgroupSize)
        || api->GetMatrices == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        list[i] = (VkCooperativeMatrixPropertiesKHR){.sType = ELLM_VULKAN_MATRIX_PROPERTIES};
    }
    bool found = false;
    n = api->GetMatrices(device->physical, &n, list) >= VK_SUCCESS ? n : 0;
    for (uint32_t i = 0; i < n; i++) {
        const VkCooperativeMatrixPropertiesKHR *m = &list[i];
        found = found
                || (m->MSize == edge && m->NSize == edge && m->KSize == edge && m->AType == 0 && m->BType == 0
                    && m->CType == 1 && m->ResultType == 1 && m->scope == 3 && m->saturatingAccumulation == VK_FALSE);
    }
    return found;
}

/* What of `needs` but matrices a device lacks. */
static const char *lacking(const ellm_vulkan_device *device, uint32_t needs) {
    const ellm_vulkan_features *f = &device->features;
    const bool computes = (device->subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0;
    if ((needs & ELLM_NEEDS_16BIT) != 0 && f->storage16.storageBuffer16BitAccess == VK_FALSE) {
        return "16-bit storage";
    }
    if ((needs & ELLM_NEEDS_8BIT) != 0 && f->storage8.storageBuffer8BitAccess == VK_FALSE) {
        return "8-bit storage";
    }
    if ((needs & ELLM_NEEDS_DOT) != 0 && f->dot.shaderIntegerDotProduct == VK_FALSE) {
        return "integer dot products";
    }
    if ((needs & ELLM_NEEDS_GROUP) != 0 && !computes) {
        return "subgroups";
    }
    if ((needs & ELLM_NEEDS_SUMS) != 0
        && (!computes || (device->subgroup.supportedOperations & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT) == 0)) {
        return "sums over subgroups";
    }
    return NULL;
}

static bool find_family(const ellm_vulkan_api *api, ellm_vulkan_device *device) {
    VkQueueFamilyProperties families[most_families];
    uint32_t n = most_families;
    api->GetPhysicalDeviceQueueFamilyProperties(device->physical, &n, families);
    for (uint32_t i = 0; i < n; i++) {
        if ((families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) != 0 && families[i].queueCount > 0) {
            device->family = i;
            device->timestamp_bits = families[i].timestampValidBits;
            return true;
        }
    }
    return false;
}

const char *ellm_vulkan_look(const ellm_vulkan_api *api, VkPhysicalDevice physical, uint32_t needs,
                             ellm_vulkan_device *device) {
    *device = (ellm_vulkan_device){.physical = physical};
    read_properties(api, device);
    const uint32_t version = device->properties.apiVersion;
    if (version < VK_API_VERSION_1_1) {
        return "Vulkan 1.1";
    }
    if (!find_family(api, device)) {
        return "a queue for computing";
    }
    if (!read_features(api, physical, version, &device->features)) {
        return "a list of extensions";
    }
    const char *lack = lacking(device, needs);
    if (lack == NULL && (needs & ELLM_NEEDS_MATRIX) != 0
        && !ellm_vulkan_multiplies(api, device, needs >> 16 & 255, needs >> 24)) {
        lack = "the matrix units that the bundle is compiled for";
    }
    return lack;
}

void ellm_vulkan_want(ellm_vulkan_features *f, uint32_t needs) {
    f->all.features = (VkPhysicalDeviceFeatures){0};
    f->all.pNext = &f->storage16;
    f->storage16 = (VkPhysicalDevice16BitStorageFeatures){.sType = f->storage16.sType,
                                                          .storageBuffer16BitAccess = (needs & ELLM_NEEDS_16BIT) != 0};
    f->storage8 = (VkPhysicalDevice8BitStorageFeatures){.sType = f->storage8.sType,
                                                        .storageBuffer8BitAccess = (needs & ELLM_NEEDS_8BIT) != 0};
    f->dot.shaderIntegerDotProduct = (needs & ELLM_NEEDS_DOT) != 0;
    f->dot.pNext = NULL;
    void **next = &f->storage16.pNext;
    if ((needs & ELLM_NEEDS_8BIT) != 0) {
        *next = &f->storage8;
        next = &f->storage8.pNext;
    }
    if ((needs & ELLM_NEEDS_DOT) != 0) {
        *next = &f->dot;
        next = &f->dot.pNext;
    }
    if ((needs & ELLM_NEEDS_MATRIX) != 0) {
        *next = link_matrix(f);
        f->half.shaderInt8 = f->model.vulkanMemoryModelDeviceScope = VK_FALSE;
        f->model.vulkanMemoryModelAvailabilityVisibilityChains = VK_FALSE;
        f->matrix.cooperativeMatrixRobustBufferAccess = VK_FALSE;
        f->extensions[f->n_extensions++] = matrix_extension;
    }
}

int ellm_vulkan_rank(const ellm_vulkan_device *device) {
    switch (device->properties.deviceType) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return 4;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return 3;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return 2;
    case VK_PHYSICAL_DEVICE_TYPE_OTHER: return 1;
    default: return 0;
    }
}
