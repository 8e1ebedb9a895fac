/* driver.h: what a driver says that a device can do, and what of it a bundle needs. */
#ifndef ELLM_VULKAN_DRIVER_H
#define ELLM_VULKAN_DRIVER_H

#include "api.h"

enum { ELLM_VULKAN_DEVICES = 16 }; /* most that are looked at */

/* What a device has, as the structures that are asked for and enabled. */
typedef struct ellm_vulkan_features {
    VkPhysicalDeviceFeatures2 all;
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDevice8BitStorageFeatures storage8;
    VkPhysicalDeviceShaderIntegerDotProductFeatures dot;
    VkPhysicalDeviceShaderFloat16Int8Features half;
    VkPhysicalDeviceVulkanMemoryModelFeatures model;
    VkPhysicalDeviceSubgroupSizeControlFeatures sizes;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix;
    const char *extensions[4]; /* that are not of its version */
    uint32_t n_extensions;
    bool has_import, has_matrix;
} ellm_vulkan_features;

typedef struct ellm_vulkan_device {
    VkPhysicalDevice physical;
    VkPhysicalDeviceProperties properties;
    VkPhysicalDeviceSubgroupProperties subgroup;
    VkPhysicalDeviceSubgroupSizeControlProperties sizes;
    VkPhysicalDeviceDriverProperties driver;
    VkDeviceSize most_allocation;
    ellm_vulkan_features features;   /* the first structure's chain leads to the others */
    uint32_t family, timestamp_bits; /* of its queue for computing */
} ellm_vulkan_device;

/* Asks a device for everything. Returns what of `needs` (shader.h) it lacks, in words; NULL if nothing. */
const char *ellm_vulkan_look(const ellm_vulkan_api *api, VkPhysicalDevice physical, uint32_t needs,
                             ellm_vulkan_device *device);
/* Whether its subgroups can be told how large to be. */
bool ellm_vulkan_can_size(const ellm_vulkan_device *device);
/* Whether subgroups of `size` multiply matrices of `edge` rows and columns, of f16 to sums of f32. */
bool ellm_vulkan_multiplies(const ellm_vulkan_api *api, const ellm_vulkan_device *device, uint32_t size, uint32_t edge);
/* Leaves in the chain what `needs` says, and names the extensions for it. */
void ellm_vulkan_want(ellm_vulkan_features *features, uint32_t needs);
/* 4 for a GPU of its own, down to 0 for a program that imitates one: which kind is taken first. */
int ellm_vulkan_rank(const ellm_vulkan_device *device);

#endif
